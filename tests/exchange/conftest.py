"""The fixtures of a study with made-up tables and its catalogue. Tests import benchmarks."""

import sys
from pathlib import Path

from tests.catalog.conftest import catalog, study

__all__ = ["catalog", "study"]

# benchmarks import `peers`, as scripts of their folder; at the end of the path, the folder shadows nothing
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
