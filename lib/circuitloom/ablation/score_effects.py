"""Measure how an attention score responds when a source is removed from the query or the key alone.

*Frozen*: what the source adds to the stream through frozen heads is removed from attention's input at one position, and
denominators are held, those of norms of queries and keys included. The model's attention module runs on this input; of
what it computes, only the query (or key) of one head at this position is used. All other queries and keys are the
prompt's.

*Free*: the query (or key) is the one that the original model computes when the source is ablated and nothing is held.
A second pass of the original model uses it in this one head, and everything after the head responds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.direct_effects import AttributionTargets
from ..attribution.linearized_model import LinearizedModel
from ..language_model.hooks import (
    ScoreInputs,
    Site,
    capture,
    edited,
    edited_modules,
    observed_modules,
    observed_scores,
)
from ..language_model.model import LanguageModel
from ..language_model.query_key import HeadEdge, query_key_norms
from ..language_model.residual import Norm, read_norm
from .interventions import ablation_edits, run_free, source_outputs

CHUNK = 64
"""Number of interventions that run at once."""


class SideAblation(NamedTuple):
    """A source that is removed from one side of a head edge."""

    edge: HeadEdge
    side: str
    """`query` or `key`."""
    source: int
    """Column of `source_columns(model)`, except the constant."""

    @property
    def position(self) -> int:
        """Position at which the head's query or key changes."""
        return self.edge.query if self.side == "query" else self.edge.key


@dataclass(frozen=True)
class ScoreDrops:
    """Values on the prompt minus values after each ablation. Scores are what the softmax reads: capped, if so."""

    frozen: Float[Tensor, " ablation"]
    """Drop of the score in a frozen ablation."""
    free: Float[Tensor, " ablation"]
    """Drop of the score in a free ablation."""
    pattern: Float[Tensor, " ablation"]
    """Drop of the attention that the key receives, in a free ablation."""
    targets: Float[Tensor, "ablation target"]
    """Drop of each target in a free ablation. Targets of all items are concatenated."""


@torch.inference_mode()
def ablate_sides(
    language_model: LanguageModel,
    model: LinearizedModel,
    ablations: Sequence[SideAblation],
    targets: Sequence[AttributionTargets],
) -> ScoreDrops:
    """Remove each source alone, from one side of its head edge alone, frozen and free.

    Raises ValueError for the constant, and if a norm of queries or keys has weights of its own for each head.
    """
    like = model.captured.resid_final
    frozen, free, pattern = like.new_zeros(3, len(ablations))
    moved = like.new_zeros(len(ablations), sum(len(target) for target in targets))
    by_layer: dict[int, list[int]] = {}
    for i, ablation in enumerate(ablations):
        by_layer.setdefault(ablation.edge.layer, []).append(i)
    with language_model.eager_attention():
        for layer, members in by_layer.items():
            prompt = _run_prompt(language_model, model, layer)
            for start in range(0, len(members), CHUNK):
                part = members[start : start + CHUNK]
                chosen = [ablations[i] for i in part]
                at = torch.tensor(part, device=like.device)
                edges = [each.edge for each in chosen]
                before = _at_edges(prompt.scores.expand(len(chosen), -1, -1, -1), edges)
                frozen[at] = before - _frozen_scores(language_model, model, prompt, chosen)
                scores, values = _free(language_model, model, prompt, chosen, targets)
                free[at] = before - _at_edges(scores, edges)
                patterns = prompt.scores.softmax(-1).expand(len(chosen), -1, -1, -1)
                pattern[at] = _at_edges(patterns, edges) - _at_edges(scores.softmax(-1), edges)
                unchanged = torch.cat(run_free(language_model, model, 1, {}, targets), 1)
                moved[at] = unchanged - values
    return ScoreDrops(frozen, free, pattern, moved)


@dataclass(frozen=True)
class _Prompt:
    """What one layer computes on the prompt."""

    layer: int
    inputs: ScoreInputs
    scores: Float[Tensor, "one head query key"]
    norms: Mapping[str, tuple[Norm, Tensor]]
    """Norm and denominators of each norm of queries and keys."""


def _run_prompt(language_model: LanguageModel, model: LinearizedModel, layer: int) -> _Prompt:
    modules = query_key_norms(language_model, layer)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    read: list[tuple[ScoreInputs, Tensor]] = []

    def keep(name: str, args: tuple, _kwargs: dict[str, Any], output: Any) -> None:
        seen[name] = args[0], output

    with (
        observed_modules(modules, keep),
        observed_scores(language_model, [layer], lambda _layer, *both: read.append(both)),
    ):
        _run_to(language_model, model, 1, layer)
    norms = {}
    for name, (x, y) in seen.items():
        weight = next(modules[name].parameters())
        if weight.dim() != 1:
            raise ValueError(
                f"{language_model.anatomy.architecture}: its norms of queries and keys have weights for each head, so "
                "frozen ablations of one side do not run; choose another model"
            )
        norm = read_norm(modules[name], weight.detach())
        norms[name] = norm, norm.denominator(x, y)
    [(inputs, scores)] = read
    return _Prompt(layer, inputs, scores, norms)


def _frozen_scores(
    language_model: LanguageModel, model: LinearizedModel, prompt: _Prompt, ablations: Sequence[SideAblation]
) -> Float[Tensor, " ablation"]:
    """Returns the score of each edge after the frozen ablation."""
    removed = torch.stack(
        [_stream_change(model, prompt.layer, each.source)[each.position] for each in ablations]
    )
    position = torch.tensor([each.position for each in ablations], device=removed.device)
    norm = model.captured.layers[prompt.layer].norm_attention
    if norm.norm is not None:
        removed = norm.norm.gain * norm.norm.project(removed) / norm.sigma[position, None]

    def remove(_x: Tensor, value: Tensor) -> Tensor:
        value = value.clone()
        value[torch.arange(len(ablations)), position] -= removed.to(value.dtype)
        return value

    def hold(name: str, x: Tensor, _y: Tensor) -> Tensor:
        norm, sigma = prompt.norms[name]
        return (norm.gain * norm.project(x) / sigma[..., None] + norm.bias).to(x.dtype)

    with (
        edited(language_model, {Site("attention_in", prompt.layer): remove}),
        edited_modules(query_key_norms(language_model, prompt.layer), hold),
    ):
        scores = _scores_with(
            language_model,
            prompt,
            ablations,
            lambda: _run_to(language_model, model, len(ablations), prompt.layer),
        )
    return _at_edges(scores, [each.edge for each in ablations])


def _free(
    language_model: LanguageModel,
    model: LinearizedModel,
    prompt: _Prompt,
    ablations: Sequence[SideAblation],
    targets: Sequence[AttributionTargets],
) -> tuple[Float[Tensor, "ablation head query key"], Float[Tensor, "ablation target"]]:
    """Returns the scores of the layer and the values of the targets after each free ablation."""
    sources = torch.tensor([each.source for each in ablations], device=model.features.layer.device)
    changed: list[ScoreInputs] = []
    edits = ablation_edits(model, sources)
    with (
        edited(language_model, edits),
        observed_scores(
            language_model, [prompt.layer], lambda _layer, inputs, _scores: changed.append(inputs)
        ),
    ):
        _run_to(language_model, model, len(ablations), prompt.layer)
    values: list[Tensor] = []

    def run() -> None:
        values.extend(run_free(language_model, model, len(ablations), {}, targets))

    scores = _scores_with(language_model, prompt, ablations, run, changed[0])
    return scores, torch.cat(values, 1)


def _scores_with(
    language_model: LanguageModel,
    prompt: _Prompt,
    ablations: Sequence[SideAblation],
    run: Callable[[], object],
    changed: ScoreInputs | None = None,
) -> Float[Tensor, "ablation head query key"]:
    """Returns the layer's scores in the pass that `run` makes, in which only one query or key of one head differs from
    the prompt's: the one in `changed`, or without it the one that the pass computes itself."""
    found: list[Tensor] = []

    def edit(_layer: int, inputs: ScoreInputs) -> ScoreInputs:
        given = inputs if changed is None else changed
        sides = [side.expand(len(ablations), -1, -1, -1).clone() for side in prompt.inputs]
        for i, each in enumerate(ablations):
            side = int(each.side == "key")
            sides[side][i, each.edge.head, each.position] = given[side][i, each.edge.head, each.position]
        return ScoreInputs(*sides)

    with observed_scores(
        language_model, [prompt.layer], lambda _layer, _inputs, scores: found.append(scores), edit
    ):
        run()
    return found[0]


def _stream_change(model: LinearizedModel, layer: int, source: int) -> Float[Tensor, "position d"]:
    """Returns what a source adds to the input of block `layer`, through frozen heads and skip paths."""
    position, outputs = source_outputs(model, source)
    zeros = torch.zeros_like(model.captured.resid_final)

    def run(outputs: Mapping[int | None, Tensor]) -> Tensor:
        start = zeros.clone()
        if None in outputs:
            start[position] += outputs[None]

        def written(at: int) -> Tensor:
            own = zeros.clone()
            if at in outputs:
                own[position] += outputs[at]
            return own

        for number, (block_input, _) in enumerate(model.block_streams(start, written)):
            if number == layer:
                return block_input
        raise AssertionError("the layer does not exist")

    return run(outputs) - run({})


def _run_to(language_model: LanguageModel, model: LinearizedModel, n: int, layer: int) -> None:
    """Run the prompt n times, up to the attention of `layer`."""
    capture(language_model, model.captured.token.expand(n, -1), [Site("heads", layer)])


def _at_edges(
    values: Float[Tensor, "ablation head query key"], edges: Sequence[HeadEdge]
) -> Float[Tensor, " ablation"]:
    index = torch.tensor(edges, device=values.device)[:, 1:].unbind(1)
    return values[torch.arange(len(edges)), *index]
