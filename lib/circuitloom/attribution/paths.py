"""One step back from what reads the stream: what wrote it, heads being sources of their own. Greedy paths from a
target back to what made it, and the graph that they make up (algorithms 1 and 2 of Dunefsky, Chlenski and Nanda
2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direct_effects import AttributionTargets, feature_targets
from .linearized_model import LinearizedModel

FEATURE, HEAD, EMBEDDING, POSITION = range(4)
KINDS = ("feature", "head", "embedding", "position")
"""Names of the kinds of sources that a path goes through, by number."""


class StreamReader(NamedTuple):
    """A vector that reads the stream at one position.

    `stage` says where: 2 l in front of block l, 2 l + 1 behind its attention, twice the number of layers at the end.
    """

    vector: Float[Tensor, " d"]
    position: int
    stage: int
    constant: float
    """What comes to what it reads whatever that is."""


@dataclass(frozen=True)
class SourceDecomposition:
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


def feature_reader(model: LinearizedModel, active: int, scale: float = 1.0) -> StreamReader:
    """The pre-activation, times `scale`, of the active feature at a place."""
    return target_reader(
        model, feature_targets(model, torch.tensor([active], device=model.features.layer.device)), scale
    )


def target_reader(model: LinearizedModel, target: AttributionTargets, scale: float = 1.0) -> StreamReader:
    """One target, times `scale`, as a reader."""
    stage = 2 * target.layer + (target.layer < model.layers and not model.frozen.parallel)
    constant = scale * float(target.constant[0])
    return StreamReader(scale * target.vector[0], int(target.position[0]), stage, constant)


def head_reader(
    model: LinearizedModel, reader: StreamReader, layer: int, head: int, position: int
) -> StreamReader:
    """What `reader` reads at `position` through a head; biases of the head belong to the reader's own step."""
    block = model.frozen.layers[layer]
    g = _at_attention(model, reader, layer)
    u = block.pull_heads(g, torch.tensor(reader.position, device=g.device))[head]
    source = torch.tensor(position, device=g.device)
    v = block.norm_attention.pull_back(block.attention.W_V[head] @ u, source)
    return StreamReader(block.pattern[head, reader.position, position] * v, position, 2 * layer, 0.0)


def take_step(model: LinearizedModel, reader: StreamReader) -> SourceDecomposition:
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


def _at_attention(model: LinearizedModel, reader: StreamReader, layer: int) -> Float[Tensor, " d"]:
    """What a reader reads in the output of a layer's attention: skip paths above it are gone through."""
    g = reader.vector
    here = torch.tensor(reader.position, device=g.device)
    for above in range((reader.stage - 1) // 2, layer - 1, -1):
        if reader.stage < 2 * above + 2 or (model.frozen.parallel and above == layer):
            continue
        g = g + model.skip(above, model.frozen.layers[above].norm_mlp_after.pull_back(g, here), here)
    return g


def _read_heads(
    model: LinearizedModel, layer: int, g: Float[Tensor, " d"], position: int
) -> tuple[Int[Tensor, " head"], Float[Tensor, "head source"]]:
    block = model.frozen.layers[layer]
    u = block.pull_heads(g, torch.tensor(position, device=g.device))
    read = torch.einsum("hse,he->hs", model.head_values(layer)[:, : position + 1], u)
    return torch.arange(len(u), device=g.device), block.pattern[:, position, : position + 1] * read


def _joined(parts: list, error: float, constant: float) -> SourceDecomposition:
    kinds = [torch.full_like(index, kind) for kind, _, index, _, _, _ in parts]
    layers = [torch.full_like(index, layer) for _, layer, index, _, _, _ in parts]
    index, position, value, active = (torch.cat([part[i] for part in parts]) for i in (2, 3, 4, 5))
    return SourceDecomposition(
        torch.cat(kinds), torch.cat(layers), index, position, value, active, error, constant
    )


@dataclass(frozen=True)
class PathFilter:
    """What a step of a path must be; what is None may be anything."""

    kind: int | None = None
    layer: int | None = None
    index: int | None = None
    """Number of the feature or head."""
    position: int | None = None

    def matches(self, steps: "SourceDecomposition | Paths") -> Bool[Tensor, " step"]:
        """Which steps are so."""
        matches = torch.ones_like(steps.kind, dtype=torch.bool)
        for name, wanted in vars(self).items():
            if wanted is not None:
                matches &= getattr(steps, name) == wanted
        return matches


@dataclass(frozen=True)
class PathSearch:
    """How paths are looked for."""

    length: int = 5
    """Steps of the longest path."""
    width: int = 10
    """Sources that a path is extended by, and paths that are kept at each length."""
    signed: bool = False
    """Keep the largest contributions, not the largest absolute ones: inhibition is then not seen."""
    capped: bool = False
    """A step counts for no more than the smallest step before it."""
    prefix: Sequence[PathFilter] = ()
    """What the first steps of a path must be."""


@dataclass(frozen=True)
class Paths:
    """All paths that were kept, of all lengths: each is the step that ends it and the path before that.

    Path 0 is the root alone. A path's contribution is to the root's value.
    """

    parent: Int[Tensor, " path"]
    """The path without its last step; -1 for the root."""
    length: Int[Tensor, " path"]
    """Steps, 0 for the root."""
    kind: Int[Tensor, " path"]
    """Kind of the last step, as in `step`; -1 for the root."""
    layer: Int[Tensor, " path"]
    index: Int[Tensor, " path"]
    """Number of the feature or head; 0 for others."""
    position: Int[Tensor, " path"]
    active: Int[Tensor, " path"]
    """Place of a feature among the active ones; -1 for others."""
    contribution: Float[Tensor, " path"]
    error: Float[Tensor, " path"]
    """What errors contribute through it, one step back; nan where it was not extended."""
    constant: Float[Tensor, " path"]
    """What biases contribute through it, one step back; nan where it was not extended."""

    def __len__(self) -> int:
        """Number of paths, the root among them."""
        return len(self.parent)

    def steps(self, path: int) -> list[int]:
        """Paths from the root to this one, each a step longer."""
        steps = [path]
        while self.parent[steps[-1]] >= 0:
            steps.append(int(self.parent[steps[-1]]))
        return steps[::-1]


@torch.inference_mode()
def find_paths(model: LinearizedModel, root: StreamReader, search: PathSearch) -> Paths:
    """The paths with the largest contributions to the root, of all lengths up to the search's.

    At each length every path is extended by its largest sources, and the largest of all extensions are kept.
    Embeddings and positions end a path; features and heads are gone through.
    """
    first = take_step(model, root)
    total = float(first.value.sum()) + first.error + first.constant
    stage = {"layer": root.stage // 2, "position": root.position}
    rows = [dict(parent=-1, length=0, kind=-1, index=0, active=-1, contribution=total, **stage)]
    ends: dict[int, tuple[float, float]] = {}
    beam: list[tuple[int, StreamReader, float]] = [(0, root, float("inf"))]
    for length in range(1, search.length + 1):
        found: list[tuple[float, int, StreamReader, float, SourceDecomposition, int]] = []
        for path, reader, smallest in beam:
            step = first if path == 0 else take_step(model, reader)
            ends[path] = step.error, step.constant
            for i in _largest(step, search, length).tolist():
                value = float(step.value[i])
                if search.capped:
                    value = max(-smallest, min(smallest, value))
                found.append((value, path, reader, smallest, step, i))
        found.sort(key=lambda each: -each[0] if search.signed else -abs(each[0]))
        beam = []
        for value, path, reader, smallest, step, i in found[: search.width]:
            names = ("kind", "layer", "index", "position", "active")
            own = {name: int(getattr(step, name)[i]) for name in names}
            if own["kind"] in (FEATURE, HEAD):
                beam.append((len(rows), _follow(model, reader, value, step, i), min(smallest, abs(value))))
            rows.append(dict(parent=path, length=length, contribution=value, **own))
    error, constant = zip(*(ends.get(i, (float("nan"),) * 2) for i in range(len(rows))), strict=True)
    names = [name for name in rows[0] if name != "contribution"]
    columns = {name: torch.tensor([row[name] for row in rows]) for name in names}
    like = torch.tensor([row["contribution"] for row in rows], dtype=root.vector.dtype)
    columns["contribution"] = like
    return Paths(**columns, error=like.new_tensor(error), constant=like.new_tensor(constant))


def _largest(step: SourceDecomposition, search: PathSearch, length: int) -> Int[Tensor, " source"]:
    """The sources that a path is extended by."""
    allowed = torch.ones_like(step.kind, dtype=torch.bool)
    if length <= len(search.prefix):
        allowed = search.prefix[length - 1].matches(step)
    size = (step.value if search.signed else step.value.abs()).masked_fill(~allowed, -torch.inf)
    best = size.topk(min(search.width, len(step))).indices
    kept = allowed[best] & (step.value[best] != 0)
    return best[kept & (step.value[best] > 0)] if search.signed else best[kept]


def _follow(
    model: LinearizedModel, reader: StreamReader, value: float, step: SourceDecomposition, i: int
) -> StreamReader:
    """What the source reads, in units of the root."""
    if int(step.kind[i]) == HEAD:
        # less than 1 where the step is capped
        counted = reader._replace(vector=reader.vector * (value / float(step.value[i])))
        return head_reader(model, counted, int(step.layer[i]), int(step.index[i]), int(step.position[i]))
    active = int(step.active[i])
    # the contribution of a feature is its activation times what the reader reads in its row
    return feature_reader(model, active, value / float(model.features.activation[active]))


def select(
    paths: Paths, infix: Sequence[PathFilter] = (), suffix: Sequence[PathFilter] = ()
) -> Int[Tensor, " path"]:
    """The paths in which steps that match `infix`, one after another, come at any place, and that end in `suffix`."""
    inside = [pattern.matches(paths) for pattern in infix]
    ending = [pattern.matches(paths) for pattern in suffix]
    chosen = []
    for path in range(len(paths)):
        steps = paths.steps(path)[1:]
        starts = range(len(steps) - len(inside) + 1)
        has = any(all(inside[i][steps[start + i]] for i in range(len(inside))) for start in starts)
        tail = steps[len(steps) - len(ending) :]
        ends = len(tail) == len(ending) and all(m[step] for m, step in zip(ending, tail, strict=True))
        if has and ends:
            chosen.append(path)
    return torch.tensor(chosen, dtype=torch.int64)


@dataclass(frozen=True)
class PathGraph:
    """The graph of some paths: each node once, however many paths go through it."""

    kind: Int[Tensor, " node"]
    layer: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    position: Int[Tensor, " node"]
    """-1 where tokens are summed over."""
    value: Float[Tensor, " node"]
    """Sum of the contributions, to the root, of the paths that end in it: not a direct effect."""
    source: Int[Tensor, " edge"]
    target: Int[Tensor, " edge"]
    effect: Float[Tensor, " edge"]
    """Sum of the contributions of the paths that end in the edge."""
    remainder: Float[Tensor, " node"]
    """Value less kept edges, errors and constants; 0 for a node that was not extended."""
    extended: Bool[Tensor, " node"]


def paths_to_graph(
    paths: Paths, chosen: Int[Tensor, " path"] | None = None, sum_tokens: bool = False
) -> PathGraph:
    """Nodes and edges of the chosen paths (all by default) and of the paths they begin with, each counted once.

    With `sum_tokens`, what differs in position alone is one node.
    """
    wanted = range(len(paths)) if chosen is None else chosen.tolist()
    prefixes = sorted({step for path in wanted for step in paths.steps(path)} | {0})
    place = {path: i for i, path in enumerate(prefixes)}
    position = torch.full_like(paths.position, -1) if sum_tokens else paths.position
    keys = torch.stack([paths.kind, paths.layer, paths.index, position], 1)[prefixes]
    nodes, node = keys.unique(dim=0, return_inverse=True)
    contribution = paths.contribution[prefixes]
    value = contribution.new_zeros(len(nodes)).index_add_(0, node, contribution)
    inner = [path for path in prefixes if paths.parent[path] >= 0]
    ends = [(place[int(paths.parent[path])], place[path]) for path in inner]
    above, below = torch.tensor(ends, dtype=torch.int64).view(-1, 2).T
    # a pair as one number: unique takes no empty rows
    pairs, edge = (node[above] * len(nodes) + node[below]).unique(return_inverse=True)
    edges = torch.stack([pairs // len(nodes), pairs % len(nodes)], 1)
    effect = contribution.new_zeros(len(edges)).index_add_(0, edge, paths.contribution[inner])
    # of a node that several paths reach, only what was extended can leave a remainder
    known = ~paths.error[prefixes].isnan()
    rest = torch.where(known, contribution - paths.error[prefixes] - paths.constant[prefixes], 0.0)
    remainder = contribution.new_zeros(len(nodes)).index_add_(0, node, rest)
    remainder.index_add_(0, edges[:, 0], -effect)
    extended = torch.zeros(len(nodes), dtype=torch.bool).index_put_((node[known],), torch.tensor(True))
    kind, layer, index, place_in_text = nodes.unbind(1)
    return PathGraph(
        kind, layer, index, place_in_text, value, edges[:, 1], edges[:, 0], effect, remainder, extended
    )
