"""Finds Snakemake's records of outputs, which tell it the parameters and the code that made them."""

from base64 import urlsafe_b64encode
from collections.abc import Iterable
from pathlib import Path

METADATA = Path(".snakemake", "metadata")
"""Folder of the records in the project's folder. Snakemake names each after its output's path."""
_LONGEST = 254
"""Number of characters of a record's path after which Snakemake begins a subfolder."""


def has_records(outputs: Iterable[Path]) -> bool:
    """Whether Snakemake has a record of any of `outputs`. Paths are relative to the project's folder."""
    return any(_record(output).is_file() for output in outputs)


def _record(output: Path) -> Path:
    name = urlsafe_b64encode(str(output).encode()).decode()
    *folders, file = [name[i : i + _LONGEST] for i in range(0, len(name), _LONGEST)]
    return METADATA.joinpath(*(f"@{folder}" for folder in folders), file)
