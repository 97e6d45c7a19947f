"""A server on the loopback that speaks the calls of the Hugging Face hub which an upload makes."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_test"
LFS_SUFFIX = ".safetensors"


@dataclass
class Hub:
    """Repositories with the files of their last commit."""

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files, by SHA-256."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which huggingface_hub uses this server."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }


class HubServer(ThreadingHTTPServer):
    """Listens on a free port of the loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.hub = Hub(f"http://127.0.0.1:{self.server_port}")


class HubHandler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, HubServer)
        return self.server.hub

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        repository = "/".join(path.removeprefix("/api/models").split("/")[1:3]).removesuffix(".git")
        if path.endswith("/preupload/main"):
            return self._preupload(json.loads(body))
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        assert path.endswith("/commit/main"), path
        return self._commit(repository, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.objects[hashlib.sha256(body).hexdigest()] = body
        self._answer(200, {})

    def _create(self, request: dict) -> None:
        name = f"{request['organization']}/{request['name']}"
        if name in self.hub.private:
            return self._answer(
                409, {"error": "You already created this repo", "url": f"{self.hub.address}/{name}"}
            )
        self.hub.private[name] = request["visibility"] == "private"
        return self._answer(200, {"url": f"{self.hub.address}/{name}"})

    def _preupload(self, request: dict) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIX) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in request["files"]
        ]
        self._answer(200, {"files": files})

    def _batch(self, request: dict) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/objects/{each['oid']}"}}}
            for each in request["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: str, lines: list[dict]) -> None:
        files = self.hub.files.setdefault(repository, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = "0" * 40
        self._answer(200, {"commitUrl": f"{self.hub.address}/{repository}/commit/{oid}", "commitOid": oid})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """No line per request."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub until the context ends."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
