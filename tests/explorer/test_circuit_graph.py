"""What of a circuit is shown: pruned by influence, members of a group as one."""

import pytest

from circuitloom.explorer.circuit_view import (
    EDGES,
    CircuitRows,
    elements,
    parse_groups,
    prune,
    style,
    write_groups,
)
from circuitloom.explorer.prompt_service import live_circuit

BLANK = dict.fromkeys(
    ("run", "layer", "feature", "position", "token", "activation", "value", "probability", "remainder")
)


def node(number: int, kind: str, cumulative: float | None, **rest):
    return {**BLANK, "node": number, "label": str(number), "kind": kind, "is_root": False, "influence": 0.1,
            "cumulative": cumulative, "position": 1, "token": "a", **rest}  # fmt: skip


NODES = [
    node(0, "feature", 0.5, layer=0, feature=7),
    node(1, "feature", 0.8, layer=0, feature=8),
    node(2, "feature", 1.0, layer=1, feature=9),
    node(3, "embedding", 1.0),
    node(4, "constant", 1.0, position=None, token=None),
    node(5, "logit", None, is_root=True, influence=None),
]


def edge(source: int, target: int, effect: float):
    return {"source_node": source, "target_node": target, "source": str(source), "target": str(target),
            "effect": effect, "effect_frozen": effect, "effect_free": effect}  # fmt: skip


CIRCUIT = CircuitRows(
    NODES,
    [edge(0, 5, 2.0), edge(1, 5, -1.0), edge(2, 5, 0.5), edge(3, 0, 4.0), edge(0, 2, 1.0), edge(4, 5, 9.0)],
)


def shown(share: float, groups=None) -> tuple[list[int], dict[tuple[str, str], float]]:
    part = prune(CIRCUIT, share, groups or {})
    return [row["node"] for row in part.nodes], {(e["source"], e["target"]): e["effect"] for e in part.edges}


@pytest.mark.parametrize(
    ("share", "kept"), [(0.0, [3, 5]), (0.5, [0, 3, 5]), (0.8, [0, 1, 3, 5]), (1.0, [0, 1, 2, 3, 5])]
)
def test_nodes_are_kept_up_to_the_share_roots_and_embeddings_always(share, kept) -> None:
    nodes, edges = shown(share)
    assert nodes == kept
    assert {int(end) for ends in edges for end in ends} <= set(kept)


def test_an_edge_of_a_group_is_the_sum_of_its_members_and_none_stays_inside() -> None:
    _, edges = shown(1.0, {"both": [0, 1], "top": [2]})
    assert edges == {
        ("group both", "5"): 1.0,
        ("3", "group both"): 4.0,
        ("group both", "group top"): 1.0,
        ("group top", "5"): 0.5,
    }


def test_what_is_grouped_stays_when_it_is_pruned() -> None:
    nodes, _ = shown(0.0, {"kept": [1, 2]})
    assert nodes == [1, 2, 3, 5]


def test_of_too_many_edges_the_largest_beside_their_targets_largest_are_drawn() -> None:
    many = [node(i, "embedding", 1.0, position=i) for i in range(EDGES + 50)]
    roots = [node(9000, "logit", None, is_root=True), node(9001, "logit", None, is_root=True)]
    circuit = CircuitRows(
        [*many, *roots], [edge(i, 9000, 1.0 + i) for i in range(EDGES + 50)] + [edge(0, 9001, 1e-9)]
    )
    part = prune(circuit, 1.0, {})
    assert (len(part.edges), part.left_out) == (EDGES, 51)
    # however small it is, it is all that its target has
    assert ("0", "9001") in {(e["source"], e["target"]) for e in part.edges}


def test_elements_are_the_nodes_and_edges_shown_each_end_of_an_edge_among_them() -> None:
    groups = {"both": [0, 1]}
    made = elements(CIRCUIT, prune(CIRCUIT, 1.0, groups), groups)
    ids = {part["data"]["id"] for part in made if "source" not in part["data"]}
    assert ids == {"group both", "2", "3", "5"}
    assert {
        end
        for part in made
        if "source" in part["data"]
        for end in (part["data"]["source"], part["data"]["target"])
    } <= ids
    heights = {part["data"]["id"]: part["position"]["y"] for part in made if "position" in part}
    # the end of the model is at the top
    assert heights["5"] < heights["2"] < heights["group both"] < heights["3"]
    assert style(CIRCUIT)[0]["style"]["font-size"] > 0


def test_groups_in_an_address_come_back() -> None:
    groups = {"years": [1, 2], "a b": [3]}
    assert parse_groups(write_groups(groups)) == groups
    assert parse_groups("") == {}
    with pytest.raises(ValueError, match="are no groups"):
        parse_groups("a:1,x")


def test_a_circuit_traced_now_reads_as_one_of_the_catalogue() -> None:
    rows = [
        {"node": 0, "kind": "feature", "layer": 0, "feature": 7, "position": 1, "token": "a", "influence": 0.25,
         "in_graph": True, "is_root": False},
        {"node": 1, "kind": "embedding", "position": 1, "token": "a", "influence": 0.75, "in_graph": True,
         "is_root": False},
        {"node": 2, "kind": "head", "layer": 0, "head": 1, "position": 1, "token": "a", "in_graph": False,
         "is_root": False},
        {"node": 3, "kind": "logit", "position": 2, "token": "b", "influence": None, "in_graph": True, "is_root": True},
    ]  # fmt: skip
    edges = [
        {"source": s, "target": t, "effect": e, "effect_frozen": e, "effect_free": e}
        for s, t, e in ((0, 3, 1.0), (1, 0, -2.0))
    ]
    circuit = live_circuit(rows, edges)
    assert [(row["label"], row["cumulative"]) for row in circuit.nodes] == [
        ("embedding 'a'@1", 0.75), ("0/7 'a'@1", 1.0), ("logit 'b'@2", 1.0),
    ]  # fmt: skip
    assert [(e["source"], e["target"]) for e in circuit.edges] == [
        ("embedding 'a'@1", "0/7 'a'@1"),
        ("0/7 'a'@1", "logit 'b'@2"),
    ]
