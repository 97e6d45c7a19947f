"""Finds the cues of an annotation. Cues are words from which a concept can be recognised.

A cue is a set of alternative words. Reading one of these words is enough. For example, the opening parenthesis shows
that a word is in parentheses. An earlier word that only occurs in parentheses shows the same, so this word belongs to
the same cue. An annotation may have several cues. One word of each cue is enough to determine the annotation. A correct
circuit must read at least one word of each cue.
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
    """Position of the first word of the evidence, or `BOS`. The evidence is a span of words that decides the
    annotation. The last word of the evidence is the annotated word."""


class Cues(NamedTuple):
    """Cues and optional words of an annotation.

    A word is given by its position in the document. Positions are in ascending order.
    """

    required: tuple[tuple[int, ...], ...]
    """The cues. A circuit must read at least one word of each cue."""
    optional: tuple[int, ...]
    """Words that are in no cue. A circuit may read these words, because they follow from the cues."""


FindWords = Callable[[Episode], Iterable[AnnotatedWord]]
"""Finds the words of a document that have a concept."""
FindCues = Callable[[Episode, AnnotatedWord], Iterable[Iterable[int]]]
"""Finds the cues of an annotation. Each cue is a set of positions."""


def cues_of(
    find: FindCues, episode: Episode, word: AnnotatedWord, words: frozenset[str] | None = None
) -> Cues:
    """Returns the cues and the optional words of the annotation of `word`. `find` finds the cues.

    The optional words are the words of the evidence that are in no cue. Words before the last word of the previous
    sentence are never optional. If the concept is a class of words, `words` contains this class. Then the earlier
    words of the sentence may determine that a word of the class must follow. If they do, they are optional too.
    """
    required = tuple(tuple(sorted({p for p in cue if p >= BOS})) for cue in find(episode, word))
    start, template = _sentence(episode, word)
    certain = words is not None and _is_certain(template, word.position - start, words)
    evidence = range(start - 1 if certain else max(word.evidence_start, start - 1), word.position + 1)
    return Cues(required, tuple(sorted(set(evidence).difference(*required))))


def at_offsets(*cues: tuple[int, ...]) -> FindCues:
    """Returns a function that finds cues at fixed offsets from the annotated word.

    Each tuple of offsets gives one cue. Offset 0 is the annotated word, and offset -1 is the word before the
    annotated word.
    """
    return lambda _episode, word: [[word.position + offset for offset in cue] for cue in cues]


ITSELF = at_offsets((0,))
"""Finds one cue, which contains only the annotated word."""


def since_opening(find: FindWords, *others: tuple[int, ...]) -> FindCues:
    """Returns a function for concepts whose evidence starts with an opening sign. It finds one or more cues.

    The first cue contains the opening sign. It also contains each later word of the evidence, if `find` annotates this
    word at all its occurrences in the templates. Each tuple of offsets in `others` adds one cue.
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
    """Returns a function that finds one cue, which contains the last word of the previous sentence.

    If the annotated word only occurs at the start of sentences, the cue also contains the annotated word.
    """
    return lambda episode, word: [
        [word.evidence_start, *[word.position] * (episode.words[word.position] in _always_annotated(find))]
    ]


def in_citation_list(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues. The first cue contains the annotated sign.

    The second cue contains all words between the opening parenthesis and the annotated sign.
    """
    opening = max(i for i in range(word.position) if episode.words[i] == "(")
    return [[word.position], range(opening + 1, word.position)]


def opening_quote(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues. The first cue contains the quotation mark. The second cue introduces the quotation.

    If the mark starts a sentence, the second cue contains the last word of the previous sentence. Otherwise the
    second cue contains the verb of speech before the mark. If there is a colon after this verb, the second cue also
    contains the colon.
    """
    start, _ = _sentence(episode, word)
    before = word.position - 1
    if word.position == start:
        return [[word.position], [before]]
    return [[word.position], [before - 1, *[before] * (episode.words[before] == ":")]]


def catching_fire(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues. The first cue contains the annotated word. The second cue contains the thing that catches fire.

    If the thing has three words, such as `fair of Rome`, the second cue contains all three words.
    """
    length = 3 if episode.words[word.position - 2] == "of" else 1
    return [[word.position], range(word.position - length, word.position)]


def subject(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues. The first cue contains the subject, which is the second word of the sentence.

    The second cue contains the annotated word.
    """
    start, _ = _sentence(episode, word)
    return [[start + 1], [word.position]]


def named_earlier(*offsets: int) -> FindCues:
    """Returns a function that finds two cues. The first cue contains the annotated word, which is a name.

    The second cue contains the earlier mentions of this name in the sentence, and the words at `offsets`. Offsets
    count from the annotated word.
    """

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        start, _ = _sentence(episode, word)
        name = episode.words[word.position]
        mentions = [i for i in range(start, word.position) if episode.words[i] == name]
        return [[word.position], [*mentions, *(word.position + offset for offset in offsets)]]

    return find_cues


def rare_name_earlier(first: int, *offsets: int) -> FindCues:
    """Returns a function that finds two cues. The first cue contains the words at `offsets`.

    The second cue contains both words of each earlier mention of the rare name. The rare name starts at the offset
    `first`. Offsets count from the annotated word.
    """

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        name = word.position + first
        mentions = [i for i in range(name) if episode.words[i] == episode.words[name]]
        return [[word.position + offset for offset in offsets], [j for i in mentions for j in (i, i + 1)]]

    return find_cues


def _sentence(episode: Episode, word: AnnotatedWord) -> tuple[int, Template]:
    """Returns the position of the first word, and the template, of the sentence that contains `word`."""
    following = bisect(episode.sentences, word.position, key=lambda sentence: sentence[0])
    return episode.sentences[following - 1]


@cache
def _is_certain(template: Template, offset: int, words: frozenset[str]) -> bool:
    """Whether the words before `offset` show that one of `words` must stand at `offset`.

    All templates that can begin like `template` are checked. Two templates can begin alike if, at each position
    before `offset`, at least one word is possible in both templates.
    """
    before = template.supports[:offset]
    return all(
        supports[offset] <= words
        for supports in (other.supports for other in templates())
        if len(supports) > offset and all(one & other for one, other in zip(before, supports, strict=False))
    )


@cache
def _always_annotated(find: FindWords) -> frozenset[str]:
    """Returns each word that `find` annotates wherever this word occurs in a template."""
    annotated: set[str] = set()
    others: set[str] = set()
    for template in templates():
        # annotations depend only on signs and marks, so any word may fill the slots
        words = tuple(min(support) for support in template.supports)
        positions = {word.position for word in find(Episode(words, 0.0, ((0, template),)))}
        for position, support in enumerate(template.supports):
            (annotated if position in positions else others).update(support)
    return frozenset(annotated - others)
