import pytest
import torch
from tests.evaluation.inputs import make_dictionary, make_held_out

from circuitloom.evaluation import replacement
from circuitloom.evaluation.replacement import (
    DictionaryReplacement,
    constant_replacement,
    reconstruct,
    replacing_activations,
)
from circuitloom.language_model.hooks import Site, capture, edited


def forward_blocks(model, tokens, start, hidden):
    """Logits of the model from the input of block `start` on, through its own modules."""
    module = model.module
    base = getattr(module, module.base_model_prefix)
    handle = model.block(start).register_forward_pre_hook(
        lambda _m, args, kwargs: ((hidden, *args[1:]), kwargs), with_kwargs=True
    )
    try:
        return module.get_output_embeddings()(base(tokens).last_hidden_state)
    finally:
        handle.remove()


def test_y_hat_replaces_y_only_at_scored_positions(any_model):
    batch, layer = make_held_out(), 1
    dictionary = make_dictionary(any_model, layer)
    seen = capture(any_model, batch.token, [Site("mlp_in", layer), Site("mlp_out", layer)])
    expected = torch.where(
        batch.scored[..., None], dictionary(seen[Site("mlp_in", layer)]), seen[Site("mlp_out", layer)]
    )
    with edited(any_model, {Site("mlp_out", layer): lambda _x, _y: expected}):
        reference = any_model.logits(batch.token)
    with replacing_activations(any_model, {Site("mlp_out", layer): DictionaryReplacement(dictionary)}, batch):
        replaced = any_model.logits(batch.token)
    torch.testing.assert_close(replaced, reference)
    original = any_model.logits(batch.token)
    assert not torch.allclose(replaced, original)
    # position 0 keeps its activation, so that its prediction is unchanged
    torch.testing.assert_close(replaced[:, 0], original[:, 0])


def test_an_sae_on_the_mlps_output_reads_the_output(model):
    batch, site = make_held_out(), Site("mlp_out", 1)
    sae = make_dictionary(model, 1, site_in="mlp_out")
    y = capture(model, batch.token, [site])[site]
    with edited(model, {Site("mlp_out", 1): lambda _x, _y: torch.where(batch.scored[..., None], sae(y), y)}):
        reference = model.logits(batch.token)
    with replacing_activations(model, {site: DictionaryReplacement(sae)}, batch):
        torch.testing.assert_close(model.logits(batch.token), reference)


def test_replaced_layers_read_the_outputs_of_earlier_replaced_layers(model):
    batch = make_held_out()
    dictionaries = [make_dictionary(model, layer, seed=layer) for layer in range(model.layers)]

    def by_hand(layer):
        return lambda x, y: torch.where(batch.scored[..., None], dictionaries[layer](x), y)

    with edited(model, {Site("mlp_out", layer): by_hand(layer) for layer in range(model.layers)}):
        reference = model.logits(batch.token)
        replaced = capture(model, batch.token, [Site("mlp_in", 2)])[Site("mlp_in", 2)]
    replacements = {Site("mlp_out", d.layer): DictionaryReplacement(d) for d in dictionaries}
    with replacing_activations(model, replacements, batch):
        torch.testing.assert_close(model.logits(batch.token), reference)
    expected = reconstruct(dictionaries[2], replaced[batch.scored])[1]
    assert torch.equal(replacements[Site("mlp_out", 2)].firing.fires, expected.fires)


def test_a_replacement_of_resid_mid_enters_the_mlp_and_the_residual_stream(sequential_model):
    model, batch, layer = sequential_model, make_held_out(), 1
    sae = make_dictionary(model, layer, site_in="resid_mid", site_out="resid_mid")
    mid = capture(model, batch.token, [Site("resid_mid", layer)])[Site("resid_mid", layer)]
    new = torch.where(batch.scored[..., None], sae(mid), mid)
    norm = model.block(layer).get_submodule(model.anatomy.norm_mlp)
    reference = forward_blocks(model, batch.token, layer + 1, new + model.mlp(layer)(norm(new)))
    with replacing_activations(model, {Site("resid_mid", layer): DictionaryReplacement(sae)}, batch):
        torch.testing.assert_close(model.logits(batch.token), reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.logits(batch.token),
        forward_blocks(model, batch.token, layer + 1, mid + model.mlp(layer)(norm(mid))),
    )


def test_a_replacement_of_resid_pre_is_the_input_of_the_block(any_model):
    batch, site = make_held_out(), Site("resid_pre", 1)
    sae = make_dictionary(any_model, 1, site_in="resid_pre", site_out="resid_pre")
    pre = capture(any_model, batch.token, [site])[site]
    reference = forward_blocks(any_model, batch.token, 1, torch.where(batch.scored[..., None], sae(pre), pre))
    with replacing_activations(any_model, {site: DictionaryReplacement(sae)}, batch):
        torch.testing.assert_close(any_model.logits(batch.token), reference)


def test_a_replacement_of_mlp_in_is_read_only_by_the_mlp(model):
    batch, site = make_held_out(), Site("mlp_in", 1)
    with replacing_activations(model, {site: constant_replacement(torch.zeros(16))}, batch):
        replaced = model.logits(batch.token)
    out = model.mlp(1)(torch.zeros(16))
    with edited(model, {Site("mlp_out", 1): lambda _x, y: torch.where(batch.scored[..., None], out, y)}):
        torch.testing.assert_close(replaced, model.logits(batch.token))


def test_ablation_keeps_the_bos(model):
    batch = make_held_out()
    y = capture(model, batch.token, [Site("mlp_out", 0)])[Site("mlp_out", 0)]
    with edited(model, {Site("mlp_out", 0): lambda _x, _y: torch.where(batch.scored[..., None], 0.0, y)}):
        reference = model.logits(batch.token)
    with replacing_activations(model, {Site("mlp_out", 0): constant_replacement(torch.zeros(16))}, batch):
        torch.testing.assert_close(model.logits(batch.token), reference)


def test_parallel_blocks_refuse_resid_mid_and_offer_resid_pre(tmp_path):
    from tests.models import tiny_neox

    from circuitloom.language_model.model import load_model

    model = load_model(tiny_neox(tmp_path / "neox"), device="cpu")
    with (
        pytest.raises(ValueError, match="no resid_mid; use resid_pre"),
        edited(model, {Site("resid_mid", 0): lambda _x, y: y}),
    ):
        pass


@pytest.mark.parametrize("changes", [{}, {"act": "relu", "k": None}, {"W_skip": torch.ones(16, 16)}])
def test_decoding_only_active_features_equals_decoding_all(model, changes):
    dictionary = make_dictionary(model, **changes)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    # a token without active features
    x[7] = -100 * dictionary.W_enc.mean(0)
    y_hat, firing = reconstruct(dictionary, x)
    torch.testing.assert_close(y_hat, dictionary(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(firing.fires, (dictionary.encode(x) != 0).sum(0))


def test_tokens_are_encoded_in_blocks_of_bounded_size(model, monkeypatch):
    dictionary, sizes = make_dictionary(model), []
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    whole, counts = reconstruct(dictionary, x)
    encode = dictionary.encode_sparse
    monkeypatch.setattr(replacement, "ENCODE_ELEMENTS", 40 * 7 + 39)
    monkeypatch.setattr(
        type(dictionary), "encode_sparse", lambda _, part: sizes.append(len(part)) or encode(part)
    )
    y_hat, firing = reconstruct(dictionary, x)
    assert sizes == [7] * 7 + [1]
    torch.testing.assert_close(y_hat, whole)
    assert torch.equal(firing.fires, counts.fires) and firing.n == 50


def test_a_token_without_active_features_is_reconstructed_as_the_bias(model):
    silent = make_dictionary(model, b_enc=torch.full((40,), -1e3))
    y_hat, firing = reconstruct(silent, torch.zeros(3, 16))
    assert torch.equal(y_hat, silent.b_dec.expand(3, -1))
    assert firing.l0 == 0


def test_a_dictionary_that_is_neither_sae_nor_transcoder_is_refused(model):
    with pytest.raises(ValueError, match="replaces no site"):
        DictionaryReplacement(make_dictionary(model, site_in="resid_pre", site_out="mlp_out"))
