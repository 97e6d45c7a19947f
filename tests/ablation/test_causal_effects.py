"""Effects of single components, measured and to first order."""

import pytest
import torch
from tests.ablation.component_inputs import INSIDE, make_prompt, make_saes
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.models import ARCHITECTURES

from circuitloom.ablation import causal_effects as ablation
from circuitloom.ablation.causal_effects import (
    attribute_components,
    causal_effects,
    component_values,
    mean_attribution,
    mean_effect,
    replacement_values,
    unablated_logits,
)
from circuitloom.ablation.components import feature_basis, head_basis, neuron_basis
from circuitloom.ablation.metrics import kl_divergence, last_logits
from circuitloom.language_model.hooks import Site, edited

BASES = ("sae", "sae without errors", "transcoder without errors", "heads", "neurons")


def make_basis(model, name):
    """One of `BASES`."""
    match name:
        case "heads":
            return head_basis(model)
        case "neurons":
            return neuron_basis(model)
        case "transcoder without errors":
            dictionaries = make_dictionaries(model, "skip transcoder")
        case "transcoder of mlp_added":
            dictionaries = make_dictionaries(model, site_out="mlp_added")
        case "SAEs on mlp_added":
            dictionaries = make_saes(model, "mlp_added")
        case _:
            dictionaries = make_saes(model)
    dtype = next(model.module.parameters()).dtype
    dictionaries = {layer: dictionary.to("cpu", dtype) for layer, dictionary in dictionaries.items()}
    return feature_basis("run", dictionaries, keep_error="without" not in name)


@pytest.mark.parametrize("each_position", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_effects_equal_hand_written_hooks(architecture, each_position, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "CHUNK_ELEMENTS", 40 * len(INSIDE) * 7)
    model = load_tiny(architecture, tmp_path)
    prompt, saes = make_prompt(), make_saes(model)
    basis = feature_basis("run", saes)
    effects = causal_effects(model, basis, prompt, [None] * 3, each_position)
    before = last_logits(model, INSIDE[None])
    z = component_values(model, basis, prompt)
    expected = [
        (40 * layer + feature, position)
        for layer in range(3)
        for feature in range(40)
        for position in (range(len(INSIDE)) if each_position else [-1])
        if (z[layer][:, feature] * (prompt.where if position < 0 else prompt.where[position])).any()
        and (position < 0 or z[layer][position, feature])
    ]
    assert list(zip(effects.component.tolist(), effects.position.tolist(), strict=True)) == expected
    for i in range(len(effects)):
        layer, feature = divmod(int(effects.component[i]), 40)
        at = prompt.where.clone()
        if each_position:
            at = torch.arange(len(at)) == effects.position[i]
        assert effects.activation[i] == (z[layer][:, feature] * at).max()
        if i % 11:
            continue

        def edit(_x, y, layer=layer, feature=feature, at=at):
            return y - (saes[layer].encode(y)[..., feature] * at)[..., None] * saes[layer].W_dec[feature]

        with edited(model, {Site("mlp_out", layer): edit}):
            after = last_logits(model, INSIDE[None])
        change = (prompt.metric(before) - prompt.metric(after))[0]
        torch.testing.assert_close(effects.effect[i], change, atol=1e-5, rtol=0)
        torch.testing.assert_close(effects.kl[i], kl_divergence(before[0], after)[0], atol=1e-5, rtol=0)


ADDED = ("transcoder of mlp_added", "SAEs on mlp_added")
"""More bases, for models in which what the MLP adds differs from what it returns."""


@pytest.mark.parametrize(
    ("architecture", "name"),
    [*((architecture, name) for architecture in ARCHITECTURES for name in BASES),
     *((architecture, name) for architecture in ("olmo2", "granite") for name in ADDED)],
)  # fmt: skip
def test_attribution_is_the_effect_of_an_infinitesimal_ablation(architecture, name, tmp_path):
    """Replacement values slightly below the values change the metric in proportion."""
    model = load_tiny(architecture, tmp_path, "float64")
    prompt, basis, step = make_prompt(), make_basis(model, name), 1e-5
    replacement = [value * (1 - step) for value in component_values(model, basis, prompt)]
    if "without" in name:
        # without the errors of earlier layers, values in later layers differ
        with torch.inference_mode():
            replacement = [value * (1 - step) for value in spliced_values(model, basis, prompt)]
    effects = causal_effects(model, basis, prompt, replacement)
    assert len(effects) >= 6
    size = effects.effect.abs().max() / step
    assert size > 1e-3
    error = (effects.effect - effects.attribution).abs().max() / step
    assert error < 1e-3 * size
    full = attribute_components(model, basis, prompt, [None] * len(basis.parts))
    torch.testing.assert_close(
        full.effect.sum(0)[effects.component] * step, effects.attribution, atol=1e-9, rtol=1e-4
    )


def spliced_values(model, basis, prompt):
    """Values in the spliced model, each taken before its own site is replaced."""
    from contextlib import ExitStack

    from circuitloom.ablation.components import Ablation

    seen = {}
    with ExitStack() as stack:
        for number, part in enumerate(basis.parts):

            def see(x, y, number=number, part=part):
                seen[number] = part.values(x, y)[0]
                none = Ablation(torch.zeros(1, part.width, dtype=torch.bool), prompt.where[None])
                return part.ablate(x, y, none, prompt.where, None, {})

            stack.enter_context(edited(model, {part.site: see}))
        last_logits(model, prompt.token[None])
    return [seen[number] for number in range(len(basis.parts))]


def test_a_component_equal_to_its_replacement_value_is_not_active(tmp_path):
    """With the means of a single prompt per position, no ablation changes anything."""
    model = load_tiny("gpt2", tmp_path)
    prompt, basis = make_prompt(), head_basis(model)
    replacement = replacement_values(model, basis, [prompt], "position_mean")
    assert not len(causal_effects(model, basis, prompt, replacement))
    assert len(causal_effects(model, basis, prompt, [None] * 3)) == 6


def test_only_the_largest_attributions_are_measured(tmp_path):
    model = load_tiny("llama", tmp_path)
    prompt, basis = make_prompt(), neuron_basis(model)
    every = causal_effects(model, basis, prompt, [None] * 3)
    few = causal_effects(model, basis, prompt, [None] * 3, most=5)
    largest = every.attribution.abs().topk(5).indices.sort().values
    assert torch.equal(few.component, every.component[largest])
    torch.testing.assert_close(few.effect, every.effect[largest], atol=1e-6, rtol=1e-4)
    assert len(every) == len(basis)


def test_effects_without_errors_are_measured_in_the_spliced_model(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    prompt, basis = make_prompt(), make_basis(model, "sae without errors")
    spliced = unablated_logits(model, basis, prompt)
    assert not torch.allclose(spliced, last_logits(model, INSIDE[None])[0], atol=1e-2)
    effects = causal_effects(model, basis, prompt, [None] * 3, most=1)
    part, number = basis.locate(effects.component)
    ablated = torch.zeros(1, len(basis), dtype=torch.bool)
    ablated[0, effects.component] = True
    saes = {layer: own.dictionary for layer, own in enumerate(basis.parts)}
    from contextlib import ExitStack

    with ExitStack() as stack:
        for layer, sae in saes.items():

            def edit(_x, y, layer=layer, sae=sae):
                z = sae.encode(y)
                if layer == int(part):
                    z[..., int(number)] = 0
                return torch.where(prompt.where[:, None], sae.decode(z, y), y)

            stack.enter_context(edited(model, {Site("mlp_out", layer): edit}))
        after = last_logits(model, INSIDE[None])
    change = prompt.metric(spliced[None]) - prompt.metric(after)
    torch.testing.assert_close(effects.effect, change, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(effects.kl, kl_divergence(spliced, after), atol=1e-5, rtol=1e-4)


def test_scores_use_measured_effects_if_available(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    prompts = [make_prompt(), make_prompt(INSIDE[:9])]
    basis = neuron_basis(model)
    replacement = [None] * 3
    measured = [causal_effects(model, basis, prompt, replacement, most=20) for prompt in prompts]
    scores = mean_effect(mean_attribution(model, basis, prompts, replacement), measured)
    first = [attribute_components(model, basis, prompt, replacement).effect.sum(0) for prompt in prompts]
    assert torch.allclose(
        mean_attribution(model, basis, prompts, replacement), (first[0] + first[1]).double() / 2
    )
    for component in (int(measured[0].component[3]), 0, 100):
        expected = 0.0
        for effects, attributions in zip(measured, first, strict=True):
            own = (effects.component == component).nonzero()[:, 0]
            expected += float(effects.effect[own[0]] if len(own) else attributions[component]) / 2
        assert float(scores[component]) == pytest.approx(expected, rel=1e-5)
