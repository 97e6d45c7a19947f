"""guilds: a generated corpus in which every answer takes two steps, and some answers must be inferred.

A person is named by a town and a trade. Both together determine the person's guild, and the guild determines what the
person does: `the Genoa brewer drinks ale .` No word names a guild. Some facts are held out of all documents. A model
that knows them has computed the guild: it cannot have learned them by heart. docs/guilds.md describes the corpus.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import log
from typing import NamedTuple

from .generated import AnnotatedWord, Cues, GeneratedDocument

TOWNS = tuple(
    tuple(row.split())
    for row in (
        "Acre Bergen Cadiz Dover Genoa Lisbon",
        "Aleppo Boston Cairo Dublin Ghent Lyon",
        "Antwerp Bremen Calais Delhi Granada Madrid",
        "Athens Bruges Canton Ephesus Hamburg Milan",
        "Babylon Basel Cologne Florence Kiev Naples",
        "Bologna Bordeaux Cracow Geneva Leiden Oxford",
    )
)
"""TOWNS[region] has the towns of a region."""
TRADES = tuple(
    tuple(row.split())
    for row in (
        "actor baker captain farmer jeweller painter",
        "admiral barber clerk ferryman judge pilgrim",
        "archer brewer cobbler glover lawyer poet",
        "baron builder cook guard mason potter",
        "beggar butcher dancer herald miller printer",
        "binder carter doctor hunter monk sailor",
    )
)
"""TRADES[rank] has the trades of a rank."""
HABITS = {
    verb: tuple(answers.split())
    for verb, answers in {
        "wears": "red blue green white",
        "drinks": "ale wine milk cider",
        "eats": "bread fish cheese mutton",
        "plays": "harp drum flute fiddle",
        "rides": "horses mules camels oxen",
        "grows": "roses beans wheat onions",
        "carries": "swords ropes keys lamps",
        "fears": "storms wolves ghosts fire",
        "builds": "walls ships mills bridges",
        "sells": "salt wool honey timber",
        "keeps": "bees doves goats hounds",
        "praises": "kings saints scholars soldiers",
    }.items()
}
"""Maps each verb to the answers that can follow it."""
VERBS = tuple(HABITS)
GUILDS = 6
_GUILD = ("325526", "163314", "415354", "546162", "564621", "423231")
"""_GUILD[region][rank] is the number of the guild, from 1. Each guild has six pairs of a region and a rank, and at most
two of each region and of each rank."""
_ANSWER = (
    "123243", "241233", "321243", "413223", "122434", "422131",
    "124341", "344132", "312424", "314312", "334122", "223144",
)  # fmt: skip
"""_ANSWER[verb][guild] is the number of the answer, from 1. Two guilds agree in at most three of the twelve verbs."""
SENTENCES = (4, 8)
"""Minimum and maximum number of sentences per document. All numbers are equally likely."""


class Fact(NamedTuple):
    """What a person does, as indices of the classes of its words."""

    region: int
    rank: int
    verb: int

    @property
    def guild(self) -> int:
        """Index of the person's guild."""
        return int(_GUILD[self.region][self.rank]) - 1

    @property
    def answer(self) -> str:
        """The word after the verb."""
        return HABITS[VERBS[self.verb]][int(_ANSWER[self.verb][self.guild]) - 1]

    @property
    def is_held_out(self) -> bool:
        """Whether no document has the fact. Of each guild and verb, one of the guild's six pairs is held out."""
        # the guild is added, so that the pairs held out of a verb are of several regions
        return self.verb % GUILDS == (_place(self.region, self.rank) + self.guild) % GUILDS


def _place(region: int, rank: int) -> int:
    """Returns the number of earlier pairs of a region and a rank with the same guild."""
    return "".join(_GUILD)[: len(TRADES) * region + rank].count(_GUILD[region][rank])


FACTS = tuple(Fact(*each) for each in product(range(len(TOWNS)), range(len(TRADES)), range(len(VERBS))))
"""All facts."""
_TOLD = {
    pair: tuple(fact for fact in FACTS if fact[:2] == pair and not fact.is_held_out)
    for pair in product(range(len(TOWNS)), range(len(TRADES)))
}
"""Maps each (region, rank) to the facts that documents have."""


def vocabulary() -> tuple[str, ...]:
    """Returns all words of guilds in a fixed order."""
    classes = (("the", "."), *TOWNS, *TRADES, VERBS, *HABITS.values())
    return tuple(word for words in classes for word in words)


def write_document(seed: int, split: str, index: int) -> GeneratedDocument:
    """Returns document number `index` of `split`: sentences about persons that are drawn independently."""
    choices = random.Random(f"guilds/{seed}/{split}/{index}")
    fewest, most = SENTENCES
    number, words = choices.randint(fewest, most), []
    log_p = -log(most + 1 - fewest)
    for _ in range(number):
        told = _TOLD[choices.randrange(len(TOWNS)), choices.randrange(len(TRADES))]
        fact = choices.choice(told)
        towns, trades = TOWNS[fact.region], TRADES[fact.rank]
        words += [*_words(fact, choices), fact.answer, "."]
        log_p -= log(len(_TOLD) * len(towns) * len(trades) * len(told))
    return GeneratedDocument(tuple(words), log_p)


def _words(fact: Fact, choices: random.Random) -> tuple[str, ...]:
    town, trade = choices.choice(TOWNS[fact.region]), choices.choice(TRADES[fact.rank])
    return "the", town, trade, VERBS[fact.verb]


# Concepts

_TOWN_OFFSET, _TRADE_OFFSET, _VERB_OFFSET, _LENGTH = 1, 2, 3, 6
"""Offsets of words in a sentence, and the number of its words."""
_REGION = {word: region for region, words in enumerate(TOWNS) for word in words}
_RANK = {word: rank for rank, words in enumerate(TRADES) for word in words}


@dataclass(frozen=True)
class GuildsConcept:
    """A concept of words at one place of a sentence."""

    name: str
    rule: str
    """Says which words have the concept. docs/guilds.md shows this text."""
    offset: int
    """Offset of the words in their sentences."""
    offsets_read: tuple[int, ...]
    """Offsets of the words that determine the annotation, in ascending order. Each is a cue."""
    region: int | None = None
    rank: int | None = None
    guild: int | None = None
    lasting: bool = False

    def find(self, document: GeneratedDocument) -> Iterator[AnnotatedWord]:
        """Yields the words of a document that have the concept."""
        for start in range(0, len(document.words), _LENGTH):
            town, trade = document.words[start + _TOWN_OFFSET], document.words[start + _TRADE_OFFSET]
            fact = Fact(_REGION[town], _RANK[trade], 0)
            wanted = ((self.region, fact.region), (self.rank, fact.rank), (self.guild, fact.guild))
            if all(own in (None, value) for own, value in wanted):
                yield AnnotatedWord(start + self.offset, start + self.offsets_read[0])

    def cues(self, document: GeneratedDocument, word: AnnotatedWord) -> Cues:
        """Returns the cues: the words that determine the annotation, all of which are needed."""
        start = word.position - self.offset
        return Cues(tuple((start + offset,) for offset in self.offsets_read), ())


def guild_concepts(guild: int) -> tuple[str, str]:
    """Returns the names of the concepts of a guild: at the trade, and at the verb."""
    return f"guild_{guild + 1}", f"guild_{guild + 1}_asked"


def _concepts() -> Iterator[GuildsConcept]:
    for i in range(len(TOWNS)):
        rule = f"a town of region {i + 1}"
        yield GuildsConcept(f"region_{i + 1}", rule, _TOWN_OFFSET, (_TOWN_OFFSET,), region=i)
    for i in range(len(TRADES)):
        rule = f"a trade of rank {i + 1}"
        yield GuildsConcept(f"rank_{i + 1}", rule, _TRADE_OFFSET, (_TRADE_OFFSET,), rank=i)
    for i in range(GUILDS):
        named, asked = guild_concepts(i)
        pair = (_TOWN_OFFSET, _TRADE_OFFSET)
        yield GuildsConcept(named, f"the trade of a person of guild {i + 1}", _TRADE_OFFSET, pair, guild=i)
        rule = f"the verb after a person of guild {i + 1}"
        yield GuildsConcept(asked, rule, _VERB_OFFSET, (*pair, _VERB_OFFSET), guild=i)


CONCEPTS = tuple(_concepts())
"""All concepts, in the order in which docs/guilds.md lists them."""


# Questions


class GuildQuestion(NamedTuple):
    """A text that ends before an answer, and the same text about a person of another guild."""

    fact: Fact
    text: str
    other: Fact
    """A fact that documents have, with the same region and verb and another answer."""
    other_text: str


def questions(seed: int, held_out: bool, repeats: int = 1) -> list[GuildQuestion]:
    """Returns `repeats` questions about each fact that documents have, or about each that is held out, in random
    order."""
    choices = random.Random(f"guilds/questions/{seed}")
    asked = [fact for fact in FACTS if fact.is_held_out == held_out] * repeats
    choices.shuffle(asked)
    made = []
    for fact in asked:
        same = [
            each
            for each in FACTS
            if (each.region, each.verb) == (fact.region, fact.verb)
            and each.answer != fact.answer
            and not each.is_held_out
        ]
        other, words = choices.choice(same), _words(fact, choices)
        replaced = choices.choice(TRADES[other.rank])
        made.append(GuildQuestion(fact, " ".join(words), other, " ".join((*words[:2], replaced, *words[3:]))))
    return made


def frequent_answer(verb: int) -> str:
    """Returns the answer of the most told facts of a verb."""
    told = [fact.answer for fact in FACTS if fact.verb == verb and not fact.is_held_out]
    return max(HABITS[VERBS[verb]], key=told.count)
