"""Prompts of greater-than with their start years, and the metric: later years against the other years."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...ablation.metrics import Metric, PromptMetric, make_prompt_metrics
from ...attribution.targets import find_token, tokenize_prompt
from ...config.cases.greater_than import CENTURY, YEAR, GreaterThanCase
from ...corpus.tokenizer import Tokenizer
from ...corpus.tokens import scored_positions
from ..context import FINDING, TESTING, fill_templates

MAX_FILLINGS = 1000
"""Fillings of the template to draw from."""


@dataclass(frozen=True)
class AnswerYears:
    """The years that are single tokens; the metric is over these alone."""

    token: Int[Tensor, " answer"]
    year: Int[Tensor, " answer"]
    """Two digits, ascending."""


@dataclass(frozen=True)
class YearPrompts:
    """Prompts of one length, each with a start year and a counterpart with another start year."""

    text: list[str]
    token: Int[Tensor, "prompt position"]
    start: Int[Tensor, " prompt"]
    """Two digits of the start year."""
    other: Int[Tensor, "prompt position"]
    """Tokens of the counterparts."""
    other_start: Int[Tensor, " prompt"]
    scored: Bool[Tensor, " position"]
    """Scored positions, on which transcoders replace MLPs: neither the first nor a BOS."""
    place: int
    """Position of the start year."""
    half: list[str]
    """finding or testing."""
    dropped: int
    """Number of prompts left out: of another length, or with a start year that is not one token or has no later
    answer."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.text)

    def of(self, half: str) -> "YearPrompts":
        """The prompts of one half."""
        return self[[i for i, each in enumerate(self.half) if each == half]]

    def spread(self, wanted: int) -> "YearPrompts":
        """Up to `wanted` prompts, evenly spaced over the start years."""
        n = min(wanted, len(self))
        return self[[(2 * i + 1) * len(self) // (2 * n) for i in range(n)]]

    def __getitem__(self, chosen: list[int]) -> "YearPrompts":
        """Some of the prompts, in the order given."""
        return replace(
            self,
            text=[self.text[i] for i in chosen],
            token=self.token[chosen],
            start=self.start[chosen],
            other=self.other[chosen],
            other_start=self.other_start[chosen],
            half=[self.half[i] for i in chosen],
        )


def find_answers(answer: str, strings: list[str]) -> AnswerYears:
    """The years 00 to 99 that are single tokens when written as `answer`; ValueError for fewer than two."""
    tokens = {}
    for year in range(100):
        try:
            tokens[year] = find_token(answer.replace(f"{{{YEAR}}}", f"{year:02d}"), strings)
        except ValueError:
            continue
    if len(tokens) < 2:
        raise ValueError(f"the vocabulary has no tokens for years written {answer!r}; change `answer`")
    return AnswerYears(torch.tensor(list(tokens.values())), torch.tensor(list(tokens)))


def make_prompts(
    case: GreaterThanCase, tokenizer: Tokenizer, context_length: int, answers: AnswerYears
) -> YearPrompts:
    """The prompts of a case, in the order of start years.

    Only prompts of the most common length and position of the start year are kept. Raises ValueError if fewer than four
    remain, or a prompt cannot be tokenized.
    """
    generator = random.Random(case.seed)
    years = list(range(case.first, case.last + 1))
    slots = {**case.slots, CENTURY: case.centuries}
    filled = [texts for (texts,) in fill_templates([case.template], slots, MAX_FILLINGS, case.seed)]
    token_of_year = dict(zip(answers.year.tolist(), answers.token.tolist(), strict=True))
    rows: list[_PromptRow] = []
    wanted = 0
    for number, year in enumerate(years):
        own = generator.sample(filled, min(case.fillings, len(filled)))
        wanted += len(own)
        for n, text in enumerate(own):
            half = (FINDING, TESTING)[(number if len(own) == 1 else n) % 2]
            others = [each for each in generator.sample(years, len(years)) if each != year]

            def read(each: int, text=text) -> tuple[str, Tensor]:
                written = text.replace(f"{{{YEAR}}}", f"{each:02d}")
                return written, tokenize_prompt(written, tokenizer, context_length)

            # no answer is later than the last year
            if token_of_year.get(year, -1) in read(year)[1].tolist() and year < max(token_of_year):
                rows += _pair(read, year, others, token_of_year, half)
    places = Counter((len(row.token), row.place) for row in rows)
    kept = [row for row in rows if (len(row.token), row.place) == places.most_common(1)[0][0]]
    if len(kept) < 4:
        raise ValueError(
            f"{case.template!r}: {len(kept)} of {wanted} prompts have a start year that is one token; change the "
            "template, or `answer`"
        )
    return YearPrompts(
        text=[row.text for row in kept],
        token=torch.stack([row.token for row in kept]),
        start=torch.tensor([row.year for row in kept]),
        other=torch.stack([row.other for row in kept]),
        other_start=torch.tensor([row.other_year for row in kept]),
        scored=scored_positions(kept[0].token[None], tokenizer.bos_id)[0],
        place=kept[0].place,
        half=[row.half for row in kept],
        dropped=wanted - len(kept),
    )


class _PromptRow(NamedTuple):
    """A prompt and its counterpart."""

    text: str
    token: Int[Tensor, " position"]
    other: Int[Tensor, " position"]
    year: int
    other_year: int
    place: int
    half: str


def _pair(
    read: Callable[[int], tuple[str, Tensor]],
    year: int,
    others: Sequence[int],
    token_of_year: dict[int, int],
    half: str,
) -> list[_PromptRow]:
    """The prompt of a year with a counterpart: the first of `others` that changes only the year's token. Or no row."""
    text, token = read(year)
    for other_year in others:
        _, other = read(other_year)
        if len(other) == len(token):
            changed = (token != other).nonzero()[:, 0].tolist()
            tokens = [(int(token[place]), int(other[place])) for place in changed]
            if tokens == [(token_of_year[year], token_of_year.get(other_year, -1))]:
                return [_PromptRow(text, token, other, year, other_year, changed[0], half)]
    return []


def greater_than(
    logits: Float[Tensor, "prompt answer"], year: Int[Tensor, " answer"], start: Int[Tensor, " prompt"]
) -> Float[Tensor, " prompt"]:
    """Probability of years later than `start` minus that of the others; softmax over the answers alone."""
    later = year.to(start.device) > start[:, None]
    return (logits.softmax(-1) * torch.where(later, 1.0, -1.0).to(logits)).sum(-1)


def year_metrics(prompts: YearPrompts, answers: AnswerYears, bos_id: int | None) -> list[PromptMetric]:
    """Each prompt with the metric as a function of all logits."""

    def metric(start: int) -> Metric:
        def measure(logits: Float[Tensor, "pass vocabulary"]) -> Float[Tensor, " pass"]:
            starts = torch.full((len(logits),), start, device=logits.device)
            return greater_than(logits[:, answers.token.to(logits.device)], answers.year, starts)

        return measure

    metrics = [metric(start) for start in prompts.start.tolist()]
    return make_prompt_metrics(list(prompts.token), metrics, bos_id)
