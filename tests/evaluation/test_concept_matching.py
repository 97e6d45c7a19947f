import pyarrow as pa
import pytest
import torch
from tests.evaluation.inputs import make_dictionary, make_held_out

from circuitloom.config import Evaluation
from circuitloom.core.tables import FEATURE_CONCEPT, write_table
from circuitloom.evaluation.concept_matching import (
    match_concepts,
    scored_activations,
    sparse_activations,
)
from circuitloom.evaluation.concepts import concept_annotations
from circuitloom.language_model.hooks import Site, capture


@pytest.fixture(scope="module")
def held_out():
    return make_held_out(sequences=40)


@pytest.fixture(scope="module")
def annotations(held_out):
    """Concept `rare`: token ids below 20, which can be read from the activations."""
    sequence, position = ((held_out.token < 20) & held_out.scored).nonzero(as_tuple=True)
    table = pa.table(
        {"concept": ["rare"] * len(sequence), "sequence": sequence.numpy(), "position": position.numpy()}
    )
    return concept_annotations(table, held_out)


def test_activations_are_those_of_the_scored_positions_in_order(model, held_out):
    sites = [Site("mlp_in", 1), Site("neurons", 1)]
    captured = capture(model, held_out.token, sites)
    for site, value in scored_activations(model, sites, held_out, 7).items():
        torch.testing.assert_close(value, captured[site][held_out.scored])


def test_sparse_activations_are_the_non_zero_dense_activations(model, monkeypatch):
    monkeypatch.setattr("circuitloom.evaluation.concept_matching.ENCODE_BATCH", 30)
    dictionary, x = make_dictionary(model), torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    code = sparse_activations(dictionary, x)
    dense = torch.zeros(100, 40)
    dense[code.token.long(), code.feature.long()] = code.value
    torch.testing.assert_close(dense, dictionary.encode(x))


def test_every_basis_and_run_has_a_row_per_layer_and_concept(model, held_out, annotations, tmp_path):
    config = Evaluation(batch=16, thresholds=16)
    dictionaries = {layer: {"tc": make_dictionary(model, layer)} for layer in range(2)}
    rows = list(match_concepts(model, dictionaries, held_out, annotations, config))
    keys = {(row["run"], row["layer"], row["concept"]) for row in rows}
    assert len({(*(row[key] for key in FEATURE_CONCEPT.key),) for row in rows}) == len(rows) == 10 * len(keys)
    assert keys == {(run, layer, "rare") for run in ("tc", "neurons", "residual") for layer in (0, 1)}
    assert all(row["feature"] < {"tc": 40, "neurons": 40, "residual": 16}[row["run"]] for row in rows)
    assert all(row["sign"] == 1 for row in rows if row["run"] != "residual")
    write_table(FEATURE_CONCEPT, rows, tmp_path / "feature_concept.parquet")


def test_scores_of_a_neuron_are_those_of_its_activations_in_the_model(model, held_out, annotations):
    rows = match_concepts(model, {1: {}}, held_out, annotations, Evaluation(thresholds=64))
    row = next(row for row in rows if row["run"] == "neurons")
    site = Site("neurons", 1)
    z = scored_activations(model, [site], held_out, 50)[site][:, row["feature"]]
    fires = (z > row["threshold"])[~annotations.choosing]
    has = (held_out.token < 20)[held_out.scored][~annotations.choosing]
    assert row["threshold"] >= 0
    assert row["precision"] == pytest.approx(float((fires & has).sum() / fires.sum()))
    assert row["recall"] == pytest.approx(float((fires & has).sum() / has.sum()))


def test_a_layer_has_one_pass_for_all_runs(model, held_out, annotations):
    dictionaries = {1: {f"seed{seed}": make_dictionary(model, 1, seed) for seed in range(3)}}
    calls = []
    hook = model.block(0).register_forward_hook(lambda *_: calls.append(1))
    alone = [
        row
        for run, each in dictionaries[1].items()
        for row in match_concepts(model, {1: {run: each}}, held_out, annotations, Evaluation(batch=40))
    ]
    assert len(calls) == 3
    together = list(match_concepts(model, dictionaries, held_out, annotations, Evaluation(batch=40)))
    hook.remove()
    assert len(calls) == 4
    assert [row for row in together if row["run"] in dictionaries[1]] == [
        row for row in alone if row["run"] in dictionaries[1]
    ]
