"""stories260K on TinyStories has the values of the model's notes."""

import json

import pytest
import torch

from circuitloom.config import Evaluation
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.evaluation.metrics import prediction_sums, prediction_targets
from circuitloom.evaluation.scoring import baseline_rows
from circuitloom.language_model.model import load_model


@pytest.fixture(scope="module")
def model(real_input):
    return load_model(real_input / "models" / "stories260K", device="cpu")


@pytest.fixture(scope="module")
def stories(real_input) -> list[torch.Tensor]:
    """The first 100 held-out stories, each [1, position], after a BOS, cut at 512 tokens."""
    tokenizer = load_tokenizer(str(real_input / "models" / "stories260K"))
    lines = (real_input / "data" / "tinystories" / "validation.jsonl").read_text().splitlines()[:100]
    encoded = tokenizer.encode([json.loads(line)["text"] for line in lines])
    return [torch.tensor([[tokenizer.bos_id, *ids]])[:, :512] for ids in encoded]


def test_cross_entropy_per_story_equals_the_models_notes(model, stories):
    sums = [prediction_sums(model.logits(token), prediction_targets(token, token >= 0)) for token in stories]
    total = sum(sums[1:], start=sums[0])
    assert total.n == sum(token.numel() - 1 for token in stories)
    assert total.ce == pytest.approx(1.41, abs=0.005)


def test_the_effect_of_ablating_one_mlp_equals_the_models_notes(model, stories):
    token = torch.cat([story[:, :128] for story in stories if story.shape[1] >= 128])
    scored = token != token[0, 0]
    held_out = HeldOut(token, torch.zeros_like(token), scored, ~scored)
    for row in baseline_rows(model, ["mlp_out"], [0, 2, 4], held_out, Evaluation(together=False)):
        assert 0.5 < row["ce_zero"] - row["ce_original"] < 1.0
