"""circuitloom: transcoders, SAEs and attribution graphs, from text to verified circuits through a language model's MLPs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attribution.tracer import Tracer, open_tracer
    from .catalog.client import open_catalog
    from .dictionaries.dictionary import Dictionary, load_dictionary

    __version__: str

_MODULES = {
    "Dictionary": "dictionaries.dictionary",
    "Tracer": "attribution.tracer",
    "load_dictionary": "dictionaries.dictionary",
    "open_catalog": "catalog.client",
    "open_tracer": "attribution.tracer",
}
"""Public name to the module that defines it."""
__all__ = ["Dictionary", "Tracer", "load_dictionary", "open_catalog", "open_tracer"]


def __getattr__(name: str) -> Any:
    """A public name, imported on first use: every job imports this package, and few need torch or DuckDB."""
    if name == "__version__":
        from importlib.metadata import version

        return version("circuitloom")
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
