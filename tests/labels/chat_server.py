"""A server on the loopback that speaks OpenAI's chat completions, with answers that a test chooses."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, bytes, dict[str, str]]
"""Status, body and headers."""


def says(text: str | None, **choice: Any) -> Reply:
    """An answer with this text."""
    message = {"role": "assistant", "content": text}
    return 200, json.dumps({"choices": [{"index": 0, "message": message, **choice}]}).encode(), {}


def fails(status: int, message: str = "", code: str = "", **headers: str) -> Reply:
    """An error as OpenAI's servers write it."""
    body = {"error": {"message": message, "code": code}}
    return status, json.dumps(body).encode(), {key.replace("_", "-"): value for key, value in headers.items()}


@dataclass
class ChatServer:
    """What a server was asked."""

    endpoint: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def questions(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def chat_server(reply: Callable[[str, int], Reply]) -> Iterator[ChatServer]:
    """A server whose reply is a function of the question and of the number of requests before it."""
    server, lock = ChatServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
            status, content, headers = reply(body["messages"][-1]["content"], number)
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            # the client did not wait
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.endpoint = f"http://127.0.0.1:{httpd.server_port}/v1"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
