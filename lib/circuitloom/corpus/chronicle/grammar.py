"""Generates the documents of chronicle with their exact probabilities, and greater-than prompts in chronicle's
words. A document is a pure function of (seed, split, index)."""

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
"""Maximum number of words per document. Together with its own BOS and the BOS of the next document, a document fits
into a context of 128 tokens."""
LONGEST_SENTENCE = max(len(template.words) for template in templates())
"""Number of words of the longest template."""


@dataclass(frozen=True)
class Episode:
    """A document."""

    words: tuple[str, ...]
    log_probability: float
    """Log probability that the grammar generates exactly these words, in nats."""
    sentences: tuple[tuple[int, Template], ...]
    """The position of the first word and the template of each sentence."""

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
    """Yield the documents of `split` from index `start` on, without end."""
    for index in count(start):
        yield write_episode(seed, split, index)


def end_probability(sentences: int, words: int) -> float:
    """Probability that a document ends after this number of sentences and words.

    The number of sentences is uniform from the minimum to the maximum of `SENTENCES`. A document ends earlier if the
    longest sentence would no longer fit.
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
    """Append the words of a sentence to `words`. Returns their log probability given the template, in nats."""
    state.bound.clear()
    start = len(words)
    words += template.words
    log_p = 0.0
    for position, slot in template.slots:
        words[start + position], word_log_p = slot.fill(uniform, state)
        log_p += word_log_p
    return log_p


class GreaterThan(NamedTuple):
    """A prompt: the start of a sentence with a year span, cut before the last two digits of the end year."""

    prompt: str
    """`the NOUN lasted from the year CC YY to the year CC`, without BOS."""
    start: int
    """YY, the last two digits of the start year. Every later year of the century is equally likely to follow."""


def greater_than_prompts(seed: int, century: str = "17") -> list[GreaterThan]:
    """Returns one prompt per start year of the grammar (02 to 98), each with a random noun.

    The template is that of Hanna et al. 2023, but each year has two tokens.
    """
    nouns = random.Random(f"{seed}/greater_than")
    return [
        GreaterThan(
            f"the {nouns.choice(CLASSES['event'])} lasted from the year {century} {start} to the year {century}",
            int(start),
        )
        for start in UNIONS["start"]
    ]
