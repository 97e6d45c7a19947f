"""Transcoders, SAEs and attribution graphs: from text to verified circuits through the MLPs of a language model.

The names below are the public API. The docstring of each name has an example.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ablation.generation import TextGenerator, open_generator
    from .attribution.tracer import Tracer, open_tracer
    from .catalog.client import open_catalog
    from .dictionaries.dictionary import Dictionary, load_dictionary
    from .evaluation.concepts import score_features
    from .evaluation.held_out import load_held_out
    from .evaluation.metrics import prediction_sums, reconstruction_sums
    from .evaluation.scoring import score_runs
    from .language_model.model import load_model

    __version__: str

_MODULES = {
    "Dictionary": "dictionaries.dictionary",
    "TextGenerator": "ablation.generation",
    "Tracer": "attribution.tracer",
    "load_dictionary": "dictionaries.dictionary",
    "load_held_out": "evaluation.held_out",
    "load_model": "language_model.model",
    "open_catalog": "catalog.client",
    "open_generator": "ablation.generation",
    "open_tracer": "attribution.tracer",
    "prediction_sums": "evaluation.metrics",
    "reconstruction_sums": "evaluation.metrics",
    "score_features": "evaluation.concepts",
    "score_runs": "evaluation.scoring",
}
"""Maps each public name to its module. Names are imported on first use: every job imports this package, but few jobs
need torch or DuckDB."""
__all__ = [
    "Dictionary",
    "TextGenerator",
    "Tracer",
    "load_dictionary",
    "load_held_out",
    "load_model",
    "open_catalog",
    "open_generator",
    "open_tracer",
    "prediction_sums",
    "reconstruction_sums",
    "score_features",
    "score_runs",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
