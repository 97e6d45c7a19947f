"""The tables of a whole profile, from those of its runs and layers."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..config.dictionaries import Run
from ..tables import Table, read_table, write_table
from .names import NEURONS, RESIDUAL


def gather(table: Table, parts: Iterable[Path | str], path: Path | str) -> None:
    """Write to `path` the rows of all `parts`, in order."""
    tables = [read_table(part).cast(table.schema) for part in parts]
    write_table(table, pa.concat_tables([table.schema.empty_table(), *tables]), path)


def run_rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """The run table's rows of trained dictionaries."""
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
            "sparsity": None if counted else run.sparsity,
            "seed": run.seed,
            "config": run.model_dump_json(),
        }


def basis_rows(d_model: int, d_mlp: int) -> list[dict[str, Any]]:
    """The run table's rows of the model's own bases, which are scored beside dictionaries."""
    sizes = {NEURONS: ("neuron", "neurons", d_mlp), RESIDUAL: ("residual", "mlp_in", d_model)}
    return [
        {"run": name, "kind": kind, "site_in": site, "site_out": site, "width": width}
        for name, (kind, site, width) in sizes.items()
    ]
