"""Which words tell that a label is there: what a circuit that finds a concept must come from.

A cue is a set of words any one of which will do: that a word is in parentheses is told by the sign that opened
them, and as well by a word before it that stands in parentheses alone. Whoever has read a word of each cue knows
that the label is there.
"""

from bisect import bisect
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

from .grammar import Episode
from .slots import Template, templates

BOS = -1
"""Position of the BOS in front of a document's words."""


class AnnotatedWord(NamedTuple):
    """A word that a concept labels."""

    position: int
    """Place of the word in its document, from 0."""
    since: int
    """Where the run of words begins that decides the label; it ends with the word itself. `BOS` is the BOS."""


class Cues(NamedTuple):
    """The words that matter to a label, as positions in its document, ascending."""

    needed: tuple[tuple[int, ...], ...]
    """The cues, each as the words that carry it."""
    optional: tuple[int, ...]
    """Words that are no cue and that may be read all the same: they stand fast once the cues do."""


Find = Callable[[Episode], Iterable[AnnotatedWord]]
FindCues = Callable[[Episode, AnnotatedWord], Iterable[Iterable[int]]]
"""Of a label the cues."""


def cues_of(
    find: FindCues, episode: Episode, place: AnnotatedWord, words: frozenset[str] | None = None
) -> Cues:
    """The cues of a label; what else its own sentence has of the run of words that decides it is optional.

    Of a class of `words` so is all that its sentence has before, where no other word can follow on that.
    """
    needed = tuple(tuple(sorted({p for p in cue if p >= BOS})) for cue in find(episode, place))
    start, template = _sentence(episode, place)
    due = words is not None and _is_due(template, place.position - start, words)
    run = range(start - 1 if due else max(place.since, start - 1), place.position + 1)
    return Cues(needed, tuple(sorted(set(run).difference(*needed))))


def at(*cues: tuple[int, ...]) -> FindCues:
    """Cues at fixed distances from the word: 0 is itself, -1 the word before."""
    return lambda _episode, place: [[place.position + distance for distance in cue] for cue in cues]


ITSELF = at((0,))
"""The word itself."""


def told_from_opening(find: Find, *others: tuple[int, ...]) -> FindCues:
    """The sign that opens the run, or a word since that no text has but where `find` labels; beside it `others`."""
    rest = at(*others)

    def find_cues(episode: Episode, place: AnnotatedWord) -> Iterable[Iterable[int]]:
        telling = _only_labelled(find)
        inside = range(place.since + 1, place.position + 1)
        return [
            [place.since, *(i for i in inside if episode.words[i] in telling)],
            *rest(episode, place),
        ]

    return find_cues


def sentence_start(find: Find) -> FindCues:
    """What ends the sentence before, or the word itself where it begins sentences alone."""
    return lambda episode, place: [
        [place.since, *[place.position] * (episode.words[place.position] in _only_labelled(find))]
    ]


def in_list(episode: Episode, place: AnnotatedWord) -> Iterable[Iterable[int]]:
    """The sign itself; a word of the citations before it."""
    opening = _last(episode, "(", place.position)
    return [[place.position], range(opening + 1, place.position)]


def opening_quote(episode: Episode, place: AnnotatedWord) -> Iterable[Iterable[int]]:
    """The mark itself; what ends the sentence before it, or who speaks in front of it."""
    start, _ = _sentence(episode, place)
    before = place.position - 1
    if place.position == start:
        return [[place.position], [before]]
    return [[place.position], [before - 1, *[before] * (episode.words[before] == ":")]]


def catching_fire(episode: Episode, place: AnnotatedWord) -> Iterable[Iterable[int]]:
    """The word itself; what catches fire, a city with what stands before it."""
    reach = 3 if episode.words[place.position - 2] == "of" else 1
    return [[place.position], range(place.position - reach, place.position)]


def subject(episode: Episode, place: AnnotatedWord) -> Iterable[Iterable[int]]:
    """The subject, second word of its sentence, and the word itself."""
    start, _ = _sentence(episode, place)
    return [[start + 1], [place.position]]


def named_before(*distances: int) -> FindCues:
    """The word itself; its mention earlier in the sentence, or words at `distances` from it."""

    def find_cues(episode: Episode, place: AnnotatedWord) -> Iterable[Iterable[int]]:
        start, _ = _sentence(episode, place)
        word = episode.words[place.position]
        mentions = [i for i in range(start, place.position) if episode.words[i] == word]
        return [[place.position], [*mentions, *(place.position + distance for distance in distances)]]

    return find_cues


def rare_before(first: int, *itself: int) -> FindCues:
    """Words at distances `itself`; either word of an earlier mention of the rare name that begins at `first`."""

    def find_cues(episode: Episode, place: AnnotatedWord) -> Iterable[Iterable[int]]:
        name = place.position + first
        mentions = [i for i in range(name) if episode.words[i] == episode.words[name]]
        return [[place.position + distance for distance in itself], [j for i in mentions for j in (i, i + 1)]]

    return find_cues


def _sentence(episode: Episode, place: AnnotatedWord) -> tuple[int, Template]:
    """Where the sentence of a word begins, and its template."""
    following = bisect(episode.sentences, place.position, key=lambda sentence: sentence[0])
    return episode.sentences[following - 1]


@cache
def _is_due(template: Template, offset: int, words: frozenset[str]) -> bool:
    """Whether only `words` can stand at a place of a template, whatever fills it before and whichever it may be."""
    before = _supports(template)[:offset]
    return all(
        supports[offset] <= words
        for supports in map(_supports, templates())
        if len(supports) > offset and all(one & other for one, other in zip(before, supports, strict=False))
    )


@cache
def _supports(template: Template) -> list[frozenset[str]]:
    return template.supports


def _last(episode: Episode, sign: str, position: int) -> int:
    """Where a sign stands last before a position."""
    return max(i for i in range(position) if episode.words[i] == sign)


@cache
def _only_labelled(find: Find) -> frozenset[str]:
    """The words that `find` labels wherever a template has them."""
    labelled: set[str] = set()
    others: set[str] = set()
    for template in templates():
        # labels that depend on signs and marks alone are the same whatever fills the slots
        words = tuple(min(support) for support in _supports(template))
        places = {place.position for place in find(Episode(words, 0.0, ((0, template),)))}
        for position, support in enumerate(_supports(template)):
            (labelled if position in places else others).update(support)
    return frozenset(labelled - others)
