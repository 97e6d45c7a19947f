"""Generates the documents of chronicle with their exact probabilities. Also generates greater-than prompts.

A document depends only on (seed, split, index).
"""

import random
from bisect import bisect
from dataclasses import dataclass
from math import log
from typing import NamedTuple

from ..generated import GeneratedDocument
from .slots import DocumentState, Template, TemplateDistribution, Uniform, template_distributions, templates
from .vocabulary import CLASSES, NUMBERS, UNIONS

SENTENCES = (4, 7)
"""Minimum and maximum number of sentences per document."""
LONGEST_DOCUMENT = 126
"""Maximum number of words per document: a context of 128 tokens, minus the BOS before and after the document."""
LONGEST_SENTENCE = max(len(template.words) for template in templates())
"""Number of words of the longest template."""


@dataclass(frozen=True)
class Episode(GeneratedDocument):
    """A document of chronicle."""

    sentences: tuple[tuple[int, Template], ...]
    """(position of the first word, template) of each sentence."""


def write_episode(seed: int, split: str, index: int) -> Episode:
    """Returns document number `index` of `split`."""
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


def end_probability(sentences: int, words: int) -> float:
    """Returns the probability that a document ends after `sentences` sentences and `words` words.

    All numbers of sentences in the range `SENTENCES` are equally likely. A document ends early if the longest sentence
    does not fit into `LONGEST_DOCUMENT` words.
    """
    fewest, most = SENTENCES
    if sentences < fewest:
        return 0.0
    if words + LONGEST_SENTENCE > LONGEST_DOCUMENT:
        return 1.0
    return 1 / (most + 1 - sentences)


def vocabulary() -> tuple[str, ...]:
    """Returns all words of chronicle in a fixed order. Numbers come first."""
    fixed = (word for template in templates() for word in template.words if word)
    return tuple(dict.fromkeys([*NUMBERS, *fixed, *(word for words in CLASSES.values() for word in words)]))


def _choose(distribution: TemplateDistribution, quantile: float) -> tuple[Template, float]:
    index = bisect(distribution.cumulative, quantile)
    return distribution.templates[index], distribution.log_p[index]


def _fill(template: Template, uniform: Uniform, state: DocumentState, words: list[str]) -> float:
    """Append a sentence to `words`. Returns the log probability of the sentence, given its template, in nats."""
    state.bound.clear()
    start = len(words)
    words += template.words
    log_p = 0.0
    for position, slot in template.slots:
        words[start + position], word_log_p = slot.fill(uniform, state)
        log_p += word_log_p
    return log_p


class GreaterThan(NamedTuple):
    """A greater-than prompt. The prompt ends before the last two digits of the end year."""

    prompt: str
    """Text of the form `the NOUN lasted from the year CC YY to the year CC`, without BOS."""
    start: int
    """The number YY. In chronicle, all numbers greater than YY are equally likely next words."""


def greater_than_prompts(seed: int, century: str = "17") -> list[GreaterThan]:
    """Returns one prompt, with a random noun, for each start year from 02 to 98.

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
