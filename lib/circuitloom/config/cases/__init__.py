"""Config of a study's case studies, which are written in the study or in files that several studies share."""

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from ..base import as_list, expand_path
from ..yaml_files import refuse_repeated_keys
from .base import Case
from .compare import CompareCase
from .difference import DifferenceCase
from .feature import FeatureCase
from .greater_than import GreaterThanCase
from .known_steps import KnownStepsCase
from .planted import PlantedCase

__all__ = [
    "KINDS",
    "Case",
    "CaseStudy",
    "Cases",
    "CompareCase",
    "DifferenceCase",
    "FeatureCase",
    "GreaterThanCase",
    "KnownStepsCase",
    "PlantedCase",
]

CaseStudy = Annotated[
    FeatureCase | GreaterThanCase | DifferenceCase | PlantedCase | CompareCase | KnownStepsCase,
    Field(discriminator="kind"),
]
"""A case study of any kind. Its keys depend on `kind`."""
KINDS: dict[str, type[Case]] = {
    "feature": FeatureCase,
    "greater_than": GreaterThanCase,
    "difference": DifferenceCase,
    "planted": PlantedCase,
    "compare": CompareCase,
    "known_steps": KnownStepsCase,
}
"""Maps the name of each kind of case study to the class with its keys."""
PROJECT = Path(__file__).parents[4]
"""The project's folder. Paths that do not exist in the working directory are relative to this folder."""


def _read(cases: Any) -> Any:
    """Returns case studies by name. `cases` may be the path of a file with case studies, or a list of paths.

    If several files have the same case study, a later file overrides single keys.
    """
    if isinstance(cases, dict):
        return cases
    merged: dict[str, Any] = {}
    for path in as_list(cases):
        for name, keys in _read_file(str(path)).items():
            merged[name] = {**merged.get(name, {}), **(keys if isinstance(keys, dict) else {})}
    return merged


def _read_file(path: str) -> dict[str, Any]:
    path = expand_path(path)
    file = next((each for each in (Path(path), PROJECT / path) if each.is_file()), None)
    if file is None:
        raise ValueError(f"there is no file {path}; config/cases has those of the project")
    refuse_repeated_keys(file)
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())}); fix it") from None
    if not isinstance(content, dict) or any(not isinstance(keys, dict) for keys in content.values()):
        raise ValueError(f"{path}: not a mapping of names to case studies; see config/cases for examples")
    return content


def _check_names(cases: dict[str, Case]) -> dict[str, Case]:
    for name in cases:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(f"{name!r} is no valid name: use letters, digits, _, . and -; rename it")
    return cases


Cases = Annotated[dict[str, CaseStudy], BeforeValidator(_read), AfterValidator(_check_names)]
"""Case studies by name."""
