"""Run Snakemake, the scripts of its jobs and circuitloom's commands in forks of one process that has imported their
modules, which saves seconds per start.

`python tests/workflow/snakemake_forks.py FOLDER` is that process. It listens on the socket FOLDER/socket, and ends with
its standard input. When a fork ends, it imports what the fork imported: only the first run of each kind is slow.
Snakemake starts a script with `sys.executable`. In a fork, this is a program that passes the script on to the same
process (`forked_python`).
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from tests.workflow.forked_python import run_in_fork
from tests.workflow.forks import import_of_script

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(__file__).with_name("forked_python.py")


def run_python(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], one_stream: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `python` with `arguments`, which begin with `-m MODULE` or a file, in `folder` with the library that is first
    in PYTHONPATH. Standard error is part of standard output if `one_stream` is true."""
    library = Path(environment["PYTHONPATH"].split(os.pathsep)[0]).resolve()
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors, Path(os.devnull).open() as nothing:
        files = [nothing, output, output if one_stream else errors]
        descriptors = [file.fileno() for file in files]
        code = run_in_fork(_server(library), list(arguments), str(folder), environment, descriptors)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, code, output.read(), errors.read())


def run_snakemake(
    arguments: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in `folder`; standard error is part of standard output."""
    return run_python(["-m", "snakemake", *arguments], folder, environment, one_stream=True)


@cache
def _server(library: Path) -> str:
    """Path of the socket of a process that imports circuitloom from `library`."""
    folder = TemporaryDirectory(prefix="forks-")
    # OpenMP reads its settings when it is loaded, too early for those that the Snakefile makes for jobs
    settings = {"PYTHONPATH": f"{library}{os.pathsep}{ROOT}", "GOMP_SPINCOUNT": "2000"}
    server = subprocess.Popen(
        [sys.executable, __file__, folder.name], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | settings,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    assert server.stdout.readline() == "ready\n"

    def end() -> None:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.close()
        server.wait()
        server.stdout.close()
        folder.cleanup()

    atexit.register(end)
    return f"{folder.name}/socket"


@dataclass
class Fork:
    """A running fork, and the connection that waits for its exit code."""

    pid: int
    connection: socket.socket
    modules: int
    """Descriptor of a file to which it writes the names of the modules that it imported."""


def main() -> None:
    import snakemake.cli  # noqa: F401

    folder = Path(sys.argv[1])
    python = folder / "python"
    words = [sys.executable, "-IS", str(LAUNCHER), str(folder / "socket")]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    python.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(str(folder / "socket"))
        listener.listen()
        print("ready", flush=True)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for each in selector.get_map().values():
                        if isinstance(each.data, Fork):
                            os.kill(each.data.pid, signal.SIGKILL)
                    return
                if key.fileobj is listener:
                    fork = _start(listener, python)
                    selector.register(os.pidfd_open(fork.pid), selectors.EVENT_READ, fork)
                else:
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    _end(key.data)


def _start(listener: socket.socket, python: Path) -> Fork:
    """Fork a process for the next request."""
    connection, _ = listener.accept()
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    while len(content) < int.from_bytes(size, "big"):
        content += connection.recv(2**20)
    request = json.loads(content)
    if request["arguments"][0] != "-m":
        with suppress(Exception):
            import_of_script(Path(request["folder"], request["arguments"][0]))
    modules = os.memfd_create("modules")
    # a fork's garbage collector would touch, and so copy, all memory that it shares with this process
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        _run(files, modules, python, **request)
    for file in files:
        os.close(file)
    return Fork(pid, connection, modules)


def _end(fork: Fork) -> None:
    """Send the exit code of an ended fork, and import the modules that it imported."""
    code = os.waitstatus_to_exitcode(os.waitpid(fork.pid, 0)[1])
    with fork.connection, suppress(BrokenPipeError):
        fork.connection.sendall(str(code).encode())
    os.lseek(fork.modules, 0, os.SEEK_SET)
    with os.fdopen(fork.modules) as file:
        for name in file.read().split():
            # some modules can be imported only by another module of their library
            with suppress(Exception):
                importlib.import_module(name)


def _run(
    files: list[int],
    modules: int,
    python: Path,
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
) -> None:
    """Run `python` with `arguments`, then end this process."""
    code: Any = 1
    known = set(sys.modules)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        if arguments[0] == "-m":
            if arguments[1] == "snakemake":
                sys.executable = str(python)
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        imported = [name for name in sys.modules if name not in known and "__main__" not in name]
        with os.fdopen(modules, "w") as file:
            file.write("\n".join(imported))
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
