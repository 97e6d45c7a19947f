"""Sets of components ablated in batched passes match hand-written hooks."""

import pytest
import torch
from tests.ablation.component_inputs import INSIDE, exact_saes, make_prompt, make_saes, random_ablated
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.models import ARCHITECTURES, D_MODEL, LAYERS

from circuitloom.ablation.causal_effects import replacement_values, unablated_logits
from circuitloom.ablation.components import Ablation, feature_basis, head_basis, neuron_basis
from circuitloom.ablation.metrics import last_logits
from circuitloom.language_model.hooks import Site, edited


def ablated_logits(model, basis, ablated, prompt, replacement=None, at=None):
    """Logits of passes with `ablated` components."""
    where = prompt.where.expand(len(ablated), -1) if at is None else at
    replacement = [None] * len(basis.parts) if replacement is None else replacement
    with basis.ablating(model, Ablation(ablated, where), prompt.where, replacement):
        return last_logits(model, prompt.token.expand(len(ablated), -1))


def edited_logits(model, edits, token=INSIDE):
    """Logits of one pass with the values of sites edited, written by hand."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.enter_context(edited(model, {site: edit}))
        return last_logits(model, token[None])


@pytest.mark.parametrize("site", ["mlp_out", "mlp_added", "resid_pre", "resid_mid", "mlp_in"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3_text", "granite"])
def test_ablating_all_features_of_an_exact_basis_zeroes_the_site(architecture, site, tmp_path):
    model = load_tiny(architecture, tmp_path)
    prompt, basis = make_prompt(), feature_basis("exact", {1: exact_saes(site)[1]})
    ablated = torch.ones(1, len(basis), dtype=torch.bool)
    if architecture == "neox" and site == "resid_mid":
        with pytest.raises(ValueError, match="no resid_mid; use resid_pre"):
            ablated_logits(model, basis, ablated, prompt)
        return
    without = ablated_logits(model, basis, ablated, prompt)

    def zero(_x, y):
        return y * ~prompt.where[:, None]

    torch.testing.assert_close(without, edited_logits(model, {Site(site, 1): zero}), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(without, last_logits(model, INSIDE[None]))


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip transcoder"])
@pytest.mark.parametrize(
    ("architecture", "site"),
    [*((name, "mlp_out") for name in ARCHITECTURES), ("gemma3_text", "mlp_added"), ("granite", "mlp_added")],
)
def test_each_pass_ablates_its_own_features_and_keeps_the_error(architecture, site, kind, tmp_path):
    """Downstream features are ablated from their activations in the same pass."""
    model = load_tiny(architecture, tmp_path)
    dictionaries = make_dictionaries(model, kind, site_out=site)
    if kind == "sae":
        dictionaries = make_saes(model, site)
    prompt, basis = make_prompt(), feature_basis("run", dictionaries)
    ablated = random_ablated(4, len(basis))
    ablated[2], ablated[3, :] = False, False
    ablated[3, basis.slices[1].start :] = random_ablated(1, 80)[0]
    measured = ablated_logits(model, basis, ablated, prompt)
    for n in range(4):

        def without(layer, n=n):
            dictionary, own = dictionaries[layer], ablated[n, basis.slices[layer]]

            def edit(x, y):
                z = dictionary.encode(y if kind == "sae" else x)
                return y - (z * own * prompt.where[:, None]) @ dictionary.W_dec

            return edit

        expected = edited_logits(model, {Site(site, layer): without(layer) for layer in range(LAYERS)})
        torch.testing.assert_close(measured[n], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(measured[2], last_logits(model, INSIDE[None])[0])


@pytest.mark.parametrize("kind", ["sae", "skip transcoder"])
def test_without_errors_sites_hold_the_reconstruction_minus_ablated_features(kind, tmp_path):
    model = load_tiny("llama", tmp_path)
    dictionaries = make_saes(model) if kind == "sae" else make_dictionaries(model, kind)
    prompt, basis = make_prompt(), feature_basis("run", dictionaries, keep_error=False)
    ablated = random_ablated(1, len(basis))

    def reconstruct(layer, own):
        def edit(x, y):
            read = y if kind == "sae" else x
            z = dictionaries[layer].encode(read) * ~own
            return torch.where(prompt.where[:, None], dictionaries[layer].decode(z, read), y)

        return {Site("mlp_out", layer): edit}

    def expected(ablated):
        edits = {}
        for layer in range(LAYERS):
            edits |= reconstruct(layer, ablated[basis.slices[layer]])
        return edited_logits(model, edits)

    torch.testing.assert_close(ablated_logits(model, basis, ablated, prompt), expected(ablated[0]))
    torch.testing.assert_close(
        unablated_logits(model, basis, prompt), expected(torch.zeros(len(basis), dtype=torch.bool))[0]
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_with_all_heads_ablated_is_its_output_bias(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path)
    prompt, basis = make_prompt(), head_basis(model, [1])
    seen = {}
    attention = model.attention(1)
    handle = attention.register_forward_hook(lambda _m, _args, output: seen.update(value=output[0][0]))
    untouched = last_logits(model, INSIDE[None])
    before = seen["value"]
    without = ablated_logits(model, basis, torch.ones(1, len(basis), dtype=torch.bool), prompt)
    handle.remove()
    projection = attention.get_submodule(model.anatomy.attention_projection)
    bias = projection(torch.zeros(1, D_MODEL))[0]
    torch.testing.assert_close(seen["value"][prompt.where], bias.expand(int(prompt.where.sum()), -1))
    torch.testing.assert_close(seen["value"][~prompt.where], before[~prompt.where])
    assert not torch.allclose(without, untouched)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ablating_a_head_zeroes_its_slice_of_the_input_of_w_o(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path)
    prompt, basis = make_prompt(), head_basis(model)
    heads = model.anatomy.heads
    size = D_MODEL // heads
    ablated = torch.zeros(1, len(basis), dtype=torch.bool)
    ablated[0, 2 * heads + 1] = True

    def edit(_x, y):
        y = y.clone()
        y[:, prompt.where, size : 2 * size] = 0
        return y

    expected = edited_logits(model, {Site("heads", 2): edit})
    torch.testing.assert_close(ablated_logits(model, basis, ablated, prompt), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ablated_neurons_are_multiplied_by_zero(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path)
    prompt, basis = make_prompt(), neuron_basis(model)
    ablated = random_ablated(3, len(basis))
    measured = ablated_logits(model, basis, ablated, prompt)
    for n in range(3):

        def multiply(layer, n=n):
            return lambda _x, y: y * ~(ablated[n, basis.slices[layer]] & prompt.where[:, None])

        expected = edited_logits(model, {Site("neurons", layer): multiply(layer) for layer in range(LAYERS)})
        torch.testing.assert_close(measured[n], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "position_mean"])
@pytest.mark.parametrize("name", ["features", "heads"])
def test_mean_ablation_sets_values_to_the_mean(name, kind, tmp_path):
    model = load_tiny("gpt2", tmp_path)
    saes = make_saes(model)
    basis = feature_basis("run", saes) if name == "features" else head_basis(model)
    site = Site("mlp_out" if name == "features" else "heads", 1)
    prompts = [make_prompt(), make_prompt(torch.where(INSIDE > 9, INSIDE + 1, INSIDE))]
    where, values = prompts[0].where, []

    def read(_x, y):
        values.append((saes[1].encode(y) if name == "features" else y)[0])
        return y

    for prompt in prompts:
        edited_logits(model, {site: read}, prompt.token)
    if kind == "mean":
        mean = torch.cat([value[where] for value in values]).mean(0).expand(len(where), -1)
    else:
        mean = torch.stack(values).mean(0)
    ablated = torch.zeros(1, len(basis), dtype=torch.bool)
    own = random_ablated(1, basis.parts[1].width)
    ablated[:, basis.slices[1]] = own

    def replace(_x, y):
        z = saes[1].encode(y) if name == "features" else y
        mask = own.repeat_interleave(basis.parts[1].size, 1) & where[:, None]
        change = torch.where(mask, mean - z, 0.0)
        return y + (change @ saes[1].W_dec if name == "features" else change)

    measured = ablated_logits(
        model, basis, ablated, prompts[0], replacement_values(model, basis, prompts, kind)
    )
    torch.testing.assert_close(measured, edited_logits(model, {site: replace}), atol=1e-5, rtol=1e-5)


def test_a_mean_per_position_needs_aligned_prompts(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    prompts = [make_prompt(), make_prompt(INSIDE[:8])]
    with pytest.raises(ValueError, match="use mean"):
        replacement_values(model, head_basis(model), prompts, "position_mean")


def test_an_ablation_at_one_position_leaves_other_positions(tmp_path):
    model = load_tiny("neox", tmp_path)
    prompt, saes = make_prompt(), make_saes(model)
    basis = feature_basis("run", {0: saes[0]}) + neuron_basis(model, [2])
    at = torch.zeros(1, len(INSIDE), dtype=torch.bool)
    at[0, 6] = True
    ablated = random_ablated(1, len(basis))

    def features(_x, y):
        return y - (saes[0].encode(y) * ablated[0, :40] * at[0, :, None]) @ saes[0].W_dec

    def neurons(_x, y):
        return y * ~(ablated[0, 40:] & at[0, :, None])

    expected = edited_logits(model, {Site("mlp_out", 0): features, Site("neurons", 2): neurons})
    torch.testing.assert_close(ablated_logits(model, basis, ablated, prompt, at=at), expected)


def test_mean_ablation_without_errors_keeps_the_reconstruction_elsewhere(tmp_path):
    """At other positions the site holds the full reconstruction."""
    model = load_tiny("gpt2", tmp_path)
    prompt, sae = make_prompt(), make_saes(model)[1]
    basis = feature_basis("run", {1: sae}, keep_error=False)
    replacement = replacement_values(model, basis, [prompt], "mean")
    at = (torch.arange(len(INSIDE)) == 6)[None]
    ablated = random_ablated(1, len(basis))

    def edit(_x, y):
        z = torch.where(ablated & at[0, :, None], replacement[0], sae.encode(y))
        return torch.where(prompt.where[:, None], sae.decode(z, y), y)

    expected = edited_logits(model, {Site("mlp_out", 1): edit})
    torch.testing.assert_close(ablated_logits(model, basis, ablated, prompt, replacement, at), expected)


def test_components_are_numbered_consecutively_through_the_parts(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    basis = feature_basis("run", make_saes(model)) + head_basis(model)
    assert len(basis) == 3 * 40 + 3 * 2
    part, number = basis.locate(torch.tensor([0, 39, 40, 119, 120, 125]))
    assert part.tolist() == [0, 0, 1, 2, 3, 5]
    assert number.tolist() == [0, 39, 0, 39, 0, 1]


def test_features_of_a_dictionary_between_other_sites_are_refused(tmp_path):
    dictionaries = make_dictionaries(load_tiny("gpt2", tmp_path), site_in="resid_pre")
    with pytest.raises(ValueError, match="name a run of SAEs, or of transcoders"):
        feature_basis("run", dictionaries)
