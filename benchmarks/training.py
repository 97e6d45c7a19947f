"""Training step of a topk SAE beside SAELens' trainer: same data, same initial weights, alternating in one run.

    python benchmarks/training.py --peer /path/to/environment/bin/python     # an environment with sae-lens

Prints the tokens a second of each (median step), their ratio, and both loss curves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PEER = Path(__file__).parent / "peers" / "saelens_topk.py"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""What the workflow sets for its jobs; the peer is timed with and without."""


def make_data(file: Path, d: int, width: int, batch: int) -> None:
    """Sparse causes mixed into d dimensions, E|x|^2 = d, and initial weights for both sides."""
    import torch
    from safetensors.torch import save_file

    from circuitloom.config import Run
    from circuitloom.dictionaries.parameters import Scales, initial_parameters

    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(8 * batch, 4 * d, generator=generator)
    causes *= torch.rand(causes.shape, generator=generator) < 8 / d
    x = causes @ torch.randn(4 * d, d, generator=generator)
    x *= (d / x.square().sum(1).mean()).sqrt()
    p = initial_parameters(Run(kind="sae", width=width), x, x, x.mean(0), Scales(1.0, 1.0, 1.0, x.mean(0)))
    save_file({"x": x, **{name: value.detach() for name, value in p.named()}}, file)


def ours(file: Path, k: int, batch: int, steps: int, learning_rate: float) -> dict[str, list[float]]:
    """Seconds and FVU of each step of our trainer."""
    import time

    from safetensors.torch import load_file

    from circuitloom.activations.moments import Sums, moments
    from circuitloom.config import Run
    from circuitloom.dictionaries.trainee import Trainee

    data = load_file(file)
    x = data.pop("x")
    sums = Sums.zeros(1, x.shape[1])
    sums.add(0, x)
    keys = {"learning_rate": learning_rate, "warmup": 0, "decay": 0, "aux": 0}
    run = Run(kind="sae", width=len(data["b_enc"]), k=k, batch=batch, tokens=steps * batch, **keys)
    stored = moments(sums, 0, len(x))
    trainee = Trainee(run, 0, stored, stored, (x, x))
    for name, value in trainee.parameters.named():
        value.data.copy_(data[name])
    seconds, fvu = [], []
    for i in range(steps):
        rows = x[i * batch % len(x) :][:batch]
        began = time.perf_counter()
        terms = trainee.step(i, rows, rows)
        seconds.append(time.perf_counter() - began)
        fvu.append(terms.fvu.item())
    return {"seconds": seconds, "fvu": fvu}


def run_in(
    python: str, script: Path, arguments: list[str], environment: dict[str, str]
) -> dict[str, list[float]]:
    """One side, in a process of its own."""
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
        print(json.dumps(ours(options.side, options.k, options.batch, options.steps, options.learning_rate)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.safetensors"
        make_data(file, options.d, options.width, options.batch)
        common = [f"--{name}={getattr(options, name)}" for name in ("k", "batch", "steps")]
        common.append(f"--learning-rate={options.learning_rate}")
        sides = {"circuitloom": (sys.executable, Path(__file__), [f"--side={file}", *common], ALLOCATOR)}
        if options.peer:
            sides["SAELens"] = (options.peer, PEER, [str(file), *common], {})
            sides["SAELens, allocator set"] = (options.peer, PEER, [str(file), *common], ALLOCATOR)
        results: dict[str, list[dict[str, list[float]]]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                results[name].append(run_in(*side))
    report(results, options.batch)


def report(results: dict[str, list[dict[str, list[float]]]], batch: int) -> None:
    """Print rates, ratios and loss curves."""
    rates = {}
    for name, rounds in results.items():
        medians = [batch / statistics.median(each["seconds"][2:]) for each in rounds]
        rates[name] = statistics.median(medians)
        print(f"{name:<24}{rates[name]:>12,.0f} tokens/s (rounds {', '.join(f'{m:,.0f}' for m in medians)})")
    for name in list(rates)[1:]:
        print(f"ratio to {name}: {rates['circuitloom'] / rates[name]:.1f}")
    print("FVU of the batch, by step")
    steps = len(next(iter(results.values()))[0]["fvu"])
    for step in sorted({0, *range(4, steps, 5), steps - 1}):
        values = "".join(f"{rounds[0]['fvu'][step]:>26.5f}" for rounds in results.values())
        print(f"{step + 1:>5}{values}")


if __name__ == "__main__":
    main()
