"""Where the nodes of a circuit lie in its picture: across by position, up by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

NODE_WIDTH = 0.5
"""Width of a node, in widths of a token that has none."""


def place_nodes(
    nodes: Sequence[Mapping[str, Any]], layers: int
) -> tuple[dict[int, tuple[float, float]], dict[int, float]]:
    """Where each node is drawn, by its number; the middle of each position, as wide as its fullest layer asks for.

    `nodes` are rows of `node`, constants and heads left out. Across (x, from 0) run positions, up (y) embeddings (0),
    layers (layer l at l + 1, its error above its features) and logits (`layers` + 1).
    """
    cells: dict[tuple[int, float], list[Mapping[str, Any]]] = {}
    for row in nodes:
        if row["is_root"] and row["kind"] != "feature":
            level = layers + 1.0
        elif row["kind"] in ("embedding", "position"):
            level = 0.0 if row["kind"] == "embedding" else -0.4
        else:
            level = row["layer"] + 1.0 + (0.45 if row["kind"] == "error" else 0.0)
        cells.setdefault((row["position"], level), []).append(row)
    centres: dict[int, float] = {}
    edge = 0.0
    for position in sorted({position for position, _ in cells}):
        width = max(1.0, *(NODE_WIDTH * len(cells[key]) for key in cells if key[0] == position))
        centres[position] = edge + width / 2
        edge += width
    places = {}
    for (position, level), members in cells.items():
        for i, row in enumerate(members):
            across = NODE_WIDTH * (i + 0.5 - len(members) / 2)
            # names beside each other at one height would cover each other
            places[row["node"]] = (centres[position] + across, level + 0.12 * (i % 2))
    return places, centres
