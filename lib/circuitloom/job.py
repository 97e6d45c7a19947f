"""The frame around one stage's work: threads set, errors said in one line, details in a log."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def job(name: str, threads: int, log: str | None = None) -> Iterator[None]:
    """Run the body with `threads` threads; on a fault print one line, write the traceback to `log` and exit with 1."""
    set_threads(threads)
    try:
        yield
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        if log:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            Path(log).write_text(traceback.format_exc())
        print(f"circuitloom: {name}: {describe(error)}", file=sys.stderr, flush=True)
        sys.exit(1)


def describe(error: BaseException) -> str:
    """What went wrong, in one line, with the remedy where it is known."""
    if isinstance(error, OSError) and error.errno == 28:
        return f"the disk is full ({error.filename or 'while writing'}); make room and run again: what is done is kept"
    if isinstance(error, MemoryError):
        return "out of memory; lower the batch or the shard_rows of the stage"
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())


def set_threads(threads: int) -> None:
    """Let torch, zarrs, Arrow and BLAS use `threads` threads in this process."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    import pyarrow as pa

    pa.set_cpu_count(threads)
    pa.set_io_thread_count(max(threads, 1))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
