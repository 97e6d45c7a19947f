"""The fixtures of a study with made-up tables and its catalogue."""

from tests.catalog.conftest import catalog, study

__all__ = ["catalog", "study"]
