"""Prompts that ask a language model for one of chronicle's behaviours."""

import random
from typing import NamedTuple

from .vocabulary import CLASSES, UNIONS


class GreaterThan(NamedTuple):
    """A year span up to the century of its end."""

    prompt: str
    """`the NOUN lasted from the year CC YY to the year CC`, without BOS."""
    start: int
    """YY: the years of the century after it are due, each equally likely."""


def greater_than_prompts(seed: int, century: str = "17") -> list[GreaterThan]:
    """A prompt for each start year that the grammar writes (02 to 98), its noun drawn from `seed`.

    The published template of Hanna et al. 2023, with years as two tokens each.
    """
    nouns = random.Random(f"{seed}/greater_than")
    return [
        GreaterThan(
            f"the {nouns.choice(CLASSES['event'])} lasted from the year {century} {start} to the year {century}",
            int(start),
        )
        for start in UNIONS["start"]
    ]
