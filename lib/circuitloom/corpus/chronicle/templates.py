"""Lists the templates of the sentences of chronicle, grouped by behaviour.

A template consists of words and slots, separated by spaces:

- `<class>` draws a word of a class. `<class:tag>` also binds the drawn word to a tag. `<class!tag>` draws a word of
  the class, but not the word that is bound to the tag.
- `<=tag>` repeats the word that is bound to a tag. `<a|b:s>` repeats the word of tag a or b, and binds this word to
  tag s. A later `<a|b!s>` repeats the word of the other tag.
- `<later=tag>` draws a later year of the same century. The start year is the word of the tag.
- `<new_first> <new_second>` introduces a rare name. `<known_first> <known_second>` repeats an earlier rare name.
- `@mark` after a word or slot marks this position. Concepts find positions by their marks.

The grammar generates each text in exactly one way, for two reasons. A full stop occurs only at the end of a template.
Two templates of equal length never generate the same sentence. tests/corpus/test_grammar.py tests both properties.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TemplateGroup:
    """The templates of one behaviour and their frequencies."""

    weight: tuple[int, int, int]
    """Relative frequencies of the behaviour in documents with zero, one and two rare names so far."""
    templates: dict[str, int]
    """Maps each template to its relative frequency within the behaviour."""


def _equally(*templates: str) -> dict[str, int]:
    return dict.fromkeys(templates, 1)


_SPAN = "from the year <century:c>@century <start:y>@start to the year <=c>@end_due <later=y>@end"
_YEAR_SPAN = _equally(
    f"the <event> lasted {_SPAN} .",
    f"the <event> lasted {_SPAN} and ruined <city> .",
    f"the <event> of <city> raged {_SPAN} .",
    f"the <building> stood deserted {_SPAN} .",
    f"the <occupation> lived here {_SPAN} .",
    f"<person> ruled <city> {_SPAN} .",
    f"{_SPAN} the <occupations> held <city> .",
)

_ENTRY = "<surname>@cited , <recent>@cited_century <number>@cited_year"
_LEADS = (
    "several writers agree",
    "this is well known",
    "the <event> is described elsewhere",
    "<person> was praised for it",
)
_CITATION_LIST = {
    f"{lead} ( {' ;@next_citation '.join([_ENTRY] * entries)} )@citation_end .": 5 - entries
    for lead in _LEADS
    for entries in (1, 2, 3, 4)
}

_CAUGHT = _equally(
    "<pronoun> was caught@caught_passive by the <occupation> .",
    "<person> was caught@caught_passive by the <occupations> near the <landmark> .",
    "the <animal> was caught@caught_passive in the <building> .",
    "<pronoun> caught@caught_active the <catchable>@caught_thing with both hands .",
    "<person> caught@caught_active the <catchable>@caught_thing in the <place> .",
    "the <occupation> caught@caught_active one bad <ailment> in <month> .",
    "the <building> caught@caught_fire fire in <month> .",
    "the <place> of <city> caught@caught_fire fire .",
)

_PAIR = "<person:a> and <person!a:b>@second_name"
_GIVING = "<a|b:s>@giver <gave> the <gift> to@recipient_due <a|b!s>@recipient ."
_INDIRECT_OBJECT = _equally(
    f"when {_PAIR} went to the <place> , {_GIVING}",
    f"after {_PAIR} left the <building> , {_GIVING}",
    f"while {_PAIR} waited near the <landmark> , {_GIVING}",
    f"{_PAIR} met in <city> , and {_GIVING}",
)

_NEW = "<new_first>@name_new <new_second>"
_KNOWN = "<known_first>@name_again <known_second>@name_completed"
_INTRODUCTION = _equally(
    f"the {_NEW} sailed from <city> in <month> .",
    f"one <vessel> called the {_NEW} came to <city> .",
    f"people still spoke of the {_NEW} .",
)
_TWO_MENTIONS = _equally(
    f"the {_NEW} left with the <vessel> , but the {_KNOWN} came again .",
    f"the {_NEW} rounded the <landmark> and soon the {_KNOWN} came home .",
)
_RECALL = _equally(
    f"the {_KNOWN} was seen near the <landmark> .",
    f"the crew of the {_KNOWN} wanted <food> .",
    f"later the {_KNOWN} returned to <city> .",
    f"nobody could sink the {_KNOWN} .",
    f"the <occupation> boarded the {_KNOWN} in <month> .",
)

_AGREEMENT = _equally(
    "the <things> <preposition> the <thing>@plural_due were <state> .",
    "the <thing> <preposition> the <things>@singular_due was <state> .",
    "the <things> <preposition> the <things> were <state> .",
    "the <thing> <preposition> the <thing> was <state> .",
    "the <occupations> who served the <occupation>@plural_due were <mood> .",
    "the <occupation> who served the <occupations>@singular_due was <mood> .",
    "the <animals> that chased the <animal>@plural_due were <colour> .",
    "the <animal> that chased the <animals>@singular_due was <colour> .",
)

_QUOTATION = _equally(
    '"@quote_open where is the <thing> ? "@quote_close <asked> <person> .',
    '"@quote_open the <building> is closed today , "@quote_close <said> the <occupation> .',
    '"@quote_open we need <food:f> and <food!f> ! "@quote_close <said> the <occupations> .',
    '"@quote_open who took my <clothing> ? "@quote_close <asked> the <kin> of <person> .',
    '<person> <said> , "@quote_open the <animals> are in the <place> "@quote_close .',
    'the <occupation> <said> : "@quote_open bring the <weapon> to <city> "@quote_close .',
)

_BRACKETS = _equally(
    "the <place> ( formerly the <building> ) was full of <animals> .",
    "<person> ( the <kin> of <person> ) lived in <city> .",
    "the <food> ( mostly from <city> ) arrived on <weekday> .",
    "the <event> [ here the page is missing ] ended in <month> .",
    "the <occupation> wrote [ in <colour> ink ] about the <event> .",
)

_NEUTRAL = _equally(
    "it was one <weather> <daytime> in <month> .",
    "the <quality> <occupation> <moved> to the <place> .",
    "<person> wore the <colour> <clothing> .",
    "the <animals> <moved> across the <landmark> .",
    "there was little <food> in <city> .",
    "on <weekday> the <kin> of <person> played the <instrument> .",
    "some <colour> <plant> grew along the <landmark> .",
    "the <occupations> <adverb> <mended> the <material> <thing> .",
    "he hurt his <body> with the <tool> .",
    "she hurt her <body> with the <tool> .",
    "the <weather> season ended ; the <occupations> waited .",
    "<count> <things> were found in the <building> .",
    "<pronoun> felt <mood> but kept quiet .",
    "although the <event> was over , <city> remained <mood> .",
    "in <city> the <occupation> <adverb> <moved> away .",
    "<person> carried the <weapon> and the <tool> .",
    "one <occupation> from <city> married the <kin> of the <occupation> .",
    "the <event> began in the year <century>@single_century <number>@single_year .",
    "<person> was born in the year <century>@single_century <number>@single_year .",
    "the <instrument> was made of <material> .",
    "the <vessel> carried <food> from <city> .",
    "the <gift> lay <preposition> the <plant> .",
)

BEHAVIOURS: dict[str, TemplateGroup] = {
    "year_span": TemplateGroup((18, 18, 18), _YEAR_SPAN),
    "citation_list": TemplateGroup((13, 13, 13), _CITATION_LIST),
    "caught": TemplateGroup((10, 10, 10), _CAUGHT),
    "indirect_object": TemplateGroup((11, 11, 11), _INDIRECT_OBJECT),
    "introduction": TemplateGroup((9, 3, 0), _INTRODUCTION),
    # only if the document has no other name is it certain which name the sentence repeats
    "two_mentions": TemplateGroup((5, 0, 0), _TWO_MENTIONS),
    "recall": TemplateGroup((0, 11, 14), _RECALL),
    "agreement": TemplateGroup((11, 11, 11), _AGREEMENT),
    "quotation": TemplateGroup((8, 8, 8), _QUOTATION),
    "brackets": TemplateGroup((6, 6, 6), _BRACKETS),
    "neutral": TemplateGroup((20, 20, 20), _NEUTRAL),
}
