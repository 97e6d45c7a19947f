"""Greedy paths from a target back to its sources, and the graph that these paths form.

The search and the graph follow algorithms 1 and 2 of Dunefsky, Chlenski and Nanda 2024.

1. A `StreamReader` is a linear function of the residual stream at one position: a feature's pre-activation or a logit.
2. `direct_sources` lists the sources of a reader: features, heads, embeddings, errors and biases. In attribution
   graphs, heads are not sources.
3. `find_paths` is a beam search. It extends each path by the largest sources of the path's last node. Then it keeps the
   paths with the largest contributions. Only paths that end in a feature or head are extended.
4. `paths_to_graph` merges paths into a graph. A shared prefix is counted once.
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
"""Names of the kinds of sources. FEATURE, HEAD, EMBEDDING and POSITION are indices into this tuple."""


class StreamReader(NamedTuple):
    """Linear function of the residual stream at one position: vector . stream + constant.

    Stage 2 l is the stream before block l. Stage 2 l + 1 is the stream after the attention of block l. If l is the
    number of layers, stage 2 l is the final stream.
    """

    vector: Float[Tensor, " d"]
    position: int
    stage: int
    constant: float


@dataclass(frozen=True)
class SourceDecomposition:
    """Direct sources of a reader. The value of the reader is value.sum() + error + constant."""

    kind: Int[Tensor, " source"]
    layer: Int[Tensor, " source"]
    """Layer of each source; 0 for embeddings and position embeddings."""
    index: Int[Tensor, " source"]
    """Feature or head index; 0 for other kinds."""
    position: Int[Tensor, " source"]
    """Position of each source. For a head, the position that the head attends to."""
    value: Float[Tensor, " source"]
    active: Int[Tensor, " source"]
    """Index of a feature in `LinearizedModel.features`; -1 for other kinds."""
    error: float
    """Sum of the effects of all errors."""
    constant: float

    def __len__(self) -> int:
        """Number of sources."""
        return len(self.value)


def feature_reader(model: LinearizedModel, active: int, scale: float = 1.0) -> StreamReader:
    """Returns a reader whose value is `scale` times the pre-activation of an active feature."""
    return target_reader(
        model, feature_targets(model, torch.tensor([active], device=model.features.layer.device)), scale
    )


def target_reader(model: LinearizedModel, target: AttributionTargets, scale: float = 1.0) -> StreamReader:
    """Returns a reader whose value is `scale` times the value of `target`, which holds one target."""
    stage = 2 * target.layer + (target.layer < model.layers and not model.captured.parallel)
    constant = scale * float(target.constant[0])
    return StreamReader(scale * target.vector[0], int(target.position[0]), stage, constant)


def head_reader(
    model: LinearizedModel, reader: StreamReader, layer: int, head: int, position: int
) -> StreamReader:
    """Returns a reader of the residual stream at `position` before block `layer`.

    The value is the contribution of `position` to `reader` through one head. Biases of the head are left out, since
    `direct_sources` adds these biases to the constant of `reader`.
    """
    block = model.captured.layers[layer]
    g = _at_attention(model, reader, layer)
    u = block.heads_vjp(g, torch.tensor(reader.position, device=g.device))[head]
    source = torch.tensor(position, device=g.device)
    v = block.norm_attention.vjp(block.attention.W_V[head] @ u, source)
    return StreamReader(block.pattern[head, reader.position, position] * v, position, 2 * layer, 0.0)


def direct_sources(model: LinearizedModel, reader: StreamReader) -> SourceDecomposition:
    """Returns the direct sources of a reader: features, heads, embeddings, errors and biases.

    A head is one source per position that the head attends to.
    """
    parts: list[tuple[int, int, Tensor, Tensor, Tensor, Tensor]] = []
    # effects of the features of each layer, summed over the layers that they write to
    features: dict[int, Tensor] = {}
    error, constant = 0.0, reader.constant
    position = reader.position
    g = reader.vector
    here = torch.tensor(position, device=g.device)
    for layer in range((reader.stage - 1) // 2, -1, -1):
        g_skip: Tensor | float = 0.0
        if reader.stage >= 2 * layer + 2:
            constant += float(g @ model.mlp_constant[layer, position])
            g_mlp = model.norm_after(layer).vjp(g, here)
            error += float(g_mlp @ model.errors[layer, position])
            for writer in model.writers[layer]:
                active = model.active_at(writer, position)
                if active.stop > active.start:
                    value = model.feature_outputs(writer, active, layer) @ g_mlp
                    features[writer] = features[writer] + value if writer in features else value
            if layer in features:
                active = model.active_at(layer, position)
                index = torch.arange(active.start, active.stop, device=g.device)
                numbers, value = model.features.feature[active], features[layer]
                parts.append((FEATURE, layer, numbers, here.expand(len(index)), value, index))
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
    """Returns the gradient of a reader with respect to a layer's attention output, including paths through W_skip."""
    g = reader.vector
    here = torch.tensor(reader.position, device=g.device)
    for later in range((reader.stage - 1) // 2, layer - 1, -1):
        if reader.stage < 2 * later + 2 or (model.captured.parallel and later == layer):
            continue
        g = g + model.skip_vjp(later, model.norm_after(later).vjp(g, here), here)
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
    """Constraint on one node of a path. A field that is None allows any value."""

    kind: int | None = None
    layer: int | None = None
    index: int | None = None
    """Feature or head index."""
    position: int | None = None

    def matches(self, nodes: "SourceDecomposition | Paths") -> Bool[Tensor, " node"]:
        """Returns a mask of the sources that match, or of the paths whose last node matches."""
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
    """Beam width: largest number of extensions per path, and largest number of kept paths per length."""
    signed: bool = False
    """If True, paths are ranked by contribution, and negative contributions are ignored.

    If False, paths are ranked by |contribution|."""
    capped: bool = False
    """If True, the |contribution| of a path is capped at the smallest |contribution| of its prefixes.

    The root alone does not count as a prefix."""
    prefix: Sequence[PathFilter] = ()
    """Constraints on the first nodes of each path. The first constraint applies to the node after the root."""


@dataclass(frozen=True)
class Paths:
    """Kept paths of all lengths. Each path is its parent path plus one node. Path 0 is the root alone."""

    parent: Int[Tensor, " path"]
    """Index of the parent path (this path without its last node); -1 for the root."""
    length: Int[Tensor, " path"]
    """Number of edges; 0 for the root."""
    kind: Int[Tensor, " path"]
    """Kind of the last node, as an index into KINDS; -1 for the root."""
    layer: Int[Tensor, " path"]
    index: Int[Tensor, " path"]
    """Feature or head index; 0 for other kinds."""
    position: Int[Tensor, " path"]
    active: Int[Tensor, " path"]
    """Index of a feature in `LinearizedModel.features`; -1 for other kinds."""
    contribution: Float[Tensor, " path"]
    """Contribution of the path to the root's value."""
    error: Float[Tensor, " path"]
    """Contribution of all errors through this path to the root; NaN if the path was not extended."""
    constant: Float[Tensor, " path"]
    """Contribution of all biases through this path to the root; NaN if the path was not extended."""

    def __len__(self) -> int:
        """Number of paths, the root included."""
        return len(self.parent)

    def prefixes(self, path: int) -> list[int]:
        """Returns the indices of the path's prefixes, from the root to the path itself."""
        prefixes = [path]
        while self.parent[prefixes[-1]] >= 0:
            prefixes.append(int(self.parent[prefixes[-1]]))
        return prefixes[::-1]


@torch.inference_mode()
def find_paths(model: LinearizedModel, root: StreamReader, search: PathSearch) -> Paths:
    """Beam search for the paths with the largest contributions to the root.

    At each length, every kept path is extended by the `search.width` largest sources of its last node. Then the
    `search.width` largest extended paths are kept. Paths that end in an embedding or position embedding are not
    extended.
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
    """Returns the indices of the largest sources that `search` allows as node number `length` of a path."""
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
    """Returns a reader of source i. The reader's value on the prompt is `value`, the contribution of the path."""
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
    """Returns the indices of the paths that contain nodes matching `infix` and end in nodes matching `suffix`.

    Matching nodes must be consecutive. The root is never matched.
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
    """Graph of a set of paths. Each node and each edge appears once."""

    kind: Int[Tensor, " node"]
    layer: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    position: Int[Tensor, " node"]
    """Position of each node; -1 if positions are merged."""
    value: Float[Tensor, " node"]
    """Sum of the contributions of all paths that end in the node. This sum is not a direct effect."""
    source: Int[Tensor, " edge"]
    target: Int[Tensor, " edge"]
    effect: Float[Tensor, " edge"]
    """Sum of the contributions of all paths whose last edge is this edge."""
    remainder: Float[Tensor, " node"]
    """Part of each node's value that incoming edges, errors and biases do not explain.

    s is the sum of contribution - error - constant over the extended paths that end in the node. The remainder is s
    minus the effects of the node's incoming edges."""
    extended: Bool[Tensor, " node"]
    """Whether any path that ends in the node was extended."""


def paths_to_graph(
    paths: Paths, chosen: Int[Tensor, " path"] | None = None, sum_tokens: bool = False
) -> PathGraph:
    """Merge paths and their prefixes into a graph. A shared prefix is counted once.

    `chosen` holds the indices of the paths to merge. None means all paths. If `sum_tokens` is True, nodes that differ
    only in position are merged.
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
