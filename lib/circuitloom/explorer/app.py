"""The app: a bar of pages, a page for each address, and nothing that is not asked for from this machine. The
explorer's server: on this machine alone."""

import socket
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, dcc, html, set_props
from dash.development.base_component import Component
from flask import Response, abort, g, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from ..core.errors import first_line
from .asking import Asking
from .circuit_view import CircuitRows, register_circuit_view
from .components import aria
from .pages.circuits import circuits, trace_circuit
from .pages.dictionaries import dictionaries, register_dictionaries
from .pages.feature import feature, register_feature
from .pages.features import features, register_features
from .pages.overview import overview
from .pages.prompt import attempt, register_attempt, traced_circuit
from .pages.sql import register_sql, sql
from .prompt_service import PromptService
from .urls import Params, parse

Page = Callable[[Asking, Params], Component]
PAGES: Mapping[str, tuple[str, Page]] = {
    "": ("Overview", overview),
    "dictionaries": ("Dictionaries", dictionaries),
    "features": ("Features", features),
    "feature": ("Feature", feature),
    "circuits": ("Circuits", circuits),
    "try": ("Try", attempt),
    "sql": ("SQL", sql),
}
"""Path to name and page."""
HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""What a browser on this machine calls us; another name may be a foreign page's that was pointed here."""
POLICY = (
    "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)


def make_app(folder: Path) -> Dash:
    """The explorer of the study in `folder`. Raises ValueError where it has no catalogue."""
    catalogue, bench = Asking(folder), PromptService(folder)
    app = Dash(
        __name__,
        title=f"circuitloom: {folder.name}",
        update_title="",
        suppress_callback_exceptions=True,
        serve_locally=True,
        on_error=_say,
    )
    app.layout = _layout(folder.name)

    def find(source: dict[str, Any]) -> CircuitRows:
        trace = source.get("trace")
        return traced_circuit(bench, source) if trace is None else trace_circuit(catalogue, trace)

    @app.callback(
        Output("page", "children"), Output("where", "data"), Input("url", "pathname"), Input("url", "search")
    )
    def show(path: str | None, search: str | None) -> tuple[Component, dict[str, str]]:
        name = (path or "/").strip("/")
        title, make = PAGES.get(name, ("Not found", None))
        try:
            if make is None:
                raise ValueError(f"there is no page {name}; choose one above")
            return make(catalogue, parse(search)), {"page": name, "title": f"{title} · {folder.name}"}
        except ValueError as error:
            said = html.P(str(error), className="error", role="alert")
            return said, {"page": name, "title": f"{title} · {folder.name}"}

    register_dictionaries(app)
    register_features(app, catalogue)
    register_feature(app, catalogue)
    register_circuit_view(app, catalogue, find)
    register_attempt(app, catalogue, bench)
    register_sql(app, catalogue)
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


def _layout(study: str) -> Component:
    links = [
        dcc.Link(name, href=f"/{path}", id=f"to-{path or 'overview'}")
        for path, (name, _) in PAGES.items()
        if path != "feature"
    ]
    return html.Div(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Store("where"),
            dcc.Store("arrived"),
            dcc.Store("chosen"),
            html.A("to the content", href="#page", className="skip"),
            html.Header(
                [
                    html.Strong(["circuitloom ", html.Span(study)]),
                    html.Nav(links, **aria(label="pages")),
                    html.Span("? for keys", className="hint"),
                ]
            ),
            html.Main(id="page", tabIndex="-1"),
            html.Div(id="said"),
        ]
    )


def _say(error: Exception) -> None:
    """Say, at the foot of the page, what went wrong behind it; what nobody expects goes to the terminal as well."""
    if not isinstance(error, ValueError):
        traceback.print_exception(error)
    set_props("said", {"children": html.P(first_line(error), className="error", role="alert")})


def _guard(app: Dash) -> None:
    """Answer this machine alone, tell browsers to run nothing but our own scripts, and say what each answer took."""
    server = app.server
    policy = POLICY.format(scripts=" ".join(app.csp_hashes()))

    @server.before_request
    def check() -> None:
        g.began = time.perf_counter()
        host = (
            request.host.rpartition(":")[0]
            if request.host[-1:].isdigit() and ":" in request.host
            else request.host
        )
        if host not in HOSTS:
            abort(Response("circuitloom answers 127.0.0.1 and localhost alone\n", 403, mimetype="text/plain"))

    @server.after_request
    def head(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if hasattr(g, "began"):
            response.headers["Server-Timing"] = f"app;dur={1000 * (time.perf_counter() - g.began):.1f}"
        return response


HOST = "127.0.0.1"


class _Handler(WSGIRequestHandler):
    """Keeps connections open, and does not write a line for each request."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


def start(folder: Path, port: int) -> BaseWSGIServer:
    """A server of the study in `folder`, to be run by `serve_forever`; port 0 takes any that is free.

    Raises ValueError where there is no catalogue, or the port is taken.
    """

    app = make_app(folder)
    with socket.socket() as free:
        # as the server itself: a port whose last connection is just closing is free
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} is taken ({error.strerror}); choose another with --port") from None
    return make_server(HOST, port, app.server, threaded=True, request_handler=_Handler)
