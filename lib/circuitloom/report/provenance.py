"""Collects what the report shows but the catalogue does not contain: versions, machine, hashes and job times."""

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
"""Libraries whose version may affect the results."""
ROOT = Path(__file__).parents[1]
_PIECE = 1 << 22
"""Number of bytes that are read from a file at a time."""


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
    """Peak resident memory, in megabytes, of the job that used the most memory."""


@dataclass(frozen=True)
class FileHash:
    """Name and SHA-256 of a weights file or of a token array."""

    name: str
    sha256: str
    is_dictionary: bool = False


def versions() -> list[tuple[str, str]]:
    """Returns (name, version) of circuitloom, Python and each installed library.

    The list also contains the hash of circuitloom's code and the git commit.
    """
    found = [("circuitloom", _version("circuitloom")), ("code of circuitloom, sha256", _code_hash())]
    found += [("git commit", _commit()), ("python", platform.python_version())]
    found += [(package, _version(package)) for package in PACKAGES]
    return [(name, number) for name, number in found if number]


def machine() -> list[tuple[str, str]]:
    """Returns (name, value) of the system, processor, number of cores, memory and GPU of this machine."""
    facts = [("system", f"{platform.system()} {platform.release()}"), ("processor", _processor())]
    facts.append(("cores", str(os.cpu_count())))
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts.append(("memory", f"{memory / 2**30:.1f} GiB"))
    return [*facts, ("GPU", _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "none")]


def hashes(model: Path, tokens: Sequence[Path], dictionaries: Sequence[Path]) -> list[FileHash]:
    """Hashes the weights of the language model, the token arrays, and the weights of each dictionary.

    The arguments are the folders that contain these files. Raises ValueError if weights are missing.
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
    """Reads the times of each rule from the benchmark files in `folder`. `excluded_rule` is left out.

    A rule may have several jobs, for example one for each layer, run or case study. Their times are added up.
    """
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
    """Returns the name of the rule that wrote a benchmark file.

    `stem` is the file's name without suffix. It is the rule's name, sometimes followed by the name of a layer, run,
    trace or case study.
    """
    stem = re.sub(r"_layer-?\d+$", "", stem)
    start = r"(tabulate_features|trace_prompt|study_(?:feature|greater_than|difference|planted))_.+"
    return re.sub(start, r"\1", stem)


def _number(text: str | None) -> float:
    """Reads a number of a benchmark file. For very short jobs Snakemake writes NA or -, which are read as 0."""
    try:
        return float(text or "")
    except ValueError:
        return 0.0


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _digest(files: Iterator[Path] | Sequence[Path], folder: Path) -> str:
    """Returns the SHA-256 of the contents of the files.

    If there are several files, their sizes and their names relative to `folder` are hashed as well.
    """
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
    """Returns the git commit that is checked out. ", with changes" is added if tracked files differ from it."""
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
