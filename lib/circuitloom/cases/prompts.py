"""Prompts of a case study: templates filled with words, as tokens."""

import itertools
import random
import re
from collections.abc import Sequence

from ..config.cases.base import Slots, slots_of

FINDING, TESTING = "finding", "testing"
"""Halves of the prompts: what is chosen is chosen on the first, and claimed of the second."""


def fill(templates: Sequence[str], slots: Slots, count: int, seed: int) -> list[tuple[str, ...]]:
    """Up to `count` fillings of templates that belong together, the same words in all; each filling once.

    A slot whose name is another's with `_2` behind it never has that one's word. Drawn with `seed`, all where there
    are no more than `count`.
    """
    names = [name for name in slots if any(name in slots_of(template) for template in templates)]
    choices = [slots[name] for name in names]
    total = 1
    for words in choices:
        total *= len(words)
    if total <= 10_000:
        drawn = list(itertools.product(*choices))
        random.Random(seed).shuffle(drawn)
    else:
        generator = random.Random(seed)
        draws = (tuple(generator.choice(words) for words in choices) for _ in range(20 * count))
        drawn = list(dict.fromkeys(draws))
    filled = []
    for words in drawn:
        values = dict(zip(names, words, strict=True))
        if any(values[name] == values.get(f"{name}_2") for name in names):
            continue
        texts = tuple(_fill(template, values) for template in templates)
        filled += [] if texts in filled else [texts]
        if len(filled) == count:
            break
    return filled


def _fill(template: str, values: dict[str, str]) -> str:
    return re.sub(r"\{([a-z_0-9]+)\}", lambda found: values.get(found[1], found[0]), template)
