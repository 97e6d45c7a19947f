"""Finds the cues of an annotation. A cue is a set of words that all give the same information.

For example, an opening parenthesis shows that later words are in parentheses. A word that occurs only in parentheses
shows the same, so this word belongs to the same cue. An annotation may have several cues. A correct circuit must read
at least one word of each cue.
"""

from bisect import bisect
from collections.abc import Callable, Iterable
from functools import cache

from ..generated import BOS, AnnotatedWord, Cues
from .grammar import Episode
from .slots import Template, templates

FindWords = Callable[[Episode], Iterable[AnnotatedWord]]
"""Finds the words of a document that have a concept."""
FindCues = Callable[[Episode, AnnotatedWord], Iterable[Iterable[int]]]
"""Finds the cues of an annotation. Each cue is a set of positions."""


def cues_of(
    find: FindCues, episode: Episode, word: AnnotatedWord, words: frozenset[str] | None = None
) -> Cues:
    """Returns the cues and the optional words of the annotation of `word`. `find` finds the cues.

    Optional words are the words of the evidence that are in no cue. Words before the last word of the previous sentence
    are never optional. `words` is the concept's class of words, or None. Earlier words of the sentence are also
    optional if they imply a word of this class.
    """
    required = tuple(tuple(sorted({p for p in cue if p >= BOS})) for cue in find(episode, word))
    start, template = _sentence(episode, word)
    certain = words is not None and _is_certain(template, word.position - start, words)
    evidence = range(start - 1 if certain else max(word.evidence_start, start - 1), word.position + 1)
    return Cues(required, tuple(sorted(set(evidence).difference(*required))))


def at_offsets(*cues: tuple[int, ...]) -> FindCues:
    """Returns a function that finds one cue for each tuple of offsets.

    Offset 0 is the annotated word. Offset -1 is the previous word.
    """
    return lambda _episode, word: [[word.position + offset for offset in cue] for cue in cues]


ITSELF = at_offsets((0,))
"""Finds one cue: the annotated word."""


def since_opening(find: FindWords, *others: tuple[int, ...]) -> FindCues:
    """Returns a function that finds cues of a word after an opening sign.

    The first cue contains the opening sign, and each later word of the evidence that `find` always annotates. Each
    tuple of offsets in `others` adds one cue.
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
    """Returns a function that finds one cue: the last word of the previous sentence.

    If the annotated word occurs only at sentence starts, the annotated word also belongs to the cue.
    """
    return lambda episode, word: [
        [word.evidence_start, *[word.position] * (episode.words[word.position] in _always_annotated(find))]
    ]


def in_citation_list(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues: the annotated sign, and all words between the opening parenthesis and this sign."""
    opening = max(i for i in range(word.position) if episode.words[i] == "(")
    return [[word.position], range(opening + 1, word.position)]


def opening_quote(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues. The first cue is the quotation mark.

    The second cue is the verb of speech before the mark, and the colon if there is one. If the mark starts a sentence,
    the second cue is the last word of the previous sentence.
    """
    start, _ = _sentence(episode, word)
    before = word.position - 1
    if word.position == start:
        return [[word.position], [before]]
    return [[word.position], [before - 1, *[before] * (episode.words[before] == ":")]]


def catching_fire(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues: the annotated word, and the thing that catches fire.

    The thing may have three words, such as `fair of Rome`.
    """
    length = 3 if episode.words[word.position - 2] == "of" else 1
    return [[word.position], range(word.position - length, word.position)]


def subject(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
    """Finds two cues: the subject, which is the second word of the sentence, and the annotated word."""
    start, _ = _sentence(episode, word)
    return [[start + 1], [word.position]]


def named_earlier(*offsets: int) -> FindCues:
    """Returns a function that finds two cues. The first cue is the annotated word, a name.

    The second cue contains earlier mentions of this name in the sentence, and the words at `offsets` from the annotated
    word.
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
    `first`. Offset 0 is the annotated word.
    """

    def find_cues(episode: Episode, word: AnnotatedWord) -> Iterable[Iterable[int]]:
        name = word.position + first
        mentions = [i for i in range(name) if episode.words[i] == episode.words[name]]
        return [[word.position + offset for offset in offsets], [j for i in mentions for j in (i, i + 1)]]

    return find_cues


def _sentence(episode: Episode, word: AnnotatedWord) -> tuple[int, Template]:
    """Returns (position of the first word, template) of the sentence that contains `word`."""
    following = bisect(episode.sentences, word.position, key=lambda sentence: sentence[0])
    return episode.sentences[following - 1]


@cache
def _is_certain(template: Template, offset: int, words: frozenset[str]) -> bool:
    """Whether the words before `offset` imply that one of `words` stands at `offset`.

    Checks all templates that can begin with the same words as `template`.
    """
    before = template.supports[:offset]
    return all(
        supports[offset] <= words
        for supports in (other.supports for other in templates())
        if len(supports) > offset and all(one & other for one, other in zip(before, supports, strict=False))
    )


@cache
def _always_annotated(find: FindWords) -> frozenset[str]:
    """Returns each word that `find` annotates at all positions where templates allow this word."""
    annotated: set[str] = set()
    others: set[str] = set()
    for template in templates():
        # annotations depend only on signs and marks, so any word may fill the slots
        words = tuple(min(support) for support in template.supports)
        positions = {word.position for word in find(Episode(words, 0.0, ((0, template),)))}
        for position, support in enumerate(template.supports):
            (annotated if position in positions else others).update(support)
    return frozenset(annotated - others)
