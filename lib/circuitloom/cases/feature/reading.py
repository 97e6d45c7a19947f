"""What a feature reads on some prompts: in one step, and token by token through all heads and features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution.direct_effects import feature_targets, sources, total_effects
from ...attribution.linearized_model import LinearizedModel
from ...attribution.paths import HEAD, KINDS, feature_reader, take_step
from .choosing import Chosen

REACH = 24
"""Tokens before the last one that are told apart; what lies farther off counts in the sum of all alone."""


@dataclass(frozen=True)
class Reading:
    """Of a feature at the last token of some prompts."""

    steps: list[dict[tuple[str, int | None, int | None, int], float]]
    """Of each prompt: (kind, layer, number, offset) of what is read in one step, to its effect; errors and constants
    stand at offset 0."""
    tokens: Float[Tensor, "prompt offset"]
    """What the token so many places before adds to the pre-activation, by way of everything; 0 beyond the prompt."""
    size: Float[Tensor, " prompt"]
    """The sum of the magnitudes of what all tokens add, those beyond `REACH` too."""
    token_ids: list[list[int]]
    """The prompts' tokens, the last one first."""
    value: Float[Tensor, " prompt"]
    """The pre-activation."""

    @property
    def shares(self) -> Float[Tensor, " offset"]:
        """Mean over prompts of each offset's part of all tokens' magnitudes."""
        return (self.tokens.abs() / self.size[:, None].clamp(min=1e-9)).mean(0)

    def offsets(self, share: float) -> list[int]:
        """The offsets, 0 or below, that each make up `share` or more of what tokens add."""
        return (-(self.shares >= share).nonzero()[:, 0]).tolist()


def read_sources(prompts: Sequence[LinearizedModel], chosen: Chosen) -> Reading:
    """What the chosen feature reads at the last token of each prompt; it fires on all of them."""
    steps, tokens, sizes, ids, values = [], [], [], [], []
    for prompt in prompts:
        last = len(prompt.frozen) - 1
        active = prompt.features.find(chosen.layer, last, chosen.feature)
        assert active is not None
        steps.append(_one_step(prompt, active, last))
        effects = token_effects(prompt, active)
        row = effects.new_zeros(REACH)
        near = effects.flip(0)[:REACH]
        row[: len(near)] = near
        tokens.append(row.cpu())
        sizes.append(float(effects.abs().sum()))
        ids.append(prompt.frozen.token.flip(0)[:REACH].tolist())
        values.append(float(prompt.features.activation[active]))
    return Reading(steps, torch.stack(tokens), torch.tensor(sizes), ids, torch.tensor(values))


def token_effects(prompt: LinearizedModel, active: int) -> Float[Tensor, " position"]:
    """What each token's embedding adds to an active feature's pre-activation, through any number of heads and features.

    What is left to the pre-activation comes from errors, positions and biases.
    """
    target = feature_targets(prompt, torch.tensor([active], device=prompt.features.layer.device))
    return total_effects(prompt, target)[0, sources(prompt).embeddings]


def _one_step(
    prompt: LinearizedModel, active: int, last: int
) -> dict[tuple[str, int | None, int | None, int], float]:
    step = take_step(prompt, feature_reader(prompt, active))
    found: dict[tuple[str, int | None, int | None, int], float] = {}
    for kind, layer, index, position, value in zip(
        *(getattr(step, name).tolist() for name in ("kind", "layer", "index", "position", "value")),
        strict=True,
    ):
        numbered = kind <= HEAD
        key = (KINDS[kind], layer if numbered else None, index if numbered else None, position - last)
        found[key] = found.get(key, 0.0) + value
    found["error", None, None, 0] = step.error
    found["constant", None, None, 0] = step.constant
    return found


def source_rows(case: str, reading: Reading, strings: Sequence[str], most: int = 30) -> list[dict[str, Any]]:
    """Rows of the table `source`: circuit `tokens` by offset, and `one step` the largest of what is read directly."""
    n = len(reading.steps)
    sums: dict[tuple[str, int | None, int | None, int], list[float]] = {}
    for step in reading.steps:
        for key, value in step.items():
            sums.setdefault(key, []).append(value)
    size = sum(sum(map(abs, values)) for values in sums.values()) or 1.0
    direct = [
        {
            "kind": kind,
            "layer": layer,
            "component": number,
            "relative_position": offset,
            "token": None,
            "effect": sum(values) / n,
            "share": sum(map(abs, values)) / size,
            "n_prompts": len(values),
        }
        for (kind, layer, number, offset), values in sums.items()
    ]
    direct = sorted(direct, key=lambda row: -row["share"])[:most]
    tokens = [
        {
            "kind": "token",
            "layer": None,
            "component": None,
            "relative_position": -place,
            "token": _usual(reading.token_ids, place, strings),
            "effect": float(reading.tokens[:, place].mean()),
            "share": float(reading.shares[place]),
            "n_prompts": sum(len(ids) > place for ids in reading.token_ids),
        }
        for place in reading.shares.argsort(descending=True).tolist()
        if any(len(ids) > place for ids in reading.token_ids)
    ]
    return [
        {"case_study": case, "circuit": circuit, "rank": rank, **row}
        for circuit, rows in (("tokens", tokens), ("one step", direct))
        for rank, row in enumerate(rows)
    ]


def _usual(token_ids: Sequence[Sequence[int]], place: int, strings: Sequence[str]) -> str | None:
    """The token at a place, where it is the same on all prompts."""
    found = {ids[place] for ids in token_ids if len(ids) > place}
    return strings[found.pop()] if len(found) == 1 else None
