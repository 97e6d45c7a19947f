"""Reports the progress of long work in one line every few seconds, with rate and remaining time; prints notices."""

import sys
from typing import Any

from tqdm import tqdm


def announce(stage: str, fact: str) -> None:
    """Print a line on the terminal about what a job does, or what it has left out."""
    print(f"circuitloom: {stage}: {fact}", file=sys.stderr, flush=True)


def progress(
    description: str, total: float, unit: str, done: float = 0, every: float = 5, silent: bool = False
) -> "tqdm[Any]":
    """Returns a tqdm bar that prints complete lines, for logs and for jobs that share a terminal.

    `total` and `done` are counts of `unit`. A line is printed every `every` seconds, or never if `silent`. Use the bar
    as a context manager and call `update(n)`.
    """
    line = "{desc}: {percentage:3.0f} % of {total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}\n"
    return tqdm(
        desc=description, total=total, initial=done, unit=unit, unit_scale=True, bar_format=line,
        mininterval=every, maxinterval=every * 2, file=sys.stderr, leave=True, disable=silent,
    )  # fmt: skip
