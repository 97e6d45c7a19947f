"""Supernodes of a graph as text, and in the file where the explorer saves those made by hand.

The explorer and the command line import this module, so it does not import torch.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..core.atomic_io import write_atomically
from ..core.errors import first_line
from ..core.layout import Layout

Groups = Mapping[str, Sequence[int]]
"""Maps the name of each supernode to the numbers of its nodes."""
Row = Mapping[str, Any]
LEAST_COSINE = 0.8
"""Smallest cosine at which the rule groups features, unless the user chooses another."""
NO_GROUPS = "none"
"""Text of no groups, where an empty text means the default."""
SEPARATORS = {ord(c): f"%{ord(c):02X}" for c in "%:;,"}
"""Escapes the characters that separate names and nodes in the text of groups."""
_TRACE = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*")


def parse_groups(text: str) -> dict[str, list[int]]:
    """Parses groups of the form `name:1,2;other:3,4`. Raises ValueError if the form is different."""
    groups: dict[str, list[int]] = {}
    for part in filter(None, text.split(";")) if text != NO_GROUPS else ():
        name, _, members = part.rpartition(":")
        try:
            groups[unquote(name) or "group"] = [int(member) for member in members.split(",")]
        except ValueError:
            raise ValueError(f"groups={part!r} in the address must have the form name:1,2;other:3") from None
    return groups


def write_groups(groups: Groups) -> str:
    """Returns groups as text, in the form that `parse_groups` parses."""
    return ";".join(
        f"{name.translate(SEPARATORS)}:{','.join(map(str, members))}" for name, members in groups.items()
    )


def save_groups(layout: Layout, trace: str, groups: Groups, nodes: Sequence[Row]) -> Path:
    """Save the supernodes of a trace next to its tables, or remove the file if there are none. Returns the file.

    Nodes are stored by name, such as `0/887 'caught'@3`, because a new trace may number them differently. `nodes` are
    rows of the query `graph_nodes`. Raises ValueError if the trace is not stored, if two nodes have one name, or if the
    folder cannot be written.
    """
    folder = layout.trace(trace)
    if not _TRACE.fullmatch(trace) or not (folder / "trace.parquet").is_file():
        raise ValueError(f"{layout.circuits} has no trace {trace!r}, so its supernodes cannot be saved")
    names, count = {row["node"]: row["label"] for row in nodes}, Counter(row["label"] for row in nodes)
    chosen = {
        group: [names[member] for member in members if member in names] for group, members in groups.items()
    }
    if twice := [name for members in chosen.values() for name in members if count[name] > 1]:
        raise ValueError(f"two nodes of the graph have the name {twice[0]}; leave them out of the supernode")
    file = layout.supernodes(trace)
    try:
        if chosen:
            write_atomically(file, json.dumps(chosen, indent=2, ensure_ascii=False).encode())
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{file} cannot be written: {first_line(error)}; check its permissions") from None
    return file


def saved_groups(layout: Layout, trace: str, nodes: Sequence[Row]) -> tuple[dict[str, list[int]], list[str]]:
    """Returns the saved supernodes of a trace, and the names of members that the graph no longer has.

    `nodes` are rows of the query `graph_nodes`. Raises ValueError if the file is damaged.
    """
    file = layout.supernodes(trace)
    if not _TRACE.fullmatch(trace) or not file.is_file():
        return {}, []
    try:
        saved = {
            str(group): [str(member) for member in members]
            for group, members in json.loads(file.read_bytes()).items()
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{file}: no supernodes ({first_line(error)}); delete it and save them again"
        ) from None
    numbers = {row["label"]: row["node"] for row in nodes}
    groups = {
        group: [numbers[name] for name in members if name in numbers] for group, members in saved.items()
    }
    missing = [name for members in saved.values() for name in members if name not in numbers]
    return {group: members for group, members in groups.items() if members}, missing
