"""What every script does before and after its work: set threads, verify inputs, record outputs, and report errors."""

import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from .checksums import check_inputs, remove_record, write_record
from .errors import error_message

VERIFY_INPUTS = "CIRCUITLOOM_VERIFY_INPUTS"
"""Environment variable for the config key `resources.verify_inputs`. If its value is 0, only the sizes of inputs are
compared."""


@runtime_checkable
class SnakemakeScript(Protocol):
    """Attributes of Snakemake's `snakemake` object that `job` uses. Paths are relative to the project's folder."""

    threads: int
    log: Sequence[str]
    """One path: results/STUDY/logs/JOB.log."""
    input: Iterable[str]
    output: Iterable[str]


@contextmanager
def job(name: str, script: SnakemakeScript) -> Iterator[None]:
    """Context manager that runs its body as a job.

    Before the body, inputs are compared with their records (`core.checksums`), and the records of outputs are removed.
    After the body, new records of outputs are written. After an error, one line is printed, the traceback is written to
    the job's log, and the process exits with 1.
    """
    set_threads(script.threads)
    log = Path(script.log[0])
    folder = log.parents[1]
    # remove duplicates, because two names of Snakemake may refer to the same file
    inputs, outputs = (dict.fromkeys(map(Path, paths)) for paths in (script.input, script.output))
    started = False
    try:
        check_inputs(folder, inputs, contents=os.environ.get(VERIFY_INPUTS) != "0")
        started = True
        for output in outputs:
            remove_record(folder, output)
        yield
        for output in outputs:
            write_record(folder, output)
    except Exception as error:
        # Snakemake deletes the outputs of a failed job, some of which may have a record by now
        for output in outputs if started else []:
            with suppress(OSError):
                remove_record(folder, output)
        print(f"circuitloom: {name}: {error_message(error, str(log))}", file=sys.stderr, flush=True)
        # a full disk may have no space for the log either
        with suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
        sys.exit(1)


def set_threads(threads: int) -> None:
    """Set the number of threads of torch, Arrow and BLAS in this process."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    import pyarrow as pa

    pa.set_cpu_count(threads)
    pa.set_io_thread_count(max(threads, 1))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
