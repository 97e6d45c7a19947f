"""Names of nodes. The command line imports this module too, so it does not import torch."""

from collections.abc import Mapping
from typing import Any


def node_name(row: Mapping[str, Any]) -> str:
    """Returns the name of a row of the table `node`. The catalogue's macro `node_label` returns the same name."""
    kind, token = row["kind"], row.get("token")
    at = f"'{token}'@{row.get('position')}"
    match kind:
        case "feature":
            return f"{row['layer']}/{row['feature']} {at}"
        case "head":
            return f"head {row['layer']}.{row['head']} from {at}"
        case "error":
            return f"error {row['layer']} {at}"
        case "constant":
            return "constant"
        case _:
            return f"{kind} {at}"
