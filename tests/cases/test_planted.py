"""The benchmark finds planted features and their sources; the documented example runs."""

import re
from itertools import product
from pathlib import Path

import pytest
import torch
from tests.corpus.inputs import built, section

from circuitloom.cases.claims import Bootstrap
from circuitloom.cases.context import open_context
from circuitloom.cases.planted.concept_features import ConceptFeature, grow_set
from circuitloom.cases.planted.report import (
    ConceptOutcome,
    PlantedResults,
    draw_concepts,
    draw_sources,
    planted_claims,
)
from circuitloom.cases.planted.sources import SourceScore, TokenContributions, choose_share, score_sources
from circuitloom.cases.planted.study import study_planted
from circuitloom.config import load_study
from circuitloom.config.cases import PlantedCase
from circuitloom.config.evaluation import Evaluation
from circuitloom.core.tables import CONCEPT, FEATURE_CONCEPT, read_table, write_table
from circuitloom.corpus.annotations import annotate
from circuitloom.corpus.tokens import open_tokens
from circuitloom.dictionaries.dictionary import Dictionary, save_dictionary
from circuitloom.evaluation.concept_matching import scored_activations
from circuitloom.evaluation.concepts import concept_annotations
from circuitloom.evaluation.held_out import load_held_out
from circuitloom.language_model.hooks import Site
from circuitloom.language_model.model import load_model

DOC = Path(__file__).parents[2] / "docs" / "planted.md"
PLANTED = ("full_stop", "comma", "count")
"""Concepts that the dictionary of the tests has a feature for."""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A study's folder: a small corpus, and a random model with distinct embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("results")
    corpus = built(
        folder / "corpus", source="chronicle", context=128, train_tokens=1000, validation_tokens=30_000
    )
    files = (corpus / name for name in ("document.parquet", "tokenizer", "validation.zarr"))
    annotations = annotate(section(source="chronicle", context=128), 0, *files)
    write_table(CONCEPT, annotations, corpus / "concept.parquet")
    vocabulary = open_tokens(corpus / "validation.zarr").vocabulary
    config = GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=32, n_layer=2, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        model.transformer.wte.weight.data.normal_()
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def planted(results):
    """Weights of a transcoder that reads the words of `PLANTED`, and its activations on the held-out tokens."""
    held_out = load_held_out(open_tokens(results / "corpus" / "validation.zarr"), Evaluation(tokens=100_000))
    site = Site("mlp_in", 0)
    model = load_model(results / "model", device="cpu")
    x = scored_activations(model, [site], held_out, 32)[site]
    labels = concept_annotations(read_table(results / "corpus" / "concept.parquet"), held_out)
    token = torch.repeat_interleave(torch.arange(len(x)), labels.start.diff())
    rows, biases = [], []
    for concept in PLANTED:
        mine = torch.zeros(len(x))
        mine[token[labels.concept == labels.names.index(concept)]] = 1
        ridge = x.T @ x / len(x) + 1e-3 * torch.eye(32)
        row = torch.linalg.solve(ridge, x[mine > 0].mean(0) - x.mean(0))
        rows.append(row / row.norm())
        biases.append(-(x[mine > 0].mean(0) + x.mean(0)) @ rows[-1] / 2)
    W_enc, b_enc = torch.stack(rows), torch.stack(biases)
    return W_enc, b_enc, torch.relu(x @ W_enc.T + b_enc)


@pytest.mark.slow
def test_the_documented_example_finds_the_planted_features_and_their_sources(results, planted):
    W_enc, b_enc, values = planted
    first, second = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    names = {
        "W_enc": W_enc,
        "b_enc": b_enc,
        "W_dec": W_enc.clone(),
        "b_dec": torch.zeros(32),
        "values": values,
    }
    assert 'Path("results/quickstart")' in first
    exec(first.replace('Path("results/quickstart")', f"Path({str(results)!r})") + second, names)
    rows = {
        row["concept"]: row for row in read_table(results / "cases" / "mine" / "planted.parquet").to_pylist()
    }
    assert len(rows) == 75
    for number, concept in enumerate(PLANTED[:2]):
        row = rows[concept]
        assert row["found"] and row["feature"] == number and row["f1"] > 0.9
        assert row["circuit_recall"] == row["gradient_recall"] == 1 and row["n_traced"] == 8
        assert row["f1_together"] >= row["f1"] - 0.02
        assert names["found"][concept] == pytest.approx(row["f1"], abs=0.02)
    assert not rows["in_quotation"]["found"] and rows["in_quotation"]["circuit_recall"] is None
    text = (results / "cases" / "mine" / "result.md").read_text()
    share = sum(row["found"] for row in rows.values()) / 75
    assert f"has an F1 of at least 0.800 | {share:.3f} |" in text and "these fail: found, " in text
    pictures = {file.name for file in (results / "cases" / "mine").glob("*.png")}
    assert pictures == {f"{figure}.png" for figure in PlantedCase.figures}


def test_a_run_without_matches_is_named(results):
    folder = results / "dictionaries" / "unmatched" / "layer0"
    weights = (torch.zeros(shape) for shape in ((3, 32), (3,), (3, 32), (32,)))
    save_dictionary(Dictionary(*weights, act="relu"), folder, {})
    files = str(results / "model"), str(results / "corpus" / "tokenizer")
    context = open_context(*files, [str(folder)], ["unmatched"], 128, "float32")
    held_out = load_held_out(open_tokens(results / "corpus" / "validation.zarr"), Evaluation(tokens=1000))
    case = PlantedCase(kind="planted", runs=["unmatched"], neurons=False)
    nothing = FEATURE_CONCEPT.schema.empty_table()
    with pytest.raises(
        ValueError, match=r"no feature of unmatched was matched .* add its feature_concept table"
    ):
        study_planted("x", context, held_out, CONCEPT.schema.empty_table(), nothing, case)


def effects(*values: float, cues: list[list[int]], optional: tuple[int, ...] = ()) -> TokenContributions:
    return TokenContributions(torch.tensor(values), len(values) - 1, cues, list(optional))


def test_precision_ignores_optional_words_and_recall_needs_one_word_per_cue():
    one = effects(0.0, 4.0, -3.0, 2.0, 1.0, cues=[[1, 2], [4]], optional=(3,))
    assert score_sources([one], 0.4) == SourceScore(1.0, 1.0, 0.5, 1)
    assert score_sources([one], 0.9) == SourceScore(1.0, 2 / 3, 0.5, 1)
    assert score_sources([one], 1.0) == SourceScore(1.0, 3 / 4, 1.0, 1)
    wrong = effects(5.0, 0.0, 0.0, 0.0, 1.0, cues=[[4]])
    assert score_sources([wrong], 0.5) == SourceScore(0.0, 0.0, 0.0, 1)
    assert score_sources([one, wrong], 0.5) == SourceScore(2 / 3, 2 / 3, 1 / 3, 2)
    assert score_sources([], 0.5) is None


def test_the_share_with_the_best_sources_on_the_choosing_half_is_chosen():
    clean = effects(0.0, 1.0, 6.0, 3.0, cues=[[2], [3]])
    noisy = effects(0.0, 3.0, 6.0, 1.0, cues=[[1], [2], [3]])
    contributions = {(0, "choosing"): [clean], (0, "scoring"): [noisy]}
    assert choose_share(contributions, [0], [0.5, 0.9, 1.0]) == 0.9


def outcome(kind: str, run: str, concept: str, f1: float, score: SourceScore | None) -> ConceptOutcome:
    found = ConceptFeature(run, concept, 0, 0, 0.0, f1, f1, f1, f1, f1, f1, 1, 0, {})
    circuit = score if kind == "transcoder" else None
    return ConceptOutcome(kind, found, f1 >= 0.8, circuit, score, (None, None), False)


def test_claims_compare_the_best_runs_of_each_kind_concept_by_concept():
    f1 = {"good": [0.9, 0.9, 0.5, 0.9], "poor": [0.9, 0.1, 0.1, 0.1], "sae": [0.9, 0.9, 0.1, 0.1]}
    score = SourceScore(1.0, 1.0, 0.5, 8)
    runs = {
        run: {
            f"c{i}": outcome(
                "sae" if run == "sae" else "transcoder", run, f"c{i}", value, score if value > 0.8 else None
            )
            for i, value in enumerate(values)
        }
        for run, values in f1.items()
    }
    results = PlantedResults(runs)
    case = PlantedCase(kind="planted", runs=["good"])
    assert results.best("transcoder", 0.8) == "good" and results.best("neurons", 0.8) is None
    made = {claim.name: claim for claim in planted_claims(results, "good", case, Bootstrap(500, 0.95, 0))}
    assert made["found"].value == 0.75 and not made["found"].holds
    assert made["found_above_saes"].value == 0.25 and made["found_above_saes"].holds
    assert made["sources_precision"].value == 1 and made["sources_precision"].n == 3
    assert made["sources_recall"].value == 0.5 and not made["sources_recall"].holds
    assert made["sources_above_saes"].n == 2 and "found_above_neurons" not in made


def test_a_config_with_real_text_and_planted_concepts_is_refused(tmp_path):
    study = {
        "name": "x",
        "corpus": {"source": "chronicle"},
        "language_model": {"source": "pretrain"},
        "dictionaries": {"sweep": {"width": 2048, "k": 16}},
        "cases": {"benchmark": {"kind": "planted", "runs": ["tc-topk16-2048"]}},
    }
    runs = load_study(study).case_runs("benchmark")
    assert runs == ["tc-topk16-2048"]
    text = tmp_path / "text.txt"
    text.write_text("some text\n")
    corpus = {"source": "files", "train": [str(text)], "tokenizer": str(tmp_path)}
    with pytest.raises(ValueError, match=r"cases\.benchmark: only generated text has planted concepts; set"):
        load_study(study | {"corpus": corpus})
    cases = {"benchmark": {"kind": "planted", "runs": ["tc-none"]}}
    with pytest.raises(ValueError, match=r"cases\.benchmark: there is no run tc-none"):
        load_study(study | {"cases": cases})


def test_a_picture_without_found_concepts_is_empty():
    assert draw_sources(PlantedResults({}), Bootstrap(10, 0.95, 0)).axes[0].get_yticks().size == 0


def test_the_pictures_show_each_concept_and_each_run(tmp_path):
    score = SourceScore(0.5, 0.5, 0.25, 8)
    runs = {
        "tc": {
            "c0": outcome("transcoder", "tc", "c0", 0.9, score),
            "c1": outcome("transcoder", "tc", "c1", 0.2, None),
        },
        "sae": {"c0": outcome("sae", "sae", "c0", 0.3, None), "c1": outcome("sae", "sae", "c1", 0.8, score)},
    }
    results = PlantedResults(runs)
    axes = draw_concepts(results, ["tc", "sae"], 0.8).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c1", "c0"]
    shown = {points.get_label(): points.get_offsets()[:, 0].tolist() for points in axes.collections}
    assert shown == {"tc": [0.2, 0.9], "sae": [0.8, 0.3]}
    axes = draw_sources(results, Bootstrap(10, 0.95, 0)).axes[0]
    names = ["tc, circuits (1 concepts)", "tc, gradients (1 concepts)", "sae, gradients (1 concepts)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names[::-1]
    values = {bars.get_label(): bars[0].get_xdata().tolist() for bars in axes.containers}
    assert values == {"precision": [0.5] * 3, "recall": [0.25] * 3}


TOKENS = 400


@pytest.fixture(scope="module")
def concept():
    """A concept whose tokens are split over three features; one of them also fires elsewhere, but weakly."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(TOKENS, generator=generator) < 0.3
    part = torch.randint(3, (TOKENS,), generator=generator)
    values = torch.zeros(TOKENS, 5)
    for feature in range(3):
        mine = positive & (part == feature)
        values[mine, feature] = 1 + torch.rand(int(mine.sum()), generator=generator)
    elsewhere = ~positive & (torch.rand(TOKENS, generator=generator) < 0.5)
    values[elsewhere, 1] = 0.9 * torch.rand(int(elsewhere.sum()), generator=generator)
    values[:, 3] = torch.rand(TOKENS, generator=generator)
    choosing = torch.arange(TOKENS) % 2 == 0
    return values, positive, choosing


def test_features_that_share_a_concept_are_found_with_precise_thresholds(concept):
    grown = grow_set(*concept, most=5)
    assert sorted(grown.columns) == [0, 1, 2]
    assert grown.f1_choosing == grown.f1 == 1.0
    assert 0.5 < dict(zip(grown.columns, grown.thresholds, strict=True))[1] < 1


def test_a_set_has_at_most_the_allowed_number_of_features(concept):
    values, positive, choosing = concept
    grown = grow_set(values, positive, choosing, most=2)
    predicted = (values[:, list(grown.columns)] > torch.tensor(grown.thresholds)).any(1)
    hits = int((predicted & positive)[~choosing].sum())
    assert len(grown.columns) == 2
    assert grown.f1 == pytest.approx(2 * hits / int(predicted[~choosing].sum() + positive[~choosing].sum()))


def test_the_first_feature_and_threshold_are_the_best_of_all(concept):
    values, positive, choosing = concept
    noisy = (values + 0.05 * torch.rand(values.shape, generator=torch.Generator().manual_seed(1))).round(
        decimals=2
    )
    truth, best = positive[choosing], 0.0
    for feature, threshold in product(range(5), torch.arange(0, 3, 0.005).tolist()):
        predicted = noisy[choosing, feature] > threshold
        best = max(best, 2 * int((predicted & truth).sum()) / max(1, int(predicted.sum()) + int(truth.sum())))
    assert grow_set(noisy, positive, choosing, most=1).f1_choosing == pytest.approx(best)


def test_the_choice_does_not_depend_on_the_scoring_half(concept):
    values, positive, choosing = concept
    changed = values.clone()
    changed[~choosing] = 0
    assert (
        grow_set(changed, positive, choosing, 5).thresholds
        == grow_set(values, positive, choosing, 5).thresholds
    )
    assert grow_set(changed, positive, choosing, 5).f1 == 0


def test_a_concept_without_tokens_has_no_set(concept):
    values, positive, choosing = concept
    grown = grow_set(values, torch.zeros_like(positive), choosing, 5)
    assert grown.columns == () and grown.f1_choosing == 0 and grown.f1 != grown.f1
