"""Feature bases and their direct effects on the logits."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.architectures import tiny_architecture
from tests.evaluation.inputs import make_dictionary
from tests.models import VOCABULARY

from circuitloom.config.activations import MLP_OUTPUTS
from circuitloom.dictionaries.cross_layer import CrossLayerDictionary
from circuitloom.features.basis import dictionary_basis, neuron_basis
from circuitloom.features.external_sort import stable_order
from circuitloom.features.logit_effects import write_logit_effects
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import load_model
from circuitloom.language_model.residual import neuron_output_weights, read_norm, read_unembedding

STRINGS = [f" w{number}" for number in range(VOCABULARY)]
TOKENS = torch.randint(4, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))


def test_neurons_times_their_output_rows_give_the_mlp_output(any_model):
    sites = [Site("neurons", 1), Site("mlp_out", 1)]
    with torch.inference_mode():
        captured = capture(any_model, TOKENS, sites)
        neurons, output = (captured[site] for site in sites)
        written = neurons @ neuron_output_weights(any_model, 1)
        bias = (output - written).reshape(-1, output.shape[-1])
    torch.testing.assert_close(bias, bias[:1].expand_as(bias), atol=1e-5, rtol=0)


def test_a_neuron_fires_where_it_is_positive(any_model):
    basis = neuron_basis("neurons", 1, any_model, None)
    z = torch.randn(50, basis.width)
    token, feature, value = basis.encode(z)
    dense = torch.zeros_like(z)
    dense[token, feature] = value
    assert torch.equal(dense, z.relu())


def test_the_neurons_with_the_largest_outputs_are_kept(any_model):
    basis = neuron_basis("neurons", 1, any_model, 5)
    z = torch.randn(50, basis.width)
    token, feature, value = basis.encode(z)
    written = z.relu() * basis.decoder_norm
    kept = torch.zeros_like(z, dtype=torch.bool)
    kept[token, feature] = True
    assert torch.equal(value, z[token, feature]) and (value > 0).all()
    assert (kept.sum(1) <= 5).all()
    assert (written.masked_fill(kept, 0).amax(1) <= written.masked_fill(~kept, torch.inf).amin(1)).all()


def test_a_vector_in_the_residual_stream_changes_the_logits_by_its_direct_effect(any_model):
    """With the final norm's denominator frozen, logits are linear in the residual stream."""
    norm = any_model.module.get_submodule(any_model.anatomy.norm_final)
    head = any_model.module.get_submodule(any_model.anatomy.unembedding)
    centred = read_norm(norm, torch.empty(16)).centred
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(16, generator=generator) for _ in range(2))

    def numerator(value):
        p = value - value.mean() if centred else value
        epsilon = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
        still = norm(torch.zeros_like(value)[None])[0]
        return head(norm(value[None])[0] - still) * (p.square().mean() + epsilon).sqrt()

    with torch.inference_mode():
        change = numerator(x + v) - numerator(x)
        effects = read_unembedding(any_model).rows @ v
    torch.testing.assert_close(effects, change - change.mean(), atol=2e-4, rtol=1e-3)


def test_the_strongest_effects_are_tabulated_both_ways(any_model, tmp_path):
    dictionary = make_dictionary(any_model, layer=1)
    basis = dictionary_basis("tc", 1, dictionary)
    write_logit_effects(basis, any_model, STRINGS, 6, tmp_path / "logit.parquet")
    rows = pq.read_table(tmp_path / "logit.parquet").to_pylist()
    assert len(rows) == dictionary.width * 2 * 6
    effects = dictionary.W_dec @ read_unembedding(any_model).rows.T
    for row in rows:
        ordered = effects[row["feature"]].sort(descending=row["sign"] == 1)
        assert row["effect"] == pytest.approx(float(ordered.values[row["rank"]]), abs=1e-6)
        assert row["token"] == STRINGS[row["token_id"]]
        assert float(effects[row["feature"], row["token_id"]]) == pytest.approx(row["effect"], abs=1e-6)


@pytest.mark.parametrize("name", ["gemma3_text", "olmo2", "granite"])
def test_only_what_is_written_before_a_norm_goes_through_its_gain(name, tmp_path):
    """Also the residual multiplier of Granite, and neurons."""
    model = load_model(tiny_architecture(name, tmp_path / name), device="cpu")
    norm = model.norm_after_mlp(1)
    gain = torch.tensor(model.residual_multiplier) if norm is None else norm.weight + name.startswith("gemma")
    rows = read_unembedding(model).rows
    dictionaries = {site: make_dictionary(model, layer=1, site_out=site) for site in MLP_OUTPUTS}
    bases = {site: dictionary_basis("tc", 1, each) for site, each in dictionaries.items()}
    bases["sae"] = dictionary_basis("sae", 1, make_dictionary(model, layer=1, site_in="mlp_out"))
    bases["resid_mid"] = dictionary_basis("sae", 1, make_dictionary(model, layer=1, site_out="resid_mid"))
    bases["neurons"] = neuron_basis("neurons", 1, model, None)
    for place, basis in bases.items():
        write_logit_effects(basis, model, STRINGS, 64, tmp_path / "logit.parquet")
        decoder = basis.decoders[1]
        written = decoder if place in ("mlp_added", "resid_mid") else gain * decoder
        expected = written @ rows.T
        table = pq.read_table(tmp_path / "logit.parquet").to_pydict()
        found = torch.tensor(table["effect"])
        torch.testing.assert_close(found, expected[table["feature"], table["token_id"]], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("site_out", MLP_OUTPUTS)
def test_the_effect_of_a_feature_with_several_outputs_is_the_sum_over_them(site_out, tmp_path):
    """Each output goes through the norm after its own MLP."""
    model = load_model(tiny_architecture("gemma3_text", tmp_path / "model"), device="cpu")
    alone = {layer: make_dictionary(model, layer=layer, site_out=site_out, seed=layer) for layer in (0, 1)}
    first = CrossLayerDictionary(
        **{name: getattr(alone[0], name) for name in ("W_enc", "b_enc", "b_dec", "act", "k", "threshold")},
        W_dec=torch.stack([each.W_dec for each in alone.values()], 1),
        outputs=(0, 1), scales=(1.0, 4.0), site_in=alone[0].site_in, site_out=site_out, layer=0,
    )  # fmt: skip
    basis = dictionary_basis("clt", 0, first)
    write_logit_effects(basis, model, STRINGS, VOCABULARY, tmp_path / "logit.parquet")
    rows = read_unembedding(model).rows
    expected = sum(
        ((1 + model.norm_after_mlp(layer).weight) if site_out == "mlp_out" else 1) * each.W_dec @ rows.T
        for layer, each in alone.items()
    )
    table = pq.read_table(tmp_path / "logit.parquet").to_pydict()
    found = torch.tensor(table["effect"])
    torch.testing.assert_close(found, expected[table["feature"], table["token_id"]], atol=1e-4, rtol=1e-3)
    # relative to the outputs' scales, times the scale of its own layer
    norms = [each.W_dec.norm(dim=1) for each in alone.values()]
    torch.testing.assert_close(basis.decoder_norm, (norms[0] ** 2 + (norms[1] / 4) ** 2).sqrt())


def test_a_dictionary_of_mlp_in_has_no_direct_effect(model, tmp_path):
    dictionary = make_dictionary(model, site_out="mlp_in")
    write_logit_effects(dictionary_basis("sae", 0, dictionary), model, STRINGS, 6, tmp_path / "logit.parquet")
    assert pq.read_table(tmp_path / "logit.parquet").num_rows == 0


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gain_and_bias_of_a_norm_are_measured_from_its_outputs(scale):
    layer = torch.nn.LayerNorm(32)
    layer.weight.data, layer.bias.data = scale * torch.randn(32), torch.randn(32)
    norm = read_norm(layer, torch.empty(32))
    assert norm.centred
    torch.testing.assert_close(norm.gain, layer.weight.data, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(norm.bias, layer.bias.data)


def test_a_gain_stored_as_its_difference_from_one_is_measured():
    class Offset(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(32))

        def forward(self, x):
            return (1 + self.weight) * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    module = Offset()
    norm = read_norm(module, torch.empty(32))
    assert not norm.centred
    torch.testing.assert_close(norm.gain, 1 + module.weight.data, rtol=1e-4, atol=1e-4)


def test_a_module_that_is_no_norm_is_refused():
    with pytest.raises(ValueError, match="neither a LayerNorm nor an RMSNorm"):
        read_norm(torch.nn.Linear(32, 32), torch.empty(32))


def test_stable_order_sorts_keys_of_more_than_sixteen_bits():
    keys = np.random.default_rng(0).integers(0, 200_000, 50_000).astype(np.uint32)
    assert np.array_equal(stable_order(keys, 200_000), keys.argsort(kind="stable"))
