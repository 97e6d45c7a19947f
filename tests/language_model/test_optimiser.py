"""Muon and AdamW under one schedule."""

import pytest
import torch
from tests.language_model.inputs import make_config, make_tokens

from circuitloom.language_model.pretraining import Optimiser, build, schedule


def test_the_learning_rate_rises_holds_and_falls_to_zero():
    rates = [schedule(step, 100, warmup=0.1, decay=0.5) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:51] == [1.0] * 41
    assert rates[51:] == pytest.approx([(100 - i) / 50 for i in range(51, 100)])


def test_query_key_and_value_maps_are_orthogonalised_apart(tmp_path):
    config = make_config(weight_decay=0)
    model = build(config, make_tokens(tmp_path / "train.zarr"), seed=0)
    optimiser = Optimiser(model, config)
    weight = model.transformer.h[0].attn.c_attn.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    # a value map whose gradient is a thousand times as large would drown the others
    assert weight.grad is not None
    weight.grad[:, 64:] *= 1000
    optimiser.step(0.5)
    for part in (weight.detach() - before).split(32, dim=1):
        singular = torch.linalg.svdvals(part) / (0.5 * config.learning_rate)
        # Newton-Schulz stops at about one
        assert 0.5 < singular.median() < 1.3
    assert all(parameter.grad is None for parameter in model.parameters())
