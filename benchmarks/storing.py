"""Rates at which one thread writes and reads activations, with the library's own code.

python benchmarks/storing.py --d 2048 --dtype float16
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from timing import timed

from circuitloom.core.script import set_threads


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=65_536, help="rows of a shard")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8192, help="rows read at once")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"])
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    set_threads(1)
    import torch

    from circuitloom.activations.arrays import (
        array_folder,
        create_array,
        open_array,
        read_rows,
        shard_file,
        write_shard,
    )
    from circuitloom.core.atomic_io import fsync

    torch.set_num_threads(1)
    values = torch.randn(args.rows, args.d).to(getattr(torch, args.dtype))
    array = values.view(torch.uint16).numpy() if args.dtype == "bfloat16" else values.numpy()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        rows = args.rows * args.shards
        store = create_array(folder, "values", (rows, args.d), array.dtype.name, args.rows)
        report(
            "written",
            array.nbytes,
            [timed(lambda s=s: write_shard(store, s, array)) for s in range(args.shards)],
        )
        report(
            "flushed",
            array.nbytes,
            [timed(lambda s=s: fsync(shard_file(store, s))) for s in range(args.shards)],
        )
        stored = open_array(array_folder(store), "")
        batch = min(args.batch, rows)
        starts = range(0, rows - batch + 1, batch)
        seconds = [timed(lambda s=s: read_rows(stored, s, s + batch, "")) for s in starts]
        report("read", batch * args.d * array.itemsize, seconds)
    finally:
        shutil.rmtree(folder)


def report(what: str, size: int, seconds: list[tuple[float, float]]) -> None:
    clock, processor = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(f"{what:<10}{size / clock / 1e9:>8.3f} GB/s, {processor / clock:.2f} processors busy")


if __name__ == "__main__":
    main()
