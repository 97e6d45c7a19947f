"""The macro `supernodes` agrees with numpy: labels or activations agree at one position, and agreement is passed on."""

from pathlib import Path

import numpy as np
import pytest

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient
from circuitloom.core.layout import Layout
from circuitloom.core.tables import ACTIVATION, LABEL, NODE, TRACE, write_table

RUN, OTHER = "tc", "tc-other"
FEATURES = [(layer, feature) for layer in (0, 1) for feature in range(6)]
POSITIONS = (3, 4)
LABELS = {
    (0, 0): "`a`",
    (1, 1): "`a`",
    (0, 2): "`b`",
    (0, 3): "`b`",
    (1, 5): "`c`",
    (0, 5): "nothing",
    (1, 4): "nothing",
}


def make_activations() -> dict[tuple[int, int], np.ndarray]:
    """Sparse activations of each feature on 200 tokens. Those of layer 1 are mixtures of those of layer 0."""
    random = np.random.default_rng(0)
    lower = random.random((6, 200)) * (random.random((6, 200)) < 0.2)
    upper = np.maximum(0, np.roll(lower, 1, 0) + np.roll(lower, 2, 0) * random.random((6, 1)) - 0.2)
    return dict(zip(FEATURES, [*lower, *upper], strict=True))


ACTIVATIONS = make_activations()


def nodes() -> list[dict]:
    """Each feature at each position; one more is a root, and one is only on paths."""
    rows = [
        {"kind": "feature", "in_graph": True, "is_root": False, "run": RUN, "layer": layer, "feature": feature,
         "position": position, "influence": 1 / (2 + layer + 3 * feature + position)}
        for position in POSITIONS for layer, feature in FEATURES
    ]  # fmt: skip
    rows.append(rows[0] | {"is_root": True, "influence": None})
    rows.append(rows[0] | {"in_graph": False, "influence": None})
    rows.append({"kind": "error", "in_graph": True, "is_root": False, "run": RUN, "layer": 0, "position": 3})
    return [{"trace": "some", "node": 50 + i, **row} for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> CatalogClient:
    layout = Layout(tmp_path_factory.mktemp("supernodes"))
    write_table(
        TRACE,
        [{"trace": "some", "run": RUN}, {"trace": "other", "run": OTHER}],
        layout.trace("some") / "trace.parquet",
    )
    write_table(NODE, nodes(), layout.trace("some") / "node.parquet")
    for layer in (0, 1):
        # all features of another run have the same activations, and one label
        for run in (RUN, OTHER):
            own = [ACTIVATIONS[(layer, feature) if run == RUN else (0, 0)] for feature in range(6)]
            rows = [
                {"run": run, "layer": layer, "feature": feature, "sequence": token // 20, "position": token % 20,
                 "activation": value}
                for feature, z in enumerate(own) for token, value in enumerate(z) if value
            ]  # fmt: skip
            write_table(ACTIVATION, rows, layout.feature_table(run, layer, "activation"))
        labels = [
            {"run": RUN, "layer": layer, "feature": feature, "label": text, "source": "rule", "f1": 0.5,
             "kind": "none" if text == "nothing" else "token"}
            for (own, feature), text in LABELS.items() if own == layer
        ]  # fmt: skip
        write_table(LABEL, labels, layout.labels("rules", RUN, layer))
        others = [row | {"run": OTHER, "label": "the same", "kind": "token"} for row in labels]
        write_table(LABEL, others, layout.labels("rules", OTHER, layer))
    build_catalog(layout.root)
    return CatalogClient(layout.root)


def expected_groups(least: float | None) -> set[frozenset[int]]:
    """Connected components of at least two nodes."""
    rows = [row for row in nodes() if row["kind"] == "feature" and row["in_graph"] and not row["is_root"]]
    found: set[frozenset[int]] = set()
    for start in rows:
        group, waiting = {start["node"]}, [start]
        while waiting:
            one = waiting.pop()
            for other in rows:
                if other["node"] not in group and agree(one, other, least):
                    group.add(other["node"])
                    waiting.append(other)
        if len(group) > 1:
            found.add(frozenset(group))
    return found


def agree(one: dict, other: dict, least: float | None) -> bool:
    places = [(row["layer"], row["feature"]) for row in (one, other)]
    texts = {LABELS.get(place) for place in places}
    if one["position"] != other["position"]:
        return False
    if len(texts) == 1 and not texts & {None, "nothing"}:
        return True
    a, b = (ACTIVATIONS[place].astype(np.float32).astype(float) for place in places)
    return least is not None and a @ b >= least * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.parametrize("least", [0.3, 0.6, 0.7, 0.9, None])
def test_features_of_one_position_are_grouped_by_labels_or_activations(client, least) -> None:
    rows = client.run(f"FROM supernodes('some', {'NULL' if least is None else least})").rows
    groups: dict[int, set[int]] = {}
    for row in rows:
        groups.setdefault(row["supernode"], set()).add(row["node"])
    assert {frozenset(group) for group in groups.values()} == expected_groups(least)
    assert len(groups) >= 2


def test_some_groups_need_a_chain_and_some_a_label() -> None:
    sizes = {least: sorted(map(len, expected_groups(least))) for least in (0.6, None)}
    assert sizes[None] == [2, 2, 2, 2]
    assert max(sizes[0.6]) > 3


def test_groups_are_named_after_their_most_influential_member_and_ordered_by_influence(client) -> None:
    rows = client.run("FROM supernodes('some', NULL)").rows
    places = {row["node"]: row for row in nodes()}
    assert [row["supernode"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4]
    totals = [sum(rows[i + j]["influence"] for j in (0, 1)) for i in (0, 2, 4, 6)]
    assert totals == sorted(totals, reverse=True)
    for row in rows:
        assert row["name"] == f"{LABELS[row['layer'], row['feature']]} @{row['position']}"
        assert {name: places[row["node"]][name] for name in ("layer", "feature", "position")} == {
            name: row[name] for name in ("layer", "feature", "position")
        }
    # without a label, the most influential member names the group
    unlabelled = [row for row in client.run("FROM supernodes('some', 0.6)").rows if row["name"][0].isdigit()]
    for number in {row["supernode"] for row in unlabelled}:
        first = next(row for row in unlabelled if row["supernode"] == number)
        assert first["name"] == f"{first['layer']}/{first['feature']} @{first['position']}"


def test_the_client_returns_the_nodes_of_each_supernode(client) -> None:
    rows = client.run("FROM supernodes('some', 0.6)").rows
    expected: dict[str, list[int]] = {}
    for row in rows:
        expected.setdefault(row["name"], []).append(row["node"])
    assert client.supernodes("some", 0.6) == expected
    assert client.supernodes("nothing", 0.6) == {}


def test_a_study_without_activations_and_labels_has_no_supernodes(tmp_path: Path) -> None:
    write_table(NODE, nodes(), Layout(tmp_path).trace("some") / "node.parquet")
    build_catalog(tmp_path)
    assert CatalogClient(tmp_path).supernodes("some", 0.0) == {}
