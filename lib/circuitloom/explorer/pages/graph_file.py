"""The page of a graph file: its prompt, its graph, and its strongest edges."""

from collections.abc import Sequence

from dash import html
from dash.development.base_component import Component

from ...core.formatting import escape_invisible, format_token
from ..circuit_view import circuit_view
from ..components import notes_of, panel, signed, table
from ..graph_file import GraphFile
from ..urls import Params

STRONGEST = 20
"""Number of edges in the list of strongest edges."""


def graph_page(graph: GraphFile, params: Params) -> Component:
    """Returns the page. The supernodes of the file are shown unless the URL names others."""
    tokens = [html.Span([format_token(token), html.Sub(i)]) for i, token in enumerate(graph.circuit.tokens)]
    rows = [
        [edge["source"], edge["target"], signed(edge["effect"])] for edge in graph.circuit.edges[:STRONGEST]
    ]
    about = f"{len(graph.circuit.nodes):,} nodes and {len(graph.circuit.edges):,} edges"
    return html.Div(
        [
            panel(
                f"Graph {graph.name}",
                html.P(tokens, className="prompt"),
                html.P(
                    escape_invisible(f"{about}; transcoders or model: {graph.scan}" if graph.scan else about)
                ),
                *notes_of([*graph.notes, *_pinned(graph.pinned)]),
                circuit_view(graph.circuit, {"trace": graph.name}, params, graph.groups),
            ),
            panel("Strongest edges", table(["source", "target", "weight"], rows, (0, 1))),
        ]
    )


def _pinned(labels: Sequence[str]) -> list[str]:
    return [f"pinned: {'; '.join(labels)}"] if labels else []
