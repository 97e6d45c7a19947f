"""Greedy paths equal those of an exhaustive search, and contribute the product of their parts."""

import pytest
import torch
from tests.attribution.inputs import (
    BROKEN,
    KINDS,
    PROMPT,
    Key,
    logit_reader,
    make_linearized,
    node_key,
    through_head,
)
from tests.models import ARCHITECTURES
from torch import Tensor

from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import (
    EMBEDDING,
    FEATURE,
    HEAD,
    POSITION,
    PathFilter,
    Paths,
    PathSearch,
    StreamReader,
    direct_sources,
    feature_reader,
    find_paths,
    paths_to_graph,
)
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel

SHORT = PROMPT[:3]
ALL = 10**6
"""A beam width that cuts nothing."""
ROUNDING = 1e-9
"""Contributions are compared to within this."""


@pytest.fixture(scope="module")
def linearized(tiny) -> LinearizedModel:
    """Three tokens of GPT-2: few enough to enumerate all paths."""
    return make_linearized(tiny("gpt2"), token=SHORT)


@pytest.fixture(scope="module")
def root(linearized) -> StreamReader:
    """A feature of the last layer at the last position."""
    return feature_reader(linearized, len(linearized.features) - 2)


def every_path(linearized: LinearizedModel, root: StreamReader, length: int) -> dict[tuple[Key, ...], float]:
    """All paths of up to `length` edges, and their contributions."""
    found: dict[tuple[Key, ...], float] = {}

    def extend(path: tuple[Key, ...], reader: StreamReader) -> None:
        sources = direct_sources(linearized, reader)
        for i in range(len(sources)):
            longer, value = (*path, node_key(sources, i)), float(sources.value[i])
            found[longer] = value
            if len(longer) == length:
                continue
            if int(sources.kind[i]) == HEAD:
                extend(longer, through_head(linearized, reader, sources, i))
            elif int(sources.kind[i]) == FEATURE:
                place = int(sources.active[i])
                extend(
                    longer,
                    feature_reader(linearized, place, value / float(linearized.features.activation[place])),
                )

    extend((), root)
    return found


@pytest.fixture(scope="module")
def everything(linearized, root) -> dict[tuple[Key, ...], float]:
    return every_path(linearized, root, 3)


def keys_of(paths: Paths) -> list[tuple[Key, ...]]:
    """Nodes of each path."""
    return [
        tuple(node_key(paths, prefix) for prefix in paths.prefixes(path)[1:]) for path in range(len(paths))
    ]


def contributions(paths: Paths) -> dict[tuple[Key, ...], float]:
    """Contributions of all paths but the root."""
    keys = keys_of(paths)
    assert keys[0] == () and len(set(keys)) == len(keys)
    return dict(zip(keys[1:], paths.contribution[1:].tolist(), strict=True))


def test_a_search_that_cuts_nothing_finds_every_path(linearized, root, everything):
    found = contributions(find_paths(linearized, root, PathSearch(length=3, width=ALL)))
    assert len(everything) > 1000 and {len(path) for path in everything} == {1, 2, 3}
    assert found == pytest.approx({path: value for path, value in everything.items() if value}, abs=ROUNDING)


def greedy(everything: dict, width: int, signed: bool = False, allowed=lambda _path: True) -> dict:
    """The algorithm on a list of all paths."""

    def size(path):
        return everything[path] if signed else abs(everything[path])

    kept, result = [()], {}
    for length in (1, 2, 3):
        candidates = []
        for start in kept:
            longer = [path for path in everything if path[:-1] == start and len(path) == length]
            longer = [path for path in longer if allowed(path) and size(path) > 0]
            candidates += sorted(longer, key=size, reverse=True)[:width]
        kept = sorted(candidates, key=size, reverse=True)[:width]
        result |= {path: everything[path] for path in kept}
    return result


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 4, 20])
def test_the_largest_extensions_are_kept_at_each_length(width, signed, linearized, root, everything):
    found = contributions(find_paths(linearized, root, PathSearch(length=3, width=width, signed=signed)))
    assert found == pytest.approx(greedy(everything, width, signed), abs=ROUNDING)
    assert any(len(path) == 1 for path in found) and max(map(len, found)) == min(3, 1 + width)


def test_inhibition_is_found_unless_signed(linearized, root):
    unsigned = find_paths(linearized, root, PathSearch(length=3, width=20))
    signed = find_paths(linearized, root, PathSearch(length=3, width=20, signed=True))
    for length in (1, 2, 3):
        assert (unsigned.contribution[unsigned.length == length] < 0).sum() > 3
        assert (signed.contribution[signed.length == length] > 0).all()


def test_a_head_can_be_a_source_at_several_positions(tiny):
    linearized = make_linearized(tiny("gpt2"))
    paths = find_paths(linearized, logit_reader(linearized, 10), PathSearch(length=1, width=60))
    heads = linearized.captured.layers[0].pattern.shape[0]
    for layer in range(linearized.layers):
        assert ((paths.kind == HEAD) & (paths.layer == layer)).sum() > heads == 2


def extensions(paths: Paths, path: int) -> float:
    """Sum of a path's extensions, errors and constants."""
    below = float(paths.contribution[paths.parent == path].sum())
    return below + float(paths.error[path]) + float(paths.constant[path])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_extensions_of_a_path_with_errors_and_constants_add_up_to_it(architecture, kind, tiny):
    linearized = make_linearized(tiny(architecture), kind, SHORT)
    layer = sorted(linearized.dictionaries)[1]
    place = int((linearized.features.layer == layer).nonzero()[-1])
    paths = find_paths(linearized, feature_reader(linearized, place), PathSearch(length=3, width=ALL))
    assert float(paths.contribution[0]) == pytest.approx(
        float(linearized.features.activation[place]), abs=ROUNDING
    )
    extended = (~paths.error.isnan()).nonzero()[:, 0].tolist()
    goes_on = (paths.length == 0) | ((paths.length < 3) & ((paths.kind == FEATURE) | (paths.kind == HEAD)))
    assert extended == goes_on.nonzero()[:, 0].tolist() and len(extended) > 10
    for path in extended:
        assert extensions(paths, path) == pytest.approx(float(paths.contribution[path]), abs=ROUNDING)


def through_values(model: LanguageModel, layer: int, head: int) -> Tensor:
    """W_V W_O of a head, [d, d], from the matrices as each architecture stores them."""
    attention = model.attention(layer)
    if model.anatomy.architecture == "GPT2LMHeadModel":
        d = attention.embed_dim
        W_V, W_O = attention.c_attn.weight[:, 2 * d :], attention.c_proj.weight
        size = d // model.anatomy.heads
        return W_V[:, head * size :][:, :size] @ W_O[head * size :][:size]
    if model.anatomy.architecture == "LlamaForCausalLM":
        size, group = attention.head_dim, head // attention.num_key_value_groups
        W_V, W_O = attention.v_proj.weight.T, attention.o_proj.weight.T
        return W_V[:, group * size :][:, :size] @ W_O[head * size :][:size]
    size = attention.head_size
    W_V = attention.query_key_value.weight.view(model.anatomy.heads, 3, size, -1)[head, 2].T
    return W_V @ attention.dense.weight.T[head * size :][:size]


def norm_vjp(norm, v: Tensor, x: Tensor) -> Tensor:
    """Vector-Jacobian product through the norm of x: P(gain * v) / sigma."""
    centred = isinstance(norm, torch.nn.LayerNorm)
    v = norm.weight * v
    if centred:
        x, v = x - x.mean(), v - v.mean()
    return v / (x.square().mean() + (norm.eps if centred else norm.variance_epsilon)).sqrt()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_paths_contribution_is_the_product_of_its_factors(architecture, tiny):
    """z_i (W_dec[i] . v) for a feature; A (x W_V W_O) . v for a head; from the model's own matrices."""
    model = tiny(architecture)
    linearized = make_linearized(model, token=BROKEN)
    layers, anatomy = range(model.layers), model.anatomy
    mid = "resid_pre" if anatomy.parallel else "resid_mid"
    with model.eager_attention():
        stream = capture(
            model, BROKEN[None], [Site(name, layer) for name in {"resid_pre", mid} for layer in layers]
        )

    def read_by_feature(layer: int, feature: int, position: int) -> Tensor:
        x = stream[Site(mid, layer)][0, position]
        return norm_vjp(model.norm(layer, anatomy.norm_mlp), linearized.dictionaries[layer].W_enc[feature], x)

    def product(root: int, path: tuple[Key, ...]) -> float:
        features = linearized.features
        position = int(features.position[root])
        v = read_by_feature(int(features.layer[root]), int(features.feature[root]), position)
        value = float("nan")
        for kind, layer, index, at in path:
            if kind == FEATURE:
                place = features.find(layer, at, index)
                assert place is not None and at == position
                gain = linearized.dictionaries[layer].W_dec[index] @ v
                value = float(features.activation[place] * gain)
                v = gain * read_by_feature(layer, index, at)
            elif kind == HEAD:
                x = stream[Site("resid_pre", layer)][0, at]
                weight = linearized.captured.layers[layer].pattern[index, position, at]
                norm = model.norm(layer, anatomy.norm_attention)
                v = weight * norm_vjp(norm, through_values(model, layer, index) @ v, x)
                value, position = float(v @ x), at
            else:
                module = model.module.get_submodule(
                    anatomy.positions if kind == POSITION else anatomy.embedding
                )
                value = float(module.weight[at if kind == POSITION else BROKEN[at]] @ v)
        return value

    root = int((linearized.features.layer == 2).nonzero()[-1])
    found = contributions(
        find_paths(linearized, feature_reader(linearized, root), PathSearch(length=4, width=40))
    )
    assert {kind for path in found for kind, *_ in path} >= {FEATURE, HEAD, EMBEDDING}
    assert {len(path) for path in found} >= {1, 2, 3}
    for path, value in found.items():
        assert value == pytest.approx(product(root, path), abs=ROUNDING)


def test_nodes_have_absolute_positions(tiny):
    linearized = make_linearized(tiny("gpt2"))
    paths = find_paths(linearized, logit_reader(linearized, 10), PathSearch(length=4, width=40))
    assert paths.position[0] == 10 and (paths.position >= 0).all()
    parent = paths.position[paths.parent[1:]]
    own, heads = paths.position[1:], paths.kind[1:] == HEAD
    assert (own[heads] <= parent[heads]).all() and (own[heads] < parent[heads]).any()
    # other sources are at the reader's position
    assert torch.equal(own[~heads], parent[~heads])
    features = paths.kind == FEATURE
    assert torch.equal(linearized.features.position[paths.active[features]], paths.position[features])
    assert torch.equal(linearized.features.layer[paths.active[features]], paths.layer[features])
    assert torch.equal(linearized.features.feature[paths.active[features]], paths.index[features])
    assert (paths.active[~features] == -1).all()


def test_a_negative_position_raises(tiny):
    linearized = make_linearized(tiny("gpt2"))
    with pytest.raises(ValueError, match="position"):
        logit_reader(linearized, -1)


def test_no_capped_contribution_exceeds_an_earlier_one(tiny):
    linearized = make_linearized(tiny("gpt2"))
    reader = logit_reader(linearized, 10)
    free = find_paths(linearized, reader, PathSearch(length=4, width=60))
    capped = find_paths(linearized, reader, PathSearch(length=4, width=60, capped=True))

    def steps(paths: Paths, path: int) -> list[float]:
        return paths.contribution[paths.prefixes(path)[1:]].abs().tolist()

    # without the cap some exceed an earlier contribution, though not the one just before
    assert any(
        len(s) > 2 and min(s[:-1]) < s[-1] <= s[-2] for s in (steps(free, path) for path in range(len(free)))
    )
    every = [steps(capped, path) for path in range(len(capped))]
    assert all(s[i] <= min(s[:i]) * (1 + 1e-6) for s in every for i in range(1, len(s)))
    # the cap has an effect, and signs are kept
    assert sum(s[-1] == s[-2] for s in every if len(s) > 1) > 5
    assert (capped.contribution < 0).any() and (capped.contribution > 0).any()


@pytest.fixture(scope="module")
def capped(linearized) -> Paths:
    """All capped paths of up to three edges."""
    return find_paths(
        linearized, logit_reader(linearized, len(SHORT) - 1), PathSearch(length=3, width=ALL, capped=True)
    )


def capped_sums(paths: Paths, kind: int) -> list[tuple[float, float]]:
    """(contribution, sum of extensions) of paths whose last node of this kind is capped, but no extension."""
    sums = []
    for path in ((paths.kind == kind) & ~paths.error.isnan() & (paths.length > 1)).nonzero()[:, 0].tolist():
        own, before = paths.contribution[path].abs(), paths.contribution[paths.parent[path]].abs()
        below = paths.contribution[paths.parent == path].abs()
        if own == before and (below < 0.999 * own).all():
            sums.append((float(paths.contribution[path]), extensions(paths, path)))
    return sums


@pytest.mark.parametrize(
    "kind",
    [pytest.param(FEATURE, id="feature"), pytest.param(HEAD, id="head")],
)
def test_extensions_of_a_capped_path_sum_to_its_capped_contribution(kind, capped):
    sums = capped_sums(capped, kind)
    assert len(sums) > 1
    assert [s for _, s in sums] == pytest.approx([c for c, _ in sums], abs=ROUNDING)


def test_contributions_are_as_exact_as_the_model(linearized, root, everything):
    found = contributions(find_paths(linearized, root, PathSearch(length=2, width=20)))
    assert found == pytest.approx({path: everything[path] for path in found}, abs=1e-12)


def test_a_search_runs_on_the_models_device(linearized, root):
    expected = find_paths(linearized, root, PathSearch(length=2, width=3))
    with torch.device("meta"):
        paths = find_paths(
            linearized, root, PathSearch(length=2, width=3, prefix=(PathFilter(kind=FEATURE),))
        )
    assert len(paths) == len(expected)


@pytest.mark.parametrize(
    "prefix",
    [
        (PathFilter(kind=FEATURE),),
        (PathFilter(kind=HEAD, layer=1), PathFilter(position=1)),
        (PathFilter(), PathFilter(kind=FEATURE, layer=0)),
        (PathFilter(kind=HEAD), PathFilter(kind=HEAD, layer=0, index=0), PathFilter(kind=POSITION)),
    ],
)
def test_the_first_nodes_are_the_largest_that_match_the_prefix(prefix, linearized, root, everything):
    def matches(node: Key, pattern: PathFilter) -> bool:
        return all(w is None or v == w for v, w in zip(node, vars(pattern).values(), strict=True))

    def allowed(path: tuple[Key, ...]) -> bool:
        return all(matches(node, pattern) for node, pattern in zip(path, prefix, strict=False))

    found = contributions(find_paths(linearized, root, PathSearch(length=3, width=6, prefix=prefix)))
    expected = greedy(everything, 6, allowed=allowed)
    assert {len(path) for path in expected} == {1, 2, 3} and expected.keys() != greedy(everything, 6).keys()
    assert found == pytest.approx(expected, abs=ROUNDING)


def test_the_remainder_is_zero_if_nothing_was_cut(linearized, root):
    graph = paths_to_graph(find_paths(linearized, root, PathSearch(length=3, width=ALL)))
    assert graph.extended.sum() > 20
    assert graph.remainder.abs().max() < 1e-4
