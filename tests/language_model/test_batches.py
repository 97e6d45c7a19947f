"""The number of sequences per pass follows from the model's sizes alone."""

from typing import Any

import pytest
import torch
from tests.models import tiny_model

from circuitloom.config.activations import Activations
from circuitloom.config.evaluation import Evaluation
from circuitloom.config.model_shape import shape_of
from circuitloom.language_model.batches import BUDGET, automatic_batch, sequences_per_pass
from circuitloom.language_model.model import load_model

GEMMA = {"d_model": 640, "d_mlp": 2048, "number_bytes": 4}
PYTHIA = {"d_model": 2048, "d_mlp": 8192, "number_bytes": 4}


def test_activations_and_stored_outputs_stay_within_the_budget() -> None:
    # 8 x 640 + 3 x 2,048 numbers per token, and 640 for each of 18 layers
    per_sequence = 4 * (8 * 640 + 3 * 2048 + 18 * 640) * 1024
    found = automatic_batch(**GEMMA, context=1024, kept=18)
    assert found == BUDGET // per_sequence == 23


def test_small_models_keep_the_batches_of_earlier_versions() -> None:
    assert automatic_batch(**PYTHIA, context=128, kept=24) == 32
    assert automatic_batch(**PYTHIA, context=128, most=64) == 64
    assert automatic_batch(768, 3072, 4, context=128, kept=12) == 32


def test_a_sequence_beyond_the_budget_is_a_batch() -> None:
    assert automatic_batch(8192, 28672, 4, context=131_072, kept=80) == 1


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sizes_of_the_loaded_model_and_of_its_config_give_the_same_number(
    architecture, dtype, tmp_path
) -> None:
    model = load_model(tiny_model(architecture, tmp_path / architecture), dtype, device="cpu")
    module: Any = model.module
    shape, size = shape_of(module.config.to_dict()), getattr(torch, dtype).itemsize
    expected = automatic_batch(shape.d_model, shape.d_mlp, size, 200_000, kept=3)
    assert 1 < expected < 32
    assert sequences_per_pass(model, "auto", 200_000, kept=3) == expected
    assert sequences_per_pass(model, 7, 200_000) == 7


def test_a_batch_is_a_number_or_auto() -> None:
    assert Evaluation().batch == Activations().batch == "auto"
    assert Evaluation.read("batch", "1e1") == 10
    for wrong in (0, "many"):
        with pytest.raises(ValueError, match="Input should be"):
            Evaluation.model_validate({"batch": wrong})
