"""Keys that all kinds of case study share."""

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from ..base import Section

Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
Slots = dict[Annotated[str, Field(pattern=r"^[a-z_0-9]+$")], Texts]
Bound = Annotated[float, Field(ge=0, le=1)]


class Case(Section):
    """A case study: a question about the model and its transcoders, and bounds of the claims about the answer."""

    tables: ClassVar[tuple[str, ...]]
    """Names of the tables that it writes."""
    figures: ClassVar[tuple[str, ...]]
    """Names of the pictures that it draws, without suffix."""
    generated: ClassVar[bool] = False
    """Whether it needs concept annotations of every token, which only the generated corpus has."""
    run: str | None = None
    """Transcoders to study; null: those of `circuits.run`."""
    seed: NonNegativeInt = 0
    """Seed of everything that is drawn: words in templates, bootstrap samples, random features."""
    resamples: PositiveInt = 2000
    """Bootstrap samples per interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""

    @property
    def runs_named(self) -> list[str]:
        """Other runs that the case reads."""
        return []


def slots_of(template: str) -> list[str]:
    """Distinct names of a template's slots, `{name}`, in order."""
    return list(dict.fromkeys(re.findall(r"\{([a-z_0-9]+)\}", template)))


def check_slots(templates: Sequence[str], slots: Slots, known: Sequence[str] = ()) -> None:
    """Raise ValueError for a template with a slot without words."""
    for template in templates:
        for name in slots_of(template):
            if name not in slots and name not in known:
                raise ValueError(f"{template!r}: nothing fills {{{name}}}; add it to `slots`")
