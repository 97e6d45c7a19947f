"""Parts of circuits as rows to look at: what nodes are called, and what one step back consists of."""

from collections.abc import Mapping, Sequence
from typing import Any

from .step import FEATURE, HEAD, KINDS, Step


def node_label(row: Mapping[str, Any]) -> str:
    """A row of the table `node` in a few words, as the catalogue's macro `node_label` has it."""
    kind, token = row["kind"], row.get("token")
    place = f"'{token}'@{row.get('position')}"
    match kind:
        case "feature":
            return f"{row['layer']}/{row['feature']} {place}"
        case "head":
            return f"head {row['layer']}.{row['head']} from {place}"
        case "error":
            return f"error {row['layer']} {place}"
        case "constant":
            return "constant"
        case _:
            return f"{kind} {place}"


def step_rows(step: Step, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """All that a reader's value is the sum of, the largest first: source, kind, layer, number, position, value.

    `tokens` are the prompt's. What has no layer, number or position has None there.
    """
    rows: list[dict[str, Any]] = [
        {"kind": "error", "layer": None, "number": None, "position": None, "value": step.error},
        {"kind": "constant", "layer": None, "number": None, "position": None, "value": step.constant},
    ]
    columns = (step.kind, step.layer, step.index, step.position, step.value)
    for kind, layer, number, position, value in zip(*(c.tolist() for c in columns), strict=True):
        numbered = kind in (FEATURE, HEAD)
        rows.append(
            {
                "kind": KINDS[kind],
                "layer": layer if numbered else None,
                "number": number if numbered else None,
                "position": position,
                "value": value,
            }
        )
    named = [{"source": _source(row, tokens), **row} for row in rows]
    return sorted(named, key=lambda row: -abs(row["value"]))


def _source(row: Mapping[str, Any], tokens: Sequence[str]) -> str:
    if row["position"] is None:
        return row["kind"] if row["kind"] == "constant" else "errors"
    own = {"feature": row["number"], "head": row["number"], "token": tokens[row["position"]]}
    return node_label({**row, **own})
