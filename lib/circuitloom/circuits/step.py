"""One step back from what reads the stream: what wrote it, heads being sources of their own."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .attribution import Targets, feature_targets
from .local_model import LocalModel

FEATURE, HEAD, EMBEDDING, POSITION = range(4)
KINDS = ("feature", "head", "embedding", "position")
"""Names of the kinds of sources that a path goes through, by number."""


class Reader(NamedTuple):
    """A vector that reads the stream at one position.

    `stage` says where: 2 l in front of block l, 2 l + 1 behind its attention, twice the number of layers at the end.
    """

    vector: Float[Tensor, " d"]
    position: int
    stage: int
    constant: float
    """What comes to what it reads whatever that is."""


@dataclass(frozen=True)
class Step:
    """What a reader's value is made of: these sources, `error` and `constant`."""

    kind: Int[Tensor, " source"]
    layer: Int[Tensor, " source"]
    """0 for embedding and position."""
    index: Int[Tensor, " source"]
    """Number of the feature or head; 0 for others."""
    position: Int[Tensor, " source"]
    """Where the source lies: a head's is the position it reads."""
    value: Float[Tensor, " source"]
    active: Int[Tensor, " source"]
    """Place of a feature among the active ones; -1 for others."""
    error: float
    """Of all layers."""
    constant: float

    def __len__(self) -> int:
        """Number of sources."""
        return len(self.value)


def feature_reader(model: LocalModel, active: int, scale: float = 1.0) -> Reader:
    """The pre-activation, times `scale`, of the active feature at a place."""
    return target_reader(
        model, feature_targets(model, torch.tensor([active], device=model.features.layer.device)), scale
    )


def target_reader(model: LocalModel, target: Targets, scale: float = 1.0) -> Reader:
    """One target, times `scale`, as a reader."""
    stage = 2 * target.layer + (target.layer < model.layers and not model.frozen.parallel)
    constant = scale * float(target.constant[0])
    return Reader(scale * target.vector[0], int(target.position[0]), stage, constant)


def head_reader(model: LocalModel, reader: Reader, layer: int, head: int, position: int) -> Reader:
    """What `reader` reads at `position` through a head; biases of the head belong to the reader's own step."""
    block = model.frozen.layers[layer]
    g = _at_attention(model, reader, layer)
    u = block.pull_heads(g, torch.tensor(reader.position, device=g.device))[head]
    source = torch.tensor(position, device=g.device)
    v = block.norm_attention.pull_back(block.attention.W_V[head] @ u, source)
    return Reader(block.pattern[head, reader.position, position] * v, position, 2 * layer, 0.0)


def take_step(model: LocalModel, reader: Reader) -> Step:
    """The sources of a reader, one step back: its value is their sum, with error and constant."""
    parts: list[tuple[int, int, Tensor, Tensor, Tensor, Tensor]] = []
    error, constant = 0.0, reader.constant
    position = reader.position
    g = reader.vector
    here = torch.tensor(position, device=g.device)
    for layer in range((reader.stage - 1) // 2, -1, -1):
        block = model.frozen.layers[layer]
        skipped: Tensor | float = 0.0
        if reader.stage >= 2 * layer + 2:
            constant += float(g @ model.mlp_constant[layer, position])
            through = block.norm_mlp_after.pull_back(g, here)
            error += float(through @ model.errors[layer, position])
            active = model.active(layer, position)
            if active.stop > active.start:
                places = torch.arange(active.start, active.stop, device=g.device)
                value = model.decoder_rows(layer, active) @ through
                parts.append(
                    (FEATURE, layer, model.features.feature[active], here.expand(len(places)), value, places)
                )
            skipped = model.skip(layer, through, here)
            if not model.frozen.parallel:
                g = g + skipped
        constant += float(g @ model.attention_constant[layer, position])
        heads, value = _read_heads(model, layer, g, position)
        count = value.numel()
        parts.append(
            (
                HEAD,
                layer,
                heads.repeat_interleave(position + 1),
                torch.arange(position + 1, device=g.device).repeat(len(heads)),
                value.flatten(),
                heads.new_full((count,), -1),
            )
        )
        if model.frozen.parallel:
            g = g + skipped
    none = here.new_tensor([-1])
    zero = here.new_tensor([0])
    parts.append((EMBEDDING, 0, zero, here[None], (g @ model.frozen.embedding[position])[None], none))
    if model.frozen.positions is not None:
        parts.append((POSITION, 0, zero, here[None], (g @ model.frozen.positions[position])[None], none))
    return _joined(parts, error, constant)


def _at_attention(model: LocalModel, reader: Reader, layer: int) -> Float[Tensor, " d"]:
    """What a reader reads in the output of a layer's attention: skip paths above it are gone through."""
    g = reader.vector
    here = torch.tensor(reader.position, device=g.device)
    for above in range((reader.stage - 1) // 2, layer - 1, -1):
        if reader.stage < 2 * above + 2 or (model.frozen.parallel and above == layer):
            continue
        g = g + model.skip(above, model.frozen.layers[above].norm_mlp_after.pull_back(g, here), here)
    return g


def _read_heads(
    model: LocalModel, layer: int, g: Float[Tensor, " d"], position: int
) -> tuple[Int[Tensor, " head"], Float[Tensor, "head source"]]:
    block = model.frozen.layers[layer]
    u = block.pull_heads(g, torch.tensor(position, device=g.device))
    read = torch.einsum("hse,he->hs", model.head_values(layer)[:, : position + 1], u)
    return torch.arange(len(u), device=g.device), block.pattern[:, position, : position + 1] * read


def _joined(parts: list, error: float, constant: float) -> Step:
    kinds = [torch.full_like(index, kind) for kind, _, index, _, _, _ in parts]
    layers = [torch.full_like(index, layer) for _, layer, index, _, _, _ in parts]
    index, position, value, active = (torch.cat([part[i] for part in parts]) for i in (2, 3, 4, 5))
    return Step(torch.cat(kinds), torch.cat(layers), index, position, value, active, error, constant)
