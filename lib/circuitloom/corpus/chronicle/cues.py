"""Cues: the words from which a concept can be recognised, and so the words that a correct circuit must read.

A cue is a set of alternative words: one of them is enough. That a word is in parentheses follows from the opening
parenthesis, and also from an earlier word that only occurs in parentheses. One word of each cue of an annotation
determines it.
"""

from bisect import bisect
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

from .grammar import Episode
from .slots import Template, templates

BOS = -1
"""Position of the BOS before a document's words."""


class AnnotatedWord(NamedTuple):
    """A word that has a concept."""

    position: int
    """Position of the word in its document, from 0."""
    evidence_start: int
    """First position of the evidence: the words, up to and including this one, that decide the annotation. May be
    `BOS`."""


class Cues(NamedTuple):
    """Cues of an annotation, as ascending positions in its document."""

    required: tuple[tuple[int, ...], ...]
    """The cues; one word of each is required."""
    optional: tuple[int, ...]
    """Words that are no cue but may be read: the cues determine them."""


FindWords = Callable[[Episode], Iterable[AnnotatedWord]]
"""Finds the words of a document that have a concept."""
FindCues = Callable[[Episode, AnnotatedWord], Iterable[Iterable[int]]]
"""Finds the cues of an annotation."""


def cues_of(
    find: FindCues, episode: Episode, word: AnnotatedWord, words: frozenset[str] | None = None
) -> Cues:
    """Cues of an annotation. Optional are the other words of its evidence that are in its own sentence.

    For a class of `words`, the earlier words of the sentence are optional as well if only such a word can follow them.
    """
    required = tuple(tuple(sorted({p for p in cue if p >= BOS})) for cue in find(episode, word))
    start, template = _sentence(episode, word)
    certain = words is not None and _is_certain(template, word.position - start, words)
    evidence = range(start - 1 if certain else max(word.evidence_start, start - 1), word.position + 1)
    return Cues(required, tuple(sorted(set(evidence).difference(*required))))


def at_offsets(*cues: tuple[int, ...]) -> FindCues:
    """Cues at fixed offsets from the word: 0 is the word itself, -1 the word before."""
    return lambda _episode, word: [[word.position + offset for offset in cue] for cue in cues]


ITSELF = at_offsets((0,))
"""The only cue is the word itself."""


def since_opening(find: FindWords, *others: tuple[int, ...]) -> FindCues:
    """A cue is the opening sign or a later word that `find` annotates wherever it occurs; more cues at `others`."""
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
    """One cue: the end of the previous sentence, or the word itself if it only occurs at the start of sentences."""
    return lambda episode, word: [
        [word.evidence_start, *[word.position] * (episode.words[word.position] in _always_annotated(find))]
    ]


def in_citation_list(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Two cues: the sign itself; any word of the citations before it."""
    opening = max(i for i in range(word.position) if episode.words[i] == "(")
    return [[word.position], range(opening + 1, word.position)]


def opening_quote(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Two cues: the quotation mark itself; the end of the previous sentence, or the verb of speech before the mark."""
    start, _ = _sentence(episode, word)
    before = word.position - 1
    if word.position == start:
        return [[word.position], [before]]
    return [[word.position], [before - 1, *[before] * (episode.words[before] == ":")]]


def catching_fire(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Two cues: the word itself; the thing that catches fire (of `fair of Rome` all three words)."""
    length = 3 if episode.words[word.position - 2] == "of" else 1
    return [[word.position], range(word.position - length, word.position)]


def subject(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Two cues: the subject, which is the second word of the sentence; the word itself."""
    start, _ = _sentence(episode, word)
    return [[start + 1], [word.position]]


def named_earlier(*offsets: int) -> FindCues:
    """Two cues: the word itself; its earlier mention in the sentence, or a word at one of `offsets`."""

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        start, _ = _sentence(episode, word)
        name = episode.words[word.position]
        mentions = [i for i in range(start, word.position) if episode.words[i] == name]
        return [[word.position], [*mentions, *(word.position + offset for offset in offsets)]]

    return find_cues


def rare_name_earlier(first: int, *offsets: int) -> FindCues:
    """Two cues: a word at one of `offsets`; a word of an earlier mention of the rare name that starts at `first`."""

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        name = word.position + first
        mentions = [i for i in range(name) if episode.words[i] == episode.words[name]]
        return [[word.position + offset for offset in offsets], [j for i in mentions for j in (i, i + 1)]]

    return find_cues


def _sentence(episode: Episode, word: AnnotatedWord) -> tuple[int, Template]:
    """Start position and template of the word's sentence."""
    following = bisect(episode.sentences, word.position, key=lambda sentence: sentence[0])
    return episode.sentences[following - 1]


@cache
def _is_certain(template: Template, offset: int, words: frozenset[str]) -> bool:
    """Whether only `words` can stand at `offset` of any template that agrees with `template` up to there."""
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
