"""`python -m tests.workflow.forks FILE`: runs jobs, each in a fork of a process that has imported all they need.

A job so starts in milliseconds, and can be killed hundreds of times in a test. Requests come as lines of JSON on
standard input, and are answered on standard output.
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
"""Where a job says what it imported on its way, which the next finds imported."""
OUTPUT = "job.out"
"""What a job printed."""


def main() -> None:
    jobs = pickle.loads(Path(sys.argv[1]).read_bytes())
    code = {
        script: compile(Path(script).read_text(), script, "exec") for script in {j["script"] for j in jobs}
    }
    for script in code:
        _import(Path(script))
    print(json.dumps({"ready": len(jobs)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        job = jobs[request["job"]]
        # a fork's collector would touch, and so copy, all that it shares with this process
        gc.collect()
        gc.freeze()
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            _work(Path(request["folder"]), code[job["script"]], job["snakemake"])
        ended = _wait(child, request["kill"])
        seconds = time.monotonic() - begin
        _learn(Path(request["folder"]) / MODULES)
        print(json.dumps({"code": ended, "seconds": seconds}), flush=True)


def _import(script: Path) -> None:
    """Import what a script does."""
    nodes = [n for n in ast.walk(ast.parse(script.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(nodes, []), script, "exec"), {})


def _learn(file: Path) -> None:
    """Import what a job did, if it came to its end."""
    if file.is_file():
        for name in file.read_text().split():
            # a module of a library may be there only within another
            with suppress(Exception):
                importlib.import_module(name)
        file.unlink()


def _work(folder: Path, code, snakemake: bytes) -> None:
    """Run a script in the project `folder`, and end this process."""
    ended = 1
    try:
        os.chdir(folder)
        known = set(sys.modules)
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        exec(code, {"snakemake": pickle.loads(snakemake)})
        Path(MODULES).write_text("\n".join(set(sys.modules) - known))
        ended = 0
    except SystemExit as stop:
        ended = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(ended)


def _wait(child: int, seconds: float | None) -> int:
    """Exit code of a child, which is killed after so many seconds if it is still there: then -SIGKILL."""
    handle = os.pidfd_open(child)
    try:
        if not select.select([handle], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
