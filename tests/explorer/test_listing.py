"""The SQL of a grid request returns the rows that plain Python selects."""

import pytest
from tests.explorer.made_up import LAYERS, RUN, WIDTH, feature_tables, labels

from circuitloom.catalog.client import CatalogClient
from circuitloom.explorer.pages.features import fetch_rows, rows_sql

ROWS = feature_tables(RUN, LAYERS[1])["feature"]


@pytest.fixture(scope="module")
def catalogue(made_up) -> CatalogClient:
    return CatalogClient(made_up)


def grid_rows(catalogue: CatalogClient, search: str = "", by: str = "fires on", **request) -> list[dict]:
    return catalogue.run(rows_sql(RUN, LAYERS[1], search, by, request)).rows


def number(kind: str, value: float, to: float | None = None) -> dict:
    return {"filterType": "number", "type": kind, "filter": value, "filterTo": to}


@pytest.mark.parametrize(
    ("model", "keeps"),
    [
        (number("equals", 37), lambda n: n == 37),
        (number("notEqual", 37), lambda n: n != 37),
        (number("lessThan", 20), lambda n: n < 20),
        (number("lessThanOrEqual", 20), lambda n: n <= 20),
        (number("greaterThan", 180), lambda n: n > 180),
        (number("greaterThanOrEqual", 180), lambda n: n >= 180),
        (number("inRange", 20, 30), lambda n: 20 <= n <= 30),
        (
            {"operator": "OR", "conditions": [number("lessThan", 5), number("greaterThan", 195)]},
            lambda n: n < 5 or n > 195,
        ),
        (
            {"operator": "AND", "conditions": [number("greaterThan", 5), number("lessThan", 9)]},
            lambda n: 5 < n < 9,
        ),
    ],
)
def test_number_filters_select_the_matching_rows(catalogue, model, keeps) -> None:
    expected = [row["feature"] for row in ROWS if keeps(row["n_tokens"])]
    found = grid_rows(catalogue, filterModel={"n_tokens": model}, startRow=0, endRow=WIDTH)
    assert [row["feature"] for row in found] == expected
    assert {row["n_matching"] for row in found} == {len(expected)}


@pytest.mark.parametrize(
    ("kind", "value", "count"),
    [
        ("contains", "BOLD", 1), ("notContains", "bold", 0), ("startsWith", "<b>", 1), ("endsWith", "</b>", 1),
        ("equals", "<b>bold</b>", 1), ("notEqual", "<b>bold</b>", 0), ("blank", None, WIDTH - 1),
        ("notBlank", None, 1), ("contains", "'; DROP VIEW feature; --", 0), ("contains", "%", 0),
    ],
)  # fmt: skip
def test_text_filters_treat_any_text_literally(catalogue, kind, value, count) -> None:
    model = {"concept": {"filterType": "text", "type": kind, "filter": value}}
    assert len(grid_rows(catalogue, filterModel=model, endRow=WIDTH)) == count


def test_pages_are_consecutive_parts_of_the_sorted_rows(catalogue) -> None:
    def key(row):
        # dead features have no maximum activation and come last
        return (row["max_activation"] is None, -row["n_tokens"], row["feature"])

    order = [{"colId": "max_activation", "sort": "desc"}, {"colId": "n_tokens", "sort": "desc"}]
    parts = [
        grid_rows(catalogue, sortModel=order, startRow=start, endRow=start + 70)
        for start in range(0, WIDTH, 70)
    ]
    assert [len(part) for part in parts] == [70, 70, 70, 70, 20]
    found = [row["feature"] for part in parts for row in part]
    assert found == [row["feature"] for row in sorted(ROWS, key=key)]


def test_a_search_finds_the_features_that_fire_on_a_text_best_first(catalogue) -> None:
    found = grid_rows(catalogue, "bold</b>", endRow=WIDTH)
    best = catalogue.ask("firing_on", run=RUN, layer=LAYERS[1], pattern="bold</b>").rows
    assert {row["feature"] for row in found} == {row["feature"] for row in best}
    assert [row["match"] for row in found] == sorted((row["match"] for row in best), reverse=True)
    assert 0 < len(found) < WIDTH


def test_a_search_finds_the_features_that_raise_a_token(catalogue) -> None:
    expected = {
        row["feature"]
        for row in feature_tables(RUN, LAYERS[1])["logit"]
        if row["token"] == "日本" and row["sign"] > 0
    }
    assert {row["feature"] for row in grid_rows(catalogue, "日本", "raises", endRow=WIDTH)} == expected


def test_rows_contain_the_tokens_that_features_fire_on_and_raise(catalogue) -> None:
    sql = rows_sql(RUN, LAYERS[1], "", "", {"filterModel": {"feature": number("equals", 6)}})
    _, (row,) = fetch_rows(catalogue, RUN, LAYERS[1], sql)
    assert (row["fires_on"], row["raises"]) == ("&lt;", "<b>bold</b>, ␣, {{7*7}}")


def first_layer(catalogue: CatalogClient, search: str = "", by: str = "fires on", **request) -> list[dict]:
    return catalogue.run(rows_sql(RUN, LAYERS[0], search, by, {"endRow": WIDTH, **request})).rows


def test_rows_have_the_best_label_and_its_f1_and_none_where_nothing_describes_the_feature(catalogue) -> None:
    expected = {row["feature"]: (row["label"], row["f1"]) for row in labels() if row["source"] == "rule"}
    # its label says that nothing describes it
    assert expected.pop(8)
    found = {row["feature"]: (row["label"], row["label_f1"]) for row in first_layer(catalogue)}
    assert {feature: label for feature, label in found.items() if label[0] is not None} == expected
    assert len(found) == WIDTH
    assert {row["label"] for row in grid_rows(catalogue, endRow=WIDTH)} == {None}


def test_labels_are_filtered_by_their_text_and_sorted_by_their_f1(catalogue) -> None:
    model = {"label": {"type": "contains", "filter": "AFTER `B`"}, "label_f1": number("greaterThan", 0.65)}
    order = [{"colId": "label_f1", "sort": "asc"}]
    found = first_layer(catalogue, filterModel=model, sortModel=order)
    assert [row["feature"] for row in found] == [11, 9, 7]


def test_a_search_finds_features_by_their_label_best_first(catalogue) -> None:
    found = first_layer(catalogue, "AFTER `b", "label")
    assert [(row["feature"], row["match"]) for row in found] == [(7 + 2 * i, 0.9 - i / 10) for i in range(4)]
    assert grid_rows(catalogue, "after", "label") == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"filterModel": {"run; DROP": number("equals", 1)}}, "cannot be filtered"),
        ({"filterModel": {"n_tokens": number("equals", "1 OR 1 = 1")}}, "is no number"),
        ({"filterModel": {"n_tokens": {"type": "regexp", "filter": 1}}}, "is no filter"),
        ({"sortModel": [{"colId": "n_tokens; DROP", "sort": "asc"}]}, "cannot be sorted"),
    ],
)
def test_invalid_requests_are_refused(request_, message) -> None:
    with pytest.raises(ValueError, match=message):
        rows_sql(RUN, 0, "", "", request_)


def test_an_invalid_regular_expression_is_refused_in_one_line(catalogue) -> None:
    with pytest.raises(ValueError, match=r"regular expression|missing") as error:
        grid_rows(catalogue, "(")
    assert "\n" not in str(error.value)
