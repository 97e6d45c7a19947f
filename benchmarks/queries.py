"""Time of typical questions about a large study: in SQL, and by loading tensors.

    python benchmarks/synthetic_features.py results/synthetic --activations 100_000_000
    python benchmarks/queries.py results/synthetic

Each repetition asks about another feature of average density. DuckDB has two threads and 4 GB of memory.
"""

import argparse
import statistics
import time
from pathlib import Path

import duckdb
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import open_catalog
from circuitloom.corpus.tokens import open_tokens

QUESTIONS = {
    "20 largest, with windows": "FROM top_examples('{run}', {layer}, {feature})",
    "20 largest from all activations": "SELECT sequence, position, activation FROM activation WHERE run = '{run}' "
    "AND layer = {layer} AND feature = {feature} ORDER BY activation DESC LIMIT 20",
    "co-activation, its layer": "FROM coactivation('{run}', {layer}, {feature}) WHERE layer = {layer}",
    "co-activation, all layers": "FROM coactivation('{run}', {layer}, {feature})",
    "co-activation, without the table code": "SELECT feature, count(*) FROM activation SEMI JOIN (SELECT sequence, "
    "position FROM activation WHERE run = '{run}' AND layer = {layer} AND feature = {feature}) AS mine USING "
    "(sequence, position) WHERE run = '{run}' AND layer = {layer} GROUP BY feature",
    "densities of all, from all activations": "SELECT feature, count(*) FROM activation WHERE run = '{run}' AND "
    "layer = {layer} GROUP BY feature",
    "densities of all, from the table": "SELECT feature, density FROM feature WHERE run = '{run}' AND layer = {layer}",
    "features of one token": "SELECT features FROM code WHERE run = '{run}' AND layer = {layer} AND "
    "sequence = {feature} AND position = 20",
    "card": "FROM feature_card('{run}', {layer}, {feature})",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tensors", action="store_true", help="also time loading tensors (layer 0)")
    args = parser.parse_args()
    started = time.perf_counter()
    build_catalog(args.folder)
    print(f"catalogue built in {time.perf_counter() - started:.2f} s")
    catalog = open_catalog(args.folder)
    catalog.execute(f"SET threads = {args.threads}; SET memory_limit = '4GB'")
    ((run, layers),) = catalog.sql("SELECT any_value(run), max(layer) + 1 FROM feature").fetchall()
    distance = "abs(n_tokens - (SELECT avg(n_tokens) FROM feature WHERE layer = 0))"
    features = [
        row[0]
        for row in catalog.sql(
            f"SELECT feature FROM feature WHERE layer = 0 ORDER BY {distance} LIMIT {args.rounds}"
        ).fetchall()
    ]
    print(f"{run}, {layers} layers; milliseconds: first, median, worst of the others")
    for name, question in QUESTIONS.items():
        times = []
        for feature in features:
            started = time.perf_counter()
            catalog.sql(question.format(run=run, layer=0, feature=feature)).arrow().read_all()
            times.append((time.perf_counter() - started) * 1e3)
        print(
            f"{name:42} {times[0]:9.1f} {statistics.median(times[1:]):9.1f} {max(times[1:]):9.1f}", flush=True
        )
    if args.tensors:
        by_tensors(args.folder, catalog, str(run), features)


def by_tensors(folder: Path, catalog: duckdb.DuckDBPyConnection, run: str, features: list[int]) -> None:
    """Answer questions about layer 0 by loading its activations as three tensors."""
    torch.set_num_threads(2)
    file = folder / "tensors.safetensors"
    context = open_tokens(folder / "corpus" / "validation.zarr").context
    if not file.is_file():
        sql = f"SELECT feature, (sequence * {context} + position)::INTEGER AS token, activation FROM activation "
        table = catalog.sql(sql + f"WHERE run = '{run}' AND layer = 0").arrow().read_all()
        save_file({name: torch.from_numpy(table[name].to_numpy()) for name in table.column_names}, file)
    token_id = torch.from_numpy(
        np.asarray(open_tokens(folder / "corpus" / "validation.zarr").token[:]).astype(np.int32)
    )

    def largest(data, feature):
        mine = data["feature"] == feature
        value, token = data["activation"][mine], data["token"][mine]
        best = token[value.topk(20).indices].long()
        return token_id.flatten()[(best[:, None] + torch.arange(-16, 9)).clamp(min=0)]

    def together(data, feature):
        token = data["token"][data["feature"] == feature].long()
        there = torch.zeros(token_id.numel(), dtype=torch.bool)
        there[token] = True
        return torch.bincount(data["feature"][there[data["token"].long()]])

    def densities(data, feature):
        return torch.bincount(data["feature"])

    for answer in (largest, together, densities):
        with_loading, without_loading = [], []
        for feature in features[:3]:
            started = time.perf_counter()
            data = load_file(file)
            ready = time.perf_counter()
            answer(data, feature)
            with_loading.append((time.perf_counter() - started) * 1e3)
            without_loading.append((time.perf_counter() - ready) * 1e3)
        print(
            f"tensors: {answer.__name__:33} {statistics.median(with_loading):9.1f} "
            f"(already loaded: {statistics.median(without_loading):.1f})"
        )


if __name__ == "__main__":
    main()
