"""What was run, with what and where: versions, hashes, machine, times. None of it is in the catalogue."""

import csv
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "torch", "transformers", "transformer_lens", "tokenizers", "datasets", "zarr", "safetensors", "numpy", "pyarrow",
    "duckdb", "snakemake", "matplotlib",
)  # fmt: skip
"""Libraries whose versions decide what comes out."""
ROOT = Path(__file__).parents[1]
_PIECE = 1 << 22


@dataclass(frozen=True)
class Time:
    """What the jobs of one rule took."""

    rule: str
    jobs: int
    seconds: float
    """Of all its jobs together."""
    longest: float
    memory: float
    """Peak resident memory of any of its jobs, in megabytes."""


@dataclass(frozen=True)
class Hash:
    """A digest of something that the results are made of."""

    of: str
    sha256: str
    of_dictionary: bool = False


def versions() -> list[tuple[str, str]]:
    """Name and version of the project, of Python, and of the libraries that are installed."""
    found = [("circuitloom", _version("circuitloom")), ("code of circuitloom, sha256", _code())]
    found += [("git commit", _commit()), ("python", platform.python_version())]
    found += [(package, _version(package)) for package in PACKAGES]
    return [(name, number) for name, number in found if number]


def machine() -> list[tuple[str, str]]:
    """What this machine is."""
    facts = [("system", f"{platform.system()} {platform.release()}"), ("processor", _processor())]
    facts.append(("cores", str(os.cpu_count())))
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts.append(("memory", f"{memory / 2**30:.1f} GiB"))
    return [*facts, ("GPU", _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "none")]


def hashes(model: Path, tokens: Sequence[Path], dictionaries: Sequence[Path]) -> list[Hash]:
    """Digests of the model's weights, of the token arrays, and of each dictionary's weights.

    Raises ValueError where one of them is missing.
    """
    weights = sorted(model.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{model}: there are no weights; make them with `snakemake language_model`")
    found = [Hash(f"model/{file.name}", _digest([file], model)) for file in weights]
    for folder in tokens:
        found.append(Hash(f"{folder.parent.name}/{folder.name}", _digest(_files(folder), folder)))
    for folder in dictionaries:
        file = folder / "weights.safetensors"
        if not file.is_file():
            raise ValueError(f"{folder}: there are no weights; make them with `snakemake dictionaries`")
        found.append(Hash("/".join(folder.parts[-3:]), _digest([file], folder), True))
    return found


def times(folder: Path, without: str) -> list[Time]:
    """What the jobs of each rule took, by the benchmark files in `folder`; those of `without` are left out.

    Jobs are put together whose names differ in what stands for a wildcard: layers, runs, sites.
    """
    rules: dict[str, list[tuple[float, float]]] = {}
    for file in sorted(folder.glob("*.tsv")):
        rule = _rule(file.stem)
        if rule == without:
            continue
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                rules.setdefault(rule, []).append((_number(row.get("s")), _number(row.get("max_rss"))))
    return [
        Time(rule, len(jobs), sum(s for s, _ in jobs), max(s for s, _ in jobs), max(m for _, m in jobs))
        for rule, jobs in rules.items()
    ]


def _rule(stem: str) -> str:
    """A benchmark's name without the layer, and without the run or case that rules name in theirs."""
    stem = re.sub(r"_layer-?\d+$", "", stem)
    start = r"(tabulate_features|trace_prompt|study_(?:feature|greater_than|difference|planted))_.+"
    return re.sub(start, r"\1", stem)


def _number(text: str | None) -> float:
    """A number of a benchmark; Snakemake writes NA, or -, where a job was too short to be measured."""
    try:
        return float(text or "")
    except ValueError:
        return 0.0


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _digest(files: Iterator[Path] | Sequence[Path], folder: Path) -> str:
    """SHA-256 of files; of several, with their names."""
    digest = hashlib.sha256()
    files = list(files)
    for file in files:
        if len(files) > 1:
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while piece := content.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _code() -> str:
    """Digest of the library's own files."""
    kinds = {".py", ".sql", ".html", ".css", ".js"}
    return _digest([file for file in _files(ROOT) if file.suffix in kinds], ROOT)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    commit = _said("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = commit and _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}, with changes" if changed else commit


def _processor() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.is_file() else []
    if not names and sys.platform == "darwin":
        names = [_said("sysctl", "-n", "machdep.cpu.brand_string")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def _said(*command: str) -> str:
    """What a command prints, in one line; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""
