"""Combines evaluation tables of single runs and layers into the tables of a study."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..config.dictionaries import Run
from ..core.layout import ALL_LAYERS, NEURONS, RESIDUAL
from ..core.tables import CONCEPT_SCORE, Table, read_table, write_table


def concatenate_tables(table: Table, sources: Iterable[Path | str], path: Path | str) -> pa.Table:
    """Returns the concatenation of the tables in the files `sources`. Also writes the concatenation to `path`."""
    tables = [read_table(source).cast(table.schema) for source in sources]
    joined = pa.concat_tables([table.schema.empty_table(), *tables])
    write_table(table, joined, path)
    return joined


def concept_scores(features: pa.Table) -> pa.Table:
    """Returns the table `concept_score`, built from FEATURE_CONCEPT rows.

    The first rows contain the best feature of each run, layer and concept. The last rows have layer -1 and contain the
    best feature of each run and concept.
    """
    best = features.filter(pc.field("rank") == 0)
    best = best.append_column("found_layer", best["layer"]).select(CONCEPT_SCORE.schema.names)
    over_layers = pa.Table.from_pylist(_best_layers(best), schema=CONCEPT_SCORE.schema)
    return pa.concat_tables([best.cast(CONCEPT_SCORE.schema), over_layers])


def _best_layers(scores: pa.Table) -> list[dict[str, Any]]:
    """Returns the row with the highest `f1_choosing` for each run and concept. The layer of these rows is set to -1."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in scores.to_pylist():
        key = row["run"], row["concept"]
        if key not in best or row["f1_choosing"] > best[key]["f1_choosing"]:
            best[key] = row
    return [row | {"layer": ALL_LAYERS} for row in best.values()]


def run_rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yield one RUN row for each run. For imported dictionaries, the columns `sparsity` and `seed` are null."""
    for run in runs:
        has_k = run.act in ("topk", "batchtopk")
        yield {
            "run": run.name,
            "kind": run.kind,
            "site_in": run.site_in,
            "site_out": run.site_out,
            "act": run.act,
            "width": run.width,
            "k": run.k if has_k else None,
            "sparsity": None if has_k or run.imported else run.sparsity,
            "seed": None if run.imported else run.seed,
            "config": run.model_dump_json(),
        }


def basis_rows(d_model: int, d_mlp: int) -> list[dict[str, Any]]:
    """Returns the RUN rows of the MLP neurons and the residual directions."""
    sizes = {NEURONS: ("neuron", "neurons", d_mlp), RESIDUAL: ("residual", "mlp_in", d_model)}
    return [
        {"run": name, "kind": kind, "site_in": site, "site_out": site, "width": width}
        for name, (kind, site, width) in sizes.items()
    ]
