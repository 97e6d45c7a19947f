"""Fixtures shared by the tests of attribution."""

from functools import cache

import pytest
from tests.attribution.inputs import load_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tiny models in float64, each loaded once."""
    folder = tmp_path_factory.mktemp("tiny")
    return cache(lambda architecture: load_tiny(architecture, folder, "float64"))
