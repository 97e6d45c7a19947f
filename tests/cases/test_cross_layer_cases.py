"""Case studies of a logit difference and of a feature, with a cross-layer transcoder whose features are planted."""

from pathlib import Path

import pyarrow as pa
import pytest
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.cases.test_difference import SLOTS
from tests.cases.test_feature import CASE, LAYER, WORD, plant
from tests.cases.test_feature import PLANTED as READER
from tests.evaluation.inputs import make_held_out
from tests.models import CONTEXT, LAYERS

from circuitloom.cases.case_report import write_report
from circuitloom.cases.context import CaseContext
from circuitloom.cases.difference.study import study_difference
from circuitloom.cases.feature.study import study_feature
from circuitloom.config.cases import DifferenceCase
from circuitloom.config.circuits import BehaviourPrompt
from circuitloom.config.evaluation import Evaluation
from circuitloom.corpus.tokenizer import load_tokenizer

PLANTED = 7
"""Feature of layer 0 that writes half of the planted direction to layer 1, and half to layer 2."""


def test_a_feature_that_acts_through_later_layers_is_found_as_the_circuit(tmp_path: Path) -> None:
    model = load_tiny("gpt2", tmp_path)
    for layer in range(LAYERS):
        model.attention(layer).get_submodule(model.anatomy.attention_projection).weight.mul_(1e-3)
    layers = make_dictionaries(model, "cross-layer", act="relu", k=None)
    rows = model.module.get_submodule(model.anatomy.unembedding).weight.detach()
    direction = rows[12] - rows[20]
    for each in layers.values():
        each.W_dec.mul_(1e-3)
    layers[0].W_enc[PLANTED], layers[0].b_enc[PLANTED] = 0, 1
    layers[0].W_dec[PLANTED, 1:] = 30 * direction / direction.norm()
    context = CaseContext(model, load_tokenizer(str(tmp_path / "gpt2")), {"run": layers}, 32)
    case = DifferenceCase(
        kind="difference", prompts=[BehaviourPrompt(text="w5 {a} w6 {b}", target="logit w12 vs w20")], slots=SLOTS,
        count=8, ablation="zero", resamples=100, traced=1, least=0.05,
    )  # fmt: skip
    report = study_difference("planted", context, case)
    found = [row for row in report.tables["component"] if row["in_circuit"]]
    assert [(row["kind"], row["layer"], row["component"]) for row in found] == [("feature", 0, PLANTED)]
    values = {claim.name: claim.value for claim in report.claims}
    assert values["faithful"] == pytest.approx(1, abs=0.1)
    assert values["necessary"] == values["through_features"] == pytest.approx(0, abs=0.1)
    write_report(report, tmp_path / "report")
    assert "run" in (tmp_path / "report" / "result.md").read_text()


def test_a_planted_feature_is_found_and_described(tmp_path: Path) -> None:
    model = load_tiny("gpt2", tmp_path)
    layers = make_dictionaries(model, "cross-layer", act="relu", k=None)
    context = CaseContext(model, load_tokenizer(str(tmp_path / "gpt2")), {"clt": layers}, CONTEXT)
    held_out = make_held_out(sequences=400)
    plant(context, held_out)
    sequence, position = ((held_out.token == WORD) & held_out.scored).nonzero().T
    concepts = pa.table(
        {"sequence": sequence.tolist(), "position": position.tolist(), "concept": ["ninth"] * len(sequence)}
    )
    report = study_feature("nine", context, held_out, concepts, CASE, Evaluation())
    assert report.title == f"feature {LAYER}/{READER} of clt"
    claims = {claim.name: claim for claim in report.claims}
    assert all(
        claims[name].holds for name in ("found", "tells_apart", "described", "exchanged", "sufficient")
    )
