"""Places the nodes of an attribution graph. The report imports this module too, so it does not import torch."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

NODE_WIDTH = 0.5
"""Width of a node on the x axis. A position is at least 1 wide."""

LINES = 3
"""Largest number of lines of a label next to a node."""


def label_lines(text: str, letters: int) -> list[str]:
    """Returns a label in at most `LINES` lines of at most `letters` characters. A label that is cut ends with ….

    With one label per `NODE_WIDTH`, labels of neighbouring nodes do not overlap.
    """
    return textwrap.wrap(text, letters, max_lines=LINES, placeholder="…")


def place_nodes(
    nodes: Sequence[Mapping[str, Any]], layers: int
) -> tuple[dict[int, tuple[float, float]], dict[int, float]]:
    """Returns the coordinates (x, y) of each node, and the center x of each position.

    `nodes` are rows of the table `node`, without constants and heads. x grows with position. y is 0 for token
    embeddings, l + 1 for features of layer l, and `layers` + 1 for roots that are not features. Position
    embeddings lie slightly below token embeddings. Errors lie slightly above features.
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
    centers: dict[int, float] = {}
    edge = 0.0
    for position in sorted({position for position, _ in cells}):
        width = max(1.0, *(NODE_WIDTH * len(cells[key]) for key in cells if key[0] == position))
        centers[position] = edge + width / 2
        edge += width
    places = {}
    for (position, level), members in cells.items():
        for i, row in enumerate(members):
            offset = NODE_WIDTH * (i + 0.5 - len(members) / 2)
            # heights alternate so that the names of neighbours do not overlap
            places[row["node"]] = (centers[position] + offset, level + 0.12 * (i % 2))
    return places, centers
