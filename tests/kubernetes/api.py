"""A fake Kubernetes cluster: the part of its API that Snakemake's executor calls. Pods are local processes."""

import base64
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

JOBS = r"/apis/batch/v1/namespaces/default/jobs"


@dataclass
class Pod:
    """A submitted job; its exit code once it has finished."""

    body: dict[str, Any]
    folder: Path
    code: int | None = None

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.body["spec"]["template"]["spec"]["containers"]
        return container

    @property
    def rule(self) -> str:
        (rule,) = re.findall(r"--allowed-rules (\w+)", self.container["args"][1])
        return rule


@dataclass
class Api:
    """A cluster of one node, which runs each pod in its own folder."""

    folder: Path
    environment: dict[str, str]
    """Environment variables of the image; `/workdir` is replaced by the pod's folder."""
    failing: set[str]
    """Rules whose first pod fails at its start."""
    pods: dict[str, Pod] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)

    def start(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        pod = Pod(body, self.folder / name)
        self.pods[name] = pod
        if pod.rule in self.failing:
            self.failing.remove(pod.rule)
            pod.code = 137
        else:
            threading.Thread(target=self._run, args=(pod,), daemon=True).start()
        return body

    def status(self, name: str) -> dict[str, Any]:
        pod = self.pods[name]
        finished = {} if pod.code is None else {"failed" if pod.code else "succeeded": 1}
        return {**pod.body, "status": finished}

    def _run(self, pod: Pod) -> None:
        pod.folder.mkdir(parents=True)
        environment = {
            key: value.replace("/workdir", str(pod.folder)) for key, value in self.environment.items()
        }
        for variable in pod.container.get("env", []):
            reference = variable["valueFrom"]["secretKeyRef"]
            secret = self.secrets[reference["name"]][reference["key"]]
            environment[variable["name"]] = base64.b64decode(secret).decode()
        with (pod.folder / "log").open("w") as log:
            pod.code = subprocess.run(
                [*pod.container["command"], *pod.container["args"]], cwd=pod.folder, env=environment,
                stdout=log, stderr=subprocess.STDOUT, check=False,
            ).returncode  # fmt: skip


@contextmanager
def kubernetes(api: Api) -> Iterator[Path]:
    """Serve the API on loopback until the context ends; yields the path of a kubeconfig for it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": address}}],
        "users": [{"name": "me", "user": {}}],
    }
    api.folder.mkdir(parents=True, exist_ok=True)
    (api.folder / "kubeconfig").write_text(yaml.safe_dump(config))
    try:
        yield api.folder / "kubeconfig"
    finally:
        server.shutdown()
        server.server_close()


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.startswith(JOBS):
                self.answer(api.start(body))
            else:
                api.secrets[body["metadata"]["name"]] = body.get("data", {})
                self.answer(body)

        def do_GET(self) -> None:
            job = re.match(rf"{JOBS}/([^/]+)/status", self.path)
            self.answer(api.status(job[1]) if job else {"kind": "PodList", "items": []})

        def do_DELETE(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            api.secrets.pop(self.path.split("?")[0].rsplit("/", 1)[1], None)
            self.answer({"kind": "Status", "status": "Success"})

        def answer(self, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return Handler
