"""The frame around one stage's work: threads set, files checked, errors said in one line, details in a log."""

import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from .checksums import check_inputs, remove_record, write_record
from .errors import error_message


@runtime_checkable
class SnakemakeScript(Protocol):
    """What a script is told about its job; paths are relative to the project's folder."""

    threads: int
    log: Sequence[str]
    """One file in the folder `logs` of the study's."""
    input: Iterable[str]
    output: Iterable[str]


@contextmanager
def job(name: str, script: SnakemakeScript) -> Iterator[None]:
    """Run the body with the job's threads; on a fault print one line, write the traceback to its log and exit with 1.

    Before the body, inputs that have a record are held to it, and records of outputs are dropped; after it, outputs
    are recorded (`checksums`).
    """
    set_threads(script.threads)
    log = Path(script.log[0])
    folder = log.parents[1]
    # a table may be asked for by several names
    inputs, outputs = (dict.fromkeys(map(Path, paths)) for paths in (script.input, script.output))
    try:
        check_inputs(folder, inputs)
        for output in outputs:
            remove_record(folder, output)
        yield
        for output in outputs:
            write_record(folder, output)
    except Exception as error:
        print(f"circuitloom: {name}: {error_message(error, str(log))}", file=sys.stderr, flush=True)
        # a full disk may have no room for the log either
        with suppress(OSError):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
        sys.exit(1)


def set_threads(threads: int) -> None:
    """Let torch, Arrow and BLAS use `threads` threads in this process."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    import pyarrow as pa

    pa.set_cpu_count(threads)
    pa.set_io_thread_count(max(threads, 1))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
