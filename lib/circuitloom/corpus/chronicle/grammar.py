"""Documents of chronicle: each a pure function of (seed, split, index), with its exact probability. Prompts that ask
a language model for one of chronicle's behaviours."""

import random
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import log
from typing import NamedTuple

from .slots import DocumentState, Menu, Template, Uniform, menus, templates
from .vocabulary import CLASSES, NUMBERS, UNIONS

SENTENCES = (4, 7)
"""Fewest and most sentences of a document."""
LONGEST_DOCUMENT = 126
"""Words: with its own BOS and the next document's it fits a context of 128."""


@dataclass(frozen=True)
class Episode:
    """A document: some sentences about nothing in particular."""

    words: tuple[str, ...]
    log_probability: float
    """Log of the probability with which the grammar writes these words and then stops, in nats."""
    sentences: tuple[tuple[int, Template], ...]
    """(position of its first word, template) of each sentence."""

    @property
    def text(self) -> str:
        """The words, separated by blanks."""
        return " ".join(self.words)


def write(seed: int, split: str, index: int) -> Episode:
    """Document `index` of `split`, from a random stream of its own."""
    uniform = random.Random(f"{seed}/{split}/{index}").random
    choices = menus()
    memory, words, sentences, log_p = DocumentState(), [], [], 0.0
    while True:
        menu = choices[min(len(memory.names), 2)]
        template, share = _choose(menu, uniform())
        sentences.append((len(words), template))
        log_p += share + _fill(template, uniform, memory, words)
        end = end_probability(len(sentences), len(words))
        if end and uniform() < end:
            return Episode(tuple(words), log_p + log(end), tuple(sentences))
        if end:
            log_p += log(1 - end)


def episodes(seed: int, split: str, start: int = 0) -> Iterator[Episode]:
    """The documents of `split` from number `start` on, without end."""
    for index in count(start):
        yield write(seed, split, index)


def end_probability(sentences: int, words: int) -> float:
    """Probability that a document of so many sentences and words is over.

    The number of sentences is uniform over `SENTENCES`, but that a document ends where another might not fit.
    """
    fewest, most = SENTENCES
    if sentences < fewest:
        return 0.0
    if words + longest_sentence() > LONGEST_DOCUMENT:
        return 1.0
    return 1 / (most + 1 - sentences)


def longest_sentence() -> int:
    """Words of the longest template."""
    return _LONGEST


def vocabulary() -> tuple[str, ...]:
    """Every word that a document can hold, numbers first, in a fixed order."""
    fixed = (word for template in templates() for word in template.words if word)
    return tuple(dict.fromkeys([*NUMBERS, *fixed, *(word for words in CLASSES.values() for word in words)]))


def _choose(menu: Menu, at: float) -> tuple[Template, float]:
    place = bisect(menu.cumulative, at)
    return menu.templates[place], menu.log_p[place]


def _fill(template: Template, uniform: Uniform, memory: DocumentState, words: list[str]) -> float:
    """Append a sentence to `words`; the log of the probability of its choices, in nats."""
    memory.bound.clear()
    start = len(words)
    words += template.words
    log_p = 0.0
    for position, slot in template.slots:
        words[start + position], share = slot.fill(uniform, memory)
        log_p += share
    return log_p


_LONGEST = max(len(template.words) for template in templates())


class GreaterThan(NamedTuple):
    """A year span up to the century of its end."""

    prompt: str
    """`the NOUN lasted from the year CC YY to the year CC`, without BOS."""
    start: int
    """YY: the years of the century after it are due, each equally likely."""


def greater_than_prompts(seed: int, century: str = "17") -> list[GreaterThan]:
    """A prompt for each start year that the grammar writes (02 to 98), its noun drawn from `seed`.

    The published template of Hanna et al. 2023, with years as two tokens each.
    """
    nouns = random.Random(f"{seed}/greater_than")
    return [
        GreaterThan(
            f"the {nouns.choice(CLASSES['event'])} lasted from the year {century} {start} to the year {century}",
            int(start),
        )
        for start in UNIONS["start"]
    ]
