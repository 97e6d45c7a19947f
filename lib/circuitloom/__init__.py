"""circuitloom: from text to verified circuits through the MLPs of a language model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .catalog.entry import open_catalog

__all__ = ["open_catalog"]


def __getattr__(name: str) -> Any:
    """The catalogue's entry, imported when it is asked for: every job imports this package, few need DuckDB."""
    if name == "open_catalog":
        from .catalog.entry import open_catalog

        return open_catalog
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
