"""Faithfulness curves."""

import pytest
import torch
from tests.ablation.component_inputs import INSIDE, make_prompt, make_saes
from tests.attribution.inputs import load_tiny
from tests.models import ARCHITECTURES

from circuitloom.ablation import causal_effects as ablation
from circuitloom.ablation.causal_effects import replacement_values, unablated_logits
from circuitloom.ablation.components import Ablation, feature_basis, head_basis, neuron_basis
from circuitloom.ablation.faithfulness import FaithfulnessCurve, faithfulness_curve, rank, size_grid
from circuitloom.ablation.metrics import kl_divergence, last_logits


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("name", ["features", "heads", "neurons"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_faithfulness_is_0_with_nothing_kept_and_1_with_everything(
    architecture, name, kind, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablation, "CHUNK_ELEMENTS", 64 * len(INSIDE) * 5)
    model = load_tiny(architecture, tmp_path)
    make = {"heads": head_basis, "neurons": neuron_basis}
    basis = make[name](model) if name in make else feature_basis("run", make_saes(model))
    prompts = [make_prompt(), make_prompt(INSIDE[:9])]
    replacement = replacement_values(model, basis, prompts, kind)
    order = torch.randperm(len(basis), generator=torch.Generator().manual_seed(0))
    curve = faithfulness_curve(model, basis, prompts, order, replacement)
    assert curve.n_kept.tolist() == size_grid(len(basis))
    assert curve.faithfulness[0] == 0 and curve.faithfulness[-1] == pytest.approx(1, abs=1e-4)
    assert curve.remaining[0] == pytest.approx(1, abs=1e-4)
    assert curve.remaining[-1] == pytest.approx(0, abs=1e-4)
    place = len(curve.n_kept) // 2
    top = torch.zeros(1, len(basis), dtype=torch.bool)
    top[0, order[: curve.n_kept[place]]] = True
    prompt = prompts[1]
    for ablated, measured in ((~top, curve.kept), (top, curve.removed)):
        with basis.ablating(model, Ablation(ablated, prompt.where[None]), prompt.where, replacement):
            logits = last_logits(model, prompt.token[None])
        torch.testing.assert_close(measured[1, place], prompt.metric(logits)[0], atol=1e-5, rtol=0)
        if ablated is not top:
            reference = last_logits(model, prompt.token[None])[0]
            torch.testing.assert_close(
                curve.kl[1, place], kl_divergence(reference, logits)[0], atol=1e-5, rtol=0
            )


def test_without_errors_all_components_recover_the_spliced_model(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    prompt = make_prompt()
    basis = feature_basis("run", make_saes(model), keep_error=False)
    curve = faithfulness_curve(model, basis, [prompt], torch.arange(len(basis)), [None] * 3)
    spliced = prompt.metric(unablated_logits(model, basis, prompt)[None])
    torch.testing.assert_close(curve.kept[0, -1:], spliced)
    torch.testing.assert_close(curve.untouched, prompt.metric(last_logits(model, INSIDE[None])))
    assert abs(curve.faithfulness[-1] - 1) > 1e-3


def test_faithfulness_is_a_ratio_of_means_over_prompts():
    curve = FaithfulnessCurve(
        n_kept=torch.tensor([0, 1, 2]),
        kept=torch.tensor([[0.0, 1.0, 2.0], [1.0, 3.0, 6.0]]),
        removed=torch.tensor([[2.0, 1.0, 0.0], [6.0, 2.0, 1.0]]),
        kl=torch.zeros(2, 3),
        untouched=torch.tensor([2.0, 6.0]),
    )
    # means: 0.5 with nothing, 4 untouched
    assert curve.faithfulness.tolist() == pytest.approx([0, 1.5 / 3.5, 1])
    assert curve.remaining.tolist() == pytest.approx([1, 1 / 3.5, 0])
    assert curve.needed(0.4) == 1 and curve.needed(0.9) == 2 and curve.needed(1.1) is None


def test_components_are_ranked_by_magnitude_or_by_signed_score():
    scores = torch.tensor([0.0, -3.0, 2.0, 0.0, 1.0])
    assert rank(scores).tolist() == [1, 2, 4, 0, 3]
    assert rank(scores, signed=True).tolist() == [2, 4, 0, 3, 1]


def test_sizes_lie_on_a_logarithmic_grid():
    assert size_grid(20, 2) == [0, 1, 2, 3, 4, 6, 8, 11, 16, 20]
    assert size_grid(16, 1) == [0, 1, 2, 4, 8, 16]
    assert size_grid(1) == [0, 1]
