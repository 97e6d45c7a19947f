"""`python -IS forked_python.py SOCKET ...`: run `python ...` in a fork of the process that listens on SOCKET.

That process has imported what programs need (`snakemake_forks`). This one imports little, so that it starts in
milliseconds.
"""

import json
import os
import socket
import sys

SECONDS = 900
"""Timeout of a run."""


def run_in_fork(
    path: str, arguments: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> int:
    """Exit code of `python` with `arguments` and the given standard input, output and error, run by the process that
    listens on the socket `path`."""
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(SECONDS)
        server.connect(path)
        request = json.dumps({"arguments": arguments, "folder": folder, "environment": environment}).encode()
        socket.send_fds(server, [len(request).to_bytes(8, "big")], files)
        server.sendall(request)
        return int(server.recv(16))


if __name__ == "__main__":
    sys.exit(
        run_in_fork(sys.argv[1], sys.argv[2:], os.path.realpath(os.curdir), dict(os.environ), [0, 1, 2]) % 256
    )
