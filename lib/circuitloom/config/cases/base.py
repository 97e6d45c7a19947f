"""What all case studies share."""

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from ..base import Section

Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
Slots = dict[Annotated[str, Field(pattern=r"^[a-z_0-9]+$")], Texts]
Bound = Annotated[float, Field(ge=0, le=1)]


class Case(Section):
    """A case study: what is asked of the model and its transcoders, and claims about the answer."""

    tables: ClassVar[tuple[str, ...]]
    """Tables that it writes."""
    figures: ClassVar[tuple[str, ...]]
    """Pictures that it draws, without their ending."""
    generated: ClassVar[bool] = False
    """It asks for what only the generated corpus knows: the concepts of every word."""
    run: str | None = None
    """Transcoders that it goes through; null: those of `circuits.run`."""
    seed: NonNegativeInt = 0
    """Seed of all that is drawn: words in templates, bootstrap samples, random features."""
    resamples: PositiveInt = 2000
    """Bootstrap samples, over prompts or whatever else a claim names, that an interval rests on."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the bootstrap samples that lie within an interval."""

    @property
    def runs_named(self) -> list[str]:
        """Other runs that the case names."""
        return []


def slots_of(template: str) -> list[str]:
    """Names of a template's slots, `{name}`, in order, each once."""
    return list(dict.fromkeys(re.findall(r"\{([a-z_0-9]+)\}", template)))


def check_slots(templates: Sequence[str], slots: Slots, known: Sequence[str] = ()) -> None:
    """ValueError where a template has a slot that nothing fills."""
    for template in templates:
        for name in slots_of(template):
            if name not in slots and name not in known:
                raise ValueError(f"{template!r}: nothing fills {{{name}}}; add it to `slots`")
