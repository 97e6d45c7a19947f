"""`python -m tests.workflow.forks FILE`: run jobs in forks of one process that has imported all their modules.

A job starts in milliseconds, so a test can kill hundreds of them. Requests are lines of JSON on standard input; each is
answered by a line on standard output.
"""

import ast
import gc
import importlib
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

MODULES = "job.modules"
"""File in which a job lists the modules that it imported; the parent imports them before the next job."""
OUTPUT = "job.out"
"""File with a job's output and errors."""


def main() -> None:
    jobs = pickle.loads(Path(sys.argv[1]).read_bytes())
    code = {
        script: compile(Path(script).read_text(), script, "exec") for script in {j["script"] for j in jobs}
    }
    for script in code:
        import_of_script(Path(script))
    print(json.dumps({"ready": len(jobs)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        job = jobs[request["job"]]
        # a fork's garbage collector would touch, and so copy, all memory that it shares with this process
        gc.collect()
        gc.freeze()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(Path(request["folder"]), code[job["script"]], job["snakemake"])
        exit_code = _wait(child, request["kill"])
        seconds = time.monotonic() - started
        _import_modules(Path(request["folder"]) / MODULES)
        print(json.dumps({"code": exit_code, "seconds": seconds}), flush=True)


def import_of_script(script: Path) -> None:
    """Import what a script imports."""
    nodes = [n for n in ast.walk(ast.parse(script.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(nodes, []), script, "exec"), {})


def _import_modules(file: Path) -> None:
    """Import the modules that a job listed; a job that did not finish lists none."""
    if file.is_file():
        for name in file.read_text().split():
            # some modules can be imported only by another module of their library
            with suppress(Exception):
                importlib.import_module(name)
        file.unlink()


def _run(folder: Path, code, snakemake: bytes) -> None:
    """Run a script in the project `folder`, then end this process."""
    exit_code = 1
    try:
        os.chdir(folder)
        known = set(sys.modules)
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        exec(code, {"snakemake": pickle.loads(snakemake)})
        Path(MODULES).write_text("\n".join(set(sys.modules) - known))
        exit_code = 0
    except SystemExit as stop:
        exit_code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(exit_code)


def _wait(child: int, seconds: float | None) -> int:
    """Exit code of a child; it is killed if it still runs after `seconds`, and the code is then -SIGKILL."""
    handle = os.pidfd_open(child)
    try:
        if not select.select([handle], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
