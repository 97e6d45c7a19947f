"""Tables of a behaviour: schema, content, and metrics parsed from the config's targets."""

import math

import pytest
import torch
from tests.ablation.component_inputs import INSIDE, make_prompt, make_saes
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.models import CONTEXT
from tokenizers import normalizers

from circuitloom.ablation.behaviour import Budget, behaviour_tables, component_tables
from circuitloom.ablation.causal_effects import causal_effects, replacement_values
from circuitloom.ablation.components import feature_basis, head_basis
from circuitloom.ablation.faithfulness import faithfulness_curve, rank
from circuitloom.config.circuits import Behaviour, BehaviourPrompt, Circuits
from circuitloom.core.tables import CAUSAL, FAITHFULNESS, FEATURE_EFFECT, read_table, write_table
from circuitloom.corpus.tokenizer import load_tokenizer

TEXTS = ("w9 w20 w31 w9", "w44 w20 w17")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A model, its prompts of two lengths, its runs, and the tables of them."""
    model = load_tiny("gpt2", tmp_path_factory.mktemp("study"))
    prompts = [make_prompt(), make_prompt(INSIDE[:9])]
    runs = {"mid": make_saes(model, "resid_mid"), "out": make_saes(model), "tc": make_dictionaries(model)}
    budget = Budget(measured=6, each_position=True, per_source=None, targets=5)
    return model, prompts, runs, component_tables("tiny", model, prompts, runs, budget)


@pytest.mark.parametrize("table", [CAUSAL, FAITHFULNESS, FEATURE_EFFECT], ids=lambda table: table.name)
def test_tables_match_their_schema_and_keys_are_unique(study, table, tmp_path):
    rows = study[-1][table.name]
    write_table(table, rows, tmp_path / "rows.parquet")
    assert read_table(tmp_path / "rows.parquet") == rows and len(rows)
    keys = rows.select(list(table.key)).to_pylist()
    assert len({tuple(key.values()) for key in keys}) == len(keys)


def test_causal_rows_name_each_component(study):
    model, prompts, runs, tables = study
    rows = tables["causal"].to_pylist()
    assert {row["kind"] for row in rows} == {"feature", "head", "neuron"}
    assert {row["run"] for row in rows} == {"mid", "out", "tc", None}
    basis = feature_basis("out", runs["out"])
    replacement = replacement_values(model, basis, prompts, "mean")
    effects = causal_effects(model, basis, prompts[1], replacement, most=6)
    part, number = basis.locate(effects.component)
    own = [
        row
        for row in rows
        if (row["basis"], row["ablation"], row["prompt"], row["position"]) == ("out", "mean", 1, None)
    ]
    assert [(row["layer"], row["component"]) for row in own] == list(
        zip(part.tolist(), number.tolist(), strict=True)
    )
    assert [row["effect"] for row in own] == pytest.approx(effects.effect.tolist(), abs=1e-6)
    assert any(row["position"] is not None for row in rows)


def test_curves_follow_the_ranking(study):
    model, prompts, _, tables = study
    rows = [
        row
        for row in tables["faithfulness"].to_pylist()
        if (row["basis"], row["ablation"], row["ranking"]) == ("heads", "zero", "effect")
    ]
    basis = head_basis(model)
    replacement = [None] * 3
    effects = [causal_effects(model, basis, prompt, replacement) for prompt in prompts]
    scores = (effects[0].effect + effects[1].effect) / 2
    curve = faithfulness_curve(model, basis, prompts, rank(scores), replacement)
    assert [row["n_kept"] for row in rows] == curve.n_kept.tolist()
    assert [row["faithfulness"] for row in rows] == pytest.approx(curve.faithfulness.tolist(), abs=1e-5)
    assert {row["n_components"] for row in rows} == {6} and {row["n_prompts"] for row in rows} == {2}


def test_every_source_has_effects_on_saes_and_transcoders_of_its_layer(study):
    rows = study[-1]["feature_effect"].to_pylist()
    assert {(row["source_run"], row["target_run"], row["layer"]) for row in rows} == {
        ("mid", target, layer) for target in ("out", "tc") for layer in range(3)
    }
    assert all(row["absolute_effect"] >= abs(row["effect"]) - 1e-9 for row in rows)


def test_curves_are_ranked_by_attribution_if_nothing_is_measured(study):
    model, prompts, runs, _ = study
    tables = component_tables("tiny", model, prompts, {"out": runs["out"]}, Budget(measured=0), ("zero",))
    assert {row["ranking"] for row in tables["faithfulness"].to_pylist()} == {"attribution"}
    assert not len(tables["causal"]) and not len(tables["feature_effect"])
    assert all(math.isfinite(row["faithfulness"]) for row in tables["faithfulness"].to_pylist())


def test_a_run_on_a_site_missing_from_the_model_is_refused(tmp_path):
    model = load_tiny("neox", tmp_path)
    runs = {"mid": make_saes(model, "resid_mid")}
    with pytest.raises(ValueError, match="no resid_mid; use resid_pre"):
        component_tables("tiny", model, [make_prompt()], runs, Budget(measured=0))


def test_metrics_are_parsed_from_targets(tmp_path):
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


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Returns the tables of behaviours of a model in which one feature at the last position makes the metric."""
    folder = tmp_path_factory.mktemp("planted")
    model = load_tiny("gpt2", folder)
    for layer in range(model.layers):
        model.attention(layer).get_submodule(model.anatomy.attention_projection).weight.mul_(1e-3)
    transcoders = make_dictionaries(model, act="relu", k=None)
    rows = model.module.get_submodule(model.anatomy.unembedding).weight.detach()
    for dictionary in transcoders.values():
        dictionary.W_dec.mul_(1e-3)
    last = transcoders[model.layers - 1]
    last.W_enc[7] *= 1e-3
    last.b_enc[7] = 1
    last.W_dec[7] = 60 * (rows[12] - rows[20]) / (rows[12] - rows[20]).norm()
    runs = {"sae": make_saes(model), "tc": transcoders}
    tokenizer = load_tokenizer(str(folder / "gpt2"))

    def tables(texts, **keys):
        prompts = [BehaviourPrompt(text=text, target="logit w12 vs w20") for text in texts]
        behaviour = Behaviour(prompts=prompts, measured=0, **keys)
        return behaviour_tables("b", model, tokenizer, runs, behaviour, CONTEXT)

    return model, tables


def test_the_common_circuit_of_a_behaviour_is_found_and_measured_on_unseen_prompts(planted):
    model, tables = planted
    found = tables(["w5 {a} w6 {b}"], slots={"a": ["w9", "w31"], "b": ["w44", "w17", "w30"]}, count=6)
    nodes, edges = (found[name].to_pylist() for name in ("aggregate_node", "aggregate_edge"))
    last = model.layers - 1
    (planted_node,) = [
        row for row in nodes if (row["layer"], row["feature"], row["token"]) == (last, 7, "{b}")
    ]
    (root,) = [row for row in nodes if row["kind"] == "root"]
    assert planted_node["is_common"] and planted_node["run"] == "tc" and root["n_prompts"] == 3
    assert {row["token"] for row in nodes} <= {"<bos>", "w5", "{a}", "w6", "{b}"}
    (edge,) = [row for row in edges if (row["source"], row["target"]) == (planted_node["node"], root["node"])]
    assert edge["share"] == 1 and edge["effect"] > 1 and edge["effect_low"] <= edge["effect"]
    assert found["faithfulness"]["n_prompts"].to_pylist()[0] == 6
    outcome = {(row["condition"], row["prompt"]): row["value"] for row in found["outcome"].to_pylist()}
    testing = {row["prompt"] for row in found["outcome"].to_pylist() if row["half"] == "testing"}
    assert len(testing) == 3
    for prompt in testing:
        full, none = outcome["untouched", prompt], outcome["features ablated", prompt]
        assert full - none > 1
        assert outcome["common circuit alone", prompt] == pytest.approx(full, abs=0.1 * (full - none))
        assert outcome["without common circuit", prompt] == pytest.approx(none, abs=0.1 * (full - none))
        assert outcome["random features alone", prompt] < none + 0.5 * (full - none)


def test_listed_prompts_of_one_length_are_a_template_and_a_single_prompt_has_no_aggregate(planted):
    _, tables = planted
    found = tables(["w9 w20 w31", "w44 w20 w17", "w9 w20"])
    nodes = found["aggregate_node"].to_pylist()
    assert {row["text"] for row in nodes} == {"{w9|w44} w20 {w31|w17}"}
    assert {row["prompt"] for row in found["outcome"].to_pylist()} == {0, 1}
    for keys in ({}, {"aggregated": 0}):
        alone = tables(["w9 w20", *(["w9 w17"] if keys else [])], **keys)
        assert [len(alone[name]) for name in ("aggregate_node", "aggregate_edge", "outcome")] == [0, 0, 0]


def test_slots_of_a_behaviour_must_be_filled():
    prompts = [{"text": "w9 {a} {b}", "target": "logit w9"}]
    with pytest.raises(ValueError, match=r"nothing fills \{b\}; add it to `slots`"):
        Behaviour.model_validate({"prompts": prompts, "slots": {"a": ["w1", "w2"]}})
    assert Behaviour.model_validate({"prompts": prompts}).slots == {}


def test_a_target_other_than_logits_at_the_last_position_is_refused():
    for target in ("logits", "feature 1/2", "random", "logit w9 @2"):
        with pytest.raises(ValueError, match="measured in the logits at the last position"):
            BehaviourPrompt(text="w9", target=target)


def test_a_prompt_and_a_behaviour_cannot_share_a_name():
    example = {"text": "w9", "target": "logit w9"}
    with pytest.raises(ValueError, match="a prompt and a behaviour have this name"):
        Circuits(prompts={"war": {"text": "w9"}}, behaviours={"war": {"prompts": [example]}})


def test_an_answer_of_a_behaviour_is_read_after_its_prompt_and_said(tmp_path, capsys):
    model = load_tiny("gpt2", tmp_path)
    tokenizer = load_tokenizer(str(tmp_path / "gpt2"))
    tokenizer.backend.normalizer = normalizers.Lowercase()
    prompts = [
        BehaviourPrompt(text=f"<bos> {TEXTS[0]}", target="logit W17"),
        BehaviourPrompt(text=TEXTS[0], target="logit w17"),
    ]
    for prompt in prompts:
        behaviour = Behaviour(prompts=[prompt], measured=0, ablations=["zero"])
        rows = behaviour_tables("b", model, tokenizer, {}, behaviour, CONTEXT)["faithfulness"].to_pylist()
        logits = model.logits(torch.tensor([[1, 9, 20, 31, 9]]))[0, -1]
        assert rows[0]["metric_untouched"] == pytest.approx(float(logits[17]), abs=1e-5)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("circuitloom: b: ")] == [
        "circuitloom: b: the BOS <bos> at the start of the prompt counts once",
        "circuitloom: b: the answer 'W17' is the token 'w17' (id 17), with which the text goes on",
    ]
