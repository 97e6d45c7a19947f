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
    """A case study: a question about the model and its transcoders. Some keys are bounds of its claims."""

    tables: ClassVar[tuple[str, ...]]
    """Names of the tables that the case study writes."""
    figures: ClassVar[tuple[str, ...]]
    """Names of the pictures that the case study draws, without the suffix .png."""
    no_cross_layer: ClassVar[str] = ""
    """Why the case study takes no cross-layer transcoder, with the remedy. Empty if it takes one."""
    alone: ClassVar[bool] = False
    """Whether the case study makes its own model and dictionaries, and reads none of the study."""
    run: str | None = None
    """Run of transcoders, or cross-layer transcoder, to study. With null, it is `circuits.run`."""
    seed: NonNegativeInt = 0
    """Seed of all random choices: words in templates, bootstrap samples and random features."""
    resamples: PositiveInt = 2000
    """Number of bootstrap samples per interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the bootstrap intervals."""

    @property
    def generated(self) -> bool:
        """Whether the case study needs the concepts of every token. Only the generated corpus has these concepts."""
        return False

    @property
    def first_run(self) -> str | None:
        """Run under study. With None, it is `circuits.run`."""
        return self.run

    @property
    def runs_named(self) -> list[str]:
        """Names of the runs that the case study reads in addition to `run`."""
        return []


def slots_of(template: str) -> list[str]:
    """Returns the distinct names of a template's slots, in order. A slot is written `{name}`."""
    return list(dict.fromkeys(re.findall(r"\{([a-z_0-9]+)\}", template)))


def check_slots(templates: Sequence[str], slots: Slots, known: Sequence[str] = ()) -> None:
    """Raise ValueError if a template has a slot that is neither in `slots` nor in `known`."""
    for template in templates:
        for name in slots_of(template):
            if name not in slots and name not in known:
                raise ValueError(f"{template!r}: nothing fills {{{name}}}; add it to `slots`")
