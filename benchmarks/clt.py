"""Training step of a cross-layer transcoder, compared with its layers as separate transcoders and with a dense CLT.

    python benchmarks/clt.py --layers 5 --d 64 --width 2048 --batch 1024
    python benchmarks/clt.py --layers 12 --d 768 --width 24576 --k 32 --batch 1024 --device cuda --sides clt separate

Sides, each in its own process, which alternate:

- clt: our trainer
- separate: the same layers as transcoders, one after another with all threads; a step is a step of each of them
- dense: a CLT in plain PyTorch, whose decoders are one product over activations expanded to [batch, pair of layers, F],
  with torch's default allocator
- dense-set: the same with the allocator settings of our jobs

Prints tokens per second (median step; a token is a token of all layers), ratios, peak memory, the bytes that a step
moves at least, and the FVU (mean over layers) by step. clt and dense start from the same weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from peers.clock import Clock
from training import ALLOCATOR

SIDES = ("clt", "separate", "dense", "dense-set")


def make_data(options: argparse.Namespace):
    """Rows of all layers by `batch_key`, and their moments: mixtures of the same sparse causes."""
    import torch

    from circuitloom.activations.statistics import RowSums, moments
    from circuitloom.dictionaries.training.cross_layer_trainer import batch_key

    d, rows = options.d, 8 * options.batch
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(rows, 4 * d, generator=generator)
    causes *= torch.rand(causes.shape, generator=generator) < 8 / d
    data, stored = {}, {}
    for layer in range(options.layers):
        for site in ("mlp_in", "mlp_out"):
            values = causes @ torch.randn(4 * d, d, generator=generator)
            values *= (d / values.square().sum(1).mean()).sqrt()
            sums = RowSums.zeros(1, d)
            for part in values.split(1024):
                sums.add(0, part)
            key = batch_key(site, layer)
            data[key], stored[key] = values.to(options.device), moments(sums, 0, rows)
    return data, stored


def make_trainer(options: argparse.Namespace, data: dict, stored: dict):
    """Our trainer of all layers."""
    from circuitloom.config import Run
    from circuitloom.dictionaries.training.cross_layer_trainer import CrossLayerTrainer

    run = Run(kind="clt", reach=options.reach, **run_keys(options))
    return CrossLayerTrainer(run, range(options.layers), stored, data)


def run_keys(options: argparse.Namespace) -> dict:
    """Keys of the run that all sides train."""
    return {
        "width": options.width,
        "k": options.k,
        "batch": options.batch,
        "tokens": options.steps * options.batch,
        "learning_rate": options.learning_rate,
        "precision": options.precision,
        "warmup": 0,
        "decay": 0,
        "aux": 0,
    }


def clt_step(options: argparse.Namespace, data: dict, stored: dict) -> Callable:
    """Our step: (index, batch) to (FVU of each layer, L0)."""
    trainer = make_trainer(options, data, stored)

    def step(i: int, batch: dict):
        terms = trainer.train_on(i, batch)
        return [each.fvu for each in terms], sum(each.l0 for each in terms)

    return step


def separate_step(options: argparse.Namespace, data: dict, stored: dict) -> Callable:
    """A step of each layer's transcoder."""
    from circuitloom.config import Run
    from circuitloom.dictionaries.training.cross_layer_trainer import batch_key
    from circuitloom.dictionaries.training.trainer import Trainer

    trainers = []
    for layer in range(options.layers):
        x, y = (batch_key(site, layer) for site in ("mlp_in", "mlp_out"))
        trainers.append(Trainer(Run(**run_keys(options)), layer, stored[x], stored[y], (data[x], data[y])))

    def step(i: int, batch: dict):
        terms = [
            trainer.step(
                i, batch[batch_key("mlp_in", trainer.layer)], batch[batch_key("mlp_out", trainer.layer)]
            )
            for trainer in trainers
        ]
        return [each.fvu for each in terms], sum(each.l0 for each in terms)

    return step


def dense_step(options: argparse.Namespace, data: dict, stored: dict) -> Callable:
    """A step in plain PyTorch: all pairs of layers in one product over activations expanded to [batch, pair, F]."""
    import torch

    from circuitloom.dictionaries.training.cross_layer_trainer import batch_key

    trainer, n, d = make_trainer(options, data, stored), options.layers, options.d
    parts = [p.W_dec.detach().split(d, dim=1) for p in trainer.parameters]
    pairs = [(i, i + o) for i, outputs in enumerate(parts) for o in range(len(outputs))]
    source, target = (torch.tensor(each, device=options.device) for each in zip(*pairs, strict=True))
    weights = {
        "W_enc": torch.stack([p.W_enc.detach() for p in trainer.parameters]),
        "b_enc": torch.stack([p.b_enc.detach() for p in trainer.parameters]),
        "W_dec": torch.cat([torch.stack(outputs) for outputs in parts]),
        "b_dec": torch.stack([p.b_dec.detach() for p in trainer.parameters]),
    }
    W_enc, b_enc, W_dec, b_dec = (value.clone().requires_grad_(True) for value in weights.values())
    scale = {
        "mlp_in": torch.tensor([each.x for each in trainer.scales], device=options.device),
        "mlp_out": torch.tensor([each.y for each in trainer.scales], device=options.device),
    }
    variance = torch.tensor([each.normalised_variance for each in trainer.scales], device=options.device)
    del trainer
    adam = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=options.learning_rate)

    def step(_: int, batch: dict):
        x, y = (
            torch.stack([batch[batch_key(site, layer)] for layer in range(n)], dim=1) / scale[site][:, None]
            for site in ("mlp_in", "mlp_out")
        )
        adam.zero_grad()
        pre = torch.einsum("bld,lfd->blf", x, W_enc) + b_enc
        squares = torch.zeros_like(b_enc).index_add(0, source, W_dec.detach().square().sum(2))
        kept = (pre.detach() * squares.sqrt()).topk(options.k, dim=2).indices
        z = torch.zeros_like(pre).scatter(2, kept, pre.gather(2, kept).relu())
        written = torch.einsum("bpf,pfd->bpd", z[:, source], W_dec)
        y_hat = torch.zeros_like(y).index_add(1, target, written) + b_dec
        fvu = (y - y_hat).square().sum(2).mean(0) / variance
        fvu.sum().backward()
        adam.step()
        return fvu.detach().unbind(), (z.detach() > 0).sum() / len(x)

    return step


def run_side(options: argparse.Namespace) -> dict:
    """Seconds and mean FVU of each step of one side, final L0 and peak memory."""
    import torch

    torch.set_num_threads(options.threads)
    data, stored = make_data(options)
    make_step = {"clt": clt_step, "separate": separate_step, "dense": dense_step}
    step = make_step[options.side.removesuffix("-set")](options, data, stored)
    clock, fvu, l0 = Clock(options.device), [], torch.zeros(())
    for i in range(options.steps):
        rows = slice(i % 8 * options.batch, (i % 8 + 1) * options.batch)
        batch = {key: values[rows] for key, values in data.items()}
        clock.mark()
        values, l0 = step(i, batch)
        fvu.append(torch.stack(list(values)).mean())
    clock.mark()
    return clock.results(fvu, l0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {
        "layers": 3,
        "d": 128,
        "width": 1024,
        "k": 16,
        "batch": 1024,
        "steps": 25,
        "rounds": 2,
        "threads": 2,
    }
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{size}")
    parser.add_argument("--reach", default="all", help="number of later layers to which a feature writes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options)))
        return
    results: dict[str, list[dict]] = {name: [] for name in options.sides}
    for _ in range(options.rounds):
        for name, found in results.items():
            found.append(run_in_process(name))
    print_traffic(options, report(results, options.batch))


def print_traffic(options: argparse.Namespace, rates: dict[str, float]) -> None:
    """Print the bytes that a step reads and writes at least, by count, and the rate at which it moved them."""
    from circuitloom.config import Run
    from circuitloom.dictionaries.training.cross_layer_parameters import output_counts

    run = Run(kind="clt", reach=options.reach, **run_keys(options))
    counts = output_counts(run, range(options.layers))
    row, pairs = 4 * options.d, sum(counts)
    entries = options.batch * options.k
    layers = options.width * row * options.layers
    # Passes over the weights: Adam reads gradients, weights and two moments and writes all but the gradients (7). The
    # gradients are written before (1). The encoder's product, or the norms of a decoder's rows, read the weights (1).
    bytes_of = {
        "clt": {
            "encoders": 9 * layers,
            # gradients stay in the cache
            "decoders": 7 * options.width * row * pairs,
            # read by the product and by its gradient
            "rows of active features": 2 * entries * row * pairs,
        },
        "separate": {
            "encoders": 9 * layers,
            "decoders": 9 * layers,
            "rows of active features": 2 * entries * row * options.layers,
        },
        "dense": {
            "encoders": 9 * layers,
            # also read by the product and by its gradient
            "decoders": 11 * options.width * row * pairs,
            # activations and their gradients, written and read
            "expanded activations": 4 * 4 * options.batch * pairs * options.width,
        },
    }
    for name, rate in rates.items():
        parts = bytes_of[name.removesuffix("-set")]
        total = sum(parts.values())
        line = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in parts.items())
        print(
            f"{name}: at least {total / 1e9:.2f} GB a step ({line}), {total * rate / options.batch / 1e9:.1f} GB/s"
        )


def run_in_process(side: str) -> dict:
    """The result of one side, in its own process."""
    environment = os.environ | ({} if side == "dense" else ALLOCATOR)
    command = [sys.executable, __file__, *sys.argv[1:], f"--side={side}"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{side} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def report(results: dict[str, list[dict]], batch: int) -> dict[str, float]:
    """Print rates, ratios and loss curves. Returns the tokens per second of each side."""
    rates = {}
    for name, rounds in results.items():
        # leave out the first steps, which compile kernels and fill the allocator's pools
        medians = [
            batch / statistics.median(each["seconds"][max(2, len(each["seconds"]) // 5) :]) for each in rounds
        ]
        rates[name] = statistics.median(medians)
        line = ", ".join(f"{median:,.0f}" for median in medians)
        peak = max(each["peak"] for each in rounds)
        print(f"{name:<12}{rates[name]:>12,.0f} tokens/s (rounds {line}){peak:>8.2f} GB")
    first = next(iter(rates))
    for name in list(rates)[1:]:
        print(f"{first} / {name}: {rates[first] / rates[name]:.2f}")
    print("mean FVU of the batch, by step: " + ", ".join(results))
    steps = len(results[first][0]["fvu"])
    for step in sorted({0, *range(4, steps, max(5, steps // 10)), steps - 1}):
        print(f"{step + 1:>5}" + "".join(f"{rounds[0]['fvu'][step]:>12.5f}" for rounds in results.values()))
    curves = {name: rounds[0]["fvu"] for name, rounds in results.items()}
    for name in curves.keys() & {"dense", "dense-set"} if "clt" in curves else ():
        pairs = zip(curves["clt"], curves[name], strict=True)
        print(f"largest difference of clt's FVU from {name}'s: {max(abs(a / b - 1) for a, b in pairs):.1e}")
    print("L0   " + "".join(f"{rounds[0]['l0']:>12.1f}" for rounds in results.values()))
    return rates


if __name__ == "__main__":
    main()
