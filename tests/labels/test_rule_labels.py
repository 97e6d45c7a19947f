"""The table of labels of a run, of features that fire where planted descriptions hold."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.labels.inputs import make_tokens

from circuitloom.config.labels import Labels
from circuitloom.core.tables import (
    ACTIVATION,
    CONCEPT,
    CONNECTION,
    DEEMBEDDING,
    FEATURE,
    LABEL,
    LOGIT,
    read_table,
    write_table,
)
from circuitloom.labels.learning import Learner
from circuitloom.labels.rule_labels import NO_DESCRIPTION, layer_tables, read_planted, write_rule_labels
from circuitloom.labels.text import read_text

WORDS = ["red", "blue", "cat", "dog", "runs", "sits", "12", "7", "(", ")", ".", "big"]
CONTEXT = 16
RULES = [
    lambda here, before, after, random: here == "cat",
    lambda here, before, after, random: before == "red",
    lambda here, before, after, random: here == "dog" and before == "blue",
    lambda here, before, after, random: after == "sits",
    # fires at random
    lambda here, before, after, random: random < 0.02,
    # six in ten cats
    lambda here, before, after, random: here == "cat" and random < 0.6,
    # never
    lambda here, before, after, random: False,
]
"""Whether each feature fires on a token, given the token before, the next one, and a random number."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Tokens, strings, and the folder with the tables of two layers, both with the features of `RULES`."""
    random = np.random.default_rng(0)
    documents = [" ".join(random.choice(WORDS, CONTEXT - 1)) for _ in range(200)]
    tokens, strings = make_tokens(documents, CONTEXT)
    folder = tmp_path_factory.mktemp("features")
    rows = []
    for sequence, document in enumerate(documents):
        words = ["", *document.split(), ""]
        for position in range(1, CONTEXT):
            draws = random.random(len(RULES))
            for feature, rule in enumerate(RULES):
                if rule(*(words[position + step] for step in (0, -1, 1)), draws[feature]):
                    rows.append({"feature": feature, "sequence": sequence, "position": position})
    rows.sort(key=lambda row: row["feature"])
    for layer in (0, 1):
        path = folder / f"layer{layer}"
        key = {"run": "tc", "layer": layer}
        write_table(
            ACTIVATION, [{**key, "activation": 1.0, **row} for row in rows], path / "activation.parquet"
        )
        write_table(FEATURE, [{**key, "feature": i} for i in range(len(RULES))], path / "feature.parquet")
        promoted = [{"feature": 3, "sign": 1, "rank": 0, "token_id": 1, "token": "sits", "effect": 1.0}]
        write_table(LOGIT, [{**key, **row} for row in promoted], path / "logit.parquet")
        write_table(CONNECTION, [], path / "connection.parquet")
        write_table(DEEMBEDDING, [], path / "deembedding.parquet")
    cats = [
        {"concept": "a cat", "sequence": s, "position": p + 1, "cues": [], "optional": []}
        for s, document in enumerate(documents)
        for p, word in enumerate(document.split())
        if word == "cat"
    ]
    dogs = [
        {"concept": "a dog", "sequence": s, "position": p + 1, "cues": [], "optional": []}
        for s, document in enumerate(documents)
        for p, word in enumerate(document.split())
        if word == "dog"
    ]
    write_table(CONCEPT, cats + dogs, folder / "concept.parquet")
    return tokens, strings, folder


def labelled(study, target: Path, processes: int = 1) -> list[pa.Table]:
    """Tables of both layers."""
    tokens, strings, folder = study
    text = read_text(tokens, len(tokens), strings)
    planted = read_planted(folder / "concept.parquet", CONTEXT, text)
    paths = {layer: target / f"{layer}.parquet" for layer in (0, 1)}
    layers = layer_tables(folder.glob("layer*/*.parquet"))
    write_rule_labels("tc", layers, text, CONTEXT, planted, Labels(), paths, processes)
    return [read_table(path) for path in paths.values()]


@pytest.fixture(scope="module")
def tables(study, tmp_path_factory) -> list[pa.Table]:
    return labelled(study, tmp_path_factory.mktemp("labels"))


def rule_rows(table: pa.Table) -> dict[int, dict]:
    rows = table.filter(pc.field("source") == "rule").to_pylist()
    return {row["feature"]: row for row in rows}


def test_planted_rules_are_labels_with_their_scores(tables) -> None:
    for table in tables:
        rows = rule_rows(table)
        assert [rows[i]["label"] for i in range(4)] == [
            "`cat`", "anything after `red`", "`dog` after `blue`", "says `sits`"
        ]  # fmt: skip
        assert [rows[i]["kind"] for i in range(4)] == ["token", "context", "n-gram", "output"]
        assert [rows[i]["promoted"] for i in range(4)] == [None, None, None, ["sits"]]
        for i in range(4):
            assert rows[i]["f1"] == rows[i]["f1_learning"] == rows[i]["balanced_accuracy"] == 1.0
            assert rows[i]["hard_accuracy"] in (1.0, None) and rows[i]["fuzzing"] == 1.0


def test_a_feature_that_nothing_describes_says_so_with_its_score(tables) -> None:
    row = rule_rows(tables[0])[4]
    assert (row["label"], row["kind"]) == (NO_DESCRIPTION, "none")
    assert 0 <= row["f1"] < 0.2


def test_precision_is_the_share_of_predicted_tokens_on_which_it_fires(tables) -> None:
    row = rule_rows(tables[0])[5]
    assert row["label"] == "`cat`"
    assert row["recall"] == 1.0 and row["precision"] == pytest.approx(0.6, abs=0.1)
    assert row["f1"] == pytest.approx(2 * row["precision"] / (1 + row["precision"]))
    assert row["f1_low"] < row["f1"] < row["f1_high"]


def test_a_dead_feature_has_no_row(tables) -> None:
    assert set(tables[0]["feature"].to_pylist()) == set(range(6))


def test_the_most_frequent_token_and_the_best_planted_concept_are_there_to_compare_with(tables) -> None:
    rows = {(row["feature"], row["source"]): row for row in tables[0].to_pylist()}
    assert rows[0, "frequent"]["label"] == "`cat`" and rows[0, "frequent"]["f1"] == 1.0
    assert rows[0, "planted"]["label"] == "a cat" and rows[0, "planted"]["f1"] == 1.0
    assert rows[2, "planted"]["label"] == "a dog" and rows[2, "planted"]["recall"] == 1.0
    # it fires on a twelfth of the dogs
    assert rows[2, "frequent"]["f1"] == rows[2, "planted"]["f1"] < 0.35


def test_tables_match_their_schema(tables) -> None:
    for table in tables:
        assert table.schema.names == LABEL.schema.names
        keys = list(zip(*(table[name].to_pylist() for name in LABEL.key), strict=True))
        assert len(set(keys)) == len(keys) > 12


def test_labels_do_not_depend_on_the_number_of_processes(study, tables, tmp_path) -> None:
    for one, two in zip(tables, labelled(study, tmp_path, processes=2), strict=True):
        assert one.equals(two)


def test_a_description_of_an_upstream_feature_is_tried(study, tmp_path, monkeypatch) -> None:
    tried = []
    learn = Learner.learn

    def record(self, fires, promoted, upstream):
        tried.append(list(upstream))
        return learn(self, fires, promoted, upstream)

    monkeypatch.setattr(Learner, "learn", record)
    tokens, strings, folder = study
    text = read_text(tokens, len(tokens), strings)
    paths = {layer: tmp_path / f"{layer}.parquet" for layer in (0, 1)}
    layers = layer_tables(folder.glob("layer*/*.parquet"))
    row = {
        "run": "tc", "layer": 1, "feature": 0, "rank": 0, "source_layer": 0, "source_feature": 2, "weight": 1.0
    }  # fmt: skip
    connection, deembedding = (
        tmp_path / "layer1" / f"{name}.parquet" for name in ("connection", "deembedding")
    )
    # the description of feature 2 has two tokens, and so no form through a head
    through_head = {"via": "head 1.0", "source_feature": 0}
    lowering = {"source_feature": 1, "weight": -1.0}
    rows = [row | {"via": "direct"}, row | through_head, row | {"via": "direct"} | lowering]
    write_table(CONNECTION, rows, connection)
    key = {"run": "tc", "layer": 1, "feature": 0, "via": "direct", "token_id": 0, "effect": 1.0}
    raising = [key | {"sign": 1, "rank": rank, "token": token} for rank, token in enumerate(("sits", "big"))]
    write_table(DEEMBEDDING, [*raising, key | {"sign": -1, "rank": 0, "token": "red"}], deembedding)
    layers |= layer_tables([*folder.glob("layer1/[!cd]*.parquet"), connection, deembedding])
    write_rule_labels("tc", layers, text, CONTEXT, None, Labels(), paths)
    found = rule_rows(read_table(paths[1]))[0]
    labels = [[description.text(text) for description in each] for each in tried]
    # six features of layer 0 have none, and of layer 1 the first has all
    assert labels[:6] == [[]] * 6 and labels[7:] == [[]] * 5
    assert labels[6] == ["`sits`", "`sits`, `big`", "`dog` after `blue`", "anything soon after `cat`"]
    assert all(description.upstream for description in tried[6])
    # the same label in as many words is found without them too, and then the first is kept
    assert found["label"] == "`cat`" and found["f1"] == 1.0
    assert not read_table(paths[1]).filter(pc.field("source") == "planted").num_rows
