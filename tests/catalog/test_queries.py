"""Named queries agree with plain Python on the rows of the same tables."""

import math
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pytest
from tests.catalog.random_tables import (
    BEHAVIOURS,
    LAYERS,
    RUNS,
    TRACES,
    Rows,
    make_tables,
    write_catalog,
)
from tests.catalog.tables import LAYER, RUN, make_study

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient
from circuitloom.catalog.queries import QUERY_FILES, fill_in, named_queries, quoted, read_queries


@pytest.fixture(scope="module")
def tables() -> dict[str, Rows]:
    return make_tables()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Rows]) -> CatalogClient:
    return write_catalog(tmp_path_factory.mktemp("queries"), tables)


def assert_rows(found: Rows, expected: Rows) -> None:
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        assert list(row) == list(other)
        assert row == pytest.approx(other, rel=1e-12, nan_ok=True)


def average(values: list) -> float | None:
    values = [value for value in values if value is not None]
    return mean(values) if values else None


def label(node: dict[str, Any]) -> str:
    what = {"feature": f"{node.get('layer')}/{node.get('feature')}", "error": f"error {node.get('layer')}"}
    if node["kind"] == "constant":
        return "constant"
    return f"{what.get(node['kind'], node['kind'])} '{node['token']}'@{node['position']}"


def test_mean_scores_are_over_layers_and_exclude_all_layers_at_once(client, tables) -> None:
    metrics = tables["evaluation/metric"]
    columns = (
        "l0",
        "fvu",
        "fvu_median",
        "delta_ce",
        "ce_recovered_zero",
        "kl",
        "alive",
        "density_over_10_percent",
    )
    expected = []
    for run in ("tc-a", "tc-b", "sae"):
        own = [row for row in metrics if row["run"] == run]
        (together,) = (row for row in own if row["layer"] == -1)
        means = {name: average([row[name] for row in own if row["layer"] >= 0]) for name in columns}
        both = {f"{name}_together": together[name] for name in ("delta_ce", "kl")}
        expected.append({"run": run, **means, **both})
    assert_rows(client.ask("metric_mean").rows, expected)


def test_concepts_are_counted_and_averaged_over_the_best_layer_alone(client, tables) -> None:
    expected = []
    for run in RUNS:
        rows = [row for row in tables["evaluation/concept_score"] if row["run"] == run and row["layer"] == -1]
        f1 = [row["f1"] for row in rows if row["f1"] is not None]
        found = {f"found_at_0_{n}": sum(value >= n / 10 for value in f1) for n in (8, 5)}
        expected.append(
            {"run": run, "concepts": len(rows), "mean_f1": mean(f1), "median_f1": median(f1), **found}
        )
    expected.sort(key=lambda row: -row["mean_f1"])
    assert len(expected[0]) == 6 and expected[0]["concepts"] == 10
    assert_rows(client.ask("concept_mean").rows, expected)


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("edges", [10, 1000])
def test_effects_are_of_the_traces_edges_from_features(client, tables, trace: str, edges: int) -> None:
    nodes = {row["node"]: row for row in tables[f"circuits/{trace}/node"]}
    rows = [row for row in tables[f"circuits/{trace}/edge"] if nodes[row["source"]]["kind"] == "feature"]
    assert 10 < len(rows) < len(tables[f"circuits/{trace}/edge"])
    rows.sort(key=lambda row: -abs(row["effect"]))
    names = ("effect", "effect_frozen", "effect_free")
    expected = [
        {
            "source": label(nodes[row["source"]]),
            "target": label(nodes[row["target"]]),
            **{n: row[n] for n in names},
        }
        for row in rows
    ]
    assert_rows(client.ask("effects", trace=trace, edges=edges).rows, expected[:edges])


@pytest.mark.parametrize("trace", TRACES)
def test_edges_are_ordered_by_strength_relative_to_their_targets_strongest_edge(
    client, tables, trace: str
) -> None:
    rows = tables[f"circuits/{trace}/edge"]
    strongest: dict[int, float] = defaultdict(float)
    for row in rows:
        strongest[row["target"]] = max(strongest[row["target"]], abs(row["effect"]))
    expected = [
        {"source_node": row["source"], "target_node": row["target"], "effect": row["effect"],
         "effect_frozen": row["effect_frozen"], "effect_free": row["effect_free"],
         "strength": abs(row["effect"]) / strongest[row["target"]]}
        for row in rows
    ]  # fmt: skip
    expected.sort(key=lambda row: (-row["strength"], row["target_node"], row["source_node"]))
    assert_rows(client.ask("graph_edges", trace=trace, edges=60).rows, expected[:60])


@pytest.mark.parametrize("trace", TRACES)
def test_interventions_have_frozen_and_free_effects_on_the_first_root(client, tables, trace: str) -> None:
    nodes = {row["node"]: row for row in tables[f"circuits/{trace}/node"]}
    measured: dict[int, Rows] = defaultdict(list)
    for row in tables[f"circuits/{trace}/intervention"]:
        if row["root"] == 0:
            measured[row["intervention"]].append(row)
    expected = []
    for rows in measured.values():
        after = {row["frozen"]: row["after"] for row in rows}
        first, change = rows[0], rows[0]["label"]
        node = change.removeprefix("node ")
        expected.append(
            {"kind": "ablate", "changed": label(nodes[int(node)]) if node != change else change,
             "features": len(first["features"]), "strength": None, "target": label(nodes[0]), "before": first["before"],
             "frozen": after.get(True), "free": after[False]}
        )  # fmt: skip
    assert sum(row["frozen"] is None for row in expected) == 1
    expected.sort(
        key=lambda row: -abs((row["free"] if row["frozen"] is None else row["frozen"]) - row["before"])
    )
    assert_rows(client.ask("interventions", trace=trace).rows, expected[:12])


@pytest.mark.parametrize("trace", TRACES)
def test_group_interventions_exclude_single_nodes_and_have_each_roots_token(
    client, tables, trace: str
) -> None:
    nodes = {row["node"]: row for row in tables[f"circuits/{trace}/node"]}
    rows = [row for row in tables[f"circuits/{trace}/intervention"] if not row["label"].startswith("node ")]
    rows.sort(key=lambda row: (row["intervention"], row["root"], not row["frozen"]))
    expected = [
        {"label": row["label"], "kind": "ablate", "n_features": len(row["features"]),
         "first_features": row["features"][:6], "strength": None, "token": nodes[row["root"]]["token"],
         "before": row["before"], "frozen": row["frozen"], "after": row["after"]}
        for row in rows
    ]  # fmt: skip
    found = client.ask("group_interventions", trace=trace).rows
    assert found == expected


@pytest.mark.parametrize("trace", TRACES)
def test_head_edges_and_why_they_attend_are_in_order(client, tables, trace: str) -> None:
    rows = tables[f"circuits/{trace}/attention_score"]
    places = {tuple(row[part] for part in ("layer", "head", "query", "key")): row for row in rows}
    expected = sorted(places, key=lambda place: -abs(places[place]["contribution"]))
    found = client.ask("head_edges", trace=trace).rows
    assert [(row["layer"], row["head"], row["query"], row["key"]) for row in found] == expected
    for row, place in zip(found, expected, strict=True):
        assert (
            row["mean_score"] == places[place]["mean_score_plain"] and row["score"] == places[place]["score"]
        )
    kinds = ("pair", "query", "key")
    for layer, head, query, key in expected:
        own = [row for row in rows if (row["layer"], row["head"], row["key"]) == (layer, head, key)]
        own.sort(key=lambda row: (kinds.index(row["kind"]), row["rank"]))
        found = client.ask("attended", trace=trace, layer=layer, head=head, query=query, key=key).rows
        assert [(row["kind"], row["query_source"], row["key_source"], row["effect"]) for row in found] == [
            (row["kind"], row["query_source"], row["key_source"], row["effect"]) for row in own
        ]
        asked = client.run(f"FROM why_attended('{trace}', {layer}, {head}, {query}, {key})").rows
        assert [(row["kind"], row["effect"]) for row in asked] == [
            (row["kind"], row["effect"]) for row in own
        ]
    every = client.run(f"FROM why_attended('{trace}', NULL, NULL, NULL, NULL)").rows
    assert len(every) == len(rows)


def test_densities_of_some_layers_exclude_empty_bins_and_unknown_runs(client, tables) -> None:
    order = {"tc-a": 0, "tc-b": 1}
    expected = [
        row for row in tables["evaluation/density_histogram"]
        if row["run"] in order and row["layer"] in (0, 2) and (row["n_features"] or not row["bin"])
    ]  # fmt: skip
    expected.sort(key=lambda row: (order[row["run"]], row["layer"], row["bin"]))
    assert any(row["bin"] == 0 and not row["n_features"] for row in expected)
    assert_rows(client.ask("density", layers=[0, 2]).rows, expected)


def test_run_density_has_every_layer_of_one_run(client, tables) -> None:
    expected = [
        {name: value for name, value in row.items() if name != "run"}
        for row in tables["evaluation/density_histogram"]
        if row["run"] == "tc-b"
    ]
    assert len(expected) == 27
    assert_rows(client.ask("run_density", run="tc-b").rows, expected)


@pytest.mark.parametrize("query", ["upstream", "downstream"])
def test_connections_are_followed_in_their_direction_strongest_effect_first(
    client, tables, query: str
) -> None:
    connections = tables["circuits/weights/tc-a/layer1/connection"]
    # both ends exist as (layer 1, feature 5), in both runs
    this, other = ("", "source_") if query == "upstream" else ("source_", "")
    rows = [
        row
        for row in connections
        if (row["run"], row[f"{this}layer"], row[f"{this}feature"]) == ("tc-b", 1, 5)
    ]
    assert len(rows) > 15

    def key(row: dict[str, Any]) -> tuple:
        effect = row["mean_effect_when_active"]
        return (effect is None, -abs(effect or 0), -abs(row["weight"]))

    expected = [
        {"layer": row[f"{other}layer"], "feature": row[f"{other}feature"],
         **{name: row[name] for name in ("via", "weight", "mean_effect", "mean_effect_when_active")}}
        for row in sorted(rows, key=key)
    ]  # fmt: skip
    assert_rows(client.ask(query, run="tc-b", layer=1, feature=5).rows, expected[:15])


def test_claims_are_counted_per_case_study(client, tables) -> None:
    expected = []
    for case in ("a", "b"):
        holds = [row["holds"] for row in tables["cases/a/claim"] if row["case_study"] == case]
        expected.append({"case_study": case, "claims": 7, "hold": sum(holds), "fail": 7 - sum(holds)})
    assert client.ask("cases").rows == expected


@pytest.mark.parametrize("layers", [[0], [0, 1, 2]])
def test_history_thins_each_curve_to_about_60_points_including_the_last(client, tables, layers) -> None:
    expected = []
    for run in ("tc-a", "tc-b", "sae"):
        for layer in layers:
            rows = tables.get(f"dictionaries/{run}/layer{layer}/history", [])
            every = math.ceil(len(rows) / 60)
            kept = [row for i, row in enumerate(rows, 1) if i % every == 0 or i == len(rows)]
            assert len(kept) <= 61
            expected += [
                {name: row[name] for name in ("run", "layer", "step", "loss", "fvu", "dead")} for row in kept
            ]
    assert_rows(client.ask("history", layers=layers).rows, expected)


def test_outliers_are_those_of_the_last_training_step_and_of_the_scores(client) -> None:
    counted = [("sae", 0, 120, 0), *(("tc-a", layer, 0, layer + 1) for layer in LAYERS)]
    names = ("run", "layer", "outliers_in_training", "outliers_in_scores")
    assert_rows(client.ask("outliers").rows, [dict(zip(names, row, strict=True)) for row in counted])


def test_run_history_has_every_step_of_every_layer_of_one_run(client, tables) -> None:
    expected = [
        {name: row[name] for name in ("layer", "step", "fvu", "l0", "dead")}
        for layer in LAYERS
        for row in tables[f"dictionaries/tc-a/layer{layer}/history"]
    ]
    assert len(expected) == 130 + 61 + 60
    assert_rows(client.ask("run_history", run="tc-a").rows, expected)


def test_key_figures_are_counts_and_best_values(client, tables) -> None:
    metrics, concepts = tables["evaluation/metric"], tables["evaluation/concept_score"]
    transcoders = [run for run, kind in RUNS.items() if kind == "transcoder"]
    best = min(
        (row for row in metrics if row["run"] in transcoders and row["layer"] == -1),
        key=lambda row: row["delta_ce"],
    )
    assert best["delta_ce"] > min(row["delta_ce"] for row in metrics)
    found = {
        run: [(row["f1"] or 0) >= 0.8 for row in concepts if row["run"] == run and row["layer"] == -1]
        for run in transcoders
    }
    most = min(transcoders, key=lambda run: (-sum(found[run]), run))
    holds = [row["holds"] for row in tables["cases/a/claim"]]
    error = max(tables[f"circuits/{trace}/trace"][0]["identity_error"] for trace in TRACES)
    expected = [
        (3.25, "unit of cross_entropy_every", "meaning of cross_entropy_every"),
        (1234, "unit of parameters", "meaning of parameters"),
        (9, "dictionaries", "3 runs, 3 layers"),
        (
            best["delta_ce"],
            "nats per token",
            f"{best['run']}, all layers replaced, L0 {round(best['l0'], 1)}",
        ),
        (sum(found[most]), f"of {len(found[most])}", f"{most}, best layer of each concept"),
        (2, "prompts", f"sums of sources add up to within {error:.1e}"),
        (sum(holds), f"of {len(holds)}", "2 case studies"),
    ]
    rows = client.ask("glance").rows
    assert [(row["value"], row["unit"], row["detail"]) for row in rows] == expected
    assert len({row["figure"] for row in rows}) == 7


def test_key_figures_of_a_study_without_joint_replacement_are_of_its_best_layer(
    tables, tmp_path: Path
) -> None:
    metrics = [row for row in tables["evaluation/metric"] if row["layer"] >= 0]
    best = min((row for row in metrics if row["run"] != "sae"), key=lambda row: row["delta_ce"])
    partial = {"evaluation/run": tables["evaluation/run"], "evaluation/metric": metrics}
    rows = write_catalog(tmp_path, partial).ask("glance").rows
    assert [(row["value"], row["detail"]) for row in rows] == [
        (9, "3 runs, 3 layers"),
        (best["delta_ce"], f"{best['run']}, layer {best['layer']}, L0 {round(best['l0'], 1)}"),
    ]


def test_components_are_the_five_of_each_basis_with_the_largest_mean_effect(client, tables) -> None:
    groups: dict[tuple, dict[tuple, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in tables["circuits/behaviours/causal"]:
        if row["effect"] is not None and row["position"] is None:
            group = (row["behaviour"], row["ablation"], row["basis"])
            groups[group][row["layer"], row["component"]].append(row)
    expected = []
    for (behaviour, ablation, basis), components in sorted(groups.items()):
        means = [
            {"behaviour": behaviour, "basis": basis, "ablation": ablation, "layer": layer, "component": component,
             "effect": mean(row["effect"] for row in rows), "kl": mean(row["kl"] for row in rows),
             "n_prompts": len(rows)}
            for (layer, component), rows in components.items()
        ]  # fmt: skip
        means.sort(key=lambda row: (-abs(row["effect"]), row["layer"], row["component"]))
        expected += means[:5]
    assert {row["n_prompts"] for row in expected} >= {2, 3} and min(row["effect"] for row in expected) < 0
    assert len(expected) == 40
    assert_rows(client.ask("components").rows, expected)


def test_compared_groups_are_means_over_runs_and_prompts(client, tables) -> None:
    expected = []
    for case in ("x", "y"):
        for group in ("clt", "plt"):
            runs, prompts = (
                [
                    row
                    for row in tables[f"cases/x/{table}"]
                    if (row["case_study"], row["group_name"]) == (case, group)
                ]
                for table in ("compared_run", "compared_prompt")
            )
            of_runs = (
                "parameters",
                "l0",
                "fvu",
                "delta_ce",
                "dead",
                "concept_f1",
                "source_precision",
                "source_recall",
            )
            of_prompts = (
                *("replacement_score", "completeness_score", "edge_correlation", "effect_correlation"),
                *("through", "around"),
            )
            row = {"case_study": case, "group_name": group, "runs": len(runs)}
            row |= {
                "delta_ce_together" if name == "delta_ce" else name: average([each[name] for each in runs])
                for name in of_runs
            }
            expected.append(row | {name: average([each[name] for each in prompts]) for name in of_prompts})
    assert expected[0]["runs"] == 3 and expected[0]["delta_ce_together"] is None
    assert_rows(client.ask("compared").rows, expected)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_faithfulness_is_of_one_behaviour_by_number_of_components_kept(
    client, tables, behaviour: str
) -> None:
    rows = [row for row in tables["circuits/behaviours/faithfulness"] if row["behaviour"] == behaviour]
    rows.sort(key=lambda row: (row["ablation"], row["ranking"], row["basis"], row["n_kept"]))
    names = (
        "basis",
        "ablation",
        "ranking",
        "n_kept",
        "n_components",
        "n_prompts",
        "faithfulness",
        "remaining",
    )
    expected = [{name: row[name] for name in names} for row in rows]
    assert len(expected) == 24
    assert_rows(client.ask("faithfulness", behaviour=behaviour).rows, expected)


def test_words_are_the_most_frequent_tokens_of_the_top_examples(client, tables) -> None:
    token = {(row["sequence"], row["position"]): row["token"] for row in tables["corpus/token"]}
    expected = {}
    for layer in (0, 2):
        for feature in (1, 4):
            ranks: dict[str, list[int]] = defaultdict(list)
            for row in tables[f"features/tc-b/layer{layer}/example"]:
                if row["feature"] == feature and row["band"] == 0:
                    ranks[token[row["sequence"], row["position"]]].append(row["rank"])
            # of equally frequent tokens, the one of the larger activation first
            expected[layer, feature] = sorted(ranks, key=lambda word: (-len(ranks[word]), min(ranks[word])))
    rows = client.ask("words", run="tc-b", layers=[0, 2], features=[1, 4]).rows
    assert {(row["layer"], row["feature"]): row["tokens"] for row in rows} == expected
    assert client.words("tc-b", list(expected)) == {key: tokens[:3] for key, tokens in expected.items()}
    assert client.words("tc-b", []) == {}


def test_promoted_are_the_three_tokens_with_the_most_raised_logits(client) -> None:
    expected = {
        (layer, feature): [f"tc-b{layer}{feature}1{rank}" for rank in range(3)]
        for layer in (0, 2) for feature in (1, 4)
    }  # fmt: skip
    rows = client.ask("promoted", run="tc-b", layers=[0, 2], features=[1, 4]).rows
    assert {(row["layer"], row["feature"]): row["tokens"] for row in rows} == expected
    assert client.promoted("tc-b", list(expected)) == expected


def test_alike_features_are_the_twenty_with_the_largest_cosine_over_tokens(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    build_catalog(study.folder)
    firing = study.firing()
    mine = firing.pop((RUN, LAYER, 4)).astype(np.float64)
    cosine = {
        key: mine @ z / (np.linalg.norm(mine) * np.linalg.norm(z.astype(np.float64)))
        for key, z in firing.items()
    }
    expected = [
        {"run": run, "layer": layer, "feature": feature, "cosine": value,
         "n_both": int(((mine > 0) & (firing[run, layer, feature] > 0)).sum())}
        for (run, layer, feature), value in sorted(cosine.items(), key=lambda item: -item[1])
    ]  # fmt: skip
    found = CatalogClient(study.folder).ask("alike", run=RUN, layer=LAYER, feature=4).rows
    assert len(expected) > 20
    for row, other in zip(found, expected[:20], strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def test_every_query_has_a_unique_name_and_a_description_and_no_format_field() -> None:
    assert len(named_queries()) == sum(len(read_queries(name)) for name in QUERY_FILES) > 40
    for query in named_queries().values():
        assert query.description[0].isupper() and query.description.endswith("."), query.name
        assert query.sql.startswith(("SELECT", "FROM", "WITH")), query.name
        assert not re.search(r"\{\w+\}", query.sql), query.name


def test_parameters_are_filled_in_once_as_literals() -> None:
    assert quoted(["it's", 2]) == "['it''s', 2]"
    assert (
        fill_in("a = $a AND b = $b AND c ->> '$.x'", {"a": "$b", "b": 1})
        == "a = '$b' AND b = 1 AND c ->> '$.x'"
    )
    with pytest.raises(KeyError, match="missing"):
        fill_in("$missing", {})
