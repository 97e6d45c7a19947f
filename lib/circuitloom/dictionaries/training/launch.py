"""Trains a sweep in this process, or in several worker processes.

torch's elastic launcher starts each worker process with `python -m circuitloom.dictionaries.training.launch JOB.json`.
"""

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

from ...config.activations import Outliers
from ...config.base import Section
from ...config.dictionaries import Run
from ...core.script import set_threads
from ...language_model.model import load_model
from .collectives import SINGLE_PROCESS, Collectives, DataParallel, TensorParallel
from .sweep import needs_model, train_cross_layer_sweep, train_sweep


class TrainingJob(Section):
    """Arguments of `train_sweep`, or of `train_cross_layer_sweep` if the runs are cross-layer transcoders. Worker
    processes read a `TrainingJob` from a file."""

    runs: list[Run]
    layers: list[int]
    """One layer, or all layers of cross-layer transcoders."""
    activations: Path
    """Folder of the cached activations."""
    model: Path
    dtype: str
    """The model's dtype."""
    outputs: list[Path]
    """Output folder of each run and layer: all layers of the first run, then those of the second, and so on."""
    version: str = ""
    """Version of the code, such as a hash. Checkpoints of another version are not resumed."""
    outliers: Outliers = Outliers()
    threads: int = 1
    """Number of threads per worker process."""

    @property
    def processes(self) -> int:
        """Number of processes that train the sweep together."""
        return self.runs[0].processes


WORKER = ["-m", "circuitloom.dictionaries.training.launch"]
"""Python arguments that start a worker process. The path of the job's file follows these arguments."""


def run_job(job: TrainingJob, threads: int) -> None:
    """Train the job's sweep in `job.processes` processes. `threads` is the total number of threads.

    ValueError, ArithmeticError, OSError and MemoryError of a process are raised again here. Other errors of a process
    are raised as RuntimeError. Raises ChildProcessError if a process is killed. Raises ValueError if the machine has
    GPUs, but fewer than `job.processes`.
    """
    if job.processes == 1:
        _train(job, "cuda:0" if torch.cuda.is_available() else "cpu", SINGLE_PROCESS)
        return
    gpus = torch.cuda.device_count()
    if 0 < gpus < job.processes:
        raise ValueError(
            f"training.processes is {job.processes} and this machine has {gpus} GPU{'s' * (gpus > 1)}, but each "
            f"process needs one; set it to {gpus} or fewer"
        )
    with tempfile.TemporaryDirectory(prefix="circuitloom-") as folder:
        file = Path(folder) / "job.json"
        worker_job = job.model_copy(update={"threads": max(1, threads // job.processes)})
        file.write_text(worker_job.model_dump_json())
        _start_workers(file, job.processes, Path(folder) / "log")


def _train(job: TrainingJob, device: str, collectives: Collectives) -> None:
    # a model is loaded only if it is needed, because this imports transformers, which takes seconds
    needed = any(needs_model(job.runs, layer, job.activations) for layer in job.layers)
    model = load_model(job.model, job.dtype, device) if needed else None
    where = torch.device(device)
    if job.runs[0].is_cross_layer:
        folders = iter(job.outputs)
        outputs = [{layer: next(folders) for layer in job.layers} for _ in job.runs]
        train_cross_layer_sweep(
            job.runs,
            job.layers,
            job.activations,
            model,
            outputs,
            job.version,
            collectives,
            where,
            job.outliers,
        )
        return
    [layer] = job.layers
    train_sweep(
        job.runs, layer, job.activations, model, job.outputs, job.version, collectives, where, job.outliers
    )


def _start_workers(file: Path, processes: int, log: Path) -> None:
    # workers of one machine only need the loopback interface
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # torch reads this variable when it is imported; failures are reported below, in one line
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
        # after a failure the other processes only wait for the process that ended
        shutdown_timeout=2,
    )
    try:
        elastic_launch(config, sys.executable)(*WORKER, str(file))
    except ChildFailedError as failed:
        error = _worker_error(failed.failures, processes)
        raise error from error.__cause__


def _worker_error(failures: dict, processes: int) -> Exception:
    """Returns a ChildProcessError if a process was killed. Otherwise returns the error that a process raised.

    `__cause__` of the returned error contains the traceback of the process.
    """
    # the launcher itself ends the remaining processes with SIGTERM
    killed = {rank: each for rank, each in failures.items() if each.exitcode < 0 and each.exitcode != -15}
    if killed:
        rank, failure = next(iter(killed.items()))
        return ChildProcessError(
            f"process {rank} of {processes} was killed ({failure.signal_name()}; the system sends SIGKILL if "
            "memory is short); run again: it resumes from the last checkpoint"
        )
    raised = [
        each.error_file_data["message"] for each in failures.values() if "message" in each.error_file_data
    ]
    raised = [each for each in raised if isinstance(each, dict)]
    if not raised:
        return RuntimeError(
            f"processes ended without a message: {[each.message for each in failures.values()]}"
        )
    messages = [each["message"].partition(": ") for each in raised]
    first = next((i for i, (kind, _, _) in enumerate(messages) if _is_expected(kind)), 0)
    kind, _, text = messages[first]
    error = getattr(builtins, kind)(text) if _is_expected(kind) else RuntimeError(f"{kind}: {text}")
    error.__cause__ = RuntimeError(raised[first]["extraInfo"]["py_callstack"])
    return error


def _is_expected(kind: str) -> bool:
    """Whether an error of class `kind` has a message that names a remedy. Other errors may only report a lost
    connection.
    """
    found = getattr(builtins, kind, None)
    return isinstance(found, type) and issubclass(found, ValueError | ArithmeticError | OSError | MemoryError)


@contextmanager
def _process_group(job: TrainingJob) -> Iterator[tuple[Collectives, str]]:
    """Initialises torch.distributed from torchrun's environment variables. Yields (collectives, device).

    The device is `cuda:LOCAL_RANK`, or `cpu` if the machine has no GPU.
    """
    world_size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if world_size != job.processes:
        raise ValueError(
            f"{world_size} processes were started, but training.processes is {job.processes}; start as many"
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        kind = TensorParallel if job.runs[0].split == "features" else DataParallel
        yield kind(), f"cuda:{local_rank}" if on_gpu else "cpu"
    finally:
        dist.destroy_process_group()


def _exit_with_parent(parent: int) -> None:
    """End this process when process `parent` ends. Otherwise this process would keep memory and locks."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Run a worker process. The command-line argument is the job's file. Errors are reported to torch's launcher."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_text())
        set_threads(job.threads)
        with _process_group(job) as (collectives, device):
            _train(job, device, collectives)
    except Exception as error:
        get_error_handler().record_exception(error)
        # exit at once, because this process may wait for others that never answer
        os._exit(1)


if __name__ == "__main__":
    main()
