"""Cues are the words from which a concept can be recognised. A correct circuit must read them.

A cue is a set of alternative words, of which one is enough. For example, the opening parenthesis shows that a word
is in parentheses. An earlier word that only occurs in parentheses shows it too. An annotation may have several cues.
It is determined if one word of each cue is read.
"""

from bisect import bisect
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

from .grammar import Episode
from .slots import Template, templates

BOS = -1
"""Position of the BOS, which comes before the word at position 0."""


class AnnotatedWord(NamedTuple):
    """A word that has a concept."""

    position: int
    """Position of the word in its document, from 0."""
    evidence_start: int
    """First position of the evidence, the span of words that decides the annotation. The evidence ends with this
    word. May be `BOS`."""


class Cues(NamedTuple):
    """Cues of an annotation. Words are given by their positions in the document, in ascending order."""

    required: tuple[tuple[int, ...], ...]
    """The cues. A circuit must read at least one word of each."""
    optional: tuple[int, ...]
    """Words that are in no cue but may be read, because the cues determine them."""


FindWords = Callable[[Episode], Iterable[AnnotatedWord]]
"""Finds the words of a document that have a concept."""
FindCues = Callable[[Episode, AnnotatedWord], Iterable[Iterable[int]]]
"""Finds the cues of an annotation. Each cue is a set of positions."""


def cues_of(
    find: FindCues, episode: Episode, word: AnnotatedWord, words: frozenset[str] | None = None
) -> Cues:
    """Returns the cues of an annotation, with its optional words.

    The optional words are the other words of the evidence, back to the last word of the previous sentence. If the
    concept is a class of `words` and only such a word can follow the earlier words of the sentence, these earlier
    words are optional too.
    """
    required = tuple(tuple(sorted({p for p in cue if p >= BOS})) for cue in find(episode, word))
    start, template = _sentence(episode, word)
    certain = words is not None and _is_certain(template, word.position - start, words)
    evidence = range(start - 1 if certain else max(word.evidence_start, start - 1), word.position + 1)
    return Cues(required, tuple(sorted(set(evidence).difference(*required))))


def at_offsets(*cues: tuple[int, ...]) -> FindCues:
    """Cues at fixed offsets from the word. Offset 0 is the word itself, and -1 is the word before it."""
    return lambda _episode, word: [[word.position + offset for offset in cue] for cue in cues]


ITSELF = at_offsets((0,))
"""The only cue is the word itself."""


def since_opening(find: FindWords, *others: tuple[int, ...]) -> FindCues:
    """The first cue is the opening sign, or a later word that `find` annotates wherever it occurs.

    Each tuple of offsets in `others` adds one cue.
    """
    rest = at_offsets(*others)

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        unambiguous = _always_annotated(find)
        inside = range(word.evidence_start + 1, word.position + 1)
        return [
            [word.evidence_start, *(i for i in inside if episode.words[i] in unambiguous)],
            *rest(episode, word),
        ]

    return find_cues


def sentence_start(find: FindWords) -> FindCues:
    """The only cue is the last word of the previous sentence.

    The word itself is an alternative if it only occurs at the start of sentences.
    """
    return lambda episode, word: [
        [word.evidence_start, *[word.position] * (episode.words[word.position] in _always_annotated(find))]
    ]


def in_citation_list(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """One cue is the sign itself. The other cue is any word between the opening parenthesis and the sign."""
    opening = max(i for i in range(word.position) if episode.words[i] == "(")
    return [[word.position], range(opening + 1, word.position)]


def opening_quote(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """One cue is the quotation mark itself. The other cue is the word that introduces the quotation.

    At the start of a sentence, this is the end of the previous sentence. Elsewhere it is the verb of speech before
    the mark, or the colon after the verb.
    """
    start, _ = _sentence(episode, word)
    before = word.position - 1
    if word.position == start:
        return [[word.position], [before]]
    return [[word.position], [before - 1, *[before] * (episode.words[before] == ":")]]


def catching_fire(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """One cue is the word itself. The other cue is the thing that catches fire.

    If the thing is `fair of Rome`, each of these three words is enough.
    """
    length = 3 if episode.words[word.position - 2] == "of" else 1
    return [[word.position], range(word.position - length, word.position)]


def subject(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """One cue is the subject, which is the second word of the sentence. The other cue is the word itself."""
    start, _ = _sentence(episode, word)
    return [[start + 1], [word.position]]


def named_earlier(*offsets: int) -> FindCues:
    """One cue is the word itself.

    The other cue is its earlier mention in the sentence, or a word at one of `offsets`.
    """

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        start, _ = _sentence(episode, word)
        name = episode.words[word.position]
        mentions = [i for i in range(start, word.position) if episode.words[i] == name]
        return [[word.position], [*mentions, *(word.position + offset for offset in offsets)]]

    return find_cues


def rare_name_earlier(first: int, *offsets: int) -> FindCues:
    """One cue is a word at one of `offsets`. The other cue is any word of an earlier mention of the rare name.

    The rare name starts at offset `first` from the word.
    """

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        name = word.position + first
        mentions = [i for i in range(name) if episode.words[i] == episode.words[name]]
        return [[word.position + offset for offset in offsets], [j for i in mentions for j in (i, i + 1)]]

    return find_cues


def _sentence(episode: Episode, word: AnnotatedWord) -> tuple[int, Template]:
    """Returns the start position and the template of the sentence that contains the word."""
    following = bisect(episode.sentences, word.position, key=lambda sentence: sentence[0])
    return episode.sentences[following - 1]


@cache
def _is_certain(template: Template, offset: int, words: frozenset[str]) -> bool:
    """Whether all templates that can begin like `template` allow only `words` at `offset`.

    Two templates can begin alike if the same words can stand at all positions before `offset`.
    """
    before = template.supports[:offset]
    return all(
        supports[offset] <= words
        for supports in (other.supports for other in templates())
        if len(supports) > offset and all(one & other for one, other in zip(before, supports, strict=False))
    )


@cache
def _always_annotated(find: FindWords) -> frozenset[str]:
    """The words that `find` annotates wherever they occur in a template."""
    annotated: set[str] = set()
    others: set[str] = set()
    for template in templates():
        # annotations depend only on signs and marks, so any word may fill the slots
        words = tuple(min(support) for support in template.supports)
        positions = {word.position for word in find(Episode(words, 0.0, ((0, template),)))}
        for position, support in enumerate(template.supports):
            (annotated if position in positions else others).update(support)
    return frozenset(annotated - others)
