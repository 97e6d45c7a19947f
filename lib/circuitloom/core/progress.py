"""Progress of long work: a line every few seconds, with a rate and the time left."""

import sys
from typing import Any

from tqdm import tqdm


def progress(
    label: str, total: float, unit: str, done: float = 0, every: float = 5, silent: bool = False
) -> "tqdm[Any]":
    """A tqdm bar that prints whole lines, for jobs that share a terminal and for logs.

    `total` and `done` are in `unit`; call `update(n)` on it and use it as a context. `silent` ones print nothing.
    """
    form = "{desc}: {percentage:3.0f} % of {total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}\n"
    return tqdm(
        desc=label, total=total, initial=done, unit=unit, unit_scale=True, bar_format=form,
        mininterval=every, maxinterval=every * 2, file=sys.stderr, leave=True, disable=silent,
    )  # fmt: skip
