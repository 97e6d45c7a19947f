"""Collects versions, machine, file hashes and job times for the report."""

import csv
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..language_model.model_files import SOURCE, describe_source

PACKAGES = (
    "torch", "transformers", "transformer_lens", "tokenizers", "datasets", "zarr", "safetensors", "numpy", "pyarrow",
    "duckdb", "snakemake", "matplotlib",
)  # fmt: skip
"""Libraries whose version may affect the results."""
ROOT = Path(__file__).parents[1]
_PIECE = 1 << 22
"""Number of bytes read at a time."""


@dataclass(frozen=True)
class RuleTime:
    """Run time and memory of all jobs of one rule."""

    rule: str
    jobs: int
    seconds: float
    """Run time in seconds, summed over the jobs."""
    longest: float
    """Run time in seconds of the longest job."""
    memory: float
    """Largest peak resident memory of a job, in megabytes."""


@dataclass(frozen=True)
class FileHash:
    """Name and SHA-256 of a weights file or of a token array."""

    name: str
    sha256: str
    is_dictionary: bool = False


def versions() -> list[tuple[str, str]]:
    """Returns (name, version) of circuitloom, its code, its commit, Python, and installed libraries in `PACKAGES`."""
    found = [("circuitloom", _version("circuitloom")), ("code of circuitloom, sha256", _code_hash())]
    found += [("git commit", _commit()), ("python", platform.python_version())]
    found += [(package, _version(package)) for package in PACKAGES]
    return [(name, number) for name, number in found if number]


def machine() -> list[tuple[str, str]]:
    """Returns (name, value) of this machine's system, processor, cores, memory and GPU."""
    facts = [("system", f"{platform.system()} {platform.release()}"), ("processor", _processor())]
    facts.append(("cores", str(os.cpu_count())))
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts.append(("memory", f"{memory / 2**30:.1f} GiB"))
    return [*facts, ("GPU", _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "none")]


def sources(model: Path, tokens: Path) -> list[tuple[str, str]]:
    """Returns (name, source) of the language model in the folder `model` and of the tokenizer of a token array."""
    record = model / SOURCE
    origin = json.loads(record.read_text()) if record.is_file() else None
    attributes = json.loads((tokens / "zarr.json").read_text())["attributes"]
    tokenizer = attributes["tokenizer"]
    words = tokenizer["name"] or f"the words of {attributes['source']}"
    if tokenizer["commit"]:
        words += f" from the hub, commit {tokenizer['commit']}"
    return [
        ("language model", describe_source(origin) if origin else "trained by this study"),
        ("tokenizer", words),
    ]


def hashes(model: Path, tokens: Sequence[Path], dictionaries: Sequence[Path]) -> list[FileHash]:
    """Returns the hashes of the model's weights, the token arrays and the dictionaries' weights.

    The arguments are folders. Raises ValueError if weights are missing.
    """
    weights = sorted(model.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{model}: there are no weights; make them with `snakemake language_model`")
    found = [FileHash(f"model/{file.name}", _digest([file], model)) for file in weights]
    for folder in tokens:
        found.append(FileHash(f"{folder.parent.name}/{folder.name}", _digest(_files(folder), folder)))
    for folder in dictionaries:
        file = folder / "weights.safetensors"
        if not file.is_file():
            raise ValueError(f"{folder}: there are no weights; make them with `snakemake dictionaries`")
        found.append(FileHash("/".join(folder.parts[-3:]), _digest([file], folder), True))
    return found


def times(folder: Path, excluded_rule: str) -> list[RuleTime]:
    """Returns the times of each rule except `excluded_rule`, from the benchmark files in `folder`."""
    rules: dict[str, list[tuple[float, float]]] = {}
    for file in sorted(folder.glob("*.tsv")):
        rule = _rule(file.stem)
        if rule == excluded_rule:
            continue
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                rules.setdefault(rule, []).append((_number(row.get("s")), _number(row.get("max_rss"))))
    return [
        RuleTime(rule, len(jobs), sum(s for s, _ in jobs), max(s for s, _ in jobs), max(m for _, m in jobs))
        for rule, jobs in rules.items()
    ]


def _rule(stem: str) -> str:
    """Returns the rule name in `stem`, a benchmark file's name without suffix.

    The name of a layer, run, trace or case study may follow the rule name.
    """
    stem = re.sub(r"_layer-?\d+$", "", stem)
    start = r"(evaluate_together|trace_prompt|study_(?:feature|greater_than|difference|planted))_.+"
    return re.sub(start, r"\1", stem)


def _number(text: str | None) -> float:
    """Converts a benchmark value to a number. For very short jobs, Snakemake writes NA or -. Both become 0."""
    try:
        return float(text or "")
    except ValueError:
        return 0.0


def _files(folder: Path) -> Iterator[Path]:
    # Snakemake puts a hidden file into the folders that it has made
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))


def _digest(files: Iterator[Path] | Sequence[Path], folder: Path) -> str:
    """Returns the SHA-256 of the files' contents. For several files, it includes sizes and names relative to
    `folder`."""
    digest = hashlib.sha256()
    files = list(files)
    for file in files:
        if len(files) > 1:
            digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while piece := content.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _code_hash() -> str:
    """Returns the SHA-256 of the source files of circuitloom."""
    kinds = {".py", ".sql", ".html", ".css", ".js"}
    return _digest([file for file in _files(ROOT) if file.suffix in kinds], ROOT)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """Returns the current git commit, and ", with changes" if tracked files are modified."""
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = commit and _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}, with changes" if changed else commit


def _processor() -> str:
    """Returns the name of the processor."""
    file = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.is_file() else []
    if not names and sys.platform == "darwin":
        names = [_output("sysctl", "-n", "machdep.cpu.brand_string")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def _output(*command: str) -> str:
    """Runs a command and returns its output as one line. Returns an empty string if the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""
