"""Measures how queries and keys depend on attention's input, and how attention scores depend on queries and keys.

On a prompt, the query of head h at position t is

    q = ((x W_Q[h] + b_Q[h]) M_Q[h, t]) / sigma[h, t] + beta[h, t]

with x the attention's input. M holds rotary positions and the gain of a norm of queries, sigma is the denominator of
this norm, and beta its bias. Keys have the same form. The score of (t, s) is scale * q . k, which some models then cap.

1. `read_query_key` measures W and b on sequences of one token, on unit inputs, with norms of queries and keys replaced
   by the identity.
2. `capture_scores` runs the prompt. It reads queries, keys and scores where the attention module multiplies them, and
   finds scale and cap by comparing scores with products.
3. `PromptScores.layer` measures M and beta of one layer. The attention module alone runs on the prompt's positions, and
   the outputs of its projections are replaced by the unit vectors of a head. sigma is the ratio of both sides.

Names of weights are not used, because they differ between architectures. Each step is compared with the model's own
queries, keys and scores, and a model that differs is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .hooks import (
    ScoreInputs,
    Site,
    capture_score_inputs,
    edited,
    edited_modules,
    observed_modules,
    observed_scores,
)
from .model import LanguageModel
from .residual import unit_inputs

TOLERANCE = 1e-3
"""Largest relative difference between queries, keys and scores of the model and what this module measures."""
MAX_ELEMENTS = 2**25
"""Largest number of elements of the queries that are measured at once."""


class HeadEdge(NamedTuple):
    """A head that reads position `key` from position `query`."""

    layer: int
    head: int
    query: int
    key: int


@dataclass(frozen=True)
class QueryKeyWeights:
    """Query and key weights of the heads of one layer, before norms of queries and keys and rotary positions.

    With grouped-query attention, all heads of a group have equal key weights.
    """

    W_Q: Float[Tensor, "head d d_head"]
    b_Q: Float[Tensor, "head d_head"]
    W_K: Float[Tensor, "head d d_head"]
    b_K: Float[Tensor, "head d_head"]

    @cached_property
    def key_head(self) -> list[int]:
        """The first head with the same keys, for each head."""
        first: list[int] = []
        for head in range(len(self.W_K)):
            same = [other for other in first if torch.equal(self.W_K[other], self.W_K[head])]
            first.append(same[0] if same else head)
        return first


@dataclass(frozen=True)
class FrozenProjection:
    """Queries or keys of one layer on one prompt, as an affine function of attention's input: x @ matrix + constant.

    The denominators of norms of queries and keys are frozen.
    """

    W: Float[Tensor, "head d d_head"]
    b: Float[Tensor, "head d_head"]
    map: Float[Tensor, "head position d_head d_head"]
    """M / sigma."""
    bias: Float[Tensor, "head position d_head"]
    value: Float[Tensor, "head position d_head"]
    """The model's own queries or keys."""

    def matrix(self, head: int, position: int) -> Float[Tensor, "d d_head"]:
        """Returns the Jacobian of a query or key with respect to attention's input."""
        return self.W[head] @ self.map[head, position]

    def constant(self, head: int, position: int) -> Float[Tensor, " d_head"]:
        """Returns the part of a query or key that does not depend on attention's input."""
        return self.b[head] @ self.map[head, position] + self.bias[head, position]


@dataclass(frozen=True)
class LayerScores:
    """Attention scores of one layer on one prompt, before the softmax: scale * query . key, without cap and mask."""

    query: FrozenProjection
    key: FrozenProjection
    key_head: list[int]
    """The first head with the same keys, for each head."""
    scale: float
    cap: float | None
    """The softmax reads cap * tanh(score / cap). None if the model does not cap its scores."""
    allowed: Bool[Tensor, "target source"]
    """Pairs that the mask allows."""

    @cached_property
    def score(self) -> Float[Tensor, "head target source"]:
        """The model's own scores, before cap and mask."""
        return self.scale * (self.query.value @ self.key.value.transpose(-1, -2))

    def capped(self, score: Float[Tensor, "*pair"]) -> Float[Tensor, "*pair"]:
        """Returns what the softmax reads for a score."""
        return score if self.cap is None else self.cap * torch.tanh(score / self.cap)


@dataclass(frozen=True)
class _Recorded:
    """What is kept of one layer in the pass of a prompt."""

    args: tuple
    kwargs: dict[str, Any]
    inputs: ScoreInputs
    scale: float
    cap: float | None
    allowed: Bool[Tensor, "target source"]


@dataclass(frozen=True)
class PromptScores:
    """Attention scores of all layers on one prompt. `layer` measures those of one layer when they are asked for."""

    model: LanguageModel
    weights: list[QueryKeyWeights]
    recorded: Mapping[int, _Recorded]

    @torch.inference_mode()
    def layer(self, layer: int) -> LayerScores:
        """Returns the scores of one layer.

        Raises ValueError if the layer does not exist, or if its queries and keys have another form than the module's
        docstring says.
        """
        if layer not in self.recorded:
            raise ValueError(f"layer {layer} does not exist; choose 0 to {len(self.recorded) - 1}")
        own, weights = self.recorded[layer], self.weights[layer]
        x = own.args[0] if own.args else own.kwargs["hidden_states"]
        maps, biases = _measure_maps(self.model, layer, own)
        has_norms = bool(query_key_norms(self.model, layer))
        projections = []
        for i, (W, b) in enumerate(((weights.W_Q, weights.b_Q), (weights.W_K, weights.b_K))):
            value = own.inputs[i][0].to(x.dtype)
            before = torch.einsum("td,hde->hte", x[0], W) + b[:, None]
            mapped = torch.einsum("hte,htef->htf", before, maps[i])
            if has_norms:
                size = mapped.square().sum(-1)
                sigma = torch.where(size > 0, size / (mapped * (value - biases[i])).sum(-1), 1.0)
                maps[i] /= sigma[..., None, None]
                mapped /= sigma[..., None]
            _check(mapped + biases[i], value, self.model, "queries and keys are not affine")
            projections.append(FrozenProjection(W, b, maps[i], biases[i], value))
        query, key = projections
        return LayerScores(query, key, weights.key_head, own.scale, own.cap, own.allowed)


@torch.inference_mode()
def read_query_key(model: LanguageModel) -> list[QueryKeyWeights]:
    """Measure the query and key weights of every layer.

    Raises ValueError if an attention module computes its scores in an unknown way.
    """
    rows = unit_inputs(model)
    layers = range(model.layers)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    norms = {
        (layer, name): module for layer in layers for name, module in query_key_norms(model, layer).items()
    }
    inputs = {Site("attention_in", layer): lambda _x, _y: rows[:, None] for layer in layers}

    with edited_modules(norms, lambda _key, x, _y: x):
        with edited(model, inputs):
            found = _captured(model, zero.expand(len(rows), -1), layers)
        size = found[0].query.shape[-1]
        projections = {
            (layer, name): module for layer in layers for name, module in _projections(model, layer).items()
        }
        with edited_modules(projections, lambda _key, _x, y: _tiled(torch.eye(size), y)):
            first = _captured(model, zero.expand(size, -1), layers)
    weights = []
    for layer in layers:
        measured = []
        for i in range(2):
            value = found[layer][i][:, :, 0].to(rows.dtype)
            # rotary positions can scale, at position 0 too
            rotary = first[layer][i][:, 0, 0].to(rows.dtype)
            value = torch.linalg.solve(rotary, value.flatten(0, 1), left=False).unflatten(0, value.shape[:2])
            bias, test = value[-2], value[-1]
            weight = value[:-2] - bias
            expected = torch.einsum("d,dhe->he", rows[-1], weight) + bias
            _check(expected, test, model, "queries and keys are not affine")
            measured += [weight.movedim(1, 0).contiguous(), bias]
        weights.append(QueryKeyWeights(*measured))
    return weights


@torch.inference_mode()
def capture_scores(
    model: LanguageModel, weights: list[QueryKeyWeights], token: Int[Tensor, " position"]
) -> PromptScores:
    """Run a prompt and keep what its attention scores are made of.

    Raises ValueError if scores are not scale * query . key, capped or not, plus a mask.
    """
    layers = range(model.layers)
    calls: dict[int, tuple[tuple, dict[str, Any]]] = {}
    recorded: dict[int, _Recorded] = {}

    def keep(layer: int, inputs: ScoreInputs, scores: Tensor) -> None:
        cap = getattr(model.attention(layer), "attn_logit_softcapping", None)
        products = (inputs.query @ inputs.key.transpose(-1, -2))[0]
        # a float32 mask (GPT-Neo's local attention) can meet scores in float64
        masked = max(torch.finfo(scores.dtype).min, torch.finfo(torch.float32).min)
        allowed = scores[0, 0] > masked / 2
        scale = _scale(products[:, allowed], scores[0][:, allowed], cap, model)
        recorded[layer] = _Recorded((), {}, inputs, scale, cap, allowed)

    def keep_call(layer: int, args: tuple, kwargs: dict[str, Any], _output) -> None:
        calls[layer] = args, kwargs

    modules = {layer: model.attention(layer) for layer in layers}
    with model.eager_attention(), observed_scores(model, layers, keep), observed_modules(modules, keep_call):
        model.module(token[None].to(model.device))
    _check_found(model, recorded, layers)
    return PromptScores(
        model,
        weights,
        {
            layer: _Recorded(*calls[layer], own.inputs, own.scale, own.cap, own.allowed)
            for layer, own in recorded.items()
        },
    )


def _measure_maps(
    model: LanguageModel, layer: int, own: _Recorded
) -> tuple[list[Float[Tensor, "head position d_head d_head"]], list[Float[Tensor, "head position d_head"]]]:
    """Returns M and beta, for queries and for keys. M has an unknown factor if there are norms of queries and keys."""
    x = own.args[0] if own.args else own.kwargs["hidden_states"]
    heads, positions, size = own.inputs.query.shape[1:]
    rows = torch.cat([torch.zeros(1, size), torch.eye(size)]).to(x.device, x.dtype)
    chunk = max(1, MAX_ELEMENTS // (heads * positions * size))
    found: list[list[Tensor]] = [[], []]
    for part in rows.split(chunk):
        measured = _run_attention(model, layer, own, part)
        for values, each in zip(found, measured, strict=True):
            values.append(each.to(x.dtype))
    maps, biases = [], []
    for values in found:
        value = torch.cat(values)
        biases.append(value[0])
        maps.append((value[1:] - value[0]).permute(1, 2, 0, 3).contiguous())
    return maps, biases


def _run_attention(
    model: LanguageModel, layer: int, own: _Recorded, rows: Float[Tensor, "sequence d_head"]
) -> ScoreInputs:
    """Returns the queries and keys of an attention module whose projections return rows[i] for every head at every
    position of sequence i."""
    x = own.args[0] if own.args else own.kwargs["hidden_states"]
    inputs = x.new_zeros(len(rows), *x.shape[1:])
    args, kwargs = (inputs, *own.args[1:]), own.kwargs
    if not own.args:
        args, kwargs = (), {**own.kwargs, "hidden_states": inputs}
    module = model.attention(layer)
    with edited_modules(_projections(model, layer), lambda _name, _x, y: _tiled(rows, y)):
        return capture_score_inputs(model, [layer], lambda: module(*args, **kwargs))[layer]


def _tiled(
    rows: Float[Tensor, "sequence d_head"], like: Float[Tensor, "sequence position width"]
) -> Float[Tensor, "sequence position width"]:
    """Returns rows[i] for every head at every position of sequence i.

    In all layouts of fused projections, the dimensions of a head are adjacent.
    """
    rows = rows.to(like.device, like.dtype)
    return rows.repeat(1, like.shape[-1] // rows.shape[1])[:, None].expand(like.shape)


def _captured(
    model: LanguageModel, tokens: Int[Tensor, "sequence position"], layers: range
) -> dict[int, ScoreInputs]:
    found = capture_score_inputs(model, layers, lambda: model.module(tokens.to(model.device)))
    _check_found(model, found, layers)
    return found


def _scale(
    products: Float[Tensor, "head pair"],
    scores: Float[Tensor, "head pair"],
    cap: float | None,
    model: LanguageModel,
) -> float:
    """Returns the factor between products of queries and keys and scores."""
    products, scores = products.double(), scores.double()
    linear = scores
    if cap is not None:
        # capped scores near the cap say little about the factor
        inner = scores.abs() < 0.9 * cap
        linear = torch.where(inner, cap * torch.atanh(scores.clamp(-cap, cap) / cap), 0.0)
        size = (products * inner).square().sum()
    else:
        size = products.square().sum()
    scale = float((products * linear).sum() / size) if size else 1.0
    expected = scale * products
    if cap is not None:
        expected = cap * torch.tanh(expected / cap)
    _check(expected, scores, model, "attention scores are not products of queries and keys")
    return scale


def _check(expected: Tensor, actual: Tensor, model: LanguageModel, what: str) -> None:
    """Raise ValueError if measured values differ from the model's own."""
    size = float(actual.abs().max()) if actual.numel() else 0.0
    if not float((expected - actual).abs().max() if actual.numel() else 0.0) <= TOLERANCE * max(size, 1e-6):
        raise ValueError(
            f"{model.anatomy.architecture}: its {what}, so its attention scores cannot be attributed; choose another "
            "model (docs/models.md)"
        )


def _check_found(model: LanguageModel, found: Mapping[int, object], layers: range) -> None:
    if set(found) != set(layers):
        raise ValueError(
            f"{model.anatomy.architecture}: its attention computes scores in another way than query times key, so they "
            "cannot be attributed; choose another model (docs/models.md)"
        )


def _projections(model: LanguageModel, layer: int) -> dict[str, nn.Module]:
    """Returns the matrices of an attention module, without W_O."""
    return {name: module for name, module in _parts(model, layer).items() if not _is_norm(module)}


def query_key_norms(model: LanguageModel, layer: int) -> dict[str, nn.Module]:
    """Returns the norms of queries and keys of an attention module."""
    return {name: module for name, module in _parts(model, layer).items() if _is_norm(module)}


def _parts(model: LanguageModel, layer: int) -> dict[str, nn.Module]:
    """Returns the modules of an attention module that have weights, without W_O."""
    projection = model.anatomy.attention_projection
    return {
        name: module
        for name, module in model.attention(layer).named_modules()
        if name != projection and next(module.parameters(recurse=False), None) is not None
    }


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
