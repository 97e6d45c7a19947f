"""Generates the documents of chronicle, and computes the exact probability of each document. A document depends only
on (seed, split, index). Also generates greater-than prompts from the words of chronicle."""

import random
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import log
from typing import NamedTuple

from .slots import DocumentState, Template, TemplateDistribution, Uniform, template_distributions, templates
from .vocabulary import CLASSES, NUMBERS, UNIONS

SENTENCES = (4, 7)
"""Minimum and maximum number of sentences per document."""
LONGEST_DOCUMENT = 126
"""Maximum number of words per document. A context of 128 tokens has room for the BOS of a document, all words of the
document, and the BOS of the next document."""
LONGEST_SENTENCE = max(len(template.words) for template in templates())
"""Number of words of the longest template."""


@dataclass(frozen=True)
class Episode:
    """A document of chronicle."""

    words: tuple[str, ...]
    log_probability: float
    """Log probability that the grammar generates exactly these words, in nats."""
    sentences: tuple[tuple[int, Template], ...]
    """Each sentence as (position of its first word, its template)."""

    @property
    def text(self) -> str:
        """The words of the document, separated by spaces."""
        return " ".join(self.words)


def write_episode(seed: int, split: str, index: int) -> Episode:
    """Generate document number `index` of `split`. Each document has its own stream of random numbers."""
    uniform = random.Random(f"{seed}/{split}/{index}").random
    distributions = template_distributions()
    state, words, sentences, log_p = DocumentState(), [], [], 0.0
    while True:
        distribution = distributions[min(len(state.names), 2)]
        template, template_log_p = _choose(distribution, uniform())
        sentences.append((len(words), template))
        log_p += template_log_p + _fill(template, uniform, state, words)
        end = end_probability(len(sentences), len(words))
        if end and uniform() < end:
            return Episode(tuple(words), log_p + log(end), tuple(sentences))
        if end:
            log_p += log(1 - end)


def episodes(seed: int, split: str, start: int = 0) -> Iterator[Episode]:
    """Yield the documents of `split`, beginning with document number `start`. The iterator never ends."""
    for index in count(start):
        yield write_episode(seed, split, index)


def end_probability(sentences: int, words: int) -> float:
    """Returns the probability that a document ends when it has `sentences` sentences and `words` words.

    All numbers of sentences from the minimum to the maximum in `SENTENCES` are equally likely. A document ends
    earlier if the longest sentence would make it longer than `LONGEST_DOCUMENT`.
    """
    fewest, most = SENTENCES
    if sentences < fewest:
        return 0.0
    if words + LONGEST_SENTENCE > LONGEST_DOCUMENT:
        return 1.0
    return 1 / (most + 1 - sentences)


def vocabulary() -> tuple[str, ...]:
    """Returns every word that can occur in a document. The order is fixed, and the numbers come first."""
    fixed = (word for template in templates() for word in template.words if word)
    return tuple(dict.fromkeys([*NUMBERS, *fixed, *(word for words in CLASSES.values() for word in words)]))


def _choose(distribution: TemplateDistribution, quantile: float) -> tuple[Template, float]:
    index = bisect(distribution.cumulative, quantile)
    return distribution.templates[index], distribution.log_p[index]


def _fill(template: Template, uniform: Uniform, state: DocumentState, words: list[str]) -> float:
    """Append the words of a sentence to `words`.

    Returns the log probability of the appended words, given the template, in nats.
    """
    state.bound.clear()
    start = len(words)
    words += template.words
    log_p = 0.0
    for position, slot in template.slots:
        words[start + position], word_log_p = slot.fill(uniform, state)
        log_p += word_log_p
    return log_p


class GreaterThan(NamedTuple):
    """A greater-than prompt. It is the beginning of a sentence about an event with a start year and an end year.

    The prompt ends before the last two digits of the end year.
    """

    prompt: str
    """Text of the form `the NOUN lasted from the year CC YY to the year CC`, without BOS."""
    start: int
    """The number YY, the last two digits of the start year. In chronicle, all numbers greater than YY are equally
    likely as the next word."""


def greater_than_prompts(seed: int, century: str = "17") -> list[GreaterThan]:
    """Returns one prompt for each possible start year (02 to 98) of the century. Each prompt has a random noun.

    The prompts follow the template of Hanna et al. 2023. In contrast to that template, each year has two tokens.
    """
    nouns = random.Random(f"{seed}/greater_than")
    return [
        GreaterThan(
            f"the {nouns.choice(CLASSES['event'])} lasted from the year {century} {start} to the year {century}",
            int(start),
        )
        for start in UNIONS["start"]
    ]
