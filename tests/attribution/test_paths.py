"""One step back adds up; greedy paths are those of an exhaustive search; their graph counts each beginning once."""

from functools import cache

import pytest
import torch
from tests.attribution.inputs import BOS, KINDS, PROMPT, load_tiny, make_linearized
from tests.models import ARCHITECTURES, VOCABULARY
from torch import Tensor

from circuitloom.attribution.direct_effects import (
    direct_effects,
    feature_targets,
    logit_targets,
    source_columns,
)
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.paths import (
    EMBEDDING,
    FEATURE,
    HEAD,
    POSITION,
    PathFilter,
    Paths,
    PathSearch,
    SourceDecomposition,
    StreamReader,
    direct_sources,
    feature_reader,
    find_paths,
    head_reader,
    paths_to_graph,
    select_paths,
    target_reader,
)
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel

SHORT = PROMPT[:3]
BROKEN = PROMPT.clone()
"""The prompt with a BOS in its midst."""
BROKEN[4] = BOS
ALL = 10**6
"""A width that nothing is cut at."""
ROUNDING = 1e-9
"""Contributions are compared to within this."""

Key = tuple[int, int, int, int]
"""Kind, layer, index and position of a step."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tiny models in float64, each made once."""
    folder = tmp_path_factory.mktemp("tiny")
    return cache(lambda architecture: load_tiny(architecture, folder, "float64"))


@pytest.fixture(scope="module")
def local(tiny) -> LinearizedModel:
    """Three tokens of GPT-2: few enough for every path to be looked at."""
    return make_linearized(tiny("gpt2"), token=SHORT)


@pytest.fixture(scope="module")
def root(local) -> StreamReader:
    """A feature of the last layer at the last position."""
    return feature_reader(local, len(local.features) - 2)


def total(step: SourceDecomposition) -> float:
    return float(step.value.sum()) + step.error + step.constant


def key(step: SourceDecomposition | Paths, i: int) -> Key:
    return int(step.kind[i]), int(step.layer[i]), int(step.index[i]), int(step.position[i])


def through_head(
    local: LinearizedModel, reader: StreamReader, step: SourceDecomposition, i: int
) -> StreamReader:
    assert int(step.kind[i]) == HEAD
    return head_reader(local, reader, int(step.layer[i]), int(step.index[i]), int(step.position[i]))


def logit_reader(local: LinearizedModel, position: int, token: int = 10) -> StreamReader:
    weights = torch.eye(VOCABULARY, dtype=local.captured.resid_final.dtype)[[token]]
    return target_reader(local, logit_targets(local, torch.tensor([position]), weights))


# One step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_features_and_logits_read_is_the_sum_of_one_step(architecture, kind, tiny):
    local = make_linearized(tiny(architecture), kind, BROKEN)
    for place in range(0, len(local.features), 3):
        activation = float(local.features.activation[place])
        assert total(direct_sources(local, feature_reader(local, place))) == pytest.approx(
            activation, abs=1e-9
        )
    halved = direct_sources(local, feature_reader(local, place, scale=-0.5))
    assert total(halved) == pytest.approx(-0.5 * activation, abs=1e-9)
    logits = local.captured.logits()
    for position in (3, 4, 10):
        step = direct_sources(local, logit_reader(local, position))
        assert total(step) == pytest.approx(float(logits[position, 10]), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_comes_through_a_head_is_its_value_and_the_sum_of_one_step(architecture, kind, tiny):
    local = make_linearized(tiny(architecture), kind, BROKEN)
    for reader in (feature_reader(local, len(local.features) - 1), logit_reader(local, 9)):
        step = direct_sources(local, reader)
        heads = (step.kind == HEAD).nonzero()[:, 0]
        largest = heads[step.value[heads].abs().topk(12).indices]
        for i in [*heads[::11].tolist(), *largest.tolist()]:
            through = through_head(local, reader, step, i)
            value = float(step.value[i])
            stream = local.captured.layers[int(step.layer[i])].resid_pre[through.position]
            assert float(through.vector @ stream) == pytest.approx(value, abs=1e-9)
            assert total(direct_sources(local, through)) == pytest.approx(value, abs=1e-9)
        assert step.value[largest].abs().min() > 1e-3


def expand(local: LinearizedModel, reader: StreamReader) -> tuple[Tensor, float]:
    """Step upon step until no head is left: what each feature, embedding, position and the constant add; the errors."""
    columns = source_columns(local)
    step = direct_sources(local, reader)
    row, error = torch.zeros(len(columns), dtype=torch.float64), step.error
    row[columns.constant] = step.constant
    starts = {EMBEDDING: columns.embeddings.start, POSITION: columns.position_embeddings.start}
    for i in range(len(step)):
        kind, position = int(step.kind[i]), int(step.position[i])
        if kind == HEAD:
            below, below_error = expand(local, through_head(local, reader, step, i))
            row, error = row + below, error + below_error
        else:
            row[int(step.active[i]) if kind == FEATURE else starts[kind] + position] += step.value[i]
    return row, error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steps_through_all_heads_add_up_to_direct_effects(architecture, kind, tiny):
    local = make_linearized(tiny(architecture), kind, SHORT)
    columns = source_columns(local)
    places = [(local.features.layer == layer).nonzero()[-1] for layer in local.dictionaries]
    for target in [feature_targets(local, place) for place in places]:
        effects = direct_effects(local, target)[0].clone()
        row, error = expand(local, target_reader(local, target))
        assert error == pytest.approx(float(effects[columns.errors].sum()), abs=1e-9)
        effects[columns.errors] = 0
        torch.testing.assert_close(row, effects, atol=1e-9, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sources_of_a_step_are_all_that_wrote_what_is_read(architecture, tiny):
    local = make_linearized(tiny(architecture), token=BROKEN)
    place = int((local.features.layer == 1).nonzero()[-1])
    step = direct_sources(local, feature_reader(local, place))
    heads = local.captured.layers[0].pattern.shape[0]
    position = int(local.features.position[place])
    # a layer whose MLP runs beside its attention does not read it
    attentions = [0] if local.captured.parallel else [0, 1]
    expected = {
        (HEAD, layer, head, s) for layer in attentions for head in range(heads) for s in range(position + 1)
    }
    features = local.features.feature[local.active_at(0, position)].tolist()
    expected |= {(FEATURE, 0, feature, position) for feature in features}
    expected |= {(EMBEDDING, 0, 0, position)}
    expected |= {(POSITION, 0, 0, position)} if architecture == "gpt2" else set()
    given = [key(step, i) for i in range(len(step))]
    assert len(given) == len(expected) and set(given) == expected
    for i in range(len(step)):
        assert int(step.active[i]) == (
            local.features.find(0, position, int(step.index[i])) if int(step.kind[i]) == FEATURE else -1
        )


# Greedy paths


def every_path(local: LinearizedModel, root: StreamReader, length: int) -> dict[tuple[Key, ...], float]:
    """All paths of up to so many steps, and their contributions."""
    found: dict[tuple[Key, ...], float] = {}

    def extend(path: tuple[Key, ...], reader: StreamReader) -> None:
        step = direct_sources(local, reader)
        for i in range(len(step)):
            longer, value = (*path, key(step, i)), float(step.value[i])
            found[longer] = value
            if len(longer) == length:
                continue
            if int(step.kind[i]) == HEAD:
                extend(longer, through_head(local, reader, step, i))
            elif int(step.kind[i]) == FEATURE:
                place = int(step.active[i])
                extend(longer, feature_reader(local, place, value / float(local.features.activation[place])))

    extend((), root)
    return found


@pytest.fixture(scope="module")
def everything(local, root) -> dict[tuple[Key, ...], float]:
    return every_path(local, root, 3)


def keys_of(paths: Paths) -> list[tuple[Key, ...]]:
    """Each path's steps."""
    return [tuple(key(paths, step) for step in paths.prefixes(path)[1:]) for path in range(len(paths))]


def contributions(paths: Paths) -> dict[tuple[Key, ...], float]:
    """Those of all paths but the root."""
    keys = keys_of(paths)
    assert keys[0] == () and len(set(keys)) == len(keys)
    return dict(zip(keys[1:], paths.contribution[1:].tolist(), strict=True))


def test_a_search_that_cuts_nothing_finds_every_path(local, root, everything):
    found = contributions(find_paths(local, root, PathSearch(length=3, width=ALL)))
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
def test_the_largest_are_kept_at_each_length(width, signed, local, root, everything):
    found = contributions(find_paths(local, root, PathSearch(length=3, width=width, signed=signed)))
    assert found == pytest.approx(greedy(everything, width, signed), abs=ROUNDING)
    assert any(len(path) == 1 for path in found) and max(map(len, found)) == min(3, 1 + width)


def test_inhibition_is_seen_unless_signed(local, root):
    unsigned = find_paths(local, root, PathSearch(length=3, width=20))
    signed = find_paths(local, root, PathSearch(length=3, width=20, signed=True))
    for length in (1, 2, 3):
        assert (unsigned.contribution[unsigned.length == length] < 0).sum() > 3
        assert (signed.contribution[signed.length == length] > 0).all()


def test_sources_of_attention_are_not_cut_at_the_number_of_heads(tiny):
    local = make_linearized(tiny("gpt2"))
    paths = find_paths(local, logit_reader(local, 10), PathSearch(length=1, width=60))
    heads = local.captured.layers[0].pattern.shape[0]
    for layer in range(local.layers):
        assert ((paths.kind == HEAD) & (paths.layer == layer)).sum() > heads == 2


def extensions(paths: Paths, path: int) -> float:
    """What a path's extensions, errors and constants add up to."""
    below = float(paths.contribution[paths.parent == path].sum())
    return below + float(paths.error[path]) + float(paths.constant[path])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_extensions_of_a_path_with_errors_and_constants_add_up_to_it(architecture, kind, tiny):
    local = make_linearized(tiny(architecture), kind, SHORT)
    layer = sorted(local.dictionaries)[1]
    place = int((local.features.layer == layer).nonzero()[-1])
    paths = find_paths(local, feature_reader(local, place), PathSearch(length=3, width=ALL))
    assert float(paths.contribution[0]) == pytest.approx(
        float(local.features.activation[place]), abs=ROUNDING
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


def in_front(norm, v: Tensor, x: Tensor) -> Tensor:
    """A vector that reads behind the norm of x, in front of it: P(gain * v) / sigma."""
    centred = isinstance(norm, torch.nn.LayerNorm)
    v = norm.weight * v
    if centred:
        x, v = x - x.mean(), v - v.mean()
    return v / (x.square().mean() + (norm.eps if centred else norm.variance_epsilon)).sqrt()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_path_contributes_the_product_of_its_parts(architecture, tiny):
    """z_i (W_dec[i] . v) for a feature; A (x W_V W_O) . v for a head; all from the model's own matrices."""
    model = tiny(architecture)
    local = make_linearized(model, token=BROKEN)
    layers, anatomy = range(model.layers), model.anatomy
    mid = "resid_pre" if anatomy.parallel else "resid_mid"
    with model.eager_attention():
        stream = capture(
            model, BROKEN[None], [Site(name, layer) for name in {"resid_pre", mid} for layer in layers]
        )

    def read_by_feature(layer: int, feature: int, position: int) -> Tensor:
        x = stream[Site(mid, layer)][0, position]
        return in_front(model.norm(layer, anatomy.norm_mlp), local.dictionaries[layer].W_enc[feature], x)

    def product(root: int, path: tuple[Key, ...]) -> float:
        features = local.features
        position = int(features.position[root])
        v = read_by_feature(int(features.layer[root]), int(features.feature[root]), position)
        value = float("nan")
        for kind, layer, index, at in path:
            if kind == FEATURE:
                place = features.find(layer, at, index)
                assert place is not None and at == position
                gain = local.dictionaries[layer].W_dec[index] @ v
                value = float(features.activation[place] * gain)
                v = gain * read_by_feature(layer, index, at)
            elif kind == HEAD:
                x = stream[Site("resid_pre", layer)][0, at]
                weight = local.captured.layers[layer].pattern[index, position, at]
                norm = model.norm(layer, anatomy.norm_attention)
                v = weight * in_front(norm, through_values(model, layer, index) @ v, x)
                value, position = float(v @ x), at
            else:
                module = model.module.get_submodule(
                    anatomy.positions if kind == POSITION else anatomy.embedding
                )
                value = float(module.weight[at if kind == POSITION else BROKEN[at]] @ v)
        return value

    root = int((local.features.layer == 2).nonzero()[-1])
    found = contributions(find_paths(local, feature_reader(local, root), PathSearch(length=4, width=40)))
    assert {kind for path in found for kind, *_ in path} >= {FEATURE, HEAD, EMBEDDING}
    assert {len(path) for path in found} >= {1, 2, 3}
    for path, value in found.items():
        assert value == pytest.approx(product(root, path), abs=ROUNDING)


def test_steps_lie_at_absolute_positions(tiny):
    local = make_linearized(tiny("gpt2"))
    paths = find_paths(local, logit_reader(local, 10), PathSearch(length=4, width=40))
    assert paths.position[0] == 10 and (paths.position >= 0).all()
    parent = paths.position[paths.parent[1:]]
    own, heads = paths.position[1:], paths.kind[1:] == HEAD
    assert (own[heads] <= parent[heads]).all() and (own[heads] < parent[heads]).any()
    # what is no head lies where it is read
    assert torch.equal(own[~heads], parent[~heads])
    features = paths.kind == FEATURE
    assert torch.equal(local.features.position[paths.active[features]], paths.position[features])
    assert torch.equal(local.features.layer[paths.active[features]], paths.layer[features])
    assert torch.equal(local.features.feature[paths.active[features]], paths.index[features])
    assert (paths.active[~features] == -1).all()


def test_a_position_from_the_end_is_refused(tiny):
    local = make_linearized(tiny("gpt2"))
    with pytest.raises(ValueError, match="position"):
        logit_reader(local, -1)


def test_no_capped_step_exceeds_any_step_before_it(tiny):
    local = make_linearized(tiny("gpt2"))
    reader = logit_reader(local, 10)
    free = find_paths(local, reader, PathSearch(length=4, width=60))
    capped = find_paths(local, reader, PathSearch(length=4, width=60, capped=True))

    def steps(paths: Paths, path: int) -> list[float]:
        return paths.contribution[paths.prefixes(path)[1:]].abs().tolist()

    # without the cap there are steps that exceed not the one before them, but an earlier one
    assert any(
        len(s) > 2 and min(s[:-1]) < s[-1] <= s[-2] for s in (steps(free, path) for path in range(len(free)))
    )
    every = [steps(capped, path) for path in range(len(capped))]
    assert all(s[i] <= min(s[:i]) * (1 + 1e-6) for s in every for i in range(1, len(s)))
    # the cap does something, and steps keep their signs
    assert sum(s[-1] == s[-2] for s in every if len(s) > 1) > 5
    assert (capped.contribution < 0).any() and (capped.contribution > 0).any()


@pytest.fixture(scope="module")
def capped(local) -> Paths:
    """All capped paths of up to three steps."""
    return find_paths(
        local, logit_reader(local, len(SHORT) - 1), PathSearch(length=3, width=ALL, capped=True)
    )


def capped_sums(paths: Paths, kind: int) -> list[tuple[float, float]]:
    """Of paths that end in a capped step of a kind: what it counts for, and the sum of its sources, none capped."""
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
def test_what_leads_to_a_capped_step_adds_up_to_what_it_counts_for(kind, capped):
    sums = capped_sums(capped, kind)
    assert len(sums) > 1
    assert [s for _, s in sums] == pytest.approx([c for c, _ in sums], abs=ROUNDING)


def test_contributions_are_as_exact_as_the_model(local, root, everything):
    found = contributions(find_paths(local, root, PathSearch(length=2, width=20)))
    assert found == pytest.approx({path: everything[path] for path in found}, abs=1e-12)


def test_a_search_makes_nothing_on_another_device_than_the_model(local, root):
    expected = find_paths(local, root, PathSearch(length=2, width=3))
    with torch.device("meta"):
        paths = find_paths(local, root, PathSearch(length=2, width=3, prefix=(PathFilter(kind=FEATURE),)))
    assert len(paths) == len(expected)


# Filters


@pytest.mark.parametrize(
    "prefix",
    [
        (PathFilter(kind=FEATURE),),
        (PathFilter(kind=HEAD, layer=1), PathFilter(position=1)),
        (PathFilter(), PathFilter(kind=FEATURE, layer=0)),
        (PathFilter(kind=HEAD), PathFilter(kind=HEAD, layer=0, index=0), PathFilter(kind=POSITION)),
    ],
)
def test_the_first_steps_match_the_prefix_and_are_the_largest_that_do(prefix, local, root, everything):
    def matches(step: Key, pattern: PathFilter) -> bool:
        return all(w is None or v == w for v, w in zip(step, vars(pattern).values(), strict=True))

    def allowed(path: tuple[Key, ...]) -> bool:
        return all(matches(step, pattern) for step, pattern in zip(path, prefix, strict=False))

    found = contributions(find_paths(local, root, PathSearch(length=3, width=6, prefix=prefix)))
    expected = greedy(everything, 6, allowed=allowed)
    assert {len(path) for path in expected} == {1, 2, 3} and expected.keys() != greedy(everything, 6).keys()
    assert found == pytest.approx(expected, abs=ROUNDING)


def make_paths(rows: list[tuple[int, int, int, int, int]], **floats: list[float]) -> Paths:
    """Paths of (parent, kind, layer, index, position), the root first."""
    parent, kind, layer, index, position = torch.tensor(rows).T
    length = [0] * len(rows)
    for path in range(1, len(rows)):
        length[path] = length[rows[path][0]] + 1
    nothing = torch.zeros(len(rows), dtype=torch.float64)
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in floats.items()}
    values = {"contribution": nothing, "error": nothing, "constant": nothing} | columns
    return Paths(
        parent, torch.tensor(length), kind, layer, index, position, torch.full_like(parent, -1), **values
    )


A, B, C = PathFilter(kind=FEATURE, index=7), PathFilter(kind=HEAD, index=0), PathFilter(kind=EMBEDDING)
TREE = make_paths(
    [
        (-1, -1, 3, 0, 5),
        (0, FEATURE, 2, 7, 5),  # 1: A
        (1, FEATURE, 1, 7, 5),  # 2: A A
        (2, HEAD, 1, 0, 4),  # 3: A A B
        (3, EMBEDDING, 0, 0, 4),  # 4: A A B C
        (0, HEAD, 2, 0, 0),  # 5: B
        (5, FEATURE, 1, 7, 0),  # 6: B A
        (6, EMBEDDING, 0, 0, 0),  # 7: B A C
        (6, HEAD, 0, 0, 0),  # 8: B A B
        (1, FEATURE, 0, 0, 5),  # 9: A, another feature
    ]
)


@pytest.mark.parametrize(
    ("infix", "suffix", "expected"),
    [
        ([], [], list(range(10))),
        # a search that did not begin again at the second A would miss 3 and 4
        ([A, B], [], [3, 4, 8]),
        ([A, A], [], [2, 3, 4]),
        ([A], [], [1, 2, 3, 4, 6, 7, 8, 9]),
        # steps of a pattern follow each other: A B C is not in A A B or B A C
        ([A, B, C], [], [4]),
        ([A, C], [], [7]),
        ([], [B], [3, 5, 8]),
        ([], [A, B], [3, 8]),
        ([], [B, A, B], [8]),
        ([], [A, A, B, C], [4]),
        ([], [A, A, A, B, C], []),
        ([B], [C], [4, 7]),
        ([A, B], [B], [3, 8]),
        # 0 is a layer, a kind, an index and a position, and not nothing
        ([PathFilter(layer=0)], [], [4, 7, 8, 9]),
        ([PathFilter(position=0)], [], [5, 6, 7, 8]),
        ([PathFilter(kind=FEATURE, index=0)], [], [9]),
        ([PathFilter(position=-1)], [], []),
        ([], [PathFilter()], list(range(1, 10))),
    ],
)
def test_infixes_lie_anywhere_and_suffixes_at_the_end(infix, suffix, expected):
    assert select_paths(TREE, infix, suffix).tolist() == expected


# Paths to graph

NAN = float("nan")
ROWS = [
    (-1, -1, 2, 0, 4),
    (0, FEATURE, 1, 3, 4),  # 1: root - f
    (0, HEAD, 1, 0, 2),  # 2: root - h
    (1, FEATURE, 0, 5, 4),  # 3: root - f - g
    (1, EMBEDDING, 0, 0, 4),  # 4: root - f - E
    (2, FEATURE, 0, 5, 2),  # 5: root - h - g at another position
    (0, FEATURE, 0, 5, 4),  # 6: root - g
    (6, EMBEDDING, 0, 0, 4),  # 7: root - g - E
]
SMALL = make_paths(
    ROWS,
    contribution=[10, 6, -2, 3, 1, -1.5, 0.75, 0.5],
    error=[1, 0.5, 0.25, NAN, NAN, NAN, 0.125, NAN],
    constant=[0.5, 0.25, 0, NAN, NAN, NAN, 0.0625, NAN],
)
ROOT, F, H, G, E, G2 = ROWS[0][1:], ROWS[1][1:], ROWS[2][1:], ROWS[3][1:], ROWS[4][1:], ROWS[5][1:]


def graph_of(paths: Paths, chosen=None, sum_tokens: bool = False):
    """Value, remainder and whether it was extended of each node; effect of each edge (target, source)."""
    graph = paths_to_graph(paths, None if chosen is None else torch.tensor(chosen), sum_tokens)
    names = [key(graph, i) for i in range(len(graph.kind))]
    assert len(set(names)) == len(names)
    rows = zip(graph.value.tolist(), graph.remainder.tolist(), graph.extended.tolist(), strict=True)
    ends = [(names[t], names[s]) for t, s in zip(graph.target.tolist(), graph.source.tolist(), strict=True)]
    assert len(set(ends)) == len(ends)
    return dict(zip(names, rows, strict=True)), dict(zip(ends, graph.effect.tolist(), strict=True))


def test_nodes_and_edges_are_sums_of_contributions():
    nodes, edges = graph_of(SMALL)
    assert nodes == {
        # 10 - 1 - 0.5 less the edges 6 - 2 + 0.75
        ROOT: (10, 3.75, True),
        # 6 - 0.5 - 0.25 less 3 + 1
        F: (6, 1.25, True),
        # -2 - 0.25 - 0 less -1.5
        H: (-2, -0.75, True),
        # 3 + 0.75; of these the path 6 was extended: 0.75 - 0.125 - 0.0625 less 0.5
        G: (3.75, 0.0625, True),
        E: (1.5, 0, False),
        G2: (-1.5, 0, False),
    }
    assert edges == {
        (ROOT, F): 6, (ROOT, H): -2, (ROOT, G): 0.75, (F, G): 3, (F, E): 1, (H, G2): -1.5, (G, E): 0.5,
    }  # fmt: skip


def test_a_shared_beginning_counts_once():
    nodes, edges = graph_of(SMALL, [3, 4])
    # 10 - 1 - 0.5 less 6; F as it was
    assert nodes == {ROOT: (10, 2.5, True), F: (6, 1.25, True), G: (3, 0, False), E: (1, 0, False)}
    assert edges == {(ROOT, F): 6, (F, G): 3, (F, E): 1}
    # neither does a beginning that is itself chosen
    assert graph_of(SMALL, [1, 3, 4, 0]) == (nodes, edges)


def test_what_differs_in_position_alone_is_one_node_when_tokens_are_summed_over():
    nodes, edges = graph_of(SMALL, sum_tokens=True)
    root, f, h, g, e = ((*node[:3], -1) for node in (ROOT, F, H, G, E))
    assert nodes == {
        root: (10, 3.75, True),
        f: (6, 1.25, True),
        h: (-2, -0.75, True),
        # 3 + 0.75 - 1.5
        g: (2.25, 0.0625, True),
        e: (1.5, 0, False),
    }
    assert edges == {
        (root, f): 6,
        (root, h): -2,
        (root, g): 0.75,
        (f, g): 3,
        (f, e): 1,
        (h, g): -1.5,
        (g, e): 0.5,
    }


def test_nothing_remains_where_nothing_was_cut(local, root):
    graph = paths_to_graph(find_paths(local, root, PathSearch(length=3, width=ALL)))
    assert graph.extended.sum() > 20
    assert graph.remainder.abs().max() < 1e-4


def test_the_graph_of_the_root_alone_has_one_node():
    nodes, edges = graph_of(SMALL, [0])
    # 10 - 1 - 0.5
    assert nodes == {ROOT: (10, 8.5, True)} and edges == {}
