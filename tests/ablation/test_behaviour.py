"""A behaviour of the config is read as its texts and targets say."""

import pytest
import torch
from tests.ablation.component_inputs import make_saes
from tests.attribution.inputs import load_tiny
from tests.models import CONTEXT

from circuitloom.ablation.behaviour import behaviour_tables
from circuitloom.config.circuits import Behaviour, BehaviourPrompt, Circuits
from circuitloom.corpus.tokenizer import load_tokenizer

TEXTS = ("w9 w20 w31 w9", "w44 w20 w17")


def test_metrics_are_those_of_the_targets(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    tokenizer = load_tokenizer(str(tmp_path / "gpt2"))
    prompts = [
        BehaviourPrompt(text=TEXTS[0], target="logit w17 vs w12"),
        BehaviourPrompt(text=TEXTS[1], target="logit w30"),
    ]
    behaviour = Behaviour(prompts=prompts, measured=3, ablations=["zero"])
    runs = {"mid": make_saes(model, "resid_mid"), "out": make_saes(model)}
    tables = behaviour_tables("b", model, tokenizer, runs, behaviour, CONTEXT)

    logits = [
        model.logits(torch.tensor([[1, *map(int, text.replace("w", "").split())]]))[0, -1] for text in TEXTS
    ]
    expected = (logits[0][17] - logits[0][12] + logits[1][30]) / 2
    rows = tables["faithfulness"].to_pylist()
    assert {row["basis"] for row in rows} == {"mid", "out", "heads", "neurons"}
    assert {row["behaviour"] for row in rows} == {"b"}
    for row in rows:
        assert row["metric_untouched"] == pytest.approx(float(expected), abs=1e-5)
    assert all(len(tables[name]) for name in ("causal", "feature_effect"))


def test_a_target_that_is_no_logit_of_the_next_token_is_refused():
    for target in ("logits", "feature 1/2", "random", "logit w9 @2"):
        with pytest.raises(ValueError, match="measured in the logits at the last position"):
            BehaviourPrompt(text="w9", target=target)


def test_a_prompt_and_a_behaviour_cannot_share_a_name():
    example = {"text": "w9", "target": "logit w9"}
    with pytest.raises(ValueError, match="a prompt and a behaviour have this name"):
        Circuits(prompts={"war": {"text": "w9"}}, behaviours={"war": {"prompts": [example]}})
