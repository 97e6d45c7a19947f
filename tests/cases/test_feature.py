"""The case study of a feature that fires on one known token finds the feature and its rule; its claims hold."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.evaluation.inputs import make_held_out
from tests.models import CONTEXT

from circuitloom.attribution.targets import tokenize_prompt
from circuitloom.cases.case_report import CaseReport, write_report
from circuitloom.cases.context import CaseContext
from circuitloom.cases.feature.study import draw_pairs, load_text, study_feature
from circuitloom.config.cases import FeatureCase
from circuitloom.config.evaluation import Evaluation
from circuitloom.core.tables import CLAIM, OUTCOME, SOURCE, read_table
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.corpus.tokens import open_tokens
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.language_model.hooks import Site, capture

WORD, PLANTED, LAYER = 9, 5, 0
NO_CONCEPTS = pa.table({"sequence": [], "position": [], "concept": []})
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


class Study(NamedTuple):
    report: CaseReport
    folder: Path
    context: CaseContext
    held_out: HeldOut


def plant(context: CaseContext, held_out: HeldOut) -> None:
    """Fit a feature that fires exactly where the token is `WORD`, by logistic regression on the MLP's input."""
    with torch.no_grad():
        # the token itself then outweighs earlier tokens
        context.model.module.get_submodule(context.model.anatomy.embedding).weight *= 20
    site = Site("mlp_in", LAYER)
    x = capture(context.model, held_out.token, [site])[site][held_out.scored]
    there = (held_out.token[held_out.scored] == WORD).float()
    weights = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = x @ weights[:-1] + weights[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, there)
        value.backward()
        return value

    optimizer.step(loss)
    dictionary = context.transcoders[LAYER]
    dictionary.W_enc[PLANTED] = weights[:-1].detach()
    dictionary.b_enc[PLANTED] = weights[-1].detach()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("feature")
    model = load_tiny("gpt2", folder)
    dictionaries = make_dictionaries(model, act="relu", k=None)
    context = CaseContext(model, load_tokenizer(str(folder / "gpt2")), {"tc": dictionaries}, CONTEXT)
    held_out = make_held_out(sequences=400)
    plant(context, held_out)
    sequence, position = ((held_out.token == WORD) & held_out.scored).nonzero().T
    concepts = pa.table(
        {"sequence": sequence.tolist(), "position": position.tolist(), "concept": ["ninth"] * len(sequence)}
    )
    report = study_feature("nine", context, held_out, concepts, CASE, Evaluation())
    write_report(report, folder / "nine")
    return Study(report, folder / "nine", context, held_out)


def test_the_planted_feature_is_found_and_its_rule_names_its_token(study) -> None:
    report = study.report
    assert report.title == f"feature {LAYER}/{PLANTED} of tc"
    assert report.answer[0].startswith(
        f"Feature {LAYER}/{PLANTED} of tc fires where the token itself is one of `w9` (F1 on unseen documents: "
    )


def test_claims_about_the_planted_feature_hold(study) -> None:
    claims = {claim.name: claim for claim in study.report.claims}
    for name in ("found", "tells_apart", "described", "exchanged", "sufficient"):
        assert claims[name].holds, claims[name]
    assert claims["found"].of == "documents"
    assert claims["tells_apart"].n == 8


def test_a_published_activation_is_compared_with_the_measured_one(study) -> None:
    claim = next(claim for claim in study.report.claims if claim.name == "published_1")
    values = [row["value"] for row in study.report.tables["outcome"] if row["text"] == "w20 w30 w9"]
    assert not claim.holds and 0.9 < claim.value < 1
    assert all(claim.value == pytest.approx((1000 - value) / 1000) for value in values)


def test_tables_are_written_with_their_schemas_and_pictures_with_them(study) -> None:
    report, folder = study.report, study.folder
    for table in (CLAIM, OUTCOME, SOURCE):
        rows = read_table(folder / f"{table.name}.parquet")
        assert rows.schema.equals(table.schema) and rows.num_rows
    assert read_table(folder / "claim.parquet")["holds"].to_pylist() == [c.holds for c in report.claims]
    assert {file.suffix for file in folder.iterdir()} == {".parquet", ".png", ".md"}


def test_the_page_says_of_each_claim_whether_it_holds(study) -> None:
    claims, page = study.report.claims, (study.folder / "result.md").read_text()
    held = sum(claim.holds for claim in claims)
    assert f"{held} of {len(claims)} claims hold" in page
    assert page.count("| yes |") == held and page.count("| **no** |") == len(claims) - held


def test_acts_is_the_logit_difference_with_the_feature_minus_without_it(study) -> None:
    model, dictionary = study.context.model, study.context.transcoders[LAYER]
    wanted, against = (study.context.tokenizer.strings().index(token) for token in ("w4", "w50"))

    def subtract(mlp, args, y):
        z = torch.relu(args[0] @ dictionary.W_enc[PLANTED] + dictionary.b_enc[PLANTED])
        z[:, 0] = 0
        return y - z[..., None] * dictionary.W_dec[PLANTED]

    def difference(text: str) -> float:
        logits = model.module(tokenize_prompt(text, study.context.tokenizer, CONTEXT)[None]).logits[0, -1]
        return float(logits[wanted] - logits[against])

    effects = []
    for pair in draw_pairs(CASE):
        if pair.half == "testing":
            with torch.inference_mode():
                before = difference(pair.text)
                handle = model.mlp(LAYER).register_forward_hook(subtract)
                effects.append(before - difference(pair.text))
                handle.remove()
    acts = next(claim for claim in study.report.claims if claim.name == "acts")
    assert abs(acts.value) > 0.01
    assert acts.value == pytest.approx(sum(effects) / len(effects), rel=1e-3)
    assert acts.n == len(effects) and acts.holds is (acts.low >= 0)
    rows = [row["value"] for row in study.report.tables["outcome"] if row["measure"] == "effect_lost"]
    assert rows == pytest.approx(effects, rel=1e-3, abs=1e-4)


@torch.inference_mode()
def read_by_hand(study: Study, token: torch.Tensor) -> torch.Tensor:
    """Gradient of the feature's pre-activation at the last token with respect to the embeddings of the last two tokens,
    with frozen attention patterns and norm denominators, from GPT-2's own weights."""
    transformer, dictionary = study.context.model.module.transformer, study.context.transcoders[LAYER]
    block = transformer.h[LAYER]
    heads = transformer.config.n_head

    def scale(norm, x):
        return norm.weight / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()

    stream = transformer.wte(token) + transformer.wpe(torch.arange(len(token)))
    query, key, value = block.attn.c_attn(block.ln_1(stream)).chunk(3, -1)
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    future = torch.ones(len(token), len(token), dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    mixed = (pattern @ value).transpose(0, 1).flatten(1)
    middle = stream + block.attn.c_proj(mixed)
    vector = dictionary.W_enc[PLANTED] * scale(block.ln_2, middle[-1:])[0]
    vector = vector - vector.mean()
    d = stream.shape[1]
    W_V = block.attn.c_attn.weight[:, 2 * d :].unflatten(1, (heads, -1))
    W_O = block.attn.c_proj.weight.unflatten(0, (heads, -1))
    through_heads = torch.einsum("dhv,hve,e->hd", W_V, W_O, vector)
    reads = []
    for place in (len(token) - 1, len(token) - 2):
        read = (pattern[:, -1, place] @ through_heads) * scale(block.ln_1, stream[place][None])[0]
        reads.append(read - read.mean() + (vector if place == len(token) - 1 else 0))
    return torch.stack(reads)


def test_the_blind_description_names_the_tokens_that_the_weights_read(study) -> None:
    texts = [pair.text for pair in draw_pairs(CASE) if pair.half == "finding"]
    tokens = [tokenize_prompt(text, study.context.tokenizer, CONTEXT) for text in texts]
    on = {row["text"]: row["value"] for row in study.report.tables["outcome"] if row["condition"] == "text"}
    tokens = [token for token, text in zip(tokens, texts, strict=True) if on[text] > 0][: CASE.traced]
    reads = [read_by_hand(study, token) for token in tokens]
    embedding = study.context.model.module.transformer.wte.weight.detach()
    contribution = torch.stack(
        [(read * embedding[token[[-1, -2]]]).sum(1) for read, token in zip(reads, tokens, strict=True)]
    )
    total = contribution.mean(0).clamp(min=0)
    score = torch.stack(reads).mean(0) @ embedding.T
    above = score - score.mean(1, keepdim=True)
    named = above > above.amax(1, keepdim=True) / 2
    counts = torch.bincount(study.held_out.token.flatten(), minlength=len(embedding))
    strings, parts = study.context.tokenizer.strings(), []
    fires = torch.ones_like(study.held_out.scored)
    for place, where in enumerate(("the token itself", "the token before")):
        if total[place] >= CASE.least_share * total.sum():
            ids = sorted(named[place].nonzero()[:, 0].tolist(), key=lambda i: (-int(counts[i]), i))
            more = f" and {len(ids) - 6} more tokens" if len(ids) > 6 else ""
            parts.append(f"{where} is one of {' '.join(f'`{strings[i]}`' for i in ids[:6])}{more}")
            shifted = torch.zeros_like(fires)
            shifted[:, place:] = named[place][study.held_out.token][:, : fires.shape[1] - place]
            fires &= shifted
    assert study.report.method[1] == (
        f"Blind rule, from weights and indices alone: it fires where {', and '.join(parts)}."
    )
    unseen = study.held_out.scored & (study.held_out.document % 2 == 1)
    dictionary, site = study.context.transcoders[LAYER], Site("mlp_in", LAYER)
    x = capture(study.context.model, study.held_out.token, [site])[site]
    z = torch.relu(x @ dictionary.W_enc[PLANTED] + dictionary.b_enc[PLANTED])
    threshold = study.report.figures["activations"][0].axes[0].lines[0].get_xdata()[0]
    true, said = (z > threshold)[unseen], fires[unseen]
    claim = next(claim for claim in study.report.claims if claim.name == "described_blind")
    assert claim.value == pytest.approx(2 * int((true & said).sum()) / int(true.sum() + said.sum()))


def test_the_picture_of_activations_shows_texts_edits_and_the_threshold(study) -> None:
    axes = study.report.figures["activations"][0].axes[0]
    rows = [row for row in study.report.tables["outcome"] if row["measure"] == "activation"]
    for points, condition in zip(axes.collections, ("text", "edited"), strict=True):
        shown = points.get_offsets()[:, 0].tolist()
        assert shown == pytest.approx([row["value"] for row in rows if row["condition"] == condition])
    (line,) = axes.lines
    assert len(set(line.get_xdata())) == 1
    assert [label.get_text() for label in axes.get_yticklabels()] == ["texts", "edits"]
    assert "activation" in axes.get_xlabel()


def test_the_picture_of_sources_shows_the_rows_of_the_table(study) -> None:
    left, right = study.report.figures["sources"][0].axes
    rows = study.report.tables["source"]
    tokens = {-row["relative_position"]: row["share"] for row in rows if row["circuit"] == "tokens"}
    assert [bar.get_height() for bar in left.patches] == pytest.approx(
        [tokens[i] for i in range(len(left.patches))]
    )
    names = [label.get_text() for label in right.get_yticklabels()]
    assert len(names) == len(right.patches) <= 12 and "embedding" in names
    widths = [bar.get_width() for bar in right.patches]
    assert widths == sorted(widths, reverse=True) and sum(widths) <= 1 + 1e-6


def test_both_halves_have_pairs_of_the_same_words(study) -> None:
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
    with pytest.raises(ValueError, match="give a single text; add words to `slots`"):
        draw_pairs(case)


CONTRAST = CASE.model_copy(update={"concept": None, "published": {}})


def test_the_planted_feature_is_found_by_contrast_too(study) -> None:
    case = CONTRAST.model_copy(update={"effect": None})
    report = study_feature("nine", study.context, study.held_out, NO_CONCEPTS, case, Evaluation())
    assert report.title == f"feature {LAYER}/{PLANTED} of tc"
    first = report.claims[0]
    assert first.name == "feature_found" and first.holds and first.value >= 1
    n = len(study.held_out.document[study.held_out.scored].unique())
    assert f"tokens of {n} documents" in report.method[2]
    assert f"The best: {LAYER}/{PLANTED} (effect size " in report.method[3]


def test_no_feature_found_is_a_result_with_a_failing_claim_and_valid_files(study, tmp_path, capsys) -> None:
    case = CONTRAST.model_copy(update={"dense": 0.0, "strength": 1.0})
    report = study_feature("none", study.context, study.held_out, NO_CONCEPTS, case, Evaluation())
    assert [(claim.name, claim.value, claim.holds) for claim in report.claims] == [
        ("feature_found", 0.0, False)
    ]
    write_report(report, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "claim.parquet", "outcome.parquet", "source.parquet", "activations.png", "sources.png", "result.md",
    }  # fmt: skip
    for table in (CLAIM, OUTCOME, SOURCE):
        assert read_table(tmp_path / f"{table.name}.parquet").schema.equals(table.schema)
    page = (tmp_path / "result.md").read_text()
    assert "No feature found: " in page and "0 of 1 claims hold; these fail: feature found." in page
    assert capsys.readouterr().err.startswith("circuitloom: none: no feature found: ")


def test_a_named_feature_that_is_silent_is_a_result_and_an_unknown_one_an_error(study) -> None:
    dictionary = study.context.transcoders[1]
    silent = replace(dictionary, b_enc=torch.full_like(dictionary.b_enc, -1e6))
    context = replace(study.context, runs={"tc": {**study.context.transcoders, 1: silent}})
    case = CONTRAST.model_copy(update={"feature": "1/2"})
    report = study_feature("none", context, study.held_out, NO_CONCEPTS, case, Evaluation())
    assert report.answer[0].startswith(
        "No feature found: feature 1/2 does not fire at the last token of any text"
    )
    with pytest.raises(ValueError, match="there is no feature 1/4000 in tc; name another"):
        case = CONTRAST.model_copy(update={"feature": "1/4000"})
        study_feature("none", context, study.held_out, NO_CONCEPTS, case, Evaluation())


@pytest.mark.parametrize(
    ("length", "tokens", "wanted", "expected"),
    [
        # 4 positions per sequence
        (2, 4 * 240, None, list(range(240))),
        (2, 4 * 10, None, [i * 1000 // 160 for i in range(160)]),
        (2, 4 * 240, 4 * 10, [i * 100 for i in range(10)]),
        # with 20 sequences per document there are 50 documents, which 80 spread sequences reach
        (20, 4 * 10, None, [i * 1000 // 80 for i in range(80)]),
    ],
)
def test_text_is_read_from_at_least_a_hundred_documents(
    length: int, tokens: int, wanted: int | None, expected, tmp_path
) -> None:
    token = np.arange(4000, dtype=np.uint16).reshape(1000, 4)
    document = np.repeat(np.arange(1000, dtype=np.uint32) // length, 4).reshape(1000, 4)
    attributes = {"bos_id": None, "separator_id": None, "vocabulary": 4000}
    write_tokens(tmp_path / "tokens", [(token, document)], 1000, attributes)
    case = FeatureCase(kind="feature", texts=["a"], edited=["b"], tokens=wanted)
    text = load_text(open_tokens(tmp_path / "tokens"), Evaluation(tokens=tokens), case)
    assert text.token[:, 0].tolist() == [4 * row for row in expected]
    assert text.document[:, 0].tolist() == [row // length for row in expected]
