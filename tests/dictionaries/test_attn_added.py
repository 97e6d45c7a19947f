"""SAEs on what attention adds to the stream: cached, trained, scored, tabulated, exported and imported at that site."""

import json
from dataclasses import replace

import pytest
import torch
from tests.activations.inputs import make_cache, make_order, make_tokens
from tests.architectures import tiny_architecture
from tests.evaluation.inputs import make_dictionary, make_held_out
from tests.evaluation.test_scoring import cross_entropy
from tests.exchange.results import LLAMA, random_dictionary, write_results
from tests.features.inputs import CONFIG, NAMES, STRINGS

from circuitloom.activations.store import open_activations
from circuitloom.attribution.tracer import transcoder_runs
from circuitloom.config import Evaluation, Run, load_study
from circuitloom.core.layout import Layout
from circuitloom.core.tables import BASELINE, read_table, write_table
from circuitloom.dictionaries.dictionary import load_dictionary, save_dictionary
from circuitloom.dictionaries.formats.published import read_published
from circuitloom.dictionaries.formats.sparsify import hookpoint
from circuitloom.dictionaries.training.sweep import needs_model, train_sweep
from circuitloom.evaluation.score_rows import read_baselines, score_rows
from circuitloom.evaluation.scoring import baseline_rows
from circuitloom.exchange.export import export_run
from circuitloom.exchange.stored_run import StoredRun
from circuitloom.features.basis import dictionary_basis
from circuitloom.features.logit_effects import write_logit_effects
from circuitloom.features.tabulation import tabulate
from circuitloom.language_model.hooks import Site, capture, edited
from circuitloom.language_model.model import load_model

KEYS = {"width": 64, "k": 8, "batch": 256, "tokens": 256 * 60, "learning_rate": 1e-2, "precision": "float32"}
SITE = {"site_in": "attn_added", "site_out": "attn_added"}


@pytest.fixture(scope="module", params=["gpt2", "gemma3_text", "gpt_neox"])
def model(request, tmp_path_factory):
    """Models with neither norm nor factor after attention, with a norm, and with attention and MLP in parallel."""
    folder = tmp_path_factory.mktemp("model") / request.param
    return load_model(tiny_architecture(request.param, folder), device="cpu")


def difference(model, tokens, layer: int) -> torch.Tensor:
    """What attention adds, by the residual stream before and after it."""
    after = Site("resid_pre", layer + 1) if model.anatomy.parallel else Site("resid_mid", layer)
    sites = [Site("resid_pre", layer), after, Site("mlp_added", layer)]
    values = capture(model, tokens, sites)
    added = values[after] - values[sites[0]]
    return added - values[sites[2]] if model.anatomy.parallel else added


def test_an_sae_is_trained_from_the_cache_of_its_site(model, tmp_path) -> None:
    cache = make_cache(tmp_path / "cache", model, make_order(40), "attn_added", dtype="bfloat16", layers=[1])
    run, folder = Run(name="sae", kind="sae", site="attn_added", **KEYS), tmp_path / "sae" / "layer1"
    assert not needs_model([run], 1, cache)
    train_sweep([run], 1, cache, model, [folder])
    dictionary = load_dictionary(folder)
    assert dictionary.is_sae and dictionary.site_in == "attn_added"
    [output] = json.loads((folder / "config.json").read_text())["outputs"]
    assert output == {"layer": 1, "site": "attn_added"}
    store = open_activations(cache, "attn_added", 1, model)
    y = next(store.batches(store.rows))
    fvu = float((y - dictionary(y)).square().sum() / (y - y.mean(0)).square().sum())
    assert fvu < 0.6
    # the trained dictionary reconstructs what the stream gains, on other tokens
    held_out = make_held_out()
    own = difference(model, held_out.token, 1)[held_out.scored]
    other = float((own - dictionary(own)).square().sum() / (own - own.mean(0)).square().sum())
    assert other < 1


def test_an_sae_is_scored_in_its_place(model, tmp_path) -> None:
    held_out, dictionary = make_held_out(), make_dictionary(model, 1, 1, **SITE)
    rows = baseline_rows(model, ["attn_added"], [0, 1], held_out, Evaluation(batch=3))
    assert [row["layer"] for row in rows] == [0, 1]
    write_table(BASELINE, rows, tmp_path / "baseline.parquet")
    baselines = read_baselines([tmp_path / "baseline.parquet"])
    row = score_rows(model, {("sae", 1): dictionary}, [("sae", 1)], baselines, held_out, 3)["sae", 1].metric
    y = difference(model, held_out.token, 1)[held_out.scored]
    fvu = (y - dictionary(y)).square().sum() / (y - y.mean(0)).square().sum()
    assert row["fvu"] == pytest.approx(float(fvu), rel=1e-3)
    scored = held_out.scored[..., None]
    for name, value in (("ce", dictionary), ("ce_zero", lambda y: 0 * y)):
        with edited(model, {Site("attn_added", 1): lambda _x, y, f=value: torch.where(scored, f(y), y)}):
            assert row[name] == pytest.approx(cross_entropy(model, held_out), rel=1e-5)
    assert row["ce_original"] == pytest.approx(cross_entropy(model, held_out), rel=1e-5)
    assert len({row[name] for name in ("ce", "ce_zero", "ce_original")}) == 3 and row["kl"] > 0


def test_its_features_are_those_of_what_attention_adds(model, tmp_path) -> None:
    dictionary = make_dictionary(model, 1, 1, **SITE)
    basis = dictionary_basis("sae", 1, dictionary)
    tokens, paths = make_tokens(4), {name: tmp_path / "layer1" / f"{name}.parquet" for name in NAMES}
    tabulate([basis], model, tokens, STRINGS, CONFIG, [paths])
    z = dictionary.encode(difference(model, tokens.take(slice(None)), 1))
    rows = read_table(paths["activation"]).to_pylist()
    # 4 features of almost every token
    assert len(rows) > 3 * z.shape[0] * z.shape[1]
    for row in rows:
        value = float(z[row["sequence"], row["position"], row["feature"]])
        assert value == pytest.approx(row["activation"], rel=1e-3, abs=1e-5)
    # the decoder writes to the stream itself, also where a norm follows attention
    effects = []
    for number, site in enumerate(("attn_added", "resid_mid")):
        path = tmp_path / f"logit{number}.parquet"
        write_logit_effects(replace(basis, site_out=site), model, STRINGS, 3, path)
        effects.append(read_table(path).to_pylist())
    assert effects[0] == effects[1] and len(effects[0]) == 6 * dictionary.width


def test_it_is_exported_and_imported_at_its_hook(tmp_path) -> None:
    made = {layer: random_dictionary(layer, "topk", **SITE) for layer in (0, 1)}
    results = write_results(tmp_path / "study", made)
    export_run("saelens", StoredRun(results, "some"), tmp_path / "out")
    metadata = json.loads((tmp_path / "out" / "layer_1" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_attn_out"
    again = read_published(tmp_path / "out", 1)
    assert (again.site_in, again.site_out, again.layer) == ("attn_added", "attn_added", 1)
    assert torch.equal(again.W_dec, made[1].W_dec) and torch.equal(again.W_enc, made[1].W_enc)
    with pytest.raises(ValueError, match="layer 0"):
        export_run("circuit-tracer", StoredRun(results, "some"), tmp_path / "other")


def test_sparsify_names_the_module_whose_output_is_added() -> None:
    dictionary = random_dictionary(2, "topk", **SITE)
    after = replace(LLAMA, norm_attention_after="norm_1", norm_mlp_after="norm_2")
    assert hookpoint(dictionary, LLAMA, False) == "layers.2.self_attn"
    assert hookpoint(dictionary, after, True) == "layers.2.norm_1"
    # a residual multiplier is applied outside of all modules
    with pytest.raises(ValueError, match=r"an SAE of attn_added.*export to saelens"):
        hookpoint(dictionary, LLAMA, True)


STUDY = {
    "name": "some",
    "corpus": {"source": "chronicle", "context": 32},
    "language_model": {"source": "pretrain", "layers": 2, "d_model": 16, "heads": 2},
    "training": {"width": 64, "k": 4},
    "activations": {"sites": ["mlp_in", "attn_added"]},
    "dictionaries": {"saes": {"kind": "sae", "site": "attn_added"}},
}


def test_a_study_names_and_checks_its_runs() -> None:
    study = load_study(STUDY)
    assert list(study.runs) == ["sae-topk4-64-attn_added"] and "attn_added" in study.sites
    assert study.transcoders == []
    uncached = {**STUDY, "activations": {"sites": ["mlp_in"]}}
    with pytest.raises(ValueError, match=r"^dictionaries\.saes: reads attn_added, which is not cached"):
        load_study(uncached)
    with pytest.raises(ValueError, match="a transcoder reconstructs mlp_out or mlp_added, not attn_added"):
        load_study({**STUDY, "dictionaries": {"tc": {"site": "attn_added"}}})
    with pytest.raises(
        ValueError, match=r"circuits\.prompts: prompts are traced through transcoders; add a sweep"
    ):
        load_study({**STUDY, "circuits": {"prompts": {"a": {"text": "he was"}}}})


def test_no_prompt_is_traced_through_it(tmp_path) -> None:
    layout = Layout(tmp_path)
    for run, sites in (("sae", SITE), ("tc", {})):
        save_dictionary(random_dictionary(0, **sites), layout.dictionary(run, 0), {"name": run})
    assert list(transcoder_runs(tmp_path)) == ["tc"]
