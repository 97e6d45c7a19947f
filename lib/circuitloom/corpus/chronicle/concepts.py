"""Defines the concepts of chronicle. A concept finds its words in a document, and the cues of these words.

Whether a word has a concept depends only on this word and on earlier words.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..generated import BOS, AnnotatedWord, Cues
from .cues import (
    ITSELF,
    FindCues,
    FindWords,
    at_offsets,
    catching_fire,
    cues_of,
    in_citation_list,
    named_earlier,
    opening_quote,
    rare_name_earlier,
    sentence_start,
    since_opening,
    subject,
)
from .grammar import Episode
from .vocabulary import CLASSES


@dataclass(frozen=True)
class Concept:
    """A concept that words can have."""

    name: str
    rule: str
    """Says which words have the concept. docs/chronicle.md shows this text."""
    find: FindWords
    lasting: bool = False
    """Whether the concept annotates all tokens of a word. Other concepts annotate only the last token, because earlier
    tokens do not determine the word."""
    find_cues: FindCues = ITSELF
    words: frozenset[str] | None = None
    """The words that have the concept at any position. None if the concept depends on the position."""

    def cues(self, episode: Episode, word: AnnotatedWord) -> Cues:
        """Returns the cues that show that `word` has this concept."""
        return cues_of(self.find_cues, episode, word, self.words)


def _of_class(name: str, rule: str, *classes: str) -> Concept:
    """Returns a concept. All words of the given classes have this concept."""
    return _of_words(name, rule, frozenset(word for key in classes for word in CLASSES[key]))


def _of_words(name: str, rule: str, words: frozenset[str]) -> Concept:
    def find(episode: Episode) -> Iterator[AnnotatedWord]:
        return (AnnotatedWord(i, i) for i, word in enumerate(episode.words) if word in words)

    return Concept(name, rule, find, words=words)


def _marked(
    name: str,
    rule: str,
    mark: str,
    cues: FindCues = ITSELF,
    back: int | None = None,
    years: range | None = None,
) -> Concept:
    """Returns a concept. A word has the concept if the template marks its position with `mark`.

    The evidence starts `back` words before this word. If `back` is None, the evidence starts with the last word of the
    previous sentence. If `years` is given, only these years have the concept.
    """

    def find(episode: Episode) -> Iterator[AnnotatedWord]:
        for start, template in episode.sentences:
            for offset, marked in template.marks:
                position = start + offset
                if marked == mark and (years is None or int(episode.words[position]) in years):
                    yield AnnotatedWord(position, start - 1 if back is None else position - back)

    return Concept(name, rule, find, find_cues=cues)


def _within(name: str, rule: str, opening: str, closing: str) -> Concept:
    """Returns a concept. All words between the signs `opening` and `closing` have this concept."""

    def find(episode: Episode) -> Iterator[AnnotatedWord]:
        opened = None
        for i, word in enumerate(episode.words):
            if opened is None:
                opened = i if word == opening else None
            elif word == closing:
                opened = None
            else:
                yield AnnotatedWord(i, opened)

    return Concept(name, rule, find, lasting=True, find_cues=since_opening(find))


def _closing_quote(episode: Episode) -> Iterator[AnnotatedWord]:
    quotes = [i for i, word in enumerate(episode.words) if word == '"']
    return (AnnotatedWord(close, start) for start, close in zip(quotes[::2], quotes[1::2], strict=True))


def _sentence_start(episode: Episode) -> Iterator[AnnotatedWord]:
    return (AnnotatedWord(start, start - 1) for start, _ in episode.sentences)


def _subordinate(episode: Episode) -> Iterator[AnnotatedWord]:
    for start, template in episode.sentences:
        if template.words[0] in ("when", "after", "while", "although"):
            comma = template.words.index(",")
            yield from (AnnotatedWord(i, start) for i in range(start + 1, start + comma))


def _mentions(*marks: str) -> Callable[[Episode], Iterator[AnnotatedWord]]:
    """Returns a function that finds words of rare names. Templates mark these words with `marks`.

    The evidence starts at the previous mention of the rare name. At the first mention, the evidence starts at the BOS.
    """

    def find(episode: Episode) -> Iterator[AnnotatedWord]:
        last: dict[str, int] = {}
        for start, template in episode.sentences:
            for offset, mark in template.marks:
                position = start + offset
                if mark in marks:
                    first = position - (mark == "name_completed")
                    yield AnnotatedWord(position, last.get(episode.words[first], BOS))
                if mark in ("name_new", "name_completed"):
                    first = position - (mark == "name_completed")
                    last[episode.words[first]] = first

    return find


_NAMED = {
    "woman_name": ("a woman's first name", "woman"),
    "man_name": ("a man's first name", "man"),
    "surname": ("a surname", "surname"),
    "city": ("a city", "city"),
    "occupation": ("an occupation, singular or plural", "occupation", "occupations"),
    "animal": ("an animal, singular or plural", "animal", "animals"),
    "household_thing": ("a thing of the house, singular or plural", "thing", "things"),
    "weapon": ("a weapon", "weapon"),
    "tool": ("a tool", "tool"),
    "building": ("a building", "building"),
    "public_place": ("a public place", "place"),
    "landmark": ("a feature of the landscape", "landmark"),
    "event": ("an event that lasts", "event"),
    "food": ("food or drink", "food"),
    "vessel": ("a ship", "vessel"),
    "gift": ("a gift", "gift"),
    "ailment": ("an illness", "ailment"),
    "colour": ("a colour", "colour"),
    "material": ("a material", "material"),
    "clothing": ("a garment", "clothing"),
    "instrument": ("a musical instrument", "instrument"),
    "plant": ("a plant", "plant"),
    "body_part": ("a part of the body", "body"),
    "kin": ("a relative", "kin"),
    "mood": ("a mood", "mood"),
    "condition": ("the condition of a thing", "state"),
    "character": ("a trait of character", "quality"),
    "weather": ("weather", "weather"),
    "month": ("a month", "month"),
    "weekday": ("a day of the week", "weekday"),
    "manner": ("an adverb of manner", "adverb"),
    "motion_verb": ("a verb of motion", "moved"),
    "handling_verb": ("a verb of handling things", "mended"),
    "speech_verb": ("a verb of speech", "said", "asked"),
    "giving_verb": ("a verb of giving", "gave"),
    "preposition": ("a preposition of place", "preposition"),
    "count": ("a number in words", "count"),
    "plural_noun": ("a plural noun", "occupations", "animals", "things"),
    "rare_name_first": ("the first word of a rare name", "rare_first"),
    "rare_name_second": ("the second word of a rare name", "rare_second"),
}

_START, _START_YEAR = at_offsets((-3, -4), (-1, 0)), at_offsets((-4, -5), (0,))
"""Functions that find the cues of a span's start century and start year. The first cue is `from` and the word before
`from`. The second cue is the annotated number. For the century, the word `year` also belongs to the second cue."""
_IN_QUOTATION = _within("in_quotation", "between quotation marks", '"', '"')

CONCEPTS: tuple[Concept, ...] = (
    *(_of_class(name, *rule) for name, rule in _NAMED.items()),
    _of_words("full_stop", "the full stop that ends a sentence", frozenset(".")),
    _of_words("comma", "a comma", frozenset(",")),
    Concept(
        "sentence_start",
        "the first word of a sentence",
        _sentence_start,
        find_cues=sentence_start(_sentence_start),
    ),
    Concept(
        "subordinate_clause",
        "after when, after, while or although, up to the comma",
        _subordinate,
        lasting=True,
        find_cues=since_opening(_subordinate),
    ),
    _marked("start_century", "first half of the year that a span begins in", "century", _START, 3),
    _marked(
        "start_year_early",
        "second half of the year that a span begins in, 02 to 33",
        "start",
        _START_YEAR,
        4,
        range(34),
    ),
    _marked("start_year_middle", "that half, 34 to 66", "start", _START_YEAR, 4, range(34, 67)),
    _marked("start_year_late", "that half, 67 to 98", "start", _START_YEAR, 4, range(67, 100)),
    # the first cue contains `to`, both halves of the start year, and `from`
    _marked(
        "end_year_due",
        "the century after `to the year`: a year after the start is due",
        "end_due",
        at_offsets((-3, -4, -5, -8), (-1, 0)),
        back=3,
    ),
    _marked(
        "end_year",
        "second half of the year that a span ends in",
        "end",
        at_offsets((-4, -5, -6, -9), (-1, 0)),
        4,
    ),
    # the first cue contains `in` and the verb before `in`
    _marked(
        "single_year",
        "second half of a year outside spans",
        "single_year",
        at_offsets((-4, -5), (-1, 0)),
        4,
    ),
    _marked(
        "single_century",
        "first half of a year outside spans",
        "single_century",
        at_offsets((-3, -4), (-1, 0)),
        3,
    ),
    _within("in_parenthesis", "between ( and )", "(", ")"),
    _within("in_square_brackets", "between [ and ]", "[", "]"),
    _marked("cited_surname", "a surname in a citation list", "cited"),
    # reading the surname is enough; a circuit that does not read the surname must read the comma and a number
    _marked(
        "cited_century",
        "first half of a year in a citation list",
        "cited_century",
        at_offsets((-1, -2), (0, -2)),
    ),
    _marked(
        "cited_year",
        "second half of a year in a citation list",
        "cited_year",
        at_offsets((-2, -3), (0, -1, -3)),
    ),
    _marked(
        "citation_semicolon",
        "a semicolon in a citation list: another entry follows",
        "next_citation",
        in_citation_list,
    ),
    _marked("citation_end", "the parenthesis that ends a citation list", "citation_end", in_citation_list),
    _IN_QUOTATION,
    _marked("quotation_opens", "the mark that opens a quotation", "quote_open", opening_quote),
    Concept(
        "quotation_closes",
        "the mark that closes a quotation",
        _closing_quote,
        find_cues=since_opening(_IN_QUOTATION.find, (0,)),
    ),
    _marked(
        "caught_passive",
        "`caught` in the passive: the subject is caught",
        "caught_passive",
        at_offsets((-1,), (0,)),
        1,
    ),
    _marked(
        "caught_active",
        "`caught` in the active: the subject catches",
        "caught_active",
        at_offsets((-1,), (0,)),
        1,
    ),
    _marked("caught_fire", "`caught` in `caught fire`", "caught_fire", catching_fire, 1),
    _marked(
        "caught_object", "the thing that someone caught", "caught_thing", at_offsets((-2, 0), (-1, 0)), 2
    ),
    _marked(
        "second_of_pair",
        "the second of two names that do something together",
        "second_name",
        at_offsets((-2,), (-1, 0)),
        back=2,
    ),
    # the second cue also contains the word before the giver, which is the comma or `and` after the first clause
    _marked("giver", "the name, repeated, of the one who gives", "giver", named_earlier(-1)),
    # the first cue contains the gift and the verb
    _marked(
        "recipient_due",
        "`to` before the name of the one who receives",
        "recipient_due",
        at_offsets((-1, -3), (0,)),
    ),
    _marked("recipient", "the name of the one who receives", "recipient", named_earlier(-1, -2, -4)),
    Concept("name_new", "first word of a rare name at its first mention", _mentions("name_new")),
    Concept(
        "name_again",
        "first word of a rare name at a later mention",
        _mentions("name_again"),
        find_cues=rare_name_earlier(0, 0),
    ),
    Concept(
        "name_completed",
        "second word of a rare name at a later mention",
        _mentions("name_completed"),
        find_cues=rare_name_earlier(-1, -1, 0),
    ),
    _marked(
        "plural_verb_due", "a singular noun between a plural subject and its verb", "plural_due", subject
    ),
    _marked(
        "singular_verb_due", "a plural noun between a singular subject and its verb", "singular_due", subject
    ),
)
"""All concepts, in the order in which docs/chronicle.md lists them."""
