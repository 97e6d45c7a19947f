"""The tables of a whole study, from those of its runs and layers."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..config.dictionaries import Run
from ..core.tables import CONCEPT_SCORE, Table, read_table, write_table
from .names import NEURONS, RESIDUAL, TOGETHER


def gather(table: Table, parts: Iterable[Path | str], path: Path | str) -> pa.Table:
    """Write to `path` the rows of all `parts`, in order, and return them."""
    tables = [read_table(part).cast(table.schema) for part in parts]
    joined = pa.concat_tables([table.schema.empty_table(), *tables])
    write_table(table, joined, path)
    return joined


def concept_scores(features: pa.Table) -> pa.Table:
    """The concept_score table: the best feature of each concept, by layer, and after them by run as layer -1."""
    best = features.filter(pc.field("rank") == 0)
    best = best.append_column("found_layer", best["layer"]).select(CONCEPT_SCORE.schema.names)
    over_layers = pa.Table.from_pylist(_best_layers(best), schema=CONCEPT_SCORE.schema)
    return pa.concat_tables([best.cast(CONCEPT_SCORE.schema), over_layers])


def _best_layers(scores: pa.Table) -> list[dict[str, Any]]:
    """For each run and concept the row of the layer with the highest F1 on the choosing half, as layer -1."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in scores.to_pylist():
        key = row["run"], row["concept"]
        if key not in best or row["f1_choosing"] > best[key]["f1_choosing"]:
            best[key] = row
    return [row | {"layer": TOGETHER} for row in best.values()]


def run_rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """The run table's rows of dictionaries; how imported ones were trained is not known."""
    for run in runs:
        counted = run.act in ("topk", "batchtopk")
        yield {
            "run": run.name,
            "kind": run.kind,
            "site_in": run.site_in,
            "site_out": run.site_out,
            "act": run.act,
            "width": run.width,
            "k": run.k if counted else None,
            "sparsity": None if counted or run.imported else run.sparsity,
            "seed": None if run.imported else run.seed,
            "config": run.model_dump_json(),
        }


def basis_rows(d_model: int, d_mlp: int) -> list[dict[str, Any]]:
    """The run table's rows of the model's own bases, which are scored beside dictionaries."""
    sizes = {NEURONS: ("neuron", "neurons", d_mlp), RESIDUAL: ("residual", "mlp_in", d_model)}
    return [
        {"run": name, "kind": kind, "site_in": site, "site_out": site, "width": width}
        for name, (kind, site, width) in sizes.items()
    ]
