"""An attribution graph as the page draws it: places of nodes and courses of edges, in pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..attribution.drawing import place_nodes
from ..core.formatting import number, shown, token_text
from .answers import Row

ACROSS = 76
"""Pixels of a token's width."""
MARGIN = 84
"""Pixels left of the first token, where the names of layers stand."""
EDGES = 1200
"""Edges drawn at most."""
_SHAPES = {"feature": "circle", "error": "diamond", "embedding": "square", "position": "bar"}
_TOP = 44


@dataclass(frozen=True)
class PlacedNode:
    """A node in its place."""

    number: int
    kind: str
    shape: str
    x: float
    y: float
    name: str
    """What stands beside it."""
    words: str
    """What it is, for those who do not see it."""
    is_root: bool
    stays: bool
    """It is kept whatever is pruned."""
    cumulative: float


@dataclass(frozen=True)
class PlacedEdge:
    """An edge in its place, from its source up to its target."""

    source: int
    target: int
    course: str
    """As SVG writes a path."""
    width: float
    opacity: float
    raises: bool


@dataclass(frozen=True)
class Text:
    """A name beside an axis."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class GraphLayout:
    """All that is drawn."""

    width: float
    height: float
    nodes: tuple[PlacedNode, ...]
    edges: tuple[PlacedEdge, ...]
    tokens: tuple[Text, ...]
    layers: tuple[Text, ...]


def lay_out(nodes: Sequence[Row], edges: Sequence[Row], tokens: Sequence[str]) -> GraphLayout:
    """The graph of `nodes` and `edges`, rows of their queries, over the prompt's `tokens`; the constant is left out."""
    drawn = [row for row in nodes if row["kind"] != "constant"]
    layers = 1 + max((row["layer"] for row in drawn if row["layer"] is not None), default=-1)
    places, centres = place_nodes(drawn, layers)
    up = 96 if layers <= 4 else 64
    # logits stand a level above the last layer
    top = layers + 1 if any(level > layers + 0.9 for _, level in places.values()) else layers + 0.5
    right = max((x for x, _ in places.values()), default=0.0)

    def at(x: float, level: float) -> tuple[float, float]:
        return round(MARGIN + ACROSS * x, 1), round(_TOP + up * (top - level), 1)

    where = {node: at(*place) for node, place in places.items()}
    bottom = at(0, -0.62)[1]
    levels = ["tokens", *(f"layer {layer}" for layer in range(layers))] + ["target"] * (top > layers + 0.5)
    return GraphLayout(
        width=round(MARGIN + ACROSS * (max(right, *centres.values(), 0.0) + 0.7), 1),
        height=bottom + 12,
        nodes=tuple(_node(row, *where[row["node"]]) for row in drawn),
        edges=tuple(_edges(edges, where)),
        tokens=tuple(
            Text(at(x, 0)[0], bottom, token_text(tokens[position]))
            for position, x in centres.items()
            if position is not None and position < len(tokens)
        ),
        layers=tuple(Text(4, at(0, level)[1] + 3, name) for level, name in enumerate(levels)),
    )


def _node(row: Row, x: float, y: float) -> PlacedNode:
    root = bool(row["is_root"])
    return PlacedNode(
        number=row["node"],
        kind=row["kind"],
        shape="triangle" if root else _SHAPES.get(row["kind"], "circle"),
        x=x,
        y=y,
        name=_name(row),
        words=_words(row),
        is_root=root,
        stays=root or row["kind"] in ("embedding", "position"),
        cumulative=1.0 if row["cumulative"] is None else row["cumulative"],
    )


def _name(row: Row) -> str:
    if row["kind"] == "feature":
        return f"{row['layer']}/{row['feature']}"
    return token_text(row["token"] or "") if row["is_root"] else ""


def _words(row: Row) -> str:
    """As in: feature 1/17 at 'caught', position 4; influence 0.2."""
    what = f"{row['kind']} {row['layer']}/{row['feature']}" if row["kind"] == "feature" else row["kind"]
    place = f" at {token_text(row['token'] or '')}, position {shown(row['position'])}"
    return f"{what}{place}; influence {number(row['influence'])}"


def _edges(edges: Sequence[Row], where: Mapping[int, tuple[float, float]]) -> Sequence[PlacedEdge]:
    """Those that join what is drawn, the weakest first, so that the strongest lie on top."""
    drawn = []
    for row in reversed(edges):
        source, target = row["source_node"], row["target_node"]
        if source in where and target in where:
            (x0, y0), (x1, y1) = where[source], where[target]
            bend = round((y0 - y1) * 0.45, 1)
            course = f"M{x0:g} {y0:g}C{x0:g} {y0 - bend:g} {x1:g} {y1 + bend:g} {x1:g} {y1:g}"
            strength = row["strength"] or 0.0
            width, opacity = round(0.4 + 2.6 * strength, 2), round(0.15 + 0.55 * strength, 2)
            drawn.append(PlacedEdge(source, target, course, width, opacity, row["effect"] > 0))
    return drawn
