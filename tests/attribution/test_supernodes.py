"""Supernodes as text, and in the file of a trace."""

import json

import pytest

from circuitloom.attribution.supernodes import parse_groups, save_groups, saved_groups, write_groups
from circuitloom.core.layout import Layout

NODES = [{"node": i, "label": f"0/{7 + i} 'a'@{i}"} for i in range(4)] + [
    {"node": 4, "label": "logit 'b'@3"},
    {"node": 5, "label": "logit 'b'@3"},
]


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(tmp_path)
    layout.trace("caught").mkdir(parents=True)
    (layout.trace("caught") / "trace.parquet").touch()
    return layout


def test_groups_in_an_address_are_read_back() -> None:
    groups = {"years": [1, 2], "a b": [3], "50 %: `,` or `;`": [4, 5], "none": [6], "é": [0]}
    assert parse_groups(write_groups(groups)) == groups
    assert write_groups({"`,`": [1, 2], "b": [3]}) == "`%2C`:1,2;b:3"
    assert parse_groups("") == parse_groups("none") == {}
    with pytest.raises(ValueError, match="must have the form"):
        parse_groups("a:1,x")


def test_saved_groups_are_read_back_under_other_numbers(layout) -> None:
    file = save_groups(layout, "caught", {"`,` é": [0, 2], "others": [3, 99]}, NODES)
    assert json.loads(file.read_text()) == {"`,` é": ["0/7 'a'@0", "0/9 'a'@2"], "others": ["0/10 'a'@3"]}
    renumbered = [row | {"node": 10 + row["node"]} for row in NODES]
    assert saved_groups(layout, "caught", renumbered) == ({"`,` é": [10, 12], "others": [13]}, [])


def test_members_that_a_graph_no_longer_has_are_named(layout) -> None:
    save_groups(layout, "caught", {"a": [0, 2], "b": [3]}, NODES)
    assert saved_groups(layout, "caught", NODES[:1]) == ({"a": [0]}, ["0/9 'a'@2", "0/10 'a'@3"])


def test_saving_no_groups_removes_the_file(layout) -> None:
    file = save_groups(layout, "caught", {"a": [0, 2]}, NODES)
    assert saved_groups(layout, "other", NODES) == ({}, [])
    save_groups(layout, "caught", {}, NODES)
    assert not file.exists() and saved_groups(layout, "caught", NODES) == ({}, [])
    save_groups(layout, "caught", {}, NODES)


def test_nodes_of_one_name_and_other_places_are_refused(layout) -> None:
    with pytest.raises(ValueError, match=r"two nodes of the graph have the name logit 'b'@3; leave them out"):
        save_groups(layout, "caught", {"a": [0, 4]}, NODES)
    (layout.root / "trace.parquet").touch()
    for trace in ("other", "..", "../..", "", "."):
        with pytest.raises(ValueError, match=r"has no trace .* so its supernodes cannot be saved"):
            save_groups(layout, trace, {"a": [0, 1]}, NODES)
    assert not list(layout.root.rglob("supernodes.json"))


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_file_is_refused_in_one_line(layout, content) -> None:
    layout.supernodes("caught").write_text(content)
    with pytest.raises(
        ValueError, match=r"supernodes.json: no supernodes .*; delete it and save them again"
    ) as caught:
        saved_groups(layout, "caught", NODES)
    assert "\n" not in str(caught.value)
