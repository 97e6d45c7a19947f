"""Writes the errors of a config as one line that names the key and the remedy."""

import difflib
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .base import Section
from .cases import KINDS

# pydantic's location of an error includes the tag of a union, which is not a key of the config
_TAGS = {"chronicle", "guilds", "files", "hub", "pretrain", "path", *KINDS}


def one_line(model: type[Section], error: ValidationError, where: str) -> str:
    """Returns one line about the first of pydantic's errors: the key, the error and the remedy.

    The key includes the names of its sections. `where` is the key of `model` in the study.
    """
    first = _nearest(error.errors(include_url=False))
    context = first.get("ctx", {})
    # index of the tag in the location; the tag follows the name of the section or of the case study
    tag = 2 if first["loc"][:1] == ("cases",) else 1
    location = [str(part) for i, part in enumerate(first["loc"]) if not (i == tag and part in _TAGS)]
    key = ".".join(([where] if where else []) + [part for part in location if "[" not in part])
    match first["type"]:
        case "extra_forbidden":
            return unknown_key(model, key)
        case "missing":
            return f"{key}: missing; set it (config/README.md describes it)"
        case "value_error":
            text = str(context["error"])
            return f"{key}: {text}" if key and not text.startswith(key.split(".")[0]) else text
        case "union_tag_not_found":
            return f"{key}.{_discriminator(context)}: missing; config/README.md lists its values"
        case "union_tag_invalid":
            name = _discriminator(context)
            return f"{key}.{name}: {context['tag']!r} is no {name}; choose from {context['expected_tags']}"
        case _:
            return f"{key}: {first['msg']}, not {first['input']!r}"


def _discriminator(context: dict[str, Any]) -> str:
    """Returns the name of the key that selects a member of a union, such as `source`."""
    return context["discriminator"].strip("'")


def unknown_key(model: type[Section], key: str) -> str:
    """Returns the message for an unknown key, with the most similar key of `model` and of its sections."""
    near = difflib.get_close_matches(key.rpartition(".")[2], _known_keys(model), n=1, cutoff=0.5)
    return f"{key}: unknown key; " + (
        f"did you mean {near[0]}?" if near else "config/README.md lists the keys"
    )


def _nearest(errors: list[Any]) -> Any:
    """Returns the first error. For a union, returns the error of the member that fits the value best."""
    *path, member = errors[0]["loc"] or [""]
    if "[" not in str(member):
        return errors[0]
    members = [each for each in errors if list(each["loc"][: len(path)]) == path]
    return max(
        members,
        key=lambda e: (len(e["loc"]), isinstance(e["input"], str) == (e["type"] == "literal_error")),
    )


def _known_keys(model: type[Section]) -> list[str]:
    """Returns the names of all keys of a config section and of its subsections."""
    keys = set(re.findall(r'"(\w+)": \{', str(TypeAdapter(model).json_schema()).replace("'", '"')))
    return sorted(keys | set(model.model_fields))
