"""What parts of circuits are called, and one step back as rows."""

import duckdb
import pytest
from tests.attribution.inputs import PROMPT, load_tiny, make_linearized

from circuitloom.attribution.paths import direct_sources, feature_reader
from circuitloom.attribution.trace_tables import node_name, source_rows
from circuitloom.catalog.queries import macros

TOKENS = [f"t{token}" for token in PROMPT.tolist()]


def test_the_rows_of_a_step_add_up_to_the_activation(tmp_path) -> None:
    local = make_linearized(load_tiny("gpt2", tmp_path, "float64"))
    last = len(local.features) - 1
    rows = source_rows(direct_sources(local, feature_reader(local, last)), TOKENS)
    assert sum(row["value"] for row in rows) == pytest.approx(float(local.features.activation[last]))
    sizes = [abs(row["value"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)


def test_every_part_of_a_step_has_a_name_of_its_own(tmp_path) -> None:
    local = make_linearized(load_tiny("gpt2", tmp_path))
    rows = source_rows(direct_sources(local, feature_reader(local, len(local.features) - 1)), TOKENS)
    named = {row["kind"]: row for row in rows}
    assert set(named) == {"feature", "head", "embedding", "position", "error", "constant"}
    assert len({row["source"] for row in rows}) == len(rows)
    feature = named["feature"]
    place = f"'{TOKENS[feature['position']]}'@{feature['position']}"
    assert feature["source"] == f"{feature['layer']}/{feature['number']} {place}"
    assert named["error"]["source"] == "errors"


def test_a_node_is_called_as_the_catalogue_calls_it() -> None:
    names = ("kind", "layer", "feature", "head", "token", "position")
    with duckdb.connect() as connection:
        (macro,) = (each for each in macros() if each.name == "node_label")
        connection.execute(macro.sql)
        for values in (
            ("feature", 3, 235, None, "it's", 4),
            ("head", 1, None, 0, "caught", 2),
            ("error", 0, None, None, "he", 1),
            ("embedding", None, None, None, "he", 1),
            ("constant", None, None, None, None, None),
            ("logit", None, None, None, "by", 3),
        ):
            ((called,),) = connection.execute("SELECT node_label(?, ?, ?, ?, ?, ?)", values).fetchall()
            assert node_name(dict(zip(names, values, strict=True))) == called
