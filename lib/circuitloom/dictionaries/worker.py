"""One of the processes that train a sweep together: `torchrun ... -m circuitloom.dictionaries.worker JOB.json`."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from ..config.base import Model
from ..config.dictionaries import Run
from ..job import set_threads
from ..language_model.model import load
from .reduction import ALONE, BatchSplit, FeatureSplit, Reduction
from .sweep import train_sweep


class Job(Model):
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


def train_job(job: Job, reduction: Reduction = ALONE, device: str | None = None) -> None:
    """Train what the job says; this process' share of it where there are several."""
    model = load(job.model, job.dtype, device)
    train_sweep(job.runs, job.layer, job.activations, model, job.outputs, job.version, reduction)


@contextmanager
def joined(job: Job) -> Iterator[tuple[Reduction, str]]:
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
        split = FeatureSplit if job.runs[0].split == "features" else BatchSplit
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
        job = Job.model_validate_json(Path(sys.argv[1]).read_text())
        set_threads(job.threads)
        with joined(job) as (reduction, device):
            train_job(job, reduction, device)
    except Exception as error:
        get_error_handler().record_exception(error)
        # without waiting for what the others were to send
        os._exit(1)


if __name__ == "__main__":
    main()
