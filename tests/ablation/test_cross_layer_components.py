"""Features of cross-layer transcoders as components: ablating one changes all outputs that it writes to."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest
import torch
from tests.ablation.component_inputs import INSIDE, make_prompt, random_ablated
from tests.ablation.test_components import ablated_logits
from tests.attribution.inputs import load_tiny, make_cross_layer
from tests.models import ARCHITECTURES, LAYERS
from torch import Tensor

from circuitloom.ablation.causal_effects import (
    attribute_components,
    causal_effects,
    unablated_logits,
)
from circuitloom.ablation.components import Ablation, Basis, feature_basis
from circuitloom.ablation.metrics import last_logits
from circuitloom.dictionaries.cross_layer import CrossLayerTranscoder
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.language_model.hooks import ReadingEdit, Site, edited
from circuitloom.language_model.model import LanguageModel

SITES = [*((name, "mlp_out") for name in ARCHITECTURES), ("gemma3_text", "mlp_added")]


def by_hand(
    model: LanguageModel,
    transcoder: CrossLayerTranscoder,
    ablated: Mapping[int, Tensor],
    where: Tensor,
    keep_error: bool,
) -> Tensor:
    """Logits of one pass in which the features in ablated[layer] are missing, with the formulas of docs/clt.md."""
    z: dict[int, Tensor] = {}

    def edit(layer: int) -> ReadingEdit:
        own = transcoder.layers[layer]

        def change(x: Tensor, y: Tensor) -> Tensor:
            z[layer] = own.encode(x)
            writers = [
                each for each in transcoder.layers.values() if layer in each.outputs and each.layer <= layer
            ]
            if keep_error:
                return y - sum(
                    (z[each.layer] * ablated[each.layer] * where[:, None]) @ each.decoder(layer)
                    for each in writers
                )
            y_hat = sum((z[each.layer] * ~ablated[each.layer]) @ each.decoder(layer) for each in writers)
            y_hat = y_hat + own.b_dec + (0 if own.W_skip is None else x @ own.W_skip.T)
            return torch.where(where[:, None], y_hat, y)

        return ReadingEdit(own.site_in, change)

    with ExitStack() as stack:
        for layer, each in transcoder.layers.items():
            stack.enter_context(edited(model, {Site(each.site_out, layer): edit(layer)}))
        return last_logits(model, INSIDE[None])[0]


def masks(basis: Basis, row: Tensor) -> dict[int, Tensor]:
    return {part.site.layer: row[own] for part, own in zip(basis.parts, basis.slices, strict=True)}


@pytest.mark.parametrize("reach", [None, 1])
@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize(("architecture", "site"), SITES)
def test_each_pass_ablates_its_own_features_in_all_outputs(
    architecture: str, site: str, keep_error: bool, reach: int | None, tmp_path
) -> None:
    model = load_tiny(architecture, tmp_path)
    transcoder = make_cross_layer(skip=True, reach=reach, site_out=site)
    prompt, basis = make_prompt(), feature_basis("clt", transcoder.layers, keep_error)
    ablated = random_ablated(4, len(basis))
    # features of the first layer alone, which change outputs of layers whose own features all stay
    ablated[1, basis.slices[1].start :] = False
    ablated[2] = False
    measured = ablated_logits(model, basis, ablated, prompt)
    for row, logits in zip(ablated, measured, strict=True):
        expected = by_hand(model, transcoder, masks(basis, row), prompt.where, keep_error)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(measured[1], measured[2])
    if keep_error:
        torch.testing.assert_close(measured[2], last_logits(model, INSIDE[None])[0])
    torch.testing.assert_close(unablated_logits(model, basis, prompt), measured[2])


def test_at_one_position_only_this_position_changes(tmp_path) -> None:
    model, transcoder = load_tiny("llama", tmp_path), make_cross_layer()
    prompt, basis = make_prompt(), feature_basis("clt", transcoder.layers)
    ablated = torch.ones(1, len(basis), dtype=torch.bool)
    at = torch.zeros(1, len(prompt), dtype=torch.bool)
    at[0, 3] = True
    measured = ablated_logits(model, basis, ablated, prompt, at=at)
    expected = by_hand(model, transcoder, masks(basis, ablated[0]), at[0], keep_error=True)
    torch.testing.assert_close(measured[0], expected, atol=1e-5, rtol=1e-5)


def test_without_reach_components_are_those_of_transcoders(tmp_path) -> None:
    model, transcoder = load_tiny("gpt2", tmp_path), make_cross_layer(reach=0, act="relu", k=None)
    alone = {
        layer: Dictionary(each.W_enc, each.b_enc, each.decoder(layer), each.b_dec, "relu", layer=layer)
        for layer, each in transcoder.layers.items()
    }
    prompt = make_prompt()
    clt, plt = (feature_basis("run", each) for each in (transcoder.layers, alone))
    values = [torch.rand(1, part.width, generator=torch.Generator().manual_seed(0)) for part in clt.parts]
    for replacement in ([None] * LAYERS, values):
        one, other = (attribute_components(model, basis, prompt, replacement) for basis in (clt, plt))
        torch.testing.assert_close(one.effect, other.effect)
        assert torch.equal(one.active, other.active) and torch.equal(one.activation, other.activation)
        effects = [causal_effects(model, basis, prompt, replacement, most=20) for basis in (clt, plt)]
        assert torch.equal(effects[0].component, effects[1].component)
        torch.testing.assert_close(effects[0].effect, effects[1].effect, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_attribution_is_the_activation_times_the_derivative_through_all_outputs(
    architecture: str, keep_error: bool, tmp_path
) -> None:
    """Checked by central differences in float64."""
    model = load_tiny(architecture, tmp_path, "float64")
    transcoder = make_cross_layer(act="relu", k=None).to("cpu", torch.float64)
    prompt, basis = make_prompt(), feature_basis("clt", transcoder.layers, keep_error)
    found = attribute_components(model, basis, prompt, [None] * LAYERS)
    step, position = 1e-5, 6
    at = torch.zeros(1, len(prompt), dtype=torch.bool)
    at[0, position] = True
    for layer, feature in largest(found.effect[position], basis):
        column = basis.slices[layer].start + feature
        one = torch.zeros(1, len(basis), dtype=torch.bool)
        one[0, column] = True
        metric, activation = [], found.activation[position, column]
        for sign in (1, -1):
            replacement = [torch.zeros(len(prompt), part.width, dtype=torch.float64) for part in basis.parts]
            replacement[layer][position, feature] = activation + sign * step
            with basis.ablating(model, Ablation(one, at), prompt.where, replacement):
                metric.append(float(prompt.metric(last_logits(model, prompt.token[None]))))
        slope = (metric[0] - metric[1]) / (2 * step)
        expected = float(activation) * slope
        assert float(found.effect[position, column]) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def largest(effect: Tensor, basis: Basis) -> Iterator[tuple[int, int]]:
    """The features of each layer with the largest effects."""
    for layer, own in enumerate(basis.slices):
        for feature in effect[own].abs().topk(3).indices.tolist():
            yield layer, feature


def test_a_basis_without_all_outputs_is_refused() -> None:
    transcoder = make_cross_layer()
    with pytest.raises(
        ValueError, match="layer 0 writes to layer 2, which the transcoder lacks; give all layers"
    ):
        feature_basis("clt", {layer: transcoder.layers[layer] for layer in (0, 1)})
