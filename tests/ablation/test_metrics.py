"""Metrics of the logits at the last position."""

import pytest
import torch
from tests.ablation.component_inputs import INSIDE
from tests.attribution.inputs import BOS, load_tiny
from tests.models import ARCHITECTURES, LAYERS

from circuitloom.ablation.metrics import (
    RecordedPass,
    kl_divergence,
    last_logits,
    logit,
    logit_difference,
    make_prompt_metrics,
    probability,
)
from circuitloom.language_model.hooks import Site, edited


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_last_logits_equal_those_of_a_full_pass(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path)
    tokens = torch.stack([INSIDE, INSIDE.flip(0)])
    torch.testing.assert_close(last_logits(model, tokens), model.logits(tokens)[:, -1])
    # no hook remains
    assert model.logits(tokens).shape[1] == len(INSIDE)


def test_metrics_are_functions_of_logits():
    p = torch.tensor([[0.5, 0.25, 0.2, 0.05], [0.1, 0.1, 0.4, 0.4]])
    logits = p.log() + 3
    torch.testing.assert_close(logit(1)(logits), p[:, 1].log() + 3)
    torch.testing.assert_close(logit_difference(0, 3)(logits), (p[:, 0] / p[:, 3]).log())
    torch.testing.assert_close(probability([0, 2], [1])(logits), p[:, 0] + p[:, 2] - p[:, 1])
    torch.testing.assert_close(probability([3])(logits), p[:, 3])
    expected = (p[0] * (p[0] / p[1]).log()).sum()
    torch.testing.assert_close(kl_divergence(logits[0], logits), torch.stack([torch.zeros(()), expected]))


def test_components_are_ablated_where_dictionaries_are_trained_or_at_one_position():
    (prompt,) = make_prompt_metrics([INSIDE], [logit(5)], BOS)
    assert prompt.where.nonzero()[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    (prompt,) = make_prompt_metrics([INSIDE], [logit(5)], BOS, -2)
    assert prompt.where.nonzero()[:, 0].tolist() == [9]
    for position in (0, 4, 11, -12):
        with pytest.raises(ValueError, match="neither first nor a separator; choose another"):
            make_prompt_metrics([INSIDE], [logit(5)], BOS, position)
    with pytest.raises(ValueError, match="neither first nor a separator"):
        make_prompt_metrics([INSIDE[:0]], [logit(5)], BOS)
    with pytest.raises(ValueError, match="give one for each prompt"):
        make_prompt_metrics([INSIDE], [], BOS)


@pytest.mark.parametrize("can_resume", [True, False])
@torch.inference_mode()
def test_a_repeated_pass_has_the_bits_of_a_complete_one(can_resume: bool, tmp_path):
    model = load_tiny("llama", tmp_path)
    token = torch.tensor([[1, 9, 8, 7], [1, 5, 6, 4]])
    passes = RecordedPass(model, token)
    assert passes.can_resume and torch.equal(passes.logits, last_logits(model, token))
    passes.can_resume = can_resume
    for layer in range(LAYERS):
        for name in ("mlp_out", "heads"):
            with edited(model, {Site(name, layer): lambda _x, y: 1.5 * y}):
                assert torch.equal(passes.repeat(layer), last_logits(model, token))
