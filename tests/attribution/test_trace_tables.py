"""Names of nodes, and the direct sources of a reader as rows."""

import duckdb
import pytest
from tests.attribution.inputs import PROMPT, load_tiny, make_linearized

from circuitloom.attribution.node_names import node_name
from circuitloom.attribution.paths import direct_sources, feature_reader
from circuitloom.attribution.trace_tables import source_rows
from circuitloom.catalog.queries import macros

TOKENS = [f"t{token}" for token in PROMPT.tolist()]


def test_source_rows_sum_to_the_activation(tmp_path) -> None:
    linearized = make_linearized(load_tiny("gpt2", tmp_path, "float64"))
    last = len(linearized.features) - 1
    rows = source_rows(direct_sources(linearized, feature_reader(linearized, last)), TOKENS)
    assert sum(row["value"] for row in rows) == pytest.approx(float(linearized.features.activation[last]))
    sizes = [abs(row["value"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)


def test_every_direct_source_has_a_unique_name(tmp_path) -> None:
    linearized = make_linearized(load_tiny("gpt2", tmp_path))
    rows = source_rows(
        direct_sources(linearized, feature_reader(linearized, len(linearized.features) - 1)), TOKENS
    )
    named = {row["kind"]: row for row in rows}
    assert set(named) == {"feature", "head", "embedding", "position", "error", "constant"}
    assert len({row["source"] for row in rows}) == len(rows)
    feature = named["feature"]
    place = f"'{TOKENS[feature['position']]}'@{feature['position']}"
    assert feature["source"] == f"{feature['layer']}/{feature['number']} {place}"
    assert named["error"]["source"] == "errors"


def test_node_names_equal_those_of_the_catalogue_macro() -> None:
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
