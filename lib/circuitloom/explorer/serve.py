"""The explorer's server: on this machine alone."""

import socket
from pathlib import Path

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

HOST = "127.0.0.1"


class _Handler(WSGIRequestHandler):
    """Keeps connections open, and does not write a line for each request."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


def start(folder: Path, port: int) -> BaseWSGIServer:
    """A server of the profile in `folder`, to be run by `serve_forever`; port 0 takes any that is free.

    Raises ValueError where there is no catalogue, or the port is taken.
    """
    from .app import make_app

    app = make_app(folder)
    with socket.socket() as free:
        # as the server itself: a port whose last connection is just closing is free
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} is taken ({error.strerror}); choose another with --port") from None
    return make_server(HOST, port, app.server, threaded=True, request_handler=_Handler)
