"""The explorer: a Dash app with one page per URL path. The server only accepts requests from this machine."""

import socket
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, dcc, html, set_props
from dash.development.base_component import Component
from flask import Response, abort, g, request, send_from_directory
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from ..catalog.client import CatalogClient
from ..core.errors import first_line
from ..report import templates
from ..report.graph import ASSETS
from .circuit_view import CircuitRows, register_circuit_view
from .components import aria
from .graph_file import GraphFile
from .pages.circuits import circuits_page, trace_circuit
from .pages.dictionaries import dictionaries_page, register_dictionaries
from .pages.feature import feature_page, register_feature
from .pages.features import features_page, register_features
from .pages.graph_file import graph_page
from .pages.overview import overview_page
from .pages.prompt import prompt_page, register_prompt, traced_circuit
from .pages.sql import register_sql, sql_page
from .prompt_service import PromptService
from .urls import Params, parse

Page = Callable[[CatalogClient, Params], Component]
PAGES: Mapping[str, tuple[str, Page]] = {
    "": ("Overview", overview_page),
    "dictionaries": ("Dictionaries", dictionaries_page),
    "features": ("Features", features_page),
    "feature": ("Feature", feature_page),
    "circuits": ("Circuits", circuits_page),
    "try": ("Try", prompt_page),
    "sql": ("SQL", sql_page),
}
"""Maps each URL path to (title of the page, function that returns the page)."""
HOST = "127.0.0.1"
HOSTS = (HOST, "localhost", "[::1]")
"""Accepted Host headers. Another Host header may come from a DNS rebinding attack."""
OWN_SITE = ("same-origin", "none")
"""Accepted Sec-Fetch-Site headers of POST requests. Clients other than browsers send none."""
POLICY = (
    "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)
"""Content-Security-Policy of all pages. `{scripts}` becomes the hashes of Dash's inline scripts."""


def start(results: Path | GraphFile, port: int) -> BaseWSGIServer:
    """Returns a server for a study's folder, or for one graph. Call `serve_forever` to run the server.

    Port 0 means any free port. Raises ValueError if the study has no catalogue, or if the port is taken.
    """
    app = make_graph_app(results) if isinstance(results, GraphFile) else make_app(results)
    with socket.socket() as free:
        # the server sets the same option: a port whose last connection is still closing counts as free
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} is taken ({error.strerror}); choose another with --port") from None
    return make_server(HOST, port, app.server, threaded=True, request_handler=_Handler)


class _Handler(WSGIRequestHandler):
    """Keeps connections open between requests and does not log requests."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


def make_app(folder: Path) -> Dash:
    """Returns the app for the study in `folder`. Raises ValueError if the study has no catalogue."""
    client, service = CatalogClient(folder), PromptService(folder)

    def find_circuit(source: dict[str, Any]) -> CircuitRows:
        trace = source.get("trace")
        return traced_circuit(service, source) if trace is None else trace_circuit(client, trace)

    pages = {path: (title, partial(make_page, client)) for path, (title, make_page) in PAGES.items()}
    app = _app(folder.name, pages)
    register_dictionaries(app)
    register_features(app, client)
    register_feature(app, client)
    register_circuit_view(app, client, find_circuit)
    register_prompt(app, client, service)
    register_sql(app, client)
    return app


def make_graph_app(graph: GraphFile) -> Dash:
    """Returns the app for one graph, which has no study: it has one page, and features have no pages."""
    app = _app(graph.name, {"": ("Graph", partial(graph_page, graph))})
    register_circuit_view(app, None, lambda _source: graph.circuit)
    return app


def _app(name: str, pages: Mapping[str, tuple[str, Callable[[Params], Component]]]) -> Dash:
    """Returns an app with the given pages. Maps each URL path to (title of the page, function that returns the page).

    `name` is the name of the study or of the graph.
    """
    app = Dash(
        __name__,
        title=f"circuitloom: {name}",
        update_title="",
        suppress_callback_exceptions=True,
        serve_locally=True,
        external_scripts=[f"/{asset}" for asset in ASSETS if asset.endswith(".js")],
        external_stylesheets=[f"/{asset}" for asset in ASSETS if asset.endswith(".css")],
        on_error=_show_error,
    )
    for asset in ASSETS:
        app.server.add_url_rule(f"/{asset}", asset, partial(send_from_directory, templates.FOLDER, asset))
    app.layout = _layout(name, pages)

    @app.callback(
        Output("page", "children"), Output("where", "data"), Input("url", "pathname"), Input("url", "search")
    )
    def show(path: str | None, search: str | None) -> tuple[Component, dict[str, str]]:
        page = (path or "/").strip("/")
        title, make_page = pages.get(page, ("Not found", None))
        where = {"page": page, "title": f"{title} · {name}"}
        try:
            if make_page is None:
                raise ValueError(f"there is no page {page}; choose one above")
            return make_page(parse(search)), where
        except ValueError as error:
            return html.P(str(error), className="error", role="alert"), where

    app.clientside_callback(
        ClientsideFunction("circuitloom", "arrive"), Output("arrived", "data"), Input("where", "data")
    )
    app.clientside_callback(
        ClientsideFunction("circuitloom", "choose"),
        Output("chosen", "data"),
        Input({"go": ALL, "now": ALL}, "value"),
        prevent_initial_call=True,
    )
    _guard(app)
    return app


def _layout(name: str, pages: Mapping[str, tuple[str, Any]]) -> Component:
    links = [
        dcc.Link(title, href=f"/{path}", id=f"to-{path or 'overview'}")
        for path, (title, _) in pages.items()
        if path != "feature"
    ]
    return html.Div(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Store("where"),
            dcc.Store("arrived"),
            dcc.Store("chosen"),
            html.A("skip to content", href="#page", className="skip"),
            html.Header(
                [
                    html.Strong(["circuitloom ", html.Span(name)]),
                    html.Nav(links, **aria(label="pages")),
                    html.Span("? for keys", className="hint"),
                ]
            ),
            html.Main(id="page", tabIndex="-1"),
            html.Div(id="callback-error"),
        ]
    )


def _show_error(error: Exception) -> None:
    """Show the error of a callback at the foot of the page. Print a traceback unless the error is a ValueError."""
    if not isinstance(error, ValueError):
        traceback.print_exception(error)
    set_props("callback-error", {"children": html.P(first_line(error), className="error", role="alert")})


def _guard(app: Dash) -> None:
    """Reject Host headers that are not in `HOSTS`, and POST requests of other sites.

    Add security headers and the response time to each response.
    """
    server = app.server
    policy = POLICY.format(scripts=" ".join(app.csp_hashes()))

    @server.before_request
    def check_host() -> None:
        g.began = time.perf_counter()
        name, _, port = request.host.rpartition(":")
        if (name if name and port.isdigit() else request.host) not in HOSTS:
            abort(Response("circuitloom answers 127.0.0.1 and localhost only\n", 403, mimetype="text/plain"))
        # a callback can save supernodes, so no page of another site may call one
        if request.method == "POST" and request.headers.get("Sec-Fetch-Site", OWN_SITE[0]) not in OWN_SITE:
            abort(Response("circuitloom takes requests of its own pages only\n", 403, mimetype="text/plain"))

    @server.after_request
    def add_headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if hasattr(g, "began"):
            response.headers["Server-Timing"] = f"app;dur={1000 * (time.perf_counter() - g.began):.1f}"
        return response
