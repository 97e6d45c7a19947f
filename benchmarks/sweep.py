"""A sweep of twelve runs trained together on each batch, compared with the same runs one after another.

    python benchmarks/sweep.py results/stories260k --layer 4        # a study with cached activations

Both include opening the activations and initializing the weights, but not the start of a process. Prints seconds, the
ratio, and the time of reading the activations, which a sweep does once.
"""

import argparse
import statistics
import tempfile
from itertools import product
from pathlib import Path

from timing import wall_seconds

from circuitloom.core.script import set_threads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of a study")
    sizes = {"layer": 4, "width": 2048, "batch": 4096, "tokens": 400_000, "rounds": 3, "threads": 2}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{size}")
    args = parser.parse_args()
    set_threads(args.threads)
    import torch

    from circuitloom.activations.store import open_activations, read_sites
    from circuitloom.config import Run
    from circuitloom.dictionaries.training.sweep import train_sweep
    from circuitloom.language_model.model import load_model

    torch.set_num_threads(args.threads)
    model, activations = load_model(args.results / "model"), args.results / "activations"
    keys = {"kind": "transcoder", "width": args.width, "batch": args.batch, "tokens": args.tokens}
    grid = product((8, 16, 32), (1e-3, 2e-3, 4e-3, 8e-3))
    runs = [Run(k=k, learning_rate=rate, name=f"tc-{k}-{rate}", **keys) for k, rate in grid]

    def train(some: list[Run]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_sweep(some, args.layer, activations, model, [Path(folder) / run.name for run in some])

    def read() -> None:
        sites = {
            site: open_activations(activations, site, args.layer, model) for site in ("mlp_in", "mlp_out")
        }
        for _ in read_sites(sites, args.batch, -(-args.tokens // args.batch)):
            pass

    print("round  together s  one by one s  ratio  reading s")
    ratios = []
    for i in range(args.rounds):
        together, alone = (
            wall_seconds(lambda: train(runs)),
            sum(wall_seconds(lambda run=run: train([run])) for run in runs),
        )
        ratios.append(together / alone)
        print(
            f"{i:5}{together:12.1f}{alone:14.1f}{together / alone:7.2f}{wall_seconds(read):11.2f}", flush=True
        )
    print(f"median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
