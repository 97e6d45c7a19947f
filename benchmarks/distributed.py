"""Training step of one dictionary in one process, and in several that share its threads (or have one GPU each).

    python benchmarks/distributed.py                      # 1 process of 2 threads, 2 of 1 thread each, in both splits
    python benchmarks/distributed.py --processes 8 --threads 8 --d 768 --width 24576 --batch 65536     # 8 GPUs

All sides train the same topk dictionary on the same data; sides alternate. Prints tokens per second (median step) and
the loss after the last step, which should be equal.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from circuitloom.activations.statistics import Moments
from circuitloom.config import Run
from circuitloom.dictionaries.training.collectives import (
    SINGLE_PROCESS,
    Collectives,
    DataParallel,
    TensorParallel,
)
from circuitloom.dictionaries.training.trainer import Trainer

SPLITS = {"batch": DataParallel, "features": TensorParallel}
WARM_UP = 3
"""Steps that are not timed: they fill the allocator's pools."""


def make_data(options: argparse.Namespace) -> torch.Tensor:
    """Random sparse factors mixed into d dimensions, E|x|^2 = d."""
    generator = torch.Generator().manual_seed(0)
    d = options.d
    factors = torch.rand(4 * options.batch, 4 * d, generator=generator)
    factors *= torch.rand(factors.shape, generator=generator) < 8 / d
    x = factors @ torch.randn(4 * d, d, generator=generator)
    return x * (d / x.square().sum(1).mean()).sqrt()


def train(options: argparse.Namespace, collectives: Collectives, device: torch.device) -> dict:
    """Seconds of each step, and the loss of the last one."""
    x, share = make_data(options), collectives.batch_slice(options.batch)
    variance = float((x - x.mean(0)).square().sum(1).mean())
    stored = Moments(x.mean(0), 1.0, variance)
    keys = {"batch": options.batch, "tokens": options.steps * options.batch, "aux": 0, "k": options.k}
    run = Run(kind="sae", width=options.width, learning_rate=1e-3, **keys)
    trainer = Trainer(run, 0, stored, stored, (x, x), None, collectives, device)
    x, seconds, loss = x.to(device), [], 0.0
    for step in range(options.steps):
        first = step % 4 * options.batch
        started = time.perf_counter()
        read = collectives.gather_batch({"x": x[first + share.start : first + share.stop]})["x"]
        # reading the loss waits for the GPU
        loss = float(trainer.step(step, read, read).loss.detach())
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "loss": loss}


def side(rank: int, split: str | None, folder: str, options: argparse.Namespace) -> None:
    """Run one process of one side."""
    processes = options.processes if split else 1
    torch.set_num_threads(max(1, options.threads // processes))
    on_gpu = torch.cuda.is_available()
    device = torch.device(f"cuda:{rank}" if on_gpu else "cpu")
    if split:
        if on_gpu:
            torch.cuda.set_device(device)
        elif Path("/sys/class/net/lo").exists():
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        rendezvous = f"file://{folder}/rendezvous"
        dist.init_process_group("nccl" if on_gpu else "gloo", rendezvous, rank=rank, world_size=processes)
    found = train(options, SPLITS[split]() if split else SINGLE_PROCESS, device)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    if split:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"processes": 2, "threads": 2, "d": 256, "width": 8192, "k": 32, "batch": 4096}
    for name, size in {**sizes, "steps": 25, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{size}")
    options = parser.parse_args()
    # the allocator reads these when a process starts; the workflow sets the same for its jobs
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
    rates: dict[str | None, list[float]] = {None: [], **{split: [] for split in SPLITS}}
    losses = {}
    for _ in range(options.rounds):
        for split, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                processes = options.processes if split else 1
                torch.multiprocessing.spawn(side, (split, folder, options), nprocs=processes)
                result = json.loads((Path(folder) / "found.json").read_text())
            found.append(options.batch / statistics.median(result["seconds"][WARM_UP:]))
            losses[split] = result["loss"]
    for split, found in rates.items():
        name = f"{options.processes} processes, split: {split}" if split else "1 process"
        rounds = ", ".join(f"{rate:,.0f}" for rate in found)
        print(
            f"{name:<32}{statistics.median(found):>12,.0f} tokens/s (rounds {rounds})   loss {losses[split]:.6f}"
        )


if __name__ == "__main__":
    main()
