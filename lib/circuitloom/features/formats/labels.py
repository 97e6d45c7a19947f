"""Reads labels of features from a file of the user: short texts that say what a feature fires on."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from ...core.errors import first_line
from ...core.layout import Layout
from ...core.tables import LABEL
from ...core.tensor_headers import read_headers

COLUMNS = ("run", "layer", "feature", "label")
"""Columns of the table `label` that are read."""
Labels = Mapping[tuple[int, int], str]
"""Maps (layer, feature) to a label."""


def read_labels(file: Path, layout: Layout) -> dict[str, Labels]:
    """Returns the labels of each run in `file`, a Parquet or CSV file with the first columns of the table `label`.

    Other columns are left out. Raises ValueError if a column is missing or has another type, if a value is missing, if
    a feature occurs twice, or if the study has no such feature.
    """
    if not file.is_file():
        raise ValueError(f"{file}: file not found; name a Parquet or CSV file with --labels")
    rows = _read(file)
    labels: dict[str, dict[tuple[int, int], str]] = {}
    widths: dict[tuple[str, int], int] = {}
    for number, row in enumerate(rows.to_pylist(), 1):
        run, layer, feature, label = (row[name] for name in COLUMNS)
        where = f"{file}: row {number}"
        if missing := [name for name, value in row.items() if value is None or value == ""]:
            raise ValueError(f"{where} has no {missing[0]}; add it, or remove the row")
        if (run, layer) not in widths:
            widths[run, layer] = _width(layout, run, layer, where)
        if not 0 <= feature < widths[run, layer]:
            raise ValueError(
                f"{where}: {run} has features 0 to {widths[run, layer] - 1} in layer {layer}, not {feature}; correct "
                "or remove the row"
            )
        own = labels.setdefault(run, {})
        if (layer, feature) in own:
            raise ValueError(f"{where}: feature {layer}/{feature} of {run} has a label already; remove one")
        own[layer, feature] = label
    return dict(labels)


def _read(file: Path) -> pa.Table:
    """Returns `COLUMNS`, in the types of the table `label`."""
    names = list(COLUMNS)
    schema = pa.schema([LABEL.schema.field(name) for name in names]).remove_metadata()
    try:
        if file.suffix == ".csv":
            # types are given, because a name of digits would be read as a number
            types = {field.name: field.type for field in schema}
            # a label may have several lines
            parsing = csv.ParseOptions(newlines_in_values=True)
            rows = csv.read_csv(file, None, parsing, csv.ConvertOptions(column_types=types))
        else:
            rows = pq.read_table(file)
        if missing := [name for name in names if name not in rows.column_names]:
            raise ValueError(
                f"{file}: has no column {missing[0]}; the columns are {', '.join(names)}, and others are left out"
            )
        return rows.select(names).cast(schema)
    # a column that occurs twice is a KeyError
    except (OSError, KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{file}: no table of labels ({first_line(error)}); write Parquet or .csv with text in run and label, and "
            "integers in layer and feature"
        ) from error


def _width(layout: Layout, run: str, layer: int, where: str) -> int:
    """Returns the number of features of a run in a layer, from its feature tables or its dictionary."""
    table = layout.feature_table(run, layer, "feature")
    if table.is_file():
        return pq.read_metadata(table).num_rows
    weights = layout.dictionary(run, layer) / "weights.safetensors"
    if weights.is_file():
        with weights.open("rb") as opened:
            return read_headers(opened, weights.name)["W_enc"].shape[0]
    folders = [*layout.all_features.glob("*/layer*"), *layout.dictionaries.glob("*/layer*")]
    runs = sorted({folder.parent.name for folder in folders})
    if run not in runs:
        raise ValueError(f"{where}: the study has no run {run}; choose from {', '.join(runs) or 'none'}")
    raise ValueError(f"{where}: run {run} has no layer {layer}; correct or remove the row")
