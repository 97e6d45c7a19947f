"""Benchmark every stage against its peers or its limit, and write one record: `make benchmark`.

    REAL_INPUT=/folder python benchmarks/suite.py                      # all: about an hour on two cores
    REAL_INPUT=/folder python benchmarks/suite.py sweep attribution    # only these

REAL_INPUT contains models/stories260K and data/tinystories. Needs the results of study.yaml and the environments of the
peers; `make benchmark` makes both. Output is also appended to results/benchmark/record.txt, after the machine and the
versions. If benchmarks fail, their names are printed at the end and the exit code is 1.
"""

import argparse
import os
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TextIO

HERE = Path(__file__).parent
RESULTS = Path("results/benchmark")
MODEL, TRAIN, VALIDATION = (
    RESULTS / "model",
    RESULTS / "corpus/train.zarr",
    RESULTS / "corpus/validation.zarr",
)
PEERS = Path(".peers")
SAELENS, TRACER = PEERS / "saelens/bin/python", PEERS / "circuit_tracer/bin/python"


def commands(real_input: Path) -> dict[str, list[list[object]]]:
    """Stage to its commands: script and arguments."""
    sizes = product(("topk", "batchtopk", "relu"), ((64, 2048), (256, 8192), (768, 24576)))
    story_model, stories = (
        real_input / "models/stories260K",
        real_input / "data/tinystories/validation.jsonl",
    )
    steps = ["--steps", 12, "--rounds", 2]
    hook = "model.layers.4.post_attention_layernorm"
    with_peer = ["--layer", 4, "--tokens", 300_000, "--peer", SAELENS, "--hook", hook]
    return {
        "caching": [["caching.py", MODEL, TRAIN], ["caching.py", MODEL, TRAIN, *with_peer]],
        "training": [
            ["training.py", "--peer", SAELENS, *steps, "--act", act, "--d", d, "--width", width]
            for act, (d, width) in sizes
        ],
        "sweep": [["sweep.py", RESULTS, "--layer", 4]],
        "distributed": [["distributed.py"]],
        "evaluation": [["evaluating.py", MODEL, VALIDATION]],
        "features": [["tabulating.py", "rate", MODEL, VALIDATION]],
        "attribution": [
            ["attribution.py", transcoders(), story_model, stories, "--peer", TRACER, "--lengths", 16, 39, 64]
        ],
    }


def transcoders() -> Path | None:
    """The folder of the study's only run; None if it is not trained."""
    return next((RESULTS / "dictionaries").glob("tc-*"), None)


def machine() -> str:
    """Processor with its relevant instruction sets, number of cores, versions and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = [
        each
        for each in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if each in about.get("flags", "").split()
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy", "zarr"))
    processor = about.get("model name", "unknown processor")
    return (
        f"{processor} ({' '.join(vectors)}), {os.cpu_count()} cores; {versions}; {time.strftime('%Y-%m-%d')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", help="stages to run (all)")
    wanted = parser.parse_args().stages
    if "REAL_INPUT" not in os.environ or transcoders() is None:
        sys.exit(
            "set REAL_INPUT to a folder with models/stories260K and data/tinystories, and run make benchmark"
        )
    found = commands(Path(os.environ["REAL_INPUT"]))
    if unknown := set(wanted) - set(found):
        sys.exit(f"there is no benchmark of {', '.join(sorted(unknown))}; choose from {', '.join(found)}")
    failed = []
    with (RESULTS / "record.txt").open("a") as record:
        write_line(record, machine())
        for stage in wanted or found:
            for command in found[stage]:
                words = [str(word) for word in command]
                write_line(record, f"\n$ python benchmarks/{' '.join(words)}")
                if not run([str(HERE / words[0]), *words[1:]], record):
                    failed.append(words[0])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(words: list[str], record: TextIO) -> bool:
    """Run a script and copy its output, without progress bars, to the record; returns whether it succeeded."""
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            write_line(record, line.rstrip())
    return process.returncode == 0


def write_line(record: TextIO, line: str) -> None:
    print(line, flush=True)
    print(line, file=record, flush=True)


if __name__ == "__main__":
    main()
