"""`circuitloom benchmark` scores runs of every kind on a small study with planted features."""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.corpus.inputs import built, section

from circuitloom.benchmark_command import add_command, summary_table
from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import open_catalog
from circuitloom.config.evaluation import Evaluation
from circuitloom.core.checksums import output_damage, write_record
from circuitloom.core.layout import Layout
from circuitloom.core.tables import CONCEPT, DICTIONARY_BENCHMARK, METRIC, read_table, write_table
from circuitloom.corpus.annotations import annotate
from circuitloom.corpus.tokens import open_tokens
from circuitloom.dictionaries.cross_layer import (
    CrossLayerDictionary,
    CrossLayerTranscoder,
    load_cross_layer_transcoder,
    save_cross_layer_transcoder,
)
from circuitloom.dictionaries.dictionary import Dictionary, save_dictionary
from circuitloom.evaluation.concept_matching import scored_activations
from circuitloom.evaluation.concepts import concept_annotations
from circuitloom.evaluation.dictionary_benchmark import planted_labels, random_dictionary
from circuitloom.evaluation.held_out import load_held_out
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import load_model

pytestmark = pytest.mark.slow

D, WIDTH, K = 32, 24, 4
TOKENS = 5_000
OLD = 1_000_000_000
"""Time of the catalogue."""
PLANTED = ("full_stop", "comma")
"""Concepts that feature 0 and feature 1 of the planted transcoder fire on."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A study's folder: a small generated corpus, a random model, and dictionaries of every kind."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layout = Layout(tmp_path_factory.mktemp("results"))
    corpus = built(
        layout.root / "corpus", source="chronicle", context=128, train_tokens=1000, validation_tokens=TOKENS
    )
    files = (corpus / name for name in ("document.parquet", "tokenizer", "validation.zarr"))
    write_table(
        CONCEPT, annotate(section(source="chronicle", context=128), 0, *files), corpus / "concept.parquet"
    )
    vocabulary = open_tokens(layout.tokens("validation")).vocabulary
    config = GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=D, n_layer=2, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GPT2LMHeadModel(config)
        module.transformer.wte.weight.data.normal_()
    module.save_pretrained(layout.model)
    _save_runs(layout)
    metric = {name: 1.0 for name in METRIC.columns} | {
        "run": "tc",
        "layer": 0,
        "n_tokens": 1,
        "n_left_out": 0,
    }
    write_table(METRIC, [metric | {"kl": 0.5, "kl_zero": 2.0}], layout.evaluation_table("metric"))
    os.utime(build_catalog(layout.root), (OLD, OLD))
    write_record(layout.root, layout.catalog)
    return layout


def _save_runs(layout: Layout) -> None:
    held_out = load_held_out(open_tokens(layout.tokens("validation")), Evaluation(tokens=TOKENS))
    model = load_model(layout.model, device="cpu")
    x = scored_activations(model, [Site("mlp_in", 0)], held_out, 32)[Site("mlp_in", 0)]
    labels = planted_labels(concept_annotations(read_table(layout.corpus_table("concept")), held_out))
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    # linear discriminants of the planted concepts
    W_enc, b_enc = unit(WIDTH, D), torch.zeros(WIDTH)
    ridge = x.T @ x / len(x) + 1e-3 * torch.eye(D)
    for feature, concept in enumerate(PLANTED):
        mean = x[labels[concept]].mean(0)
        W_enc[feature] = torch.nn.functional.normalize(torch.linalg.solve(ridge, mean - x.mean(0)), dim=0)
        b_enc[feature] = -W_enc[feature] @ (mean + x.mean(0)) / 2
    tc = Dictionary(W_enc, b_enc, unit(WIDTH, D), torch.zeros(D), act="relu", layer=0)
    keys = {"width": WIDTH, "kind": "transcoder"}
    save_dictionary(tc, layout.dictionary("tc", 0), keys | {"name": "tc", "seed": 0})
    order = torch.randperm(WIDTH, generator=generator)
    other = Dictionary(W_enc[order], b_enc[order], tc.W_dec[order], tc.b_dec, act="relu", layer=0)
    save_dictionary(other, layout.dictionary("tc-seed1", 0), keys | {"name": "tc-seed1", "seed": 1})
    sae = Dictionary(
        unit(WIDTH, D), torch.zeros(WIDTH), unit(WIDTH, D), torch.zeros(D), act="topk", k=K,
        site_in="resid_mid", site_out="resid_mid", layer=1,
    )  # fmt: skip
    save_dictionary(sae, layout.dictionary("imported", 1), {"name": "imported", "files": "some"}, "some")
    layers = [
        CrossLayerDictionary(
            unit(WIDTH, D), torch.zeros(WIDTH), unit(WIDTH, 2 - layer, D), torch.zeros(D), act="topk", k=K,
            outputs=tuple(range(layer, 2)), scales=(1.0,) * (2 - layer), layer=layer,
        )
        for layer in range(2)
    ]  # fmt: skip
    folders = {layer: layout.dictionary("clt", layer) for layer in range(2)}
    save_cross_layer_transcoder(
        CrossLayerTranscoder(layers), folders, {"name": "clt", "kind": "clt", "seed": 0}
    )


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers(dest="command"))
    parsed = parser.parse_args(["benchmark", *arguments])
    parsed.run_command(parsed)


@pytest.fixture(scope="module")
def printed(study: Layout) -> Iterator[str]:
    """What the command prints, of all runs."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        run(str(study.root), "--tokens", str(TOKENS))
    yield "\n".join(lines)


@pytest.fixture(scope="module")
def rows(study: Layout, printed: str) -> list[dict]:
    assert printed
    return read_table(study.dictionary_benchmark).to_pylist()


def select(rows: list[dict], **keys) -> list[dict]:
    return [row for row in rows if all(row[name] == value for name, value in keys.items())]


def test_every_run_has_scores_at_each_of_its_layers(rows: list[dict]) -> None:
    for benchmark in ("core", "sparse_probing", "absorption"):
        found = {(row["run"], row["site"], row["layer"]) for row in select(rows, benchmark=benchmark)}
        dictionaries = {("tc", "mlp_in", 0), ("tc-seed1", "mlp_in", 0), ("imported", "resid_mid", 1),
                        ("clt", "mlp_in", 0), ("clt", "mlp_in", 1)}  # fmt: skip
        bases = {(name, site, layer) for name in ("residual", "random")
                 for site, layer in (("mlp_in", 0), ("mlp_in", 1), ("resid_mid", 1))}  # fmt: skip
        bases |= {("neurons", "neurons", layer) for layer in range(2)}
        assert found == (dictionaries | bases if benchmark == "sparse_probing" else dictionaries)
    keys = [tuple(row[name] for name in DICTIONARY_BENCHMARK.key) for row in rows]
    assert len(set(keys)) == len(keys)


def test_a_planted_feature_is_found_by_a_probe_of_one_feature(rows: list[dict]) -> None:
    for concept in PLANTED:
        keys = {"task": f"planted/{concept}", "measure": "balanced_accuracy", "layer": 0, "site": "mlp_in"}
        [found] = select(rows, run="tc", k=1, **keys)
        [ceiling] = select(rows, run="residual", k=None, **keys)
        assert found["value"] > 0.98 and ceiling["value"] > 0.98
        assert found["n"] > 50


def test_random_directions_score_less_than_all_dimensions(rows: list[dict]) -> None:
    keys = {"measure": "mean_balanced_accuracy", "task": "planted", "layer": 0, "site": "mlp_in"}
    [floor], [ceiling] = select(rows, run="random", k=1, **keys), select(rows, run="residual", k=None, **keys)
    assert 0.5 < floor["value"] < ceiling["value"] - 0.05


def test_intervals_contain_their_values_and_means_are_means(rows: list[dict]) -> None:
    for row in rows:
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]
    tasks = [row for row in select(rows, run="tc", k=2) if row["task"].startswith("text/")]
    [mean] = select(rows, run="tc", k=2, task="text")
    assert mean["n"] == len(tasks) > 3
    assert mean["value"] == pytest.approx(sum(row["value"] for row in tasks) / len(tasks))
    # a mean over tasks is more certain than one of them
    assert mean["high"] - mean["low"] < max(
        row["high"] - row["low"] for row in tasks if row["low"] is not None
    )


def test_runs_that_differ_in_the_seed_share_all_features(rows: list[dict]) -> None:
    found = select(rows, benchmark="stability")
    assert {(row["run"], row["other"], row["layer"]) for row in found} == {("tc", "tc-seed1", 0)}
    assert [row["value"] for row in found] == pytest.approx([1] * 5)


def test_core_metrics_are_those_of_a_pass_by_hand(study: Layout, rows: list[dict]) -> None:
    held_out = load_held_out(open_tokens(study.tokens("validation")), Evaluation(tokens=TOKENS))
    model = load_model(study.model, device="cpu")
    found = capture(
        model, held_out.token, [Site(site, layer) for site in ("mlp_in", "mlp_out") for layer in range(2)]
    )
    x, y = ({layer: found[Site(site, layer)][held_out.scored].double() for layer in range(2)}
            for site in ("mlp_in", "mlp_out"))  # fmt: skip
    transcoder = load_cross_layer_transcoder(study.dictionaries / "clt", dtype="float64")
    z = transcoder.encode(x)
    y_hat = transcoder.decode(z, x)
    for layer in range(2):
        core = {
            row["measure"]: row["value"] for row in select(rows, run="clt", layer=layer, benchmark="core")
        }
        density = (z[layer] > 0).double().mean(0)
        own, own_hat = y[layer], y_hat[layer]
        expected = {
            "l0": float(density.sum()),
            "l1": float(z[layer].sum(1).mean()),
            "explained_variance": 1
            - float((own - own_hat).square().sum() / (own - own.mean(0)).square().sum()),
            "l2_norm_in": float(own.norm(dim=1).mean()),
            "l2_ratio": float((own_hat.norm(dim=1) / own.norm(dim=1)).mean()),
            "frac_alive": float((density > 0).double().mean()),
            "normalized_freq_over_10_percent": float(density[density > 0.1].sum() / density.sum()),
        }
        square = own.square().mean(0)
        expected["saebench_explained_variance"] = 1 - float(
            (own - own_hat).square().sum(1).mean() / (square.sum() - square.mean() ** 2)
        )
        assert {name: core[name] for name in expected} == pytest.approx(expected, rel=1e-3)
        # there is no row of `metric`
        assert "ce_loss_score" not in core


def test_the_model_s_losses_are_those_of_the_table_metric(rows: list[dict]) -> None:
    core = {row["measure"]: row["value"] for row in select(rows, run="tc", benchmark="core")}
    assert core["kl_div_score"] == pytest.approx(1 - 0.5 / 2)
    assert core["ce_loss_score"] == core["ce_loss_with_sae"] == 1


def test_absorption_has_the_pairs_of_the_grammar(rows: list[dict]) -> None:
    pairs = {(row["task"], row["other"]) for row in select(rows, measure="absorbed")}
    assert ("in_parenthesis", "cited_year") in pairs
    # commas are in lists of citations and elsewhere
    assert ("in_parenthesis", "comma") not in pairs
    values = [row["value"] for row in select(rows, measure="absorbed")]
    # a random dictionary has no feature for most parents
    assert None in values and all(value is None or 0 <= value <= 1 for value in values)


@pytest.fixture(scope="module")
def later(study: Layout, rows: list[dict]) -> list[dict]:
    """The table of a second run, of one run and with labels of documents."""
    assert rows
    documents = read_table(study.corpus_table("document")).to_pylist()
    texts = [row["text"] for row in documents if row["split"] == "validation"]
    kinds = [{"body": text, "kind": "years" if " year " in text else "none"} for text in texts]
    file = study.root / "kinds.jsonl"
    file.write_text("\n".join(map(json.dumps, kinds)))
    labels = ("--labels", str(file), "--label-column", "kind", "--text-column", "body")
    run(str(study.root), "--runs", "imported", "--tokens", "3000", *labels)
    return read_table(study.dictionary_benchmark).to_pylist()


def test_labels_of_documents_are_tasks(later: list[dict]) -> None:
    tasks = {row["task"] for row in select(later, benchmark="sparse_probing", run="imported", k=1)}
    assert {"document", "document/years", "document/none"} <= tasks
    # a label and its opposite are predicted by the same probe, up to signs
    scores = [
        select(later, run="residual", site="resid_mid", k=None, task=f"document/{kind}")[0]["value"]
        for kind in ("years", "none")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_the_catalogue_has_the_latest_table_and_keeps_its_time(study: Layout, later: list[dict]) -> None:
    with open_catalog(study.root) as connection:
        found = connection.sql(
            "SELECT DISTINCT run FROM dictionary_benchmark WHERE benchmark = 'core'"
        ).fetchall()
        count = connection.sql("SELECT count(*) FROM dictionary_benchmark").fetchall()
    assert found == [("imported",)] and count == [(len(later),)]
    # Snakemake would make the report again after a newer catalogue
    assert study.catalog.stat().st_mtime == OLD
    assert list(output_damage(study.root, study.dictionary_benchmark)) == []
    assert list(output_damage(study.root, study.catalog)) == []


def test_the_summary_has_a_line_per_run_and_base(printed: str, rows: list[dict]) -> None:
    table = summary_table(rows)
    assert table in printed
    names = [line.split()[:2] for line in table.splitlines()[2:]]
    assert ["tc", "mlp_in"] in names and names[-1] == ["residual", "resid_mid"]
    assert table.splitlines()[0].split()[:3] == ["run", "reads", "L0"]


def test_random_dictionaries_follow_the_seed_and_have_k_features_of_each_token() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 5
    first, again, other = (random_dictionary(x, "mlp_in", 0, 40, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(first.W_enc, again.W_enc) and not torch.equal(first.W_enc, other.W_enc)
    assert (first.encode(x) > 0).sum(1).tolist() == [3] * 50
    assert first.W_enc.norm(dim=1).tolist() == pytest.approx([1] * 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "tc", "none"], "has no run none; choose from clt, imported, tc, tc-seed1"),
        (["--labels", "some.jsonl"], "need --labels FILE and --label-column COLUMN"),
        (["--tokens", "0"], "--tokens 0: a positive number of tokens is needed"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_remedy(
    study: Layout, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(str(study.root), *arguments)


def test_a_study_without_dictionaries_names_the_command_that_makes_them(
    study: Layout, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="there is no study nothing"):
        run("nothing")
    with pytest.raises(ValueError, match="model is missing; run `snakemake --cores all language_model`"):
        run(str(tmp_path))
    for part in ("corpus", "model"):
        (tmp_path / part).symlink_to(study.root / part)
    with pytest.raises(ValueError, match="has no dictionaries; run `snakemake dictionaries`"):
        run(str(tmp_path))
