"""A study with made-up tables, and its catalogue. `tests/exchange` has the same fixtures."""

from collections.abc import Iterator

import duckdb
import pytest
from tests.catalog.tables import Study, make_study

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import open_catalog


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    # engines take some characters of a path for a pattern
    study = make_study(tmp_path_factory.mktemp("catalog") / "a study=é")
    build_catalog(study.folder)
    return study


@pytest.fixture(scope="module")
def catalog(study: Study) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_catalog(study.folder) as connection:
        yield connection
