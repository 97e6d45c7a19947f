"""Documents of chronicle: each a pure function of (seed, split, index), with its exact probability. Also greater-than
prompts in chronicle's words."""

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
"""Maximum number of words: with its own BOS and the next document's, a document fits a context of 128."""
LONGEST_SENTENCE = max(len(template.words) for template in templates())
"""Number of words of the longest template."""


@dataclass(frozen=True)
class Episode:
    """A document."""

    words: tuple[str, ...]
    log_probability: float
    """Log probability that the grammar generates exactly these words, in nats."""
    sentences: tuple[tuple[int, Template], ...]
    """(position of its first word, template) of each sentence."""

    @property
    def text(self) -> str:
        """The words, separated by spaces."""
        return " ".join(self.words)


def write_episode(seed: int, split: str, index: int) -> Episode:
    """Generate document `index` of `split` from its own random stream."""
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
    """Documents of `split` from index `start` on, without end."""
    for index in count(start):
        yield write_episode(seed, split, index)


def end_probability(sentences: int, words: int) -> float:
    """Probability that a document ends after this number of sentences and words.

    The number of sentences is uniform over `SENTENCES`, except that a document also ends if the longest sentence might
    not fit.
    """
    fewest, most = SENTENCES
    if sentences < fewest:
        return 0.0
    if words + LONGEST_SENTENCE > LONGEST_DOCUMENT:
        return 1.0
    return 1 / (most + 1 - sentences)


def vocabulary() -> tuple[str, ...]:
    """Every word that can occur, in a fixed order with numbers first."""
    fixed = (word for template in templates() for word in template.words if word)
    return tuple(dict.fromkeys([*NUMBERS, *fixed, *(word for words in CLASSES.values() for word in words)]))


def _choose(distribution: TemplateDistribution, quantile: float) -> tuple[Template, float]:
    index = bisect(distribution.cumulative, quantile)
    return distribution.templates[index], distribution.log_p[index]


def _fill(template: Template, uniform: Uniform, state: DocumentState, words: list[str]) -> float:
    """Append a sentence to `words`; returns the log probability of its words, in nats."""
    state.bound.clear()
    start = len(words)
    words += template.words
    log_p = 0.0
    for position, slot in template.slots:
        words[start + position], word_log_p = slot.fill(uniform, state)
        log_p += word_log_p
    return log_p


class GreaterThan(NamedTuple):
    """A year span, cut before the last two digits of its end year."""

    prompt: str
    """`the NOUN lasted from the year CC YY to the year CC`, without BOS."""
    start: int
    """YY; every later year of the century is equally likely to follow."""


def greater_than_prompts(seed: int, century: str = "17") -> list[GreaterThan]:
    """A prompt for each start year of the grammar (02 to 98), with a random noun.

    The template of Hanna et al. 2023, with two tokens per year.
    """
    nouns = random.Random(f"{seed}/greater_than")
    return [
        GreaterThan(
            f"the {nouns.choice(CLASSES['event'])} lasted from the year {century} {start} to the year {century}",
            int(start),
        )
        for start in UNIONS["start"]
    ]
