"""Prompts that give a start year, each beside the same with another; and the metric over years of the end."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...ablation.metrics import Metric, PromptMetric, make_probes
from ...attribution.targets import find_token, read_prompt
from ...config.cases.greater_than import CENTURY, YEAR, GreaterThanCase
from ...corpus.tokenizer import Tokenizer
from ...corpus.tokens import scored_positions
from ..context import FINDING, TESTING, fill

_DRAWN_BEHIND = 1000
"""Fillings that are drawn at most."""


@dataclass(frozen=True)
class Answers:
    """The years of the end that the vocabulary has a token for: the metric is over these alone."""

    token: Int[Tensor, " answer"]
    year: Int[Tensor, " answer"]
    """Two digits, ascending."""


@dataclass(frozen=True)
class YearPrompts:
    """Prompts of one length, each with a start year, and each again with another."""

    text: list[str]
    token: Int[Tensor, "prompt position"]
    start: Int[Tensor, " prompt"]
    """Two digits of the start year."""
    other: Int[Tensor, "prompt position"]
    """The same prompts with another start year in place of theirs."""
    other_start: Int[Tensor, " prompt"]
    scored: Bool[Tensor, " position"]
    """Positions that transcoders replace: neither the first nor a BOS."""
    place: int
    """Position of the start year."""
    half: list[str]
    """finding or testing."""
    dropped: int
    """Prompts that were left out: of another length, with a start year that is no token of its own, or with no later
    year to answer."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.text)

    def of(self, half: str) -> "YearPrompts":
        """The prompts of one half."""
        return self[[i for i, own in enumerate(self.half) if own == half]]

    def __getitem__(self, chosen: list[int]) -> "YearPrompts":
        """Some of them, in the order asked for."""
        return YearPrompts(
            [self.text[i] for i in chosen],
            self.token[chosen],
            self.start[chosen],
            self.other[chosen],
            self.other_start[chosen],
            self.scored,
            self.place,
            [self.half[i] for i in chosen],
            self.dropped,
        )


def find_answers(answer: str, strings: list[str]) -> Answers:
    """The years 00 to 99 that are single tokens where they are written as `answer` has it.

    Raises ValueError where there are fewer than two.
    """
    found = {}
    for year in range(100):
        try:
            found[year] = find_token(answer.replace(f"{{{YEAR}}}", f"{year:02d}"), strings)
        except ValueError:
            continue
    if len(found) < 2:
        raise ValueError(f"the vocabulary has no tokens for years written {answer!r}; change `answer`")
    return Answers(torch.tensor(list(found.values())), torch.tensor(list(found)))


def make_prompts(case: GreaterThanCase, tokenizer: Tokenizer, context: int, answers: Answers) -> YearPrompts:
    """The prompts of a case, year after year.

    Of all lengths the commonest stays, of all positions of the start year likewise. Raises ValueError where fewer than
    four prompts are left, or one cannot be read.
    """
    generator = random.Random(case.seed)
    years = list(range(case.first, case.last + 1))
    slots = {**case.slots, CENTURY: case.centuries}
    filled = [texts for (texts,) in fill([case.template], slots, _DRAWN_BEHIND, case.seed)]
    written = dict(zip(answers.year.tolist(), answers.token.tolist(), strict=True))
    rows: list[_Row] = []
    wanted = 0
    for number, year in enumerate(years):
        own = generator.sample(filled, min(case.fillings, len(filled)))
        wanted += len(own)
        for n, text in enumerate(own):
            half = (FINDING, TESTING)[(number if len(own) == 1 else n) % 2]
            others = [each for each in generator.sample(years, len(years)) if each != year]

            def read(each: int, text=text) -> tuple[str, Tensor]:
                written_out = text.replace(f"{{{YEAR}}}", f"{each:02d}")
                return written_out, read_prompt(written_out, tokenizer, context)

            # behind the last year of all none is later
            if written.get(year, -1) in read(year)[1].tolist() and year < max(written):
                rows += _paired(read, year, others, written, half)
    places = Counter((len(row.token), row.place) for row in rows)
    kept = [row for row in rows if (len(row.token), row.place) == places.most_common(1)[0][0]]
    if len(kept) < 4:
        raise ValueError(
            f"{case.template!r}: {len(kept)} of {wanted} prompts have a start year that is a token of its own; "
            "change the template, or `answer`"
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


class _Row(NamedTuple):
    """One prompt beside its counterpart."""

    text: str
    token: Int[Tensor, " position"]
    other: Int[Tensor, " position"]
    year: int
    other_year: int
    place: int
    half: str


def _paired(
    read: Callable[[int], tuple[str, Tensor]],
    year: int,
    others: Sequence[int],
    written: dict[int, int],
    half: str,
) -> list[_Row]:
    """The prompt of a year beside the first of the others that differs from it in the year's token alone, if any."""
    text, token = read(year)
    for other_year in others:
        _, other = read(other_year)
        if len(other) == len(token):
            changed = (token != other).nonzero()[:, 0].tolist()
            here = [(int(token[place]), int(other[place])) for place in changed]
            if here == [(written[year], written.get(other_year, -1))]:
                return [_Row(text, token, other, year, other_year, changed[0], half)]
    return []


def greater_than(
    logits: Float[Tensor, "prompt answer"], year: Int[Tensor, " answer"], start: Int[Tensor, " prompt"]
) -> Float[Tensor, " prompt"]:
    """Probability of a year later than `start`, less that of any other; softmax over the answers alone."""
    later = year.to(start.device) > start[:, None]
    return (logits.softmax(-1) * torch.where(later, 1.0, -1.0).to(logits)).sum(-1)


def year_probes(prompts: YearPrompts, answers: Answers, bos_id: int | None) -> list[PromptMetric]:
    """Each prompt as a probe of the metric."""

    def metric(start: int) -> Metric:
        def measure(logits: Float[Tensor, "pass vocabulary"]) -> Float[Tensor, " pass"]:
            begun = torch.full((len(logits),), start, device=logits.device)
            return greater_than(logits[:, answers.token.to(logits.device)], answers.year, begun)

        return measure

    metrics = [metric(start) for start in prompts.start.tolist()]
    return make_probes(list(prompts.token), metrics, bos_id)
