"""From a job to the processes that do it: this one, or several on this machine, started as torchrun starts them."""

import builtins
import os
import sys
import tempfile
from pathlib import Path

import torch

from .worker import Job, train_job

WORKER = ["-m", "circuitloom.dictionaries.worker"]
"""What a process runs; the file of the job follows."""


def run(job: Job, threads: int) -> None:
    """Train what the job says, in as many processes as its runs ask for, with `threads` threads in all.

    Raises what a process raised; ChildProcessError where one was killed, ValueError where there are too few GPUs.
    """
    if job.processes == 1:
        train_job(job)
        return
    gpus = torch.cuda.device_count()
    if 0 < gpus < job.processes:
        raise ValueError(
            f"training.processes is {job.processes} and this machine has {gpus} GPU{'s' * (gpus > 1)}, which each "
            f"process needs one of; set it to {gpus} or fewer"
        )
    with tempfile.TemporaryDirectory(prefix="circuitloom-") as folder:
        file = Path(folder) / "job.json"
        share = job.model_copy(update={"threads": max(1, threads // job.processes)})
        file.write_text(share.model_dump_json())
        _start(file, job.processes, Path(folder) / "log")


def _start(file: Path, processes: int, log: Path) -> None:
    # processes of one machine talk to each other and to nobody else
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # read on import: failures are told here, in one line
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"circuitloom-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(log)),
        # after a failure the others only wait for one that is gone
        shutdown_timeout=2,
    )
    try:
        elastic_launch(config, sys.executable)(*WORKER, str(file))
    except ChildFailedError as failed:
        cause = _cause(failed.failures, processes)
        raise cause from cause.__cause__


def _cause(failures: dict, processes: int) -> Exception:
    """What to raise for what the processes died of: the kill of one, else what one raised, with its traceback."""
    # the launcher itself ends the others by SIGTERM
    killed = {rank: each for rank, each in failures.items() if each.exitcode < 0 and each.exitcode != -15}
    if killed:
        rank, failure = next(iter(killed.items()))
        return ChildProcessError(
            f"process {rank} of {processes} was killed ({failure.signal_name()}), where memory is short by the system; "
            "run again: it goes on from the last checkpoint"
        )
    raised = [
        each.error_file_data["message"] for each in failures.values() if "message" in each.error_file_data
    ]
    raised = [each for each in raised if isinstance(each, dict)]
    if not raised:
        return RuntimeError(f"processes ended without a word: {[each.message for each in failures.values()]}")
    kinds = [each["message"].partition(": ") for each in raised]
    first = next((i for i, (kind, _, _) in enumerate(kinds) if _is_expected(kind)), 0)
    kind, _, text = kinds[first]
    error = getattr(builtins, kind)(text) if _is_expected(kind) else RuntimeError(f"{kind}: {text}")
    error.__cause__ = RuntimeError(raised[first]["extraInfo"]["py_callstack"])
    return error


def _is_expected(kind: str) -> bool:
    """Whether it is an error that says what to do; others may only say that a process lost one that had failed."""
    found = getattr(builtins, kind, None)
    return isinstance(found, type) and issubclass(found, ValueError | ArithmeticError | OSError | MemoryError)
