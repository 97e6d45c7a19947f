"""`rows.zarr`: the sequence and position that each row of the activations comes from."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr
from jaxtyping import Integer

from ..partial import fingerprint, flush, move, partial_folder
from .arrays import create_array, open_array, read_rows, shard_file, write_shard
from .order import RowOrder


class Rows(NamedTuple):
    """Where rows come from."""

    sequence: Integer[np.ndarray, " row"]
    """Row of the training split's token array."""
    position: Integer[np.ndarray, " row"]
    """Place in the sequence, from 0."""


def write_rows(order: RowOrder, path: Path, batch: int = 1024) -> None:
    """Write `order` as the Zarr group `path`, whole or not at all, `batch` sequences at a time."""
    context = order.token.shape[1]
    dtypes = {"sequence": "int32", "position": "int16" if context <= 2**15 else "int32"}
    with partial_folder(path, fingerprint(order=order.digest)) as work:
        group = zarr.open_group(work / path.name, mode="w")
        arrays = {
            n: create_array(work / path.name, n, (order.rows,), t, order.shard_rows)
            for n, t in dtypes.items()
        }
        for shard in range(order.shards):
            start, stop = order.bounds(shard)
            columns = {name: np.empty(stop - start, dtype) for name, dtype in dtypes.items()}
            for placed in order.batches(shard, batch):
                slot, source = placed.slot.numpy(), placed.source.numpy()
                columns["sequence"][slot] = placed.sequences[source // context]
                columns["position"][slot] = source % context
            for name, column in columns.items():
                write_shard(arrays[name], shard, column)
                flush(shard_file(arrays[name], shard))
        group.attrs.put({"order": order.digest})
        move(work / path.name, path)
        shutil.rmtree(work)


def read_origin(path: Path, start: int, stop: int) -> Rows:
    """Where rows `start` to `stop` come from; ValueError where `path` is damaged."""
    remedy = f"delete {path} and run again"
    return Rows(*(read_rows(open_array(path / n, remedy), start, stop, remedy) for n in Rows._fields))
