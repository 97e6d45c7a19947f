"""Greedy paths from a target back to its sources, and the graph that they form.

These are algorithms 1 and 2 of Dunefsky, Chlenski and Nanda 2024.

1. A `StreamReader` is a vector that reads the residual stream at one position, such as a feature's encoder or a logit.
2. `direct_sources` lists everything that wrote to the stream there. Heads are sources of their own here, while in an
   attribution graph the edges go through heads.
3. `find_paths` extends each kept path by its largest sources and keeps the largest extensions. It repeats this for each
   length. A feature or head at the end of a path becomes the next reader; an embedding ends the path.
4. `paths_to_graph` merges paths into a graph. A prefix that several paths share counts once.
"""

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
"""Names of the source kinds, by number."""


class StreamReader(NamedTuple):
    """Vector that reads the residual stream at one position.

    `stage` says where it reads: 2 l means before block l, 2 l + 1 means after the attention of block l, and twice the
    number of layers means the end of the stream.
    """

    vector: Float[Tensor, " d"]
    position: int
    stage: int
    constant: float
    """Bias added to what the vector reads."""


@dataclass(frozen=True)
class SourceDecomposition:
    """Direct sources of a reader. The reader's value is value.sum() + error + constant."""

    kind: Int[Tensor, " source"]
    layer: Int[Tensor, " source"]
    """Layer of each source; 0 for embeddings and position embeddings."""
    index: Int[Tensor, " source"]
    """Feature or head index; 0 for other kinds."""
    position: Int[Tensor, " source"]
    """Position of each source. For a head, it is the position that the head attends to."""
    value: Float[Tensor, " source"]
    active: Int[Tensor, " source"]
    """Index of a feature among the active ones; -1 for other kinds."""
    error: float
    """Sum of the effects of the error nodes of all layers."""
    constant: float

    def __len__(self) -> int:
        """Number of sources."""
        return len(self.value)


def feature_reader(model: LinearizedModel, active: int, scale: float = 1.0) -> StreamReader:
    """Reader whose value is the pre-activation of an active feature times `scale`."""
    return target_reader(
        model, feature_targets(model, torch.tensor([active], device=model.features.layer.device)), scale
    )


def target_reader(model: LinearizedModel, target: AttributionTargets, scale: float = 1.0) -> StreamReader:
    """Reader whose value is a single target times `scale`."""
    stage = 2 * target.layer + (target.layer < model.layers and not model.captured.parallel)
    constant = scale * float(target.constant[0])
    return StreamReader(scale * target.vector[0], int(target.position[0]), stage, constant)


def head_reader(
    model: LinearizedModel, reader: StreamReader, layer: int, head: int, position: int
) -> StreamReader:
    """Reader of the stream at `position` whose value is what `reader` reads through a head from there.

    The head's biases are not included, since the constant of `reader`'s sources includes them.
    """
    block = model.captured.layers[layer]
    g = _at_attention(model, reader, layer)
    u = block.heads_vjp(g, torch.tensor(reader.position, device=g.device))[head]
    source = torch.tensor(position, device=g.device)
    v = block.norm_attention.vjp(block.attention.W_V[head] @ u, source)
    return StreamReader(block.pattern[head, reader.position, position] * v, position, 2 * layer, 0.0)


def direct_sources(model: LinearizedModel, reader: StreamReader) -> SourceDecomposition:
    """Direct sources of a reader: features, heads, embeddings, errors and biases.

    A head is one source for each position that it attends to.
    """
    parts: list[tuple[int, int, Tensor, Tensor, Tensor, Tensor]] = []
    error, constant = 0.0, reader.constant
    position = reader.position
    g = reader.vector
    here = torch.tensor(position, device=g.device)
    for layer in range((reader.stage - 1) // 2, -1, -1):
        block = model.captured.layers[layer]
        g_skip: Tensor | float = 0.0
        if reader.stage >= 2 * layer + 2:
            constant += float(g @ model.mlp_constant[layer, position])
            g_mlp = block.norm_mlp_after.vjp(g, here)
            error += float(g_mlp @ model.errors[layer, position])
            active = model.active_at(layer, position)
            if active.stop > active.start:
                index = torch.arange(active.start, active.stop, device=g.device)
                value = model.feature_outputs(layer, active) @ g_mlp
                parts.append(
                    (FEATURE, layer, model.features.feature[active], here.expand(len(index)), value, index)
                )
            g_skip = model.skip_vjp(layer, g_mlp, here)
            if not model.captured.parallel:
                g = g + g_skip
        constant += float(g @ model.attention_constant[layer, position])
        heads, value = _head_effects(model, layer, g, position)
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
        if model.captured.parallel:
            g = g + g_skip
    none = here.new_tensor([-1])
    zero = here.new_tensor([0])
    parts.append((EMBEDDING, 0, zero, here[None], (g @ model.captured.embedding[position])[None], none))
    if model.captured.position_embedding is not None:
        parts.append(
            (POSITION, 0, zero, here[None], (g @ model.captured.position_embedding[position])[None], none)
        )
    return _concatenate(parts, error, constant)


def _at_attention(model: LinearizedModel, reader: StreamReader, layer: int) -> Float[Tensor, " d"]:
    """Gradient of a reader with respect to a layer's attention output, including paths through W_skip of later MLPs."""
    g = reader.vector
    here = torch.tensor(reader.position, device=g.device)
    for later in range((reader.stage - 1) // 2, layer - 1, -1):
        if reader.stage < 2 * later + 2 or (model.captured.parallel and later == layer):
            continue
        g = g + model.skip_vjp(later, model.captured.layers[later].norm_mlp_after.vjp(g, here), here)
    return g


def _head_effects(
    model: LinearizedModel, layer: int, g: Float[Tensor, " d"], position: int
) -> tuple[Int[Tensor, " head"], Float[Tensor, "head source"]]:
    block = model.captured.layers[layer]
    u = block.heads_vjp(g, torch.tensor(position, device=g.device))
    unweighted = torch.einsum("hse,he->hs", model.head_values(layer)[:, : position + 1], u)
    return torch.arange(len(u), device=g.device), block.pattern[:, position, : position + 1] * unweighted


def _concatenate(parts: list, error: float, constant: float) -> SourceDecomposition:
    kinds = [torch.full_like(index, kind) for kind, _, index, _, _, _ in parts]
    layers = [torch.full_like(index, layer) for _, layer, index, _, _, _ in parts]
    index, position, value, active = (torch.cat([part[i] for part in parts]) for i in (2, 3, 4, 5))
    return SourceDecomposition(
        torch.cat(kinds), torch.cat(layers), index, position, value, active, error, constant
    )


@dataclass(frozen=True)
class PathFilter:
    """Constraint on one node of a path. A field that is None matches anything."""

    kind: int | None = None
    layer: int | None = None
    index: int | None = None
    """Feature or head index."""
    position: int | None = None

    def matches(self, nodes: "SourceDecomposition | Paths") -> Bool[Tensor, " node"]:
        """Mask of the sources that match, or of the paths whose last node matches."""
        matches = torch.ones_like(nodes.kind, dtype=torch.bool)
        for name, wanted in vars(self).items():
            if wanted is not None:
                matches &= getattr(nodes, name) == wanted
        return matches


@dataclass(frozen=True)
class PathSearch:
    """Parameters of the greedy path search."""

    length: int = 5
    """Largest number of edges of a path."""
    width: int = 10
    """Beam width: the number of sources that extend each path, and the number of paths kept at each length."""
    signed: bool = False
    """Rank by signed instead of absolute contribution. Negative contributions are then ignored."""
    capped: bool = False
    """Cap each absolute contribution at the smallest absolute contribution earlier on the path."""
    prefix: Sequence[PathFilter] = ()
    """Constraints on the first nodes after the root, one for each node."""


@dataclass(frozen=True)
class Paths:
    """Kept paths of all lengths as a tree. Each path is its parent path plus one node; path 0 is the root alone."""

    parent: Int[Tensor, " path"]
    """Index of the path without its last node; -1 for the root."""
    length: Int[Tensor, " path"]
    """Number of edges; 0 for the root."""
    kind: Int[Tensor, " path"]
    """Kind of the last node, an index into KINDS; -1 for the root."""
    layer: Int[Tensor, " path"]
    index: Int[Tensor, " path"]
    """Feature or head index; 0 for other kinds."""
    position: Int[Tensor, " path"]
    active: Int[Tensor, " path"]
    """Index of a feature among the active ones; -1 for other kinds."""
    contribution: Float[Tensor, " path"]
    """Contribution of the path to the root's value."""
    error: Float[Tensor, " path"]
    """Contribution of the error sources of the last node through this path; NaN if the path was not extended."""
    constant: Float[Tensor, " path"]
    """Contribution of the last node's biases through this path; NaN if the path was not extended."""

    def __len__(self) -> int:
        """Number of paths, the root included."""
        return len(self.parent)

    def prefixes(self, path: int) -> list[int]:
        """Indices of the path's prefixes, from the root to the path itself."""
        prefixes = [path]
        while self.parent[prefixes[-1]] >= 0:
            prefixes.append(int(self.parent[prefixes[-1]]))
        return prefixes[::-1]


@torch.inference_mode()
def find_paths(model: LinearizedModel, root: StreamReader, search: PathSearch) -> Paths:
    """Find the paths of up to `search.length` edges with the largest contributions to the root.

    At each length, every kept path is extended by its `search.width` largest sources, and the `search.width` largest
    extensions are kept. Embeddings and positions end a path; features and heads continue it.
    """
    first = direct_sources(model, root)
    total = float(first.value.sum()) + first.error + first.constant
    at_root = {"layer": root.stage // 2, "position": root.position}
    rows = [dict(parent=-1, length=0, kind=-1, index=0, active=-1, contribution=total, **at_root)]
    remainders: dict[int, tuple[float, float]] = {}
    beam: list[tuple[int, StreamReader, float]] = [(0, root, float("inf"))]
    for length in range(1, search.length + 1):
        extensions: list[tuple[float, int, StreamReader, float, SourceDecomposition, int]] = []
        for path, reader, smallest in beam:
            sources = first if path == 0 else direct_sources(model, reader)
            remainders[path] = sources.error, sources.constant
            for i in _largest_sources(sources, search, length).tolist():
                value = float(sources.value[i])
                if search.capped:
                    value = max(-smallest, min(smallest, value))
                extensions.append((value, path, reader, smallest, sources, i))
        extensions.sort(key=lambda each: -each[0] if search.signed else -abs(each[0]))
        beam = []
        for value, path, reader, smallest, sources, i in extensions[: search.width]:
            names = ("kind", "layer", "index", "position", "active")
            node = {name: int(getattr(sources, name)[i]) for name in names}
            if node["kind"] in (FEATURE, HEAD):
                next_reader = _source_reader(model, reader, value, sources, i)
                beam.append((len(rows), next_reader, min(smallest, abs(value))))
            rows.append(dict(parent=path, length=length, contribution=value, **node))
    error, constant = zip(*(remainders.get(i, (float("nan"),) * 2) for i in range(len(rows))), strict=True)
    names = [name for name in rows[0] if name != "contribution"]
    columns = {name: torch.tensor([row[name] for row in rows]) for name in names}
    like = torch.tensor([row["contribution"] for row in rows], dtype=root.vector.dtype)
    columns["contribution"] = like
    return Paths(**columns, error=like.new_tensor(error), constant=like.new_tensor(constant))


def _largest_sources(sources: SourceDecomposition, search: PathSearch, length: int) -> Int[Tensor, " source"]:
    """Indices of the largest sources with which a path may be extended to `length` edges."""
    allowed = torch.ones_like(sources.kind, dtype=torch.bool)
    if length <= len(search.prefix):
        allowed = search.prefix[length - 1].matches(sources)
    size = (sources.value if search.signed else sources.value.abs()).masked_fill(~allowed, -torch.inf)
    best = size.topk(min(search.width, len(sources))).indices
    kept = allowed[best] & (sources.value[best] != 0)
    return best[kept & (sources.value[best] > 0)] if search.signed else best[kept]


def _source_reader(
    model: LinearizedModel, reader: StreamReader, value: float, sources: SourceDecomposition, i: int
) -> StreamReader:
    """Reader of a source, scaled so that its value is the source's contribution to the root."""
    if int(sources.kind[i]) == HEAD:
        # the ratio is below 1 if the contribution was capped
        scaled = reader._replace(vector=reader.vector * (value / float(sources.value[i])))
        return head_reader(
            model, scaled, int(sources.layer[i]), int(sources.index[i]), int(sources.position[i])
        )
    active = int(sources.active[i])
    # contribution = activation * (decoder row . reader), so this is the slope at the pre-activation
    return feature_reader(model, active, value / float(model.features.activation[active]))


def select_paths(
    paths: Paths, infix: Sequence[PathFilter] = (), suffix: Sequence[PathFilter] = ()
) -> Int[Tensor, " path"]:
    """Indices of the paths that contain consecutive nodes matching `infix` and end in nodes matching `suffix`.

    The root does not count as a node of a path here.
    """
    inside = [pattern.matches(paths) for pattern in infix]
    ending = [pattern.matches(paths) for pattern in suffix]
    chosen = []
    for path in range(len(paths)):
        nodes = paths.prefixes(path)[1:]
        starts = range(len(nodes) - len(inside) + 1)
        has_infix = any(all(inside[i][nodes[start + i]] for i in range(len(inside))) for start in starts)
        tail = nodes[len(nodes) - len(ending) :]
        has_suffix = len(tail) == len(ending) and all(m[node] for m, node in zip(ending, tail, strict=True))
        if has_infix and has_suffix:
            chosen.append(path)
    return torch.tensor(chosen, dtype=torch.int64)


@dataclass(frozen=True)
class PathGraph:
    """Graph of a set of paths, in which each node and each edge appears once."""

    kind: Int[Tensor, " node"]
    layer: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    position: Int[Tensor, " node"]
    """Position of each node; -1 if positions are merged."""
    value: Float[Tensor, " node"]
    """Sum of the contributions to the root of all paths that end in the node. This is not a direct effect."""
    source: Int[Tensor, " edge"]
    target: Int[Tensor, " edge"]
    effect: Float[Tensor, " edge"]
    """Sum of the contributions to the root of all paths whose last edge is this one."""
    remainder: Float[Tensor, " node"]
    """Value minus kept incoming edges, errors and constants; 0 for a node from which no path was extended."""
    extended: Bool[Tensor, " node"]
    """Whether paths were extended from the node."""


def paths_to_graph(
    paths: Paths, chosen: Int[Tensor, " path"] | None = None, sum_tokens: bool = False
) -> PathGraph:
    """Graph of the chosen paths (all by default) and their prefixes. A prefix that paths share counts once.

    With `sum_tokens`, nodes that differ only in position are merged.
    """
    wanted = range(len(paths)) if chosen is None else chosen.tolist()
    prefixes = sorted({prefix for path in wanted for prefix in paths.prefixes(path)} | {0})
    index_of = {path: i for i, path in enumerate(prefixes)}
    position = torch.full_like(paths.position, -1) if sum_tokens else paths.position
    keys = torch.stack([paths.kind, paths.layer, paths.index, position], 1)[prefixes]
    nodes, node = keys.unique(dim=0, return_inverse=True)
    contribution = paths.contribution[prefixes]
    value = contribution.new_zeros(len(nodes)).index_add_(0, node, contribution)
    inner = [path for path in prefixes if paths.parent[path] >= 0]
    ends = [(index_of[int(paths.parent[path])], index_of[path]) for path in inner]
    target, source = torch.tensor(ends, dtype=torch.int64).view(-1, 2).T
    # each pair is encoded as one number, since unique(dim=0) rejects empty inputs
    pairs, edge = (node[target] * len(nodes) + node[source]).unique(return_inverse=True)
    edges = torch.stack([pairs // len(nodes), pairs % len(nodes)], 1)
    effect = contribution.new_zeros(len(edges)).index_add_(0, edge, paths.contribution[inner])
    # only extended paths leave a remainder
    known = ~paths.error[prefixes].isnan()
    rest = torch.where(known, contribution - paths.error[prefixes] - paths.constant[prefixes], 0.0)
    remainder = contribution.new_zeros(len(nodes)).index_add_(0, node, rest)
    remainder.index_add_(0, edges[:, 0], -effect)
    extended = torch.zeros(len(nodes), dtype=torch.bool).index_put_((node[known],), torch.tensor(True))
    kind, layer, index, position = nodes.unbind(1)
    return PathGraph(
        kind, layer, index, position, value, edges[:, 1], edges[:, 0], effect, remainder, extended
    )
