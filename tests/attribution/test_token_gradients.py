"""Gradient-times-input of tokens equals finite differences, and finds a planted source."""

from dataclasses import replace

import pytest
import torch
from tests.attribution.inputs import BOS, PROMPT, make_dictionaries
from tests.models import D_MODEL

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import feature_targets, source_columns, total_effects
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.attribution.token_gradients import gradient_times_input, strongest_tokens
from circuitloom.language_model.hooks import Site, capture


def test_gradients_equal_finite_differences_along_the_embedding(tiny):
    model = tiny("llama")
    prompts = torch.stack([PROMPT, PROMPT.flip(0)])
    vector = torch.randn(2, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position, site = torch.tensor([9, 4]), Site("resid_mid", 2)
    effects = gradient_times_input(model, prompts, site, vector, position)

    def value(prompt: int, at: int, step: float) -> float:
        def scale(_module, _args, output):
            return output * (1 + step * torch.eye(len(PROMPT), dtype=torch.float64)[at][:, None])

        handle = model.module.get_submodule(model.anatomy.embedding).register_forward_hook(scale)
        held = capture(model, prompts[prompt : prompt + 1], [site])[site]
        handle.remove()
        return float(held[0, position[prompt]] @ vector[prompt])

    for prompt in range(2):
        for at in range(len(PROMPT)):
            slope = (value(prompt, at, 1e-5) - value(prompt, at, -1e-5)) / 2e-5
            assert effects[prompt, at] == pytest.approx(slope, abs=1e-7)
    assert not effects[1, 5:].any() and effects[0, :10].all()


def test_a_planted_feature_that_reads_one_token_has_it_as_its_only_source(tiny):
    model = tiny("gpt2")
    place = 6
    embedding = model.module.get_submodule(model.anatomy.embedding).weight
    site = Site("mlp_in", 0)
    model_in = capture(model, PROMPT[None], [site])[site][0, place]
    dictionary = make_dictionaries(model)[0].to("cpu", torch.float64)
    W_enc, b_enc = torch.zeros_like(dictionary.W_enc), torch.full_like(dictionary.b_enc, -1.0)
    W_enc[3] = 10 * embedding[PROMPT[place]]
    b_enc[3] = 1.0 - float(W_enc[3] @ model_in)
    planted = {0: replace(dictionary, W_enc=W_enc, b_enc=b_enc)}
    linearized = LinearizedModel(capture_pass(model, read_weights(model), PROMPT), planted, BOS)
    found = linearized.features.find(0, place, 3)
    effects = total_effects(linearized, feature_targets(linearized, torch.tensor([found])))[
        :, source_columns(linearized).embeddings
    ]
    gradients = gradient_times_input(model, PROMPT[None], site, W_enc[3:4], torch.tensor([place]))
    for each in (effects, gradients):
        assert strongest_tokens(each, 0.7)[0].nonzero().flatten().tolist() == [place]


def test_the_strongest_tokens_are_the_fewest_that_hold_the_share():
    effects = torch.tensor([[4.0, -3.0, 2.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    held = {
        share: strongest_tokens(effects, share)[0].nonzero().flatten().tolist()
        for share in (0.1, 0.4, 0.7, 0.71, 1.0)
    }
    assert held == {0.1: [0], 0.4: [0], 0.7: [0, 1], 0.71: [0, 1, 2], 1.0: [0, 1, 2, 3]}
    assert not strongest_tokens(effects, 0.7)[1].any()
