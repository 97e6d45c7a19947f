"""Time that jobs spend on comparing their inputs with their checksum records, for every job of a finished study.

`python benchmarks/integrity.py config/studies/NAME.yaml`, or without an argument for quickstart. For each rule: jobs,
read in full, seconds for that, and the seconds of the jobs themselves (results/STUDY/benchmarks). Files are in the page
cache.
"""

import argparse
import csv
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import yaml

from circuitloom.core.checksums import check_inputs, read_record, record_path


def jobs(config: list[str]) -> list[tuple[str, list[Path], str]]:
    """Rule, inputs and log of every job of the study, from a dry run."""
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    run = subprocess.run(
        [snakemake, "--dry-run", "--forceall", "--quiet", "host", "--cores", "2", *config],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = []
    for block in re.split(r"\n(?=(?:local)?rule )", run.stdout + run.stderr):
        head = re.match(r"(?:local)?rule (\w+):", block)
        inputs = re.search(r"\n    input: (.*)", block)
        log = re.search(r"\n    log: (\S+)", block)
        if head and log:
            paths = dict.fromkeys(map(Path, inputs.group(1).split(", "))) if inputs else {}
            found.append((head.group(1), list(paths), Path(log.group(1)).stem))
    return found


def bytes_read(folder: Path, path: Path) -> int:
    """Bytes of an input that its record has a CRC-32 of."""
    if not (path.is_relative_to(folder) and record_path(folder, path).is_file()):
        return 0
    return sum(
        size for size, checksum in read_record(record_path(folder, path)).values() if checksum is not None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default="config/config.yaml")
    arguments = parser.parse_args()
    name = yaml.safe_load(Path(arguments.study).read_text())["name"]
    folder = Path("results") / name
    took: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0])
    for rule, inputs, log in jobs(["--configfile", arguments.study]):
        size = sum(bytes_read(folder, path) for path in inputs)
        check_inputs(folder, inputs)
        start = time.perf_counter()
        check_inputs(folder, inputs)
        seconds = time.perf_counter() - start
        measured = folder / "benchmarks" / f"{log}.tsv"
        own = float(next(csv.DictReader(measured.open(), delimiter="\t"))["s"]) if measured.is_file() else 0.0
        name = re.sub(r"_(transcoders|saes|skip|stream|topk)\b", "", rule)
        for i, value in enumerate((1, size, seconds, own)):
            took[name][i] += value
    print(f"{'rule':32} {'jobs':>5} {'MB':>9} {'checking, s':>12} {'jobs, s':>9}")
    total = [sum(row[i] for row in took.values()) for i in range(4)]
    for rule, row in [*sorted(took.items(), key=lambda item: -item[1][2]), ("all", total)]:
        print(f"{rule:32} {row[0]:5.0f} {row[1] / 1e6:9.1f} {row[2]:12.2f} {row[3]:9.1f}")


if __name__ == "__main__":
    main()
