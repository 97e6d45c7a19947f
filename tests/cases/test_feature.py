"""The case of a feature that is known to answer to one token finds it, its rule, and that all claims hold."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.evaluation.inputs import make_held_out
from tests.models import CONTEXT

from circuitloom.cases.case_report import CaseReport, write_findings
from circuitloom.cases.context import CaseContext
from circuitloom.cases.feature.study import study_feature
from circuitloom.cases.feature.subject import draw_pairs
from circuitloom.config.cases import FeatureCase
from circuitloom.config.evaluation import Evaluation
from circuitloom.core.tables import CLAIM, OUTCOME, SOURCE, read_table
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.language_model.hooks import Site, capture

WORD, PLANTED, LAYER = 9, 5, 0
CASE = FeatureCase(
    kind="feature",
    concept="ninth",
    texts=["{one} {two} w9"],
    edited=["{one} w9 {two}"],
    slots={"one": [f"w{i}" for i in range(20, 28)], "two": [f"w{i}" for i in range(30, 38)]},
    effect="logit w4 vs w50",
    prompts=16,
    published={"w20 w30 w9": 1000.0},
)


def plant(opened: CaseContext, held_out: HeldOut) -> None:
    """Let a feature fire where the token is `WORD` and nowhere else, by logistic regression on what the MLP reads."""
    with torch.no_grad():
        # what a token is then outweighs what stands before it
        opened.model.module.get_submodule(opened.model.anatomy.embedding).weight *= 20
    site = Site("mlp_in", LAYER)
    x = capture(opened.model, held_out.token, [site])[site][held_out.scored]
    there = (held_out.token[held_out.scored] == WORD).float()
    weights = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = x @ weights[:-1] + weights[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, there)
        value.backward()
        return value

    optimiser.step(loss)
    dictionary = opened.transcoders[LAYER]
    dictionary.W_enc[PLANTED] = weights[:-1].detach()
    dictionary.b_enc[PLANTED] = weights[-1].detach()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[CaseReport, Path]:
    folder = tmp_path_factory.mktemp("feature")
    model = load_tiny("gpt2", folder)
    dictionaries = make_dictionaries(model, act="relu", k=None)
    opened = CaseContext(model, load_tokenizer(str(folder / "gpt2")), {"tc": dictionaries}, CONTEXT)
    held_out = make_held_out(sequences=400)
    plant(opened, held_out)
    sequence, position = ((held_out.token == WORD) & held_out.scored).nonzero().T
    concepts = pa.table(
        {"sequence": sequence.tolist(), "position": position.tolist(), "concept": ["ninth"] * len(sequence)}
    )
    findings = study_feature("nine", opened, held_out, concepts, CASE, Evaluation())
    write_findings(findings, folder / "nine")
    return findings, folder / "nine"


def test_the_planted_feature_is_found_and_its_rule_names_its_token(found) -> None:
    findings, _ = found
    assert findings.title == f"feature {LAYER}/{PLANTED} of tc"
    assert "fires where the token itself is one of `w9`." in findings.remarks[2]


def test_what_is_planted_is_claimed_to_hold(found) -> None:
    claims = {claim.name: claim for claim in found[0].claims}
    for name in ("found", "tells_apart", "described", "exchanged", "sufficient"):
        assert claims[name].holds, claims[name]
    assert claims["found"].of == "documents"
    assert claims["tells_apart"].n == 8


def test_activations_stand_beside_what_was_published(found) -> None:
    claim = next(claim for claim in found[0].claims if claim.name == "published_1")
    values = [row["value"] for row in found[0].tables["outcome"] if row["text"] == "w20 w30 w9"]
    assert not claim.holds and 0.9 < claim.value < 1
    assert all(claim.value == pytest.approx((1000 - value) / 1000) for value in values)


def test_tables_are_written_with_their_schemas_and_pictures_with_them(found) -> None:
    findings, folder = found
    for table in (CLAIM, OUTCOME, SOURCE):
        rows = read_table(folder / f"{table.name}.parquet")
        assert rows.schema.equals(table.schema) and rows.num_rows
    assert read_table(folder / "claim.parquet")["holds"].to_pylist() == [c.holds for c in findings.claims]
    assert {file.suffix for file in folder.iterdir()} == {".parquet", ".png", ".md"}


def test_the_result_says_of_each_claim_whether_it_holds(found) -> None:
    findings, folder = found
    page = (folder / "result.md").read_text()
    held = sum(claim.holds for claim in findings.claims)
    assert f"{held} of {len(findings.claims)} claims hold." in page
    assert page.count("this holds") == held
    assert page.count("this fails") == len(findings.claims) - held


def test_both_halves_have_pairs_of_the_same_words(found) -> None:
    pairs = draw_pairs(CASE)
    assert len(pairs) == 16 and len({pair.text for pair in pairs}) == 16
    assert [pair.half for pair in pairs[:2]] == ["finding", "testing"]
    assert all(sorted(pair.text.split()) == sorted(pair.edited.split()) for pair in pairs)


def test_no_text_is_in_both_halves_even_where_edits_differ() -> None:
    case = CASE.model_copy(update={"texts": ["{one} w9"], "edited": ["{one} {two}"]})
    pairs = draw_pairs(case)
    texts = [pair.text for pair in pairs]
    assert len(texts) == len(set(texts)) == 8
    assert [pair.half for pair in pairs].count("testing") == 4


def test_a_template_without_words_to_test_on_is_refused() -> None:
    case = FeatureCase(kind="feature", texts=["w3 w9"], edited=["w3 w4"])
    with pytest.raises(ValueError, match="needs texts to find and to test on: add words"):
        draw_pairs(case)
