"""Reads files that torch saved, without running code in them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .errors import first_line


class InertObject:
    """Replaces every object of a class that torch does not know when a file is loaded.

    `given` are the arguments with which the object was made. The attributes are those of the object.
    """

    given: tuple[Any, ...] = ()

    def __new__(cls, *given: Any) -> "InertObject":
        """Returns an object that keeps the arguments."""
        made = super().__new__(cls)
        made.given = given
        return made

    def __init__(self, *given: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def load_torch_file(file: Path, remedy: str, may_have: Callable[[str], bool] = lambda name: True) -> Any:
    """Returns the content of a file that torch saved. Objects of other classes than torch's become `InertObject`s.

    `may_have` says of a class, by its full name, whether the file may have objects of it. `remedy` ends the messages.
    Raises ValueError if the file is missing or damaged, if it has an object of another class, or if reading it would
    run code.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    if not file.is_file():
        raise ValueError(f"{file}: file not found; {remedy}")
    try:
        classes = get_unsafe_globals_in_checkpoint(str(file))
        unwanted = sorted(name for name in classes if not may_have(name))
        if not unwanted:
            with safe_globals([(InertObject, name) for name in classes]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message advises to load the file without this safety
        raise ValueError(f"{file}: damaged, or reading it would run code; {remedy}") from error
    # a damaged or malicious pickle can raise any exception
    except Exception as error:
        raise ValueError(f"{file}: cannot be read safely ({first_line(error)}); {remedy}") from error
    raise ValueError(f"{file}: reading it would run {unwanted[0]}, which is not needed; {remedy}")
