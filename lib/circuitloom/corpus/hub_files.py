"""Files of a data set in the hub's layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.notices import Notice
from .files import file_format

_OTHER_FORMATS = (".csv", ".tsv", ".arrow")
"""Suffixes of files that only the library `datasets` reads."""
_DESCRIPTIONS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Names of files that describe a data set and hold no text."""


def unused_files(folder: str, files: Iterable[Path], used: Mapping[Any, Iterable[str]]) -> tuple[Notice, ...]:
    """Returns a notice of the files of text in `folder` that no split uses, if there are any. `used` are the files of
    each split. The library `datasets` takes files of one format only."""
    resolved = {Path(path).resolve() for paths in used.values() for path in paths}
    unused = [
        path
        for path in files
        if (file_format(str(path)) or path.suffix.lower() in _OTHER_FORMATS)
        and path.name not in _DESCRIPTIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.resolve() not in resolved
    ]
    if not resolved or not unused:
        return ()
    message = f"files of {folder} that belong to no split, not read: {len(unused):,} (the first: {unused[0]})"
    return (Notice("text", "unused_files", len(unused), message),)
