"""Templates of prompts, the words that fill them, and what is asked of the attribution graphs of their prompts."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt

from .base import Section

Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
Slots = dict[Annotated[str, Field(pattern=r"^[a-z_0-9]+$")], Texts]


class Aggregation(Section):
    """Which attribution graphs are joined to an aggregate graph, and what they have in common."""

    aggregated: NonNegativeInt = 40
    """Largest number of prompts of the finding half whose attribution graphs are aggregated. With 0, there is no common
    circuit. Greater-than measures the common circuit on as many prompts of the testing half, the others on all."""
    common: Annotated[float, Field(gt=0, le=1)] = 0.8
    """A node or edge is common if it is in the graphs of at least this share of the template's prompts."""


def slots_of(template: str) -> list[str]:
    """Returns the distinct names of a template's slots, in order. A slot is written `{name}`."""
    return list(dict.fromkeys(re.findall(r"\{([a-z_0-9]+)\}", template)))


def check_slots(templates: Sequence[str], slots: Slots, known: Sequence[str] = ()) -> None:
    """Raise ValueError if a template has a slot that is neither in `slots` nor in `known`."""
    for template in templates:
        for name in slots_of(template):
            if name not in slots and name not in known:
                raise ValueError(f"{template!r}: nothing fills {{{name}}}; add it to `slots`")
