"""Transcoders that read resid_mid: trained from a cache of it, used at that site in every stage."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tests.ablation.component_inputs import make_prompt
from tests.activations.inputs import make_cache, make_order
from tests.architectures import tiny_architecture
from tests.attribution.inputs import PROMPT, load_tiny, make_dictionaries
from tests.evaluation.inputs import make_held_out
from tests.models import VOCABULARY

from circuitloom.ablation.causal_effects import component_values
from circuitloom.ablation.components import feature_basis
from circuitloom.ablation.metrics import last_logits
from circuitloom.ablation.patching import replace_mlp, subtract_feature
from circuitloom.activations.store import open_activations
from circuitloom.attribution.capture import read_weights
from circuitloom.attribution.tracer import transcoder_runs
from circuitloom.config import Run
from circuitloom.core.layout import Layout
from circuitloom.dictionaries.dictionary import CONFIG, load_dictionary, save_dictionary
from circuitloom.dictionaries.formats.transcoder_circuits import import_transcoder
from circuitloom.dictionaries.training.sweep import train_sweep
from circuitloom.features.basis import dictionary_basis
from circuitloom.language_model.hooks import Site, capture, edited
from circuitloom.language_model.model import load_model
from circuitloom.weights.blind_prediction import find_active_positions
from circuitloom.weights.connections import find_connections
from circuitloom.weights.deembedding import embed_vocabulary, write_deembedding

KEYS = {"width": 64, "k": 8, "batch": 256, "tokens": 256 * 60, "learning_rate": 1e-2, "precision": "float32"}


def test_a_sweep_trains_on_both_inputs_and_each_dictionary_reconstructs_from_its_own(tmp_path):
    model = load_model(tiny_architecture("gemma3_text", tmp_path / "model"), device="cpu")
    order, cache = make_order(40), tmp_path / "cache"
    for site in ("mlp_in", "resid_mid"):
        make_cache(cache, model, order, site, dtype="bfloat16", layers=[1])
    runs = [Run(name=reads, reads=reads, site="mlp_added", **KEYS) for reads in ("mlp_in", "resid_mid")]
    outputs = [tmp_path / "dictionaries" / run.name / "layer1" for run in runs]
    train_sweep(runs, 1, cache, model, outputs)
    rows = {}
    for site in ("mlp_in", "resid_mid", "mlp_added"):
        store = open_activations(cache, site, 1, model)
        rows[site] = next(store.batches(store.rows))
    y = rows["mlp_added"]
    for run, folder in zip(runs, outputs, strict=True):
        dictionary = load_dictionary(folder)
        assert dictionary.is_transcoder
        assert json.loads((folder / CONFIG).read_text())["site_in"] == dictionary.site_in == run.reads
        right, wrong = (
            float((y - dictionary(rows[site])).square().sum() / (y - y.mean(0)).square().sum())
            for site in sorted(("mlp_in", "resid_mid"), key=lambda site: site != run.reads)
        )
        assert right < 0.6 and right < wrong


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text"])
def test_edits_of_patching_and_components_encode_the_stream(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path)
    dictionary = make_dictionaries(model, site_in="resid_mid", site_out="mlp_added")[1]
    prompt, site = make_prompt(PROMPT), Site("mlp_added", 1)
    x = capture(model, PROMPT[None], [Site("resid_mid", 1)])[Site("resid_mid", 1)]
    z = dictionary.encode(x)
    feature = int(z[0, 1:].sum(0).argmax())
    [values] = component_values(model, feature_basis("run", {1: dictionary}), prompt)
    torch.testing.assert_close(values, z[0])
    where = prompt.where
    written = (z[..., [feature]] * where[:, None]) * dictionary.W_dec[feature]
    by_hand = {
        replace_mlp(dictionary, where): lambda _x, y: torch.where(where[:, None], dictionary(x), y),
        subtract_feature(dictionary, feature, where): lambda _x, y: y - written,
    }
    for edit, expected in by_hand.items():
        with edited(model, {site: edit}):
            found = last_logits(model, PROMPT[None])
        with edited(model, {site: expected}):
            torch.testing.assert_close(found, last_logits(model, PROMPT[None]), atol=1e-5, rtol=1e-5)


def test_features_of_tables_and_blind_predictions_fire_where_the_stream_says(tmp_path):
    model = load_tiny("llama", tmp_path)
    held_out = make_held_out(sequences=3)
    dictionaries = make_dictionaries(model, site_in="resid_mid")
    assert dictionary_basis("run", 2, dictionaries[2]).site == Site("resid_mid", 2)
    active = find_active_positions(model, dictionaries, held_out, 2)
    for layer, dictionary in dictionaries.items():
        site = Site("resid_mid", layer)
        fires = dictionary.encode(capture(model, held_out.token, [site])[site]) > 0
        expected = {tuple(each) for each in (fires & held_out.scored[..., None]).nonzero().tolist()}
        columns = (active[layer].sequence, active[layer].position, active[layer].feature)
        assert {tuple(each) for each in torch.stack(columns, 1).tolist()} == expected


def test_weights_of_a_model_without_a_norm_before_its_mlp_are_the_same_for_both_inputs(tmp_path):
    """There, resid_mid is mlp_in."""
    model = load_tiny("olmo2", tmp_path)
    weights, results = read_weights(model), []
    for reads in ("mlp_in", "resid_mid"):
        dictionaries = make_dictionaries(model, site_in=reads)
        tokens = embed_vocabulary(model, weights, dictionaries[0], VOCABULARY)
        results.append((tokens.layer0_output, find_connections(model, weights, dictionaries, 2, 5, 2).weight))
    # without a norm before the MLP, mlp_in of the tables is read through that of attention, which OLMo 2 lacks too
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_de_embeddings_of_resid_mid_are_products_of_encoder_and_embedding(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    weights = read_weights(model)
    dictionaries = make_dictionaries(model, site_in="resid_mid", act="relu", k=None)
    tokens = embed_vocabulary(model, weights, dictionaries[0], VOCABULARY)
    embedding = model.module.get_submodule(model.anatomy.embedding).weight
    torch.testing.assert_close(tokens.layer0_output, dictionaries[0](embedding), atol=1e-5, rtol=1e-5)
    file = tmp_path / "0.parquet"
    strings = [f"w{i}" for i in range(VOCABULARY)]
    write_deembedding("tc", dictionaries, model, weights, tokens, strings, {0: file}, n=3)
    product = dictionaries[0].W_enc @ embedding.T
    rows = [row for row in pq.read_table(file).to_pylist() if row["via"] == "direct" and row["sign"] == 1]
    assert len(rows) == 3 * 40
    for row in rows:
        assert row["effect"] == pytest.approx(float(product[row["feature"], row["token_id"]]), abs=1e-5)
        assert row["effect"] >= float(product[row["feature"]].topk(3).values[-1]) - 1e-5


def test_only_dictionaries_that_replace_mlps_are_runs_of_transcoders(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    made = make_dictionaries(model)[0]
    sites = {
        "a": ("mlp_in", "mlp_out"), "b": ("resid_mid", "mlp_added"),
        "c": ("resid_mid", "resid_mid"), "d": ("mlp_in", "mlp_in"), "e": ("mlp_out", "mlp_out"),
    }  # fmt: skip
    layout = Layout(tmp_path / "results")
    for run, (reads, writes) in sites.items():
        each = replace(made, site_in=reads, site_out=writes)
        assert each.is_transcoder == (run in "ab") and each.is_sae == (run in "cde")
        save_dictionary(each, Path(layout.dictionary(run, 0)), {})
    assert transcoder_runs(tmp_path / "results") == ["a", "b"]


def test_an_import_of_the_papers_transcoders_that_names_the_stream_is_refused(tmp_path):
    run = Run(name="a", files=f"{tmp_path}/{{layer}}.pt", act="relu", width=40, reads="resid_mid")
    model = load_tiny("gpt2", tmp_path)
    with pytest.raises(ValueError, match="read the MLP's input, not resid_mid; remove `reads`"):
        import_transcoder(run, 0, model)
