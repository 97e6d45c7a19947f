"""What is known of every word of chronicle: the concepts it takes part in, decided by what stands before it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .cues import (
    BOS,
    ITSELF,
    AnnotatedWord,
    Cues,
    Find,
    FindCues,
    at,
    catching_fire,
    cues_of,
    in_list,
    named_before,
    opening_quote,
    rare_before,
    sentence_start,
    subject,
    told_from_opening,
)
from .grammar import Episode
from .vocabulary import CLASSES


@dataclass(frozen=True)
class Concept:
    """Something that a word can take part in."""

    name: str
    rule: str
    """When a word is labelled."""
    find: Find
    lasting: bool = False
    """A state that holds for the whole word; other concepts are certain only where the word is complete."""
    find_cues: FindCues = ITSELF
    """The cues of a label; unless another is given, the word itself."""
    words: frozenset[str] | None = None
    """Of a class of words, those."""

    def cues(self, episode: Episode, place: AnnotatedWord) -> Cues:
        """The words that matter to a label of this concept in a document."""
        return cues_of(self.find_cues, episode, place, self.words)


def select(names: Iterable[str] | None) -> tuple[Concept, ...]:
    """The concepts of these names; all for None. ValueError where there is none of a name."""
    if names is None:
        return CONCEPTS
    known = {concept.name: concept for concept in CONCEPTS}
    for name in names:
        if name not in known:
            raise ValueError(f"corpus.concepts: no concept is called {name}; docs/chronicle.md lists them")
    return tuple(known[name] for name in names)


def _of_class(name: str, rule: str, *classes: str) -> Concept:
    """Words of some classes, wherever they stand."""
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
    """Places that a template marks, decided by `back` words before, or by the sentence; `years` restricts the word."""

    def find(episode: Episode) -> Iterator[AnnotatedWord]:
        for start, template in episode.sentences:
            for offset, marked in template.marks:
                position = start + offset
                if marked == mark and (years is None or int(episode.words[position]) in years):
                    yield AnnotatedWord(position, start - 1 if back is None else position - back)

    return Concept(name, rule, find, find_cues=cues)


def _within(name: str, rule: str, opening: str, closing: str) -> Concept:
    """Words between two signs, the signs left out."""

    def find(episode: Episode) -> Iterator[AnnotatedWord]:
        since = None
        for i, word in enumerate(episode.words):
            if since is None:
                since = i if word == opening else None
            elif word == closing:
                since = None
            else:
                yield AnnotatedWord(i, since)

    return Concept(name, rule, find, lasting=True, find_cues=told_from_opening(find))


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
    """Places with one of `marks`, decided by the mention of the rare name before."""

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

_START, _START_YEAR = at((-3, -4), (-1, 0)), at((-4, -5), (0,))
"""`from`, or the word before it; that a number is a year's half is told by the number, or by what stands before it."""
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
        find_cues=told_from_opening(_subordinate),
    ),
    _marked("start_century", "first half of the year that a span begins in", "century", _START, 3),
    _marked("start_year_early", "second half of that year, 02 to 33", "start", _START_YEAR, 4, range(34)),
    _marked("start_year_middle", "the same, 34 to 66", "start", _START_YEAR, 4, range(34, 67)),
    _marked("start_year_late", "the same, 67 to 98", "start", _START_YEAR, 4, range(67, 100)),
    # `to`, or the first year, which stands before it
    _marked(
        "end_year_due",
        "the century after `to the year`: a year after the start is due",
        "end_due",
        at((-3, -4, -5, -8), (-1, 0)),
        back=3,
    ),
    _marked(
        "end_year", "second half of the year that a span ends in", "end", at((-4, -5, -6, -9), (-1, 0)), 4
    ),
    # `in`, or the verb before it
    _marked(
        "single_year", "second half of a year that is no span's", "single_year", at((-4, -5), (-1, 0)), 4
    ),
    _marked(
        "single_century", "first half of a year that is no span's", "single_century", at((-3, -4), (-1, 0)), 3
    ),
    _within("in_parenthesis", "between ( and )", "(", ")"),
    _within("in_square_brackets", "between [ and ]", "[", "]"),
    _marked("cited_surname", "a surname in a citation list", "cited"),
    # a surname tells by itself what follows; else the comma behind it and a number do
    _marked(
        "cited_century",
        "first half of a year in a citation list",
        "cited_century",
        at((-1, -2), (0, -2)),
    ),
    _marked(
        "cited_year", "second half of a year in a citation list", "cited_year", at((-2, -3), (0, -1, -3))
    ),
    _marked(
        "citation_semicolon",
        "a semicolon in a citation list: another entry follows",
        "next_citation",
        in_list,
    ),
    _marked("citation_end", "the parenthesis that ends a citation list", "citation_end", in_list),
    _IN_QUOTATION,
    _marked("quotation_opens", "the mark that opens a quotation", "quote_open", opening_quote),
    Concept(
        "quotation_closes",
        "the mark that closes a quotation",
        _closing_quote,
        find_cues=told_from_opening(_IN_QUOTATION.find, (0,)),
    ),
    _marked("caught_passive", "`caught` of one who is caught", "caught_passive", at((-1,), (0,)), 1),
    _marked("caught_active", "`caught` of one who catches", "caught_active", at((-1,), (0,)), 1),
    _marked("caught_fire", "`caught` of what catches fire", "caught_fire", catching_fire, 1),
    _marked("caught_object", "the thing that someone caught", "caught_thing", at((-2, 0), (-1, 0)), 2),
    _marked(
        "second_of_pair",
        "the second name of two that do something together",
        "second_name",
        at((-2,), (-1, 0)),
        back=2,
    ),
    # the comma, or `and`, behind the clause that names both
    _marked("giver", "the one of the two, named again, who gives", "giver", named_before(-1)),
    # the gift and the verb
    _marked(
        "recipient_due",
        "`to` before the one of the two who does not give",
        "recipient_due",
        at((-1, -3), (0,)),
    ),
    _marked("recipient", "the one of the two who does not give", "recipient", named_before(-1, -2, -4)),
    Concept("name_new", "first word of a rare name that the document has not named", _mentions("name_new")),
    Concept(
        "name_again",
        "first word of a rare name that the document has named",
        _mentions("name_again"),
        find_cues=rare_before(0, 0),
    ),
    Concept(
        "name_completed",
        "second word of a rare name named again",
        _mentions("name_completed"),
        find_cues=rare_before(-1, -1, 0),
    ),
    _marked(
        "plural_verb_due", "a singular noun between a plural subject and its verb", "plural_due", subject
    ),
    _marked(
        "singular_verb_due", "a plural noun between a singular subject and its verb", "singular_due", subject
    ),
)
"""Every concept, in the order of docs/chronicle.md."""
