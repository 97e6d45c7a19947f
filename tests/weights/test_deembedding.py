"""De-embeddings equal the effects of embeddings on a prompt, apart from attention weights and denominators."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.attribution.inputs import PROMPT, load_gemma, load_tiny, make_dictionaries
from tests.evaluation.inputs import BOS
from tests.models import ARCHITECTURES, LAYERS, VOCABULARY

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import direct_effects, feature_targets, source_columns
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.weights.deembedding import embed_vocabulary, embedding_rows, write_deembedding

STRINGS = [f" w{number}" for number in range(VOCABULARY)]
ALL = (*ARCHITECTURES, "gemma")
HEADS = {"gpt2": 2, "llama": 4, "neox": 2, "gemma": 4}


@pytest.fixture(params=ALL)
def architecture(request):
    return request.param


@pytest.fixture
def model(architecture, tmp_path):
    return load_gemma(tmp_path) if architecture == "gemma" else load_tiny(architecture, tmp_path)


def deembed(model, tmp_path, n=VOCABULARY, heads=99, kind="transcoder", **changes):
    """Rows by layer, feature and via: token ids and effects of both signs, in their order."""
    dictionaries, weights = make_dictionaries(model, kind, **changes), read_weights(model)
    paths = {layer: tmp_path / f"{layer}.parquet" for layer in range(LAYERS)}
    tokens = embed_vocabulary(model, weights, dictionaries[0], VOCABULARY)
    write_deembedding("tc", dictionaries, model, weights, tokens, STRINGS, paths, n, heads)
    found = {}
    for path in paths.values():
        for row in pq.read_table(path).to_pylist():
            assert row["run"] == "tc" and row["token"] == STRINGS[row["token_id"]]
            rows = found.setdefault((row["layer"], row["feature"], row["via"]), {1: [], -1: []})[row["sign"]]
            assert row["rank"] == len(rows)
            rows.append((row["token_id"], row["effect"]))
    return found


def by_token(rows):
    effects = np.zeros(VOCABULARY)
    for token, effect in rows[1]:
        effects[token] = effect
    return effects


def test_embedding_rows_are_what_enters_the_stream(model):
    weights = read_weights(model)
    rows = embedding_rows(model, weights)
    torch.testing.assert_close(
        rows[PROMPT], capture_pass(model, weights, PROMPT).embedding, rtol=1e-4, atol=1e-5
    )


def test_an_embedding_that_is_not_merely_scaled_raises(tmp_path):
    model = load_tiny("llama", tmp_path)
    weights = read_weights(model)
    model.module.get_submodule(model.anatomy.embedding).register_forward_hook(
        lambda _module, _args, output: output / output.norm(dim=-1, keepdim=True)
    )
    with pytest.raises(ValueError, match="not a multiple of the embedding"):
        embedding_rows(model, weights)


def test_effects_times_attention_over_denominators_equal_direct_effects(model, architecture, tmp_path):
    """Effects of embeddings on features of layer 0 go through at most one head."""
    found = deembed(model, tmp_path)
    dictionaries = make_dictionaries(model)
    linearized = LinearizedModel(capture_pass(model, read_weights(model), PROMPT), dictionaries, BOS)
    places = (linearized.features.layer == 0).nonzero()[:, 0]
    measured = direct_effects(linearized, feature_targets(linearized, places))[
        :, source_columns(linearized).embeddings
    ]
    block = linearized.captured.layers[0]
    heads = 0 if model.anatomy.parallel else HEADS[architecture]
    for place, effects in zip(places.tolist(), measured, strict=True):
        feature, t = int(linearized.features.feature[place]), int(linearized.features.position[place])
        expected = torch.zeros(len(PROMPT), dtype=torch.float64)
        expected[t] = by_token(found[0, feature, "direct"])[PROMPT[t]]
        for head in range(heads):
            through = torch.from_numpy(by_token(found[0, feature, f"head 0.{head}"])[PROMPT])
            seen = block.pattern[head, t] / block.norm_attention.sigma / block.norm_attention_after.sigma[t]
            expected += through * seen
        torch.testing.assert_close(effects.double(), expected / block.norm_mlp.sigma[t], atol=2e-4, rtol=1e-3)
    assert len(places) > 20
    assert {via for layer, _, via in found if layer == 0} == {
        "direct",
        *(f"head 0.{h}" for h in range(heads)),
    }


@pytest.mark.parametrize(
    ("architecture", "kind", "site"),
    [*((name, kind, "mlp_out") for name in ALL for kind in ("transcoder", "skip transcoder")),
     ("gemma", "skip transcoder", "mlp_added")],
)  # fmt: skip
def test_layer0_effects_equal_the_dictionary_applied_to_the_embedding(model, tmp_path, kind, site):
    found = deembed(model, tmp_path, kind=kind, site_out=site)
    dictionaries, weights = make_dictionaries(model, kind), read_weights(model)
    norm = model.norm(0, model.anatomy.norm_mlp)
    with torch.inference_mode():
        y = dictionaries[0](norm(embedding_rows(model, weights)))
    after = weights.blocks[0].norm_mlp_after
    if after is not None and site == "mlp_out":
        y = after.gain * y
    gain = weights.blocks[2].norm_mlp
    expected = y @ gain.project(gain.gain * dictionaries[2].W_enc).T
    for feature in range(40):
        effects = torch.from_numpy(by_token(found[2, feature, "layer0"])).float()
        torch.testing.assert_close(effects, expected[:, feature], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "site"), [*((name, "mlp_out") for name in ALL), ("gemma", "mlp_added")]
)
def test_layer0_effects_across_layers_are_those_on_layers_before_the_target(model, tmp_path, site):
    found = deembed(model, tmp_path, kind="skip cross-layer", site_out=site, act="relu", k=None)
    layers, weights = make_dictionaries(model, "skip cross-layer", act="relu", k=None), read_weights(model)
    norm, first = model.norm(0, model.anatomy.norm_mlp), layers[0]
    with torch.inference_mode():
        x = norm(embedding_rows(model, weights))
        z = first.encode(x)
        own = z @ first.decoder(0) + first.b_dec + x @ first.W_skip.T
        written = {0: own, 1: z @ first.decoder(1)}
        for output, y in written.items():
            after = weights.blocks[output].norm_mlp_after
            written[output] = after.gain * y if after is not None and site == "mlp_out" else y
    for target in (1, 2):
        y = sum(value for output, value in written.items() if output < target)
        gain = weights.blocks[target].norm_mlp
        expected = y @ gain.project(gain.gain * layers[target].W_enc).T
        for feature in range(40):
            effects = torch.from_numpy(by_token(found[target, feature, "layer0"])).float()
            torch.testing.assert_close(effects, expected[:, feature], atol=1e-4, rtol=1e-3)


def test_in_parallel_blocks_layer_0_fires_as_on_the_embedding_alone(tmp_path):
    """Its MLP reads no attention, and rotary positions only affect attention."""
    model = load_tiny("neox", tmp_path)
    dictionaries, weights = make_dictionaries(model), read_weights(model)
    activations = embed_vocabulary(model, weights, dictionaries[0], VOCABULARY).layer0_activations
    linearized = LinearizedModel(capture_pass(model, weights, PROMPT), dictionaries, BOS)
    ends = torch.cat([activations.start[1:], torch.tensor([len(activations.feature)])])
    for position in range(1, len(PROMPT)):
        mine = slice(int(activations.start[PROMPT[position]]), int(ends[PROMPT[position]]))
        active = linearized.active_at(0, position)
        order = activations.feature[mine].argsort()
        assert torch.equal(linearized.features.feature[active], activations.feature[mine][order])
        torch.testing.assert_close(linearized.features.activation[active], activations.value[mine][order])
    largest = [max(activations.value[activations.feature == i].tolist(), default=0.0) for i in range(40)]
    assert activations.largest.tolist() == largest


def test_both_signs_and_the_head_with_the_most_varied_effects_are_kept(model, tmp_path):
    every, some = deembed(model, tmp_path), deembed(model, tmp_path, n=5, heads=1)
    for (layer, feature, via), rows in some.items():
        full = every[layer, feature, via]
        for sign in (1, -1):
            np.testing.assert_allclose(
                [effect for _, effect in rows[sign]], [effect for _, effect in full[sign][:5]], rtol=1e-4
            )
        assert full[1][0][1] >= full[1][-1][1]
        assert [effect for _, effect in full[1]] == [effect for _, effect in full[-1]][::-1]
        if via.startswith("head"):
            spread = {
                v: by_token(r).std()
                for (at, number, v), r in every.items()
                if (at, number) == (layer, feature) and v.startswith("head")
            }
            assert spread[via] >= max(spread.values()) * (1 - 1e-4)
    heads = sum(via.startswith("head") for _, _, via in some)
    assert heads == 40 * (LAYERS - model.anatomy.parallel)


def test_saes_raise(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    dictionaries, weights = make_dictionaries(model, site_in="mlp_out"), read_weights(model)
    with pytest.raises(ValueError, match="name a run of transcoders"):
        embed_vocabulary(model, weights, dictionaries[0], VOCABULARY)
    tokens = embed_vocabulary(model, weights, None, VOCABULARY)
    with pytest.raises(ValueError, match="name a run of transcoders"):
        write_deembedding("sae", dictionaries, model, weights, tokens, STRINGS, {1: tmp_path / "1.parquet"})
