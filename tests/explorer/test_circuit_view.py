"""The view of a circuit: groups in the address, grouping of marked nodes, panels about nodes."""

import json
from dataclasses import replace

import pytest

from circuitloom.catalog.client import CatalogClient
from circuitloom.explorer.circuit_view import (
    CircuitRows,
    add_group,
    circuit_view,
    describe,
    effects_table,
    grouping_summary,
    node_panel,
    supernode_panel,
)

BLANK = dict.fromkeys(
    ("run", "layer", "feature", "position", "token", "activation", "value", "probability", "remainder")
)


def node(number: int, kind: str, **rest):
    return {**BLANK, "node": number, "label": f"node {number}", "kind": kind, "is_root": False, "influence": 0.25,
            "cumulative": 1.0, "position": 1, "token": "a", **rest}  # fmt: skip


def edge(source: int, target: int, effect: float):
    return {"source_node": source, "target_node": target, "source": f"node {source}", "target": f"node {target}",
            "effect": effect, "effect_frozen": effect / 2, "effect_free": effect / 4}  # fmt: skip


CIRCUIT = CircuitRows(
    [
        node(0, "feature", layer=0, feature=7, run="tc"),
        node(1, "feature", layer=0, feature=8, run="tc"),
        node(2, "error", layer=1),
        node(3, "embedding"),
        node(4, "constant", position=None, token=None),
        node(5, "logit", is_root=True, influence=None),
    ],
    [edge(3, 0, 4.0), edge(0, 5, 2.0), edge(1, 5, -1.0), edge(2, 5, 0.5), edge(4, 5, 9.0), edge(3, 2, 0.125)],
    ["<bos>", "a"],
    {(0, 7): ["war", " was"]},
)


def cells(component) -> list[list[str]]:
    """Text of the rows of all tables in a component."""
    found: list[list[str]] = []

    def text(part) -> str:
        if isinstance(part, dict):
            return text(part["props"].get("children"))
        return "".join(map(text, part)) if isinstance(part, list) else "" if part is None else str(part)

    def walk(part) -> None:
        if isinstance(part, list):
            for each in part:
                walk(each)
        elif isinstance(part, dict):
            if part["type"] == "Tr":
                found.append([text(cell) for cell in part["props"]["children"]])
            else:
                walk(part["props"].get("children"))

    walk(json.loads(json.dumps(component, default=lambda each: each.to_plotly_json())))
    return found


@pytest.mark.parametrize(
    ("groups", "marked", "name", "expected"),
    [
        ({}, [1, 2], "years", {"years": [1, 2]}),
        ({}, [1, 2], " a:b;c, ", {"a:b;c,": [1, 2]}),
        ({"group 1": [1, 2]}, [3, 4], "", {"group 1": [1, 2], "group 2": [3, 4]}),
        ({"years": [1, 2]}, [3, 4], "years", {"years": [1, 2, 3, 4]}),
        ({"a": [1, 2], "b": [3, 4]}, [-2, 5], "c", {"a": [1, 2], "c": [3, 4, 5]}),
        ({"a": [1, 2], "b": [3, 4]}, [-1, -2], "a", {"a": [1, 2, 3, 4]}),
    ],
)
def test_marked_nodes_become_a_group_and_marked_supernodes_are_merged(groups, marked, name, expected) -> None:
    assert add_group(groups, marked, name) == expected


def test_a_feature_is_described_by_the_tokens_that_it_fires_on() -> None:
    row = CIRCUIT.node(0)
    assert describe(row, CIRCUIT.words) == "node 0 fires on war, ␣was, influence 0.25"


def test_the_label_of_a_feature_takes_the_place_of_its_tokens() -> None:
    row = CIRCUIT.node(0) | {"feature_label": "`war` after\n`the`", "label_f1": 0.5}
    assert describe(row, CIRCUIT.words) == "node 0 `war` after↵`the` (F1 0.5), influence 0.25"


def test_panels_name_features_with_their_labels(made_up) -> None:
    labelled = replace(
        CIRCUIT, nodes=[CIRCUIT.nodes[0] | {"feature_label": "`war`", "label_f1": 0.5}, *CIRCUIT.nodes[1:]]
    )
    assert ["node 0 `war` (F1 0.5)", "+2", "+1", "+0.5"] in cells(node_panel(None, labelled, 5))
    assert ["node 0 `war` (F1 0.5)", "0.25"] in cells(supernode_panel(labelled, {"both": [0, 1]}, -1))
    assert ["node 0 `war` (F1 0.5)", "node 5", "+2", "+1", "+0.5"] in cells(effects_table(labelled))


def test_the_panel_of_a_node_lists_its_edges_with_predicted_frozen_and_free_effects(made_up) -> None:
    rows = cells(node_panel(CatalogClient(made_up), CIRCUIT, 2))
    assert ["from", "predicted", "frozen", "free"] in rows
    assert ["node 3", "+0.125", "+0.0625", "+0.0312"] in rows
    assert ["node 5", "+0.5", "+0.25", "+0.125"] in rows
    with pytest.raises(ValueError, match="node 99 is not in this graph"):
        node_panel(CatalogClient(made_up), CIRCUIT, 99)


def test_the_panel_of_a_supernode_lists_its_members_and_the_sums_of_their_edges() -> None:
    rows = cells(supernode_panel(CIRCUIT, {"both": [0, 1]}, -1))
    assert ["node 0", "0.25"] in rows and ["node 1", "0.25"] in rows
    assert ["node 3", "+4"] in rows
    assert ["node 5", "+1"] in rows
    with pytest.raises(ValueError, match="there is no supernode -2"):
        supernode_panel(CIRCUIT, {"both": [0, 1]}, -2)


def test_a_view_draws_supernodes_and_ignores_a_node_that_is_not_in_the_graph() -> None:
    view = circuit_view(CIRCUIT, {"trace": "<i>war"}, {"groups": "both:0,1", "node": "77", "share": "0.3"})
    parts = json.loads(json.dumps(view, default=lambda each: each.to_plotly_json()))["props"]["children"]
    data = {part["props"].get("id"): part["props"].get("data") for part in parts}
    assert 'data-n="-1"' in data["circuit-markup"]
    assert 'data-n="0"' not in data["circuit-markup"]
    assert "<i>" not in data["circuit-markup"]
    assert 'value="30"' in data["circuit-markup"]
    assert '"value": null' in json.dumps(parts)


def test_the_summary_says_what_grouping_changes() -> None:
    assert grouping_summary(CIRCUIT, {}) is None
    # the logit's edges hold 2, 1 and 0.5 of 3.5; all of nodes 0 and 2 comes from the embedding
    text = grouping_summary(CIRCUIT, {"both": [0, 1]})
    assert text is not None and text.startswith(
        "Grouped: 3 nodes instead of 4, 4 edges instead of 5; 80 % of"
    )
