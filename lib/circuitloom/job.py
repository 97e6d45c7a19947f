"""The frame around one stage's work: threads set, errors said in one line, details in a log."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import describe


@contextmanager
def job(name: str, threads: int, log: str) -> Iterator[None]:
    """Run the body with `threads` threads; on a fault print one line, write the traceback to `log` and exit with 1."""
    set_threads(threads)
    try:
        yield
    except Exception as error:
        print(f"circuitloom: {name}: {describe(error, log)}", file=sys.stderr, flush=True)
        # a full disk may have no room for the log either
        with suppress(OSError):
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            Path(log).write_text(traceback.format_exc())
        sys.exit(1)


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
