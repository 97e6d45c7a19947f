"""Virtual weights are the prompt-independent factor of an edge; mean effects are means of edges on prompts."""

import math

import pyarrow.parquet as pq
import pytest
import torch
from tests.activations.inputs import make_tokens
from tests.attribution.inputs import decoder_rows, load_gemma, load_tiny, make_cross_layer, make_dictionaries
from tests.evaluation.inputs import BOS, make_held_out
from tests.models import ARCHITECTURES, D_MODEL, LAYERS

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import direct_effects, feature_targets
from circuitloom.attribution.linearized_model import LinearizedModel, linearize_sequences
from circuitloom.weights.connections import DIRECT, find_connections, mean_effects, write_connections

WIDTH = 40
EVERY = {"n": 10_000, "heads": 99}


CASES = [
    *((name, "mlp_out", "mlp_in", "transcoder") for name in (*ARCHITECTURES, "gemma", "granite")),
    ("gemma", "mlp_added", "mlp_in", "transcoder"),
    ("gpt2", "mlp_out", "resid_mid", "transcoder"),
    ("gemma", "mlp_added", "resid_mid", "transcoder"),
    *((name, "mlp_out", "mlp_in", "cross-layer") for name in (*ARCHITECTURES, "granite")),
    ("gemma", "mlp_added", "resid_mid", "cross-layer"),
]


@pytest.fixture(params=CASES, ids=" ".join)
def case(request):
    """Architecture, the sites that the dictionaries reconstruct and read, and their kind."""
    return request.param


@pytest.fixture
def model(case, tmp_path):
    return load_gemma(tmp_path) if case[0] == "gemma" else load_tiny(case[0], tmp_path)


@pytest.fixture
def dictionaries(case, model):
    return make_dictionaries(model, case[3], site_out=case[1], site_in=case[2])


def make_prompts(model, dictionaries):
    weights = read_weights(model)
    token = make_held_out(sequences=4).token
    return [LinearizedModel(capture_pass(model, weights, row), dictionaries, BOS) for row in token]


def activations(prompt, layer, feature):
    """A feature's activations, by position."""
    found = torch.zeros(len(prompt.captured))
    mine = (prompt.features.layer == layer) & (prompt.features.feature == feature)
    found[prompt.features.position[mine]] = prompt.features.activation[mine]
    return found


def edges(prompt, layer, feature, source_layer, source, head_layer, head):
    """Effect of one feature on another through a connection at each position, computed forwards through the blocks."""
    z = activations(prompt, source_layer, source)
    blocks = prompt.captured.layers
    dictionary = prompt.dictionaries[source_layer]
    before = layer if head_layer == DIRECT else head_layer
    x = torch.zeros(len(z), D_MODEL)
    for output, row in decoder_rows(dictionary, source).items():
        if output < before:
            written = z[:, None] * row
            after = blocks[output].norm_mlp_after
            x = x + (after.jvp(written) if dictionary.site_out == "mlp_out" else written)
    if head_layer != DIRECT:
        block = blocks[head_layer]
        mixed = block.pattern[head] @ (block.norm_attention.jvp(x) @ block.attention.W_V[head])
        x = block.norm_attention_after.jvp(mixed @ block.attention.W_O[head])
    target = prompt.dictionaries[layer]
    x = blocks[layer].norm_mlp.jvp(x) if target.site_in == "mlp_in" else x
    return x @ target.W_enc[feature]


def kept(connections):
    for feature in range(len(connections.weight)):
        for place in range(connections.weight.shape[1]):
            numbers = (int(column[feature, place]) for column in list(vars(connections).values())[:4])
            yield feature, place, *numbers


def test_means_are_those_of_edges_on_prompts(model, dictionaries):
    prompts = make_prompts(model, dictionaries)
    connections = {
        layer: find_connections(model, read_weights(model), dictionaries, layer, 12, 2) for layer in (1, 2)
    }
    means = mean_effects(prompts, connections)
    counted = torch.cat([prompt.replaced for prompt in prompts])
    checked = set()
    for layer, mine in connections.items():
        fires = [
            torch.cat([activations(prompt, layer, feature) > 0 for prompt in prompts])
            for feature in range(WIDTH)
        ]
        assert means[layer].n_active.tolist() == [int(each.sum()) for each in fires]
        for feature, place, source_layer, source, head_layer, head in list(kept(mine))[::7]:
            way = source_layer, source, head_layer, head
            effect = torch.cat([edges(prompt, layer, feature, *way) for prompt in prompts]).double()
            mean = float(means[layer].mean[feature, place])
            assert mean == pytest.approx(float(effect[counted].mean()), abs=1e-5, rel=1e-3)
            active, expected = means[layer].when_active[feature, place], effect[fires[feature]].mean()
            torch.testing.assert_close(active, expected, atol=1e-5, rtol=1e-3, equal_nan=True)
            if expected.abs() > 1e-3:
                checked.add((layer, source_layer, head_layer == DIRECT))
    assert (2, 0, False) in checked and (2, 1, True) in checked and (1, 0, True) in checked


def test_all_connections_between_neighbouring_layers_add_up_to_direct_effects(model, dictionaries):
    """No path to `layer` goes through two heads. Parallel blocks: layer 1's MLP does not read its own block's heads."""
    layer = 2 if model.anatomy.parallel else 1
    prompts = make_prompts(model, dictionaries)
    found = find_connections(model, read_weights(model), dictionaries, layer, **EVERY)
    means = mean_effects(prompts, {layer: found})[layer]
    total = torch.zeros(WIDTH, LAYERS * WIDTH, dtype=torch.float64)
    n = means.n_active[:, None]
    total.scatter_add_(
        1, found.source_layer * WIDTH + found.source, (means.when_active * n).nan_to_num().double()
    )
    expected = torch.zeros_like(total)
    for prompt in prompts:
        features = prompt.features
        places = (features.layer == layer).nonzero()[:, 0]
        effects = direct_effects(prompt, feature_targets(prompt, places))[:, : len(features)].double()
        by_source = torch.zeros(len(places), LAYERS * WIDTH, dtype=torch.float64)
        by_source.index_add_(1, features.layer * WIDTH + features.feature, effects)
        expected.index_add_(0, features.feature[places], by_source)
    assert (expected[:, : layer * WIDTH] != 0).sum() > 300
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-3)


def test_the_largest_weights_and_the_strongest_head_are_kept(model, dictionaries):
    weights = read_weights(model)
    every = find_connections(model, weights, dictionaries, 2, **EVERY)
    some = find_connections(model, weights, dictionaries, 2, n=6, heads=1)
    direct = every.head_layer == DIRECT
    n = int(direct[0].sum())
    assert n == 2 * WIDTH and direct[:, :n].all() and not direct[:, n:].any()
    assert some.weight.shape == (WIDTH, 12)
    for feature in range(WIDTH):
        weight = every.weight[feature]
        expected = weight[:n].abs().sort(descending=True).values[:6]
        torch.testing.assert_close(some.weight[feature, :6].abs(), expected, rtol=1e-4, atol=1e-6)
        # of each source layer, the head with the largest sum of squares
        heads = {}
        for place in range(n, len(weight)):
            key = tuple(
                int(column[feature, place]) for column in (every.source_layer, every.head_layer, every.head)
            )
            heads.setdefault(key, []).append(float(weight[place]))
        through = []
        for source_layer in {source for source, _, _ in heads}:
            mine = [weights for key, weights in heads.items() if key[0] == source_layer]
            through += max(mine, key=lambda each: math.fsum(w * w for w in each))
        expected = sorted(map(abs, through), reverse=True)[:6]
        assert some.weight[feature, 6:].abs().tolist() == pytest.approx(expected, rel=1e-3)


def test_chunks_of_features_change_nothing(model, dictionaries, monkeypatch):
    weights = read_weights(model)
    prompts = make_prompts(model, dictionaries)
    full = find_connections(model, weights, dictionaries, 2)
    means = mean_effects(prompts, {2: full})[2]
    monkeypatch.setattr("circuitloom.weights.connections.MAX_ELEMENTS", 7 * WIDTH)
    monkeypatch.setattr("circuitloom.weights.connections.MAX_GATHERED", 50)
    parts = find_connections(model, weights, dictionaries, 2)
    again = mean_effects(prompts, {2: parts})[2]
    torch.testing.assert_close(parts.weight, full.weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again.mean, means.mean, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(again.when_active, means.when_active, rtol=1e-4, atol=1e-7, equal_nan=True)


def test_sequences_are_linearized_in_order_with_dictionaries_at_all_but_bos(tmp_path):
    model = load_tiny("neox", tmp_path)
    text = make_tokens(9)
    made = list(
        linearize_sequences(model, read_weights(model), make_dictionaries(model), text, range(3), "test")
    )
    assert torch.equal(torch.stack([prompt.captured.token for prompt in made]), text.take(slice(3)))
    assert all((prompt.replaced == (prompt.captured.token != BOS)).all() for prompt in made)


def test_the_table_holds_the_kept_connections(tmp_path):
    model = load_tiny("llama", tmp_path)
    dictionaries = make_dictionaries(model)
    connections = {
        layer: find_connections(model, read_weights(model), dictionaries, layer, 5) for layer in (0, 2)
    }
    means = mean_effects(make_prompts(model, dictionaries)[:1], connections)
    for layer, each in connections.items():
        write_connections("tc", layer, each, means[layer], tmp_path / f"{layer}.parquet")
    # no layer comes before layer 0
    assert pq.read_table(tmp_path / "0.parquet").num_rows == 0
    rows = pq.read_table(tmp_path / "2.parquet").to_pylist()
    assert [row["rank"] for row in rows[:10]] == [*range(5), *range(5)]
    for row, (feature, place, source_layer, source, head_layer, head) in zip(
        rows, kept(connections[2]), strict=True
    ):
        via = "direct" if head_layer == DIRECT else f"head {head_layer}.{head}"
        numbers = row["feature"], row["via"], row["source_layer"], row["source_feature"]
        assert numbers == (feature, via, source_layer, source)
        assert row["weight"] == pytest.approx(float(connections[2].weight[feature, place]))
        assert (row["mean_effect_when_active"] is None) == (row["n_active"] == 0)
    assert {row["n_active"] == 0 for row in rows} == {True, False}


def test_saes_raise(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    dictionaries = make_dictionaries(model, site_in="mlp_out")
    with pytest.raises(ValueError, match="name a run of transcoders"):
        find_connections(model, read_weights(model), dictionaries, 1)


def test_denominators_that_differ_between_outputs_raise(tmp_path):
    model, layers = load_gemma(tmp_path), make_cross_layer().layers
    with pytest.raises(
        ValueError, match=r"denominators differ between layers, .* train it with site: mlp_added"
    ):
        find_connections(model, read_weights(model), layers, 2)
