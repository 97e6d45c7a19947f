"""Run the benchmarks that need a GPU, on random weights and tokens made here, and print one table: benchmarks/gpu.sh.

    python benchmarks/gpu.py                       # on a GPU
    python benchmarks/gpu.py --steps clt sweep     # only these
    python benchmarks/gpu.py --smoke               # every step at tiny sizes, on a CPU

Steps run one after another, each in a process of its own with a limit of time. A step that fails or exceeds its limit
is named in the table, and the next one starts. Steps that no longer fit into `--minutes` are left out. Models and
caches are written to a temporary folder. The exit code is 1 if a step has no result.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONTEXT = 128
"""Tokens per sequence."""
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
"""Keys of both configs."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all steps."""

    gpt2: dict[str, Any]
    """Keys of the GPT-2 config."""
    gemma: dict[str, Any]
    """Keys of the Gemma 3 config."""
    one_layer: int
    """Tokens per round of caching one layer."""
    all_layers: int
    """Tokens per round of caching all layers."""
    batch: int
    """Sequences per pass."""
    shard_rows: int
    clt: tuple[int, int, int, int]
    """Layers, d, width and k of the cross-layer transcoder."""
    clt_batch: int
    clt_steps: int
    sweep: dict[str, int]
    evaluation: dict[str, int]


FULL = Sizes(
    gpt2={"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, **ENDS},
    gemma={
        "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
        "max_position_embeddings": 32768, **ENDS,
    },
    one_layer=4_194_304,
    all_layers=524_288,
    batch=256,
    shard_rows=262_144,
    clt=(12, 768, 24576, 32),
    clt_batch=1024,
    clt_steps=25,
    sweep={"width": 24576, "batch": 8192, "tokens": 2_000_000},
    evaluation={"layer": 9, "width": 16384, "k": 64, "n-tokens": 200_000},
)  # fmt: skip
SMOKE = Sizes(
    gpt2={"vocab_size": 96, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, **ENDS},
    gemma={
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 64,
        "max_position_embeddings": 128, **ENDS,
    },
    one_layer=8192,
    all_layers=8192,
    batch=16,
    shard_rows=4096,
    clt=(2, 16, 64, 4),
    clt_batch=64,
    clt_steps=8,
    sweep={"width": 64, "batch": 512, "tokens": 4096},
    evaluation={"layer": 1, "width": 64, "k": 4, "n-tokens": 4096},
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """One row of the table."""

    step: str
    command: list[object]
    """Script and arguments."""
    measured: Callable[[str], str]
    """Returns the result from what the script printed. Raises ValueError if it is not there."""
    asked: str
    seconds: float
    """Limit of time."""


def medians(output: str, columns: int) -> list[float]:
    """Medians over rounds of the first `columns` numbers behind the number of each round."""
    rows = re.findall(r"^ +\d+((?: +[\d,.]+)+)", output, re.MULTILINE)
    values = [[float(each.replace(",", "")) for each in row.split()[:columns]] for row in rows]
    if not values:
        raise ValueError("printed no round")
    return [statistics.median(column) for column in zip(*values, strict=True)]


def caching_result(layers: int) -> Callable[[str], str]:
    def result(output: str) -> str:
        bare, caching, ratio = medians(output, 3)
        return f"{caching:,.0f} tokens/s ({layers * caching:,.0f} a layer), {ratio:.2f} of the bare pass's {bare:,.0f}"

    return result


def clt_result(output: str) -> str:
    found = re.search(r"^clt +([\d,]+) tokens/s .*?([\d.]+) GB$", output, re.MULTILINE)
    ratio = re.search(r"^clt / separate: ([\d.]+)$", output, re.MULTILINE)
    if not found or not ratio:
        raise ValueError("printed no rate")
    return f"{found[1]} tokens/s (of all layers), {ratio[1]} of separate transcoders, peak {found[2]} GB"


def sweep_result(output: str) -> str:
    together, alone, ratio, reading = medians(output, 4)
    return f"12 runs {together:.1f} s, one by one {alone:.1f} s ({ratio:.2f}), reading {reading:.1f} s"


def evaluation_result(output: str) -> str:
    scored, limit, share = medians(output, 3)
    return f"{scored:,.0f} tokens/s, {share:.2f} of the limit's {limit:,.0f}"


def benchmarks(sizes: Sizes, folder: Path, device: str, threads: int) -> list[Benchmark]:
    """All steps, in the order in which they run. `folder` has the models and tokens."""
    model, train = folder / "gpt2", folder / "gpt2.zarr"
    caching = [
        "caching.py", model, train, "--threads", threads, "--batch", sizes.batch, "--shard-rows", sizes.shard_rows,
        "--folder", folder, "--model-dtype", "bfloat16",
    ]  # fmt: skip
    one = [*caching, "--layer", sizes.gpt2["n_layer"] // 2, "--tokens", sizes.one_layer, "--rounds", 3]
    layers, d, width, k = sizes.clt
    clt = {
        "layers": layers, "d": d, "width": width, "k": k, "batch": sizes.clt_batch, "steps": sizes.clt_steps,
        "rounds": 1, "threads": threads, "device": device,
    }  # fmt: skip
    return [
        Benchmark("caching, one layer, float16", [*one, "--dtype", "float16"], caching_result(1),
                  "1,000,000 tokens/s; 0.9 of bare", 90),
        Benchmark("caching, one layer, bfloat16", [*one, "--dtype", "bfloat16"], caching_result(1),
                  "1,000,000 tokens/s; 0.9 of bare", 90),
        Benchmark("caching, all layers, bfloat16",
                  [*caching, "--dtype", "bfloat16", "--tokens", sizes.all_layers, "--rounds", 2],
                  caching_result(sizes.gpt2["n_layer"]), "1,000,000 tokens/s a layer", 90),
        Benchmark(f"clt step, {layers} layers, d {d}, F {width}, k {k}",
                  ["clt.py", *options(clt), "--sides", "clt", "separate"], clt_result, "stated", 150),
        Benchmark("sweep of 12 runs", ["sweep.py", folder / "study", "--layer", 1, "--rounds", 1, "--threads", threads,
                                       *options(sizes.sweep)], sweep_result, "stated", 120),
        Benchmark("evaluation, Gemma-shaped", ["evaluating.py", folder / "gemma", folder / "gemma.zarr", "--rounds", 3,
                                               "--threads", threads, *options(sizes.evaluation)],
                  evaluation_result, "stated", 120),
    ]  # fmt: skip


def options(values: dict) -> Iterable[object]:
    """Command-line options with the values."""
    return (word for name, value in values.items() for word in (f"--{name}", value))


def make_inputs(sizes: Sizes, folder: Path, wanted: set[str], threads: int) -> None:
    """Make random models and tokens, and cached activations of layer 1 for the sweep."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

    from circuitloom.language_model.anatomy import find_anatomy, write_anatomy

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    gpt2 = max(sizes.one_layer, sizes.all_layers, sizes.sweep["tokens"])
    made = {
        "gpt2": (GPT2LMHeadModel, GPT2Config(**sizes.gpt2), gpt2),
        "gemma": (Gemma3ForCausalLM, Gemma3TextConfig(**sizes.gemma), sizes.evaluation["n-tokens"]),
    }
    for name, (kind, config, tokens) in made.items():
        if name in wanted:
            config.architectures = [kind.__name__]
            kind(config).save_pretrained(folder / name)
            write_anatomy(find_anatomy(config), folder / name)
            write_random_tokens(folder / f"{name}.zarr", tokens, config.vocab_size)
    if "study" in wanted:
        cache_for_sweep(sizes, folder)


def write_random_tokens(path: Path, tokens: int, vocabulary: int) -> None:
    """Sequences that begin with token 0, the BOS, and otherwise have none."""
    import numpy as np

    from circuitloom.corpus.token_arrays import write_tokens

    # a BOS and every second start of a document are not scored; one more sequence than asked for
    count = -(-tokens // (CONTEXT - 1)) + 1
    token = np.random.default_rng(0).integers(1, vocabulary, (count, CONTEXT)).astype(np.uint32)
    token[:, 0] = 0
    document = np.repeat(np.arange(count, dtype=np.int32)[:, None], CONTEXT, 1)
    write_tokens(path, [(token, document)], count, {"bos_id": 0, "separator_id": 0, "vocabulary": vocabulary})


def cache_for_sweep(sizes: Sizes, folder: Path) -> None:
    """Cache the MLP inputs of layer 1 in folder/study, as the stage `activations` does."""
    from circuitloom.activations.cache import cache_site
    from circuitloom.activations.row_order import row_order
    from circuitloom.config import Activations
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.language_model.model import load_model

    study = folder / "study"
    study.mkdir()
    (study / "model").symlink_to(folder / "gpt2")
    config = Activations(dtype="bfloat16", shard_rows=sizes.shard_rows, batch=sizes.batch, layers=[1])
    order = row_order(open_tokens(folder / "gpt2.zarr"), 0, sizes.shard_rows, sizes.sweep["tokens"])
    cache_site("mlp_in", order, load_model(folder / "gpt2"), config, study / "activations")


def run(benchmark: Benchmark, environment: dict[str, str], limit: float) -> tuple[str, float]:
    """Run a step and show its output. Returns its result, or what went wrong, and its seconds."""
    words = [str(word) for word in benchmark.command]
    print(f"\n$ python benchmarks/{' '.join(words)}", flush=True)
    started, lines = time.perf_counter(), []
    process = subprocess.Popen(
        [sys.executable, str(HERE / words[0]), *words[1:]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    # scripts start processes of their own
    timer = threading.Timer(limit, lambda: os.killpg(process.pid, 9))
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        print(line, end="", flush=True)
    code = process.wait()
    seconds = time.perf_counter() - started
    timer.cancel()
    if code:
        return f"FAILED ({f'limit of {limit:.0f} s' if code == -9 else f'exit code {code}'})", seconds
    try:
        return benchmark.measured("".join(lines)), seconds
    except ValueError as error:
        return f"FAILED ({error})", seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument(
        "--steps", nargs="+", metavar="WORD", help="only steps whose names contain a word (all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="limit of all steps together (9.5; --smoke: 120)"
    )
    arguments = parser.parse_args()
    sizes, device = (SMOKE, "cpu") if arguments.smoke else (FULL, "cuda")
    # a machine that runs the smoke test may be busy
    patience, minutes = (20, 120) if arguments.smoke else (1, arguments.minutes)
    threads = 1 if arguments.smoke else os.cpu_count() or 1
    # models are loaded onto a GPU where there is one
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if arguments.smoke else {})
    os.environ |= environment
    started = time.perf_counter()
    print(machine(device), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = [
            each
            for each in benchmarks(sizes, folder, device, threads)
            if not arguments.steps or any(word in each.step for word in arguments.steps)
        ]
        words = {Path(str(word)).stem for each in chosen for word in each.command}
        wanted = words | ({"gpt2"} if "study" in words else set())
        make_inputs(sizes, folder, wanted, threads)
        print(f"inputs made in {time.perf_counter() - started:.0f} s", flush=True)
        for each in chosen:
            left = 60 * minutes - (time.perf_counter() - started)
            result, seconds = "FAILED (no time left)", 0.0
            if left > 20:
                result, seconds = run(each, environment, min(patience * each.seconds, left))
            rows.append([each.step, result, each.asked, f"{seconds:.0f}"])
    print_table(rows)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if any(row[1].startswith("FAILED") for row in rows):
        sys.exit(1)


def machine(device: str) -> str:
    """Name of the device, versions and date."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use; --smoke runs every step at tiny sizes on a CPU")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, tiny sizes: rates mean nothing"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def print_table(rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    from tabulate import tabulate

    print(
        "\n"
        + tabulate(rows, ["step", "measured", "asked", "seconds"], tablefmt="github", disable_numparse=True)
    )


if __name__ == "__main__":
    main()
