"""Named queries give what plain Python computes from the rows of the same tables."""

import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pytest
from tests.catalog.tables import LAYER, RUN, make_study

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient
from circuitloom.catalog.queries import QUERY_FILES, fill_in, named_queries, quoted, read_queries
from circuitloom.core.tables import TABLES, write_table

Rows = list[dict[str, Any]]
TABLE_OF = {table.name: table for table in TABLES}
RUNS = {"tc-b": "transcoder", "tc-a": "transcoder", "sae": "sae", "neurons": "neuron"}
LAYERS = (0, 1, 2)
TRACES = ("first", "second")
KINDS = ("logit", "logit", "feature", "feature", "feature", "error", "embedding", "position", "constant")
N_NODES = 40


def make_tables() -> dict[str, Rows]:
    """Rows by folder and table; numbers of nodes, layers and features recur in every trace and run."""
    random = np.random.default_rng(0)

    def number() -> float:
        return float(random.normal())

    runs = [
        {
            "run": run,
            "kind": kind,
            "site_in": "mlp_in",
            "site_out": "mlp_out",
            "act": "topk",
            "width": 8,
            "k": 4,
        }
        for run, kind in RUNS.items()
    ]
    columns = ("l0", "fvu", "delta_ce", "ce_recovered_zero", "kl", "alive", "density_over_10_percent")
    metrics = [
        {"run": run, "layer": layer, **{column: number() for column in columns}}
        for run in ("tc-a", "tc-b", "sae") for layer in (*LAYERS, -1)
    ]  # fmt: skip
    metrics[0]["fvu"] = metrics[3]["kl"] = None
    concepts = [
        {"run": run, "layer": layer, "concept": f"concept {i}", "found_layer": 0, "feature": i, "f1": f1}
        for run in (*RUNS, "residual") for layer in (*LAYERS, -1)
        for i, f1 in enumerate([0.8, 0.5, None, *random.random(7).tolist()])
    ]  # fmt: skip
    densities = [
        {"run": run, "layer": layer, "bin": i, "low": i - 5.0 if i else None, "high": i - 4.0 if i else None,
         "n_features": int(random.integers(0, 3))}
        for run in ("tc-a", "tc-b", "unknown") for layer in LAYERS for i in range(9)
    ]  # fmt: skip
    connections = [
        {"run": run, "layer": 1 + source % 2, "feature": feature, "via": via, "source_layer": source % 2,
         "source_feature": source, "weight": float(random.integers(-50, 50)) / 8, "mean_effect": number(),
         "mean_effect_when_active": None if source % 7 == 0 else number()}
        for run in ("tc-a", "tc-b") for feature in range(20) for source in range(20) for via in ("direct", "head 0.1")
    ]  # fmt: skip
    claims = [
        {"case_study": case, "claim": f"claim {i}", "holds": bool(random.integers(0, 2))}
        for case in ("b", "a") for i in range(7)
    ]  # fmt: skip
    tables = {
        "evaluation/run": runs, "evaluation/metric": metrics, "evaluation/concept_score": concepts,
        "evaluation/density_histogram": densities, "circuits/weights/tc-a/layer1/connection": connections,
        "cases/a/claim": claims,
    }  # fmt: skip
    for trace in TRACES:
        tables |= {f"circuits/{trace}/{name}": rows for name, rows in make_trace(trace, random).items()}
    return tables


def make_trace(trace: str, random: np.random.Generator) -> dict[str, Rows]:
    nodes = []
    for i in range(N_NODES):
        # the same node number is of another kind in the other trace
        kind = KINDS[i] if i < 2 else KINDS[2 + (i + len(trace)) % (len(KINDS) - 2)]
        feature = {"layer": i % 3, "feature": i} if kind == "feature" else {}
        layer = {"layer": 1} if kind == "error" else {}
        place = {} if kind == "constant" else {"position": i % 5, "token": f"{trace}{i % 5}"}
        nodes.append(
            {"trace": trace, "node": i, "kind": kind, "is_root": i < 2, "in_graph": True, **feature, **layer, **place}
        )  # fmt: skip
    pairs = {tuple(random.choice(N_NODES, 2, replace=False).tolist()) for _ in range(150)}
    edges = []
    for source, target in sorted(pairs):
        constant = nodes[source]["kind"] == "constant"
        effect, frozen, free = random.normal(size=3).tolist()
        edges.append(
            {"trace": trace, "source": source, "target": target, "effect": effect,
             "effect_frozen": None if constant else frozen, "effect_free": None if constant else free}
        )  # fmt: skip
    interventions = []
    for i in range(20):
        label = f"node {2 + i}" if i % 2 else f"group {i}"
        for root in (0, 1):
            before, frozen, free = random.normal(size=3).tolist()
            common = {"trace": trace, "intervention": i, "root": root, "kind": "ablate", "label": label,
                      "features": [f"0/{j}@1" for j in range(1 + i)], "strength": None, "before": before}  # fmt: skip
            interventions.append({**common, "frozen": False, "after": free})
            if i != 4:
                interventions.append({**common, "frozen": True, "after": frozen})
    return {"node": nodes, "edge": edges, "intervention": interventions}


@pytest.fixture(scope="module")
def tables() -> dict[str, Rows]:
    return make_tables()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Rows]) -> CatalogClient:
    folder = tmp_path_factory.mktemp("queries")
    for place, rows in tables.items():
        write_table(TABLE_OF[place.rpartition("/")[2]], rows, folder / f"{place}.parquet")
    build_catalog(folder)
    return CatalogClient(folder)


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


def test_mean_scores_are_over_layers_and_all_layers_at_once_is_apart(client, tables) -> None:
    metrics = tables["evaluation/metric"]
    columns = ("l0", "fvu", "delta_ce", "ce_recovered_zero", "kl", "alive", "density_over_10_percent")
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
def test_effects_are_those_of_edges_from_features_of_the_trace(
    client, tables, trace: str, edges: int
) -> None:
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
def test_edges_are_ordered_by_their_share_of_the_target_s_strongest_edge(client, tables, trace: str) -> None:
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
def test_interventions_show_the_first_root_frozen_next_to_free(client, tables, trace: str) -> None:
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
def test_group_interventions_leave_out_single_nodes_and_name_each_root_s_token(
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


def test_densities_of_some_layers_leave_out_empty_bins_and_unknown_runs(client, tables) -> None:
    order = {"tc-a": 0, "tc-b": 1}
    expected = [
        row for row in tables["evaluation/density_histogram"]
        if row["run"] in order and row["layer"] in (0, 2) and (row["n_features"] or not row["bin"])
    ]  # fmt: skip
    expected.sort(key=lambda row: (order[row["run"]], row["layer"], row["bin"]))
    assert any(row["bin"] == 0 and not row["n_features"] for row in expected)
    assert_rows(client.ask("density", layers=[0, 2]).rows, expected)


def test_densities_of_a_run_are_its_own_of_every_layer(client, tables) -> None:
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


def test_claims_are_counted_case_by_case(client, tables) -> None:
    expected = []
    for case in ("a", "b"):
        holds = [row["holds"] for row in tables["cases/a/claim"] if row["case_study"] == case]
        expected.append({"case_study": case, "claims": 7, "hold": sum(holds), "fail": 7 - sum(holds)})
    assert client.ask("cases").rows == expected


def test_features_alike_are_the_twenty_of_the_largest_cosine_over_tokens(tmp_path: Path) -> None:
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


def test_every_query_has_a_name_of_its_own_a_description_and_no_stray_parameter() -> None:
    assert len(named_queries()) == sum(len(read_queries(name)) for name in QUERY_FILES) > 40
    for query in named_queries().values():
        assert query.description[0].isupper() and query.description.endswith("."), query.name
        assert query.sql.startswith(("SELECT", "FROM", "WITH")), query.name
        assert not re.search(r"\{\w+\}", query.sql), query.name


def test_parameters_are_filled_in_as_literals_and_never_twice() -> None:
    assert quoted(["it's", 2]) == "['it''s', 2]"
    assert (
        fill_in("a = $a AND b = $b AND c ->> '$.x'", {"a": "$b", "b": 1})
        == "a = '$b' AND b = 1 AND c ->> '$.x'"
    )
    with pytest.raises(KeyError, match="missing"):
        fill_in("$missing", {})
