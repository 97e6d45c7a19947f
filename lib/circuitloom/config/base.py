"""What all config models share: frozen, closed, numeric strings read as numbers, paths with variables expanded."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


class Model(BaseModel):
    """A frozen, closed config section: a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


def expand(path: str) -> str:
    """`path` with `${NAME}` and `~` expanded; ValueError where the variable is not set."""
    for name in re.findall(r"\$\{(\w+)\}", path):
        if name not in os.environ:
            raise ValueError(
                f"the environment variable {name} is not set; run with {name}=/some/folder in front"
            )
    return str(Path(os.path.expandvars(path)).expanduser())


ExpandedPath = Annotated[str, AfterValidator(expand)]
"""A path in which `${NAME}` stands for an environment variable."""


def as_list(value: Any) -> list[Any]:
    """A list is itself; anything else is a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]
