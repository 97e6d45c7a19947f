"""Run Snakemake's command line in forks of one process that has imported it, which saves a second per start.

`python -m tests.workflow.snakemake_forks` is that process. Requests are lines of JSON on standard input; each is
answered by a line on standard output.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_snakemake(
    arguments: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in `folder`. It must start no jobs: they would need a process of their own."""
    with tempfile.NamedTemporaryFile("r") as output:
        request = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": environment,
            "output": output.name,
        }
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps(request), file=server.stdin, flush=True)
        code = json.loads(server.stdout.readline())["code"]
        return subprocess.CompletedProcess(arguments, code, output.read())


@cache
def _server() -> "subprocess.Popen[str]":
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.workflow.snakemake_forks"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def end() -> None:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.close()
        server.wait()
        server.stdout.close()

    atexit.register(end)
    return server


def main() -> None:
    import snakemake.cli  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(**request)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"code": code}), flush=True)


def _run(arguments: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """Run Snakemake, then end this process."""
    code: Any = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
        from snakemake.cli import main as snakemake_main

        sys.argv = [str(Path(sys.executable).with_name("snakemake")), *arguments]
        snakemake_main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
