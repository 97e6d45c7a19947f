"""Base class of all config sections, and the expansion of variables in paths."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt, TypeAdapter, model_validator


class Section(BaseModel):
    """A config section. Sections are immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def read(cls, key: str, value: Any) -> Any:
        """Returns `value`, validated as the value of `key`. Raises ValidationError if `value` is not valid."""
        field = cls.model_fields[key]
        kind: Any = Annotated[field.annotation, field]
        return TypeAdapter(kind).validate_python(cls._read_exponent(key, value))

    @model_validator(mode="before")
    @classmethod
    def _read_exponents(cls, keys: Any) -> Any:
        return (
            {k: cls._read_exponent(k, value) for k, value in keys.items()} if isinstance(keys, dict) else keys
        )

    @classmethod
    def _read_exponent(cls, key: Any, value: Any) -> Any:
        """Returns text such as 1e6 as a number if `key` is an integer, because YAML parsers return 1e6 as text. Returns
        other values unchanged."""
        has_exponent = isinstance(value, str) and re.fullmatch(
            r"-?[0-9_]+(\.[0-9]*)?[eE]\+?[0-9]{1,2}", value
        )
        if has_exponent and key in cls.model_fields and _is_integer(cls.model_fields[key].annotation):
            return float(value)
        return value


def _is_integer(annotation: Any) -> bool:
    return annotation is int or any(map(_is_integer, get_args(annotation)))


def expand_path(path: str) -> str:
    """Expand `${NAME}` and `~` in a path. Raises ValueError if an environment variable is not set."""
    for name in re.findall(r"\$\{(\w+)\}", path):
        if name not in os.environ:
            raise ValueError(
                f"the environment variable {name} is not set; run with `{name}=/some/folder snakemake ...`"
            )
    return str(Path(os.path.expandvars(path)).expanduser())


Batch = PositiveInt | Literal["auto"]
"""Number of sequences per forward pass. With `auto`, `language_model.batches` chooses it."""
ExpandedPath = Annotated[str, AfterValidator(expand_path)]
"""A path in which `${NAME}` is replaced by the value of an environment variable, and `~` by the home folder."""


def as_list(value: Any) -> list[Any]:
    """Returns a list or tuple as a list, and any other value as a list with one element."""
    return list(value) if isinstance(value, list | tuple) else [value]
