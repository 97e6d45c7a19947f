"""What all config models share: frozen, closed, numeric strings read as numbers, paths with variables expanded."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, model_validator


class Section(BaseModel):
    """A frozen, closed config section: a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )

    @classmethod
    def read(cls, key: str, value: Any) -> Any:
        """`value` as a section holds it under `key`; ValidationError where it is not of the key's type."""
        field = cls.model_fields[key]
        kind: Any = Annotated[field.annotation, field]
        return TypeAdapter(kind).validate_python(cls._plain(key, value))

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, keys: Any) -> Any:
        return {k: cls._plain(k, value) for k, value in keys.items()} if isinstance(keys, dict) else keys

    @classmethod
    def _plain(cls, key: Any, value: Any) -> Any:
        """`value`; 1e6, which YAML takes for a text, as a number where `key` is a whole number."""
        exponent = isinstance(value, str) and re.fullmatch(r"-?[0-9_]+(\.[0-9]*)?[eE]\+?[0-9]{1,2}", value)
        if exponent and key in cls.model_fields and _is_whole(cls.model_fields[key].annotation):
            return float(value)
        return value


def _is_whole(kind: Any) -> bool:
    return kind is int or any(map(_is_whole, get_args(kind)))


def expand_path(path: str) -> str:
    """`path` with `${NAME}` and `~` expanded; ValueError where the variable is not set."""
    for name in re.findall(r"\$\{(\w+)\}", path):
        if name not in os.environ:
            raise ValueError(
                f"the environment variable {name} is not set; run with {name}=/some/folder in front"
            )
    return str(Path(os.path.expandvars(path)).expanduser())


ExpandedPath = Annotated[str, AfterValidator(expand_path)]
"""A path in which `${NAME}` stands for an environment variable."""


def as_list(value: Any) -> list[Any]:
    """A list is itself; anything else is a list of one."""
    return list(value) if isinstance(value, list | tuple) else [value]
