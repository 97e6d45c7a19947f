"""Time of each part of a training step on a GPU, compared with its lower limit.

    python benchmarks/roofline.py --d 768 --width 24576 --k 32 --batch 8192

First measures the rates of a device-to-device copy and of a bfloat16 matrix product. The lower limit of a part is the
larger of its operations over the product's rate and its bytes over the copy's rate; all data are read and written once.
"""

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from training import make_data, our_trainer

PARTS = {
    "encoder product": ("gemm", "nvjet", "cutlass", "xmma"),
    "search": ("_candidates",),
    "choice": ("_choose",),
    "gradients of weights": ("_transposed_times", "_add_extras"),
    "decoder": ("_times",),
    "gradient of activations": ("_sample",),
    "sort": ("sort", "searchsorted", "scan"),
    "Adam": ("fusedadam", "fused_adam"),
}
"""Part to parts of kernel names; the first match counts."""


def measured_rates() -> tuple[float, float]:
    """Bytes per second of a copy (reads plus writes), and operations per second of a bfloat16 matrix product."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    copy = median_milliseconds(lambda: target.copy_(source))
    product = median_milliseconds(lambda: a @ b)
    return 2 * source.nbytes / copy * 1e3, 2 * 8192**3 / product * 1e3


def median_milliseconds(work, repeats: int = 20) -> float:
    times = []
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def lower_limits(options: argparse.Namespace, bandwidth: float, rate: float) -> dict[str, float]:
    """Lower limit of each part, in milliseconds."""
    tokens, d, width, k = options.batch, options.d, options.width, options.k
    weights, entries = d * width, tokens * k

    def limit(operations: float, moved: float) -> float:
        return 1e3 * max(operations / rate, moved / bandwidth)

    rows = 4 * tokens * d
    return {
        "encoder product": limit(2 * tokens * weights, 2 * (weights + tokens * d + tokens * width)),
        "search": limit(0, 2 * tokens * width + 4 * entries),
        "choice": limit(0, 2 * weights + rows / 2 + 8 * entries),
        "decoder": limit(0, 2 * weights + rows + 8 * entries),
        "gradient of activations": limit(0, 2 * weights + rows / 2 + 8 * entries),
        "gradients of weights": limit(0, 2 * (4 * weights + rows / 2 + 12 * entries)),
        "sort": limit(0, 12 * entries),
        "Adam": limit(0, 28 * 2 * weights),
        # norms and rounded copies of both matrices; the error and its gradient
        "rest": limit(0, 2 * (4 + 2) * weights + 4 * rows),
    }


def part_of(kernel: str) -> str:
    lower = kernel.lower()
    return next((part for part, names in PARTS.items() if any(name in lower for name in names)), "rest")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"d": 768, "width": 24576, "k": 32, "batch": 8192, "steps": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--rest", action="store_true", help="list the kernels of the part `rest`")
    options = parser.parse_args()
    options.device, options.act, options.sparsity = "cuda", "topk", 0.0
    bandwidth, rate = measured_rates()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"measured: {bandwidth / 1e12:.2f} TB/s, {rate / 1e12:.0f} TFLOP/s (bfloat16)")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.safetensors"
        make_data(file, options)
        trainer, x = our_trainer(file, options)
    profile_steps(options, trainer, x, lower_limits(options, bandwidth, rate), rate)


def profile_steps(options: argparse.Namespace, trainer, x, limits: dict[str, float], rate: float) -> None:
    """Print each part's time per step and its lower limit, and the share of the peak rate of the complete step."""

    def steps(count: int) -> None:
        for i in range(count):
            rows = x[i * options.batch % len(x) :][: options.batch]
            trainer.step(i, rows, rows)

    steps(10)
    step_ms = median_milliseconds(lambda: steps(options.steps), 5) / options.steps
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        steps(options.steps)
        torch.cuda.synchronize()
    measured, kernels = defaultdict(float), []
    for event in profiler.key_averages():
        milliseconds = event.self_device_time_total / 1e3 / options.steps
        measured[part_of(event.key)] += milliseconds
        kernels.append((milliseconds, event.count / options.steps, event.key))
    for part, least in limits.items():
        print(f"{part:<26}{measured[part]:>8.3f} ms{least:>8.3f} ms limit")
    busy, least = sum(measured.values()), sum(limits.values())
    print(f"{'sum':<26}{busy:>8.3f} ms{least:>8.3f} ms limit")
    speed = options.batch / step_ms * 1e3
    print(f"step{step_ms:>30.3f} ms: {speed:,.0f} tokens/s, {least / step_ms:.0%} of the limit's rate")
    operations = 2 * options.batch * options.width * options.d
    print(
        f"share of the product rate, counting the dense product alone: {operations / step_ms * 1e3 / rate:.0%}"
    )
    if options.rest:
        for milliseconds, count, name in sorted(kernels, reverse=True)[:45]:
            print(f"{milliseconds:>9.4f} ms{count:>6.1f} x {name[:110]}")


if __name__ == "__main__":
    main()
