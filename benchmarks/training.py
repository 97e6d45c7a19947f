"""Training step of an SAE compared with SAELens' trainer: same data and initial weights, sides alternate.

    python benchmarks/training.py --peer /path/to/environment/bin/python     # an environment with sae-lens
    python benchmarks/training.py --peer ... --sparsify ... --device cuda --d 768 --width 24576 --batch 8192 --steps 200

Prints tokens per second (median step), their ratio, peak memory, the FVU by step, and the final L0. `--act relu` starts
with encoder biases that give `--k` active features per token on average.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers.clock import Clock

PEERS = Path(__file__).parent / "peers"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""Environment variables of the workflow's jobs; the peer is timed with and without them."""


def make_data(file: Path, options: argparse.Namespace) -> None:
    """Write random sparse factors mixed into d dimensions, E|x|^2 = d, and initial weights for both sides."""
    import torch
    from safetensors.torch import save_file

    from circuitloom.config import Run
    from circuitloom.dictionaries.training.parameters import Scales, initial_parameters

    d, width, batch = options.d, options.width, options.batch
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(8 * batch, 4 * d, generator=generator)
    factors *= torch.rand(factors.shape, generator=generator) < 8 / d
    x = factors @ torch.randn(4 * d, d, generator=generator)
    x *= (d / x.square().sum(1).mean()).sqrt()
    p = initial_parameters(Run(kind="sae", width=width), x, x, x.mean(0), Scales(1.0, 1.0, 1.0, x.mean(0)))
    weights = {name: value.detach() for name, value in p.named()}
    if options.act == "relu":
        pre = x[:256] @ weights["W_enc"].T + weights["b_enc"]
        weights["b_enc"] -= pre.flatten().kthvalue(pre.numel() - 256 * options.k).values
    save_file({"x": x, **weights}, file)


def our_trainer(file: Path, options: argparse.Namespace):
    """Our trainer with the initial weights of `file`, and the data."""
    from safetensors.torch import load_file

    from circuitloom.activations.statistics import RowSums, moments
    from circuitloom.config import Run
    from circuitloom.dictionaries.training.trainer import Trainer

    data = load_file(file, device=options.device)
    x = data.pop("x")
    sums = RowSums.zeros(1, x.shape[1])
    # in batches, as in caching: float32 sums of 50 million squares are wrong by 0.8 %
    for rows in x.cpu().split(1024):
        sums.add(0, rows)
    keys = {"learning_rate": options.learning_rate, "warmup": 0, "decay": 0, "aux": 0}
    keys |= {"batch": options.batch, "tokens": options.steps * options.batch, "precision": options.precision}
    run = Run(
        kind="sae", width=len(data["b_enc"]), act=options.act, k=options.k, sparsity=options.sparsity, **keys
    )
    stored = moments(sums, 0, len(x))
    trainer = Trainer(run, 0, stored, stored, (x, x))
    for name, value in trainer.parameters.named():
        value.data.copy_(data[name])
    return trainer, x


def run_ours(file: Path, options: argparse.Namespace) -> dict:
    """Seconds and FVU of each step of our trainer, final L0 and peak memory."""
    trainer, x = our_trainer(file, options)
    clock, fvu = Clock(options.device), []
    for i in range(options.steps):
        rows = x[i * options.batch % len(x) :][: options.batch]
        clock.mark()
        terms = trainer.step(i, rows, rows)
        fvu.append(terms.fvu)
    clock.mark()
    return clock.results(fvu, terms.l0)


def run_in(python: str, script: Path, arguments: list[str], environment: dict[str, str]) -> dict:
    """The JSON that one side prints, run in its own process."""
    result = subprocess.run(
        [python, str(script), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"{script.name} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="python of an environment with sae-lens")
    parser.add_argument("--sparsify", help="python of an environment with eai-sparsify")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--act", default="topk", choices=["topk", "batchtopk", "relu"])
    parser.add_argument("--sparsity", type=float, default=0.1, help="λ of relu")
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_ours(options.side, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.safetensors"
        make_data(file, options)
        results: dict[str, list[dict]] = {}
        for _ in range(options.rounds):
            for name, side in sides(file, options).items():
                results.setdefault(name, []).append(run_in(*side))
    report(results, options.batch)


def sides(file: Path, options: argparse.Namespace) -> dict[str, tuple[str, Path, list[str], dict[str, str]]]:
    """Name to python, script, arguments and environment of each side."""
    names = ("act", "k", "sparsity", "batch", "steps", "learning_rate", "device")
    common = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    our_arguments = [*common, f"--precision={options.precision}"]
    found = {"circuitloom": (sys.executable, Path(__file__), [f"--side={file}", *our_arguments], ALLOCATOR)}
    on_gpu = options.device != "cpu"
    if options.peer:
        saelens = (options.peer, PEERS / "saelens_training.py", [str(file), *common])
        found["SAELens"] = (*saelens, {})
        if on_gpu:
            found["SAELens, autocast"] = (*saelens[:2], [*saelens[2], "--precision=bfloat16"], {})
        else:
            found["SAELens, allocator set"] = (*saelens, ALLOCATOR)
    if options.sparsify:
        found["sparsify"] = (options.sparsify, PEERS / "sparsify_topk.py", [str(file), *common], {})
    return found


def report(results: dict[str, list[dict]], batch: int) -> None:
    """Print rates, ratios and loss curves."""
    rates = {}
    for name, rounds in results.items():
        # leave out the first steps, which compile kernels and fill the allocator's pools
        medians = [
            batch / statistics.median(each["seconds"][max(2, len(each["seconds"]) // 5) :]) for each in rounds
        ]
        rates[name] = statistics.median(medians)
        print(
            f"{name:<24}{rates[name]:>12,.0f} tokens/s (rounds {', '.join(f'{m:,.0f}' for m in medians)})",
            end="",
        )
        print(f"{max(each['peak'] for each in rounds):>8.2f} GB")
    for name in list(rates)[1:]:
        print(f"ratio to {name}: {rates['circuitloom'] / rates[name]:.1f}")
    print("FVU of the batch, by step")
    steps = len(next(iter(results.values()))[0]["fvu"])
    for step in sorted({0, *range(4, steps, max(5, steps // 10)), steps - 1}):
        values = "".join(f"{rounds[0]['fvu'][step]:>26.5f}" for rounds in results.values())
        print(f"{step + 1:>5}{values}")
    print("L0   " + "".join(f"{rounds[0]['l0']:>26.1f}" for rounds in results.values()))


if __name__ == "__main__":
    main()
