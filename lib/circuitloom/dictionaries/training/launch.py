"""One of the processes that train a sweep together: `torchrun ... -m circuitloom.dictionaries.training.launch
JOB.json`. From a job to the processes that do it: this one, or several on this machine, started as torchrun starts
them."""

import builtins
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from ...config.base import Model
from ...config.dictionaries import Run
from ...core.script import set_threads
from ...language_model.model import load
from .collectives import ALONE, Collectives, DataParallel, TensorParallel
from .sweep import train_sweep


class TrainingJob(Model):
    """A sweep at one layer, as it is handed to a process."""

    runs: list[Run]
    layer: int
    activations: Path
    """The stage's folder."""
    model: Path
    dtype: str
    """Number format of the model."""
    outputs: list[Path]
    """Folder of each run."""
    version: str = ""
    """Whatever else the result depends on."""
    threads: int = 1
    """Threads of a process, where there are several."""

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.runs[0].processes


def train_job(job: TrainingJob, reduction: Collectives = ALONE, device: str | None = None) -> None:
    """Train what the job says; this process' share of it where there are several."""
    model = load(job.model, job.dtype, device)
    train_sweep(job.runs, job.layer, job.activations, model, job.outputs, job.version, reduction)


@contextmanager
def joined(job: TrainingJob) -> Iterator[tuple[Collectives, str]]:
    """The process group that torchrun's environment names, and this process' device: a GPU each where there are any."""
    processes, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if processes != job.processes:
        raise ValueError(
            f"{processes} processes run a job for {job.processes}; start as many as training.processes"
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        split = TensorParallel if job.runs[0].split == "features" else DataParallel
        yield split(), f"cuda:{local}" if on_gpu else "cpu"
    finally:
        dist.destroy_process_group()


def _end_with_parent(parent: int) -> None:
    """A killed parent ends no process of its own, and this one would wait for others, or hold what a new job needs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Do the job of the file that the command line names; what goes wrong is told to torchrun."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_text())
        set_threads(job.threads)
        with joined(job) as (reduction, device):
            train_job(job, reduction, device)
    except Exception as error:
        get_error_handler().record_exception(error)
        # without waiting for what the others were to send
        os._exit(1)


WORKER = ["-m", "circuitloom.dictionaries.training.launch"]
"""What a process runs; the file of the job follows."""


def run(job: TrainingJob, threads: int) -> None:
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


if __name__ == "__main__":
    main()
