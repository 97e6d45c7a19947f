"""Features as a grid asks for them: filters and an order become SQL, a page of rows comes back."""

from collections.abc import Mapping
from typing import Any

from ..catalog.questions import quoted
from ..wording import token_text
from .asking import Answer, Asking, Row
from .queries import query

COLUMNS = {
    "feature": "number",
    "density": "number",
    "n_tokens": "number",
    "max_activation": "number",
    "mean_activation": "number",
    "encoder_norm": "number",
    "bias": "number",
    "concept": "text",
    "f1": "number",
    "match": "number",
}
"""Columns that are filtered and sorted by, and the kind of each."""
SEARCHES = {"fires on": "firing_on", "raises": "raising"}
"""What is looked for in a search, and the query that finds it."""
_COMPARED = {
    "equals": "=",
    "notEqual": "<>",
    "lessThan": "<",
    "lessThanOrEqual": "<=",
    "greaterThan": ">",
    "greaterThanOrEqual": ">=",
}
_MATCHED = {
    "contains": "contains(lower({column}), lower({value}))",
    "notContains": "NOT contains(lower({column}), lower({value}))",
    "startsWith": "starts_with(lower({column}), lower({value}))",
    "endsWith": "ends_with(lower({column}), lower({value}))",
    "equals": "lower({column}) = lower({value})",
    "notEqual": "lower({column}) <> lower({value})",
}


def statement(run: str, layer: int, search: str, by: str, asked: Mapping[str, Any]) -> str:
    """SQL for the rows that a grid asks for; each has `n_matching`, the number of all that match.

    `asked` holds the grid's filterModel, sortModel, startRow and endRow. Raises ValueError where it names a column,
    a filter or an order that is not known.
    """
    names = {"run": run, "layer": layer, "pattern": search}
    tables = f"(\n{_indented(query('features', names))}\n)"
    if search:
        if by not in SEARCHES:
            raise ValueError(f"by={by!r} in the address is no way to search; write {' or '.join(SEARCHES)}")
        tables += f"\nJOIN (\n{_indented(query(SEARCHES[by], names))}\n) USING (feature)"
    conditions = [_condition(name, model) for name, model in (asked.get("filterModel") or {}).items()]
    where = f"\nWHERE {' AND '.join(conditions)}" if conditions else ""
    start, end = int(asked.get("startRow") or 0), int(asked.get("endRow") or 100)
    order = [_order(part) for part in asked.get("sortModel") or []]
    usual = ["match DESC"] if search else []
    return (
        f"SELECT *, count(*) OVER () AS n_matching\nFROM {tables}{where}\n"
        f"ORDER BY {', '.join([*(order or usual), 'feature'])}\nLIMIT {end - start} OFFSET {start}"
    )


def page(catalogue: Asking, run: str, layer: int, sql: str) -> tuple[Answer, list[Row]]:
    """The answer to a `statement`, and its rows with what each feature fires on and raises."""
    answer = catalogue.run(sql)
    places = [(layer, row["feature"]) for row in answer.rows]
    fires, raises = catalogue.words(run, places), catalogue.promoted(run, places)
    rows = [
        {
            **row,
            "fires_on": ", ".join(map(token_text, fires.get(place, ()))),
            "raises": ", ".join(map(token_text, raises.get(place, ()))),
        }
        for row, place in zip(answer.rows, places, strict=True)
    ]
    return answer, rows


def _condition(column: str, model: Mapping[str, Any]) -> str:
    kind = COLUMNS.get(column)
    if kind is None:
        raise ValueError(f"{column!r} is no column that is filtered by; choose from {', '.join(COLUMNS)}")
    if "conditions" in model:
        operator = "OR" if model.get("operator") == "OR" else "AND"
        return "(" + f" {operator} ".join(_condition(column, part) for part in model["conditions"]) + ")"
    how = model.get("type")
    if how in ("blank", "notBlank"):
        return f"{column} IS {'NOT ' if how == 'notBlank' else ''}NULL"
    if kind == "text" and how in _MATCHED:
        return _MATCHED[how].format(column=column, value=quoted(str(model.get("filter", ""))))
    if kind == "number" and how == "inRange":
        return f"{column} BETWEEN {_number(model.get('filter'))} AND {_number(model.get('filterTo'))}"
    if kind == "number" and how in _COMPARED:
        return f"{column} {_COMPARED[how]} {_number(model.get('filter'))}"
    raise ValueError(f"{how!r} is no filter of {column}; choose another")


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number to compare with")
    return repr(value)


def _order(part: Mapping[str, Any]) -> str:
    column = part.get("colId")
    if column not in COLUMNS:
        raise ValueError(f"{column!r} is no column that is sorted by; choose from {', '.join(COLUMNS)}")
    return f"{column} {'DESC' if part.get('sort') == 'desc' else 'ASC'} NULLS LAST"


def _indented(sql: str) -> str:
    return "\n".join(f"    {line}" for line in sql.splitlines())
