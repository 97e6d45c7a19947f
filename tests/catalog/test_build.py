"""The catalogue: its views match the files that exist, and the study folder can be moved."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from tests.activations.inputs import make_tokens
from tests.catalog.tables import (
    FEATURE,
    FILLED,
    LAYER,
    RUN,
    RUNS,
    SPLIT,
    Study,
    make_study,
    write_features,
)

from circuitloom.catalog import build
from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import open_catalog
from circuitloom.catalog.queries import fill_in, macros
from circuitloom.catalog.sandbox import open_sandbox, run_statement
from circuitloom.core.layout import TABLE_FOLDERS, Layout
from circuitloom.core.tables import FAITHFULNESS, TABLES, read_table, write_table

ADDED = {"code": ["features"]}
"""Columns that a view adds to its table."""
COUNTS = """
SELECT count(*) FROM feature
UNION ALL SELECT count(*) FROM token
UNION ALL SELECT count(*) FROM coactivation($run, $layer, $feature)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("build") / "study")
    build_catalog(study.folder)
    return study


@pytest.fixture
def folder(study: Study, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(study.folder, tmp_path / "study")


def counts(connection: duckdb.DuckDBPyConnection) -> list[int]:
    return [count for (count,) in connection.execute(fill_in(COUNTS, FILLED)).fetchall()]


@pytest.fixture(scope="module")
def expected(study: Study) -> list[int]:
    with open_catalog(study.folder) as connection:
        numbers = counts(connection)
    assert min(numbers) > 20
    return numbers


def columns(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE {table}").fetchall()}


def test_every_table_is_a_view_with_its_columns(study: Study) -> None:
    with open_catalog(study.folder) as connection:
        for table in TABLES:
            assert list(columns(connection, table.name)) == [*table.columns, *ADDED.get(table.name, [])]
        views = connection.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    assert {name for (name,) in views} == {table.name for table in TABLES}


def test_duckdb_1_2_reads_the_storage_format(study: Study) -> None:
    with Layout(study.folder).catalog.open("rb") as file:
        header = file.read(20)
    # a checksum, the letters DUCK, the number of the storage format: 65 is DuckDB 1.2's
    assert header[8:12] == b"DUCK"
    assert int.from_bytes(header[12:20], "little") <= 65


def test_every_view_has_the_rows_of_its_files(study: Study) -> None:
    with open_catalog(study.folder) as connection:
        for table in TABLES:
            files = sorted(study.folder.rglob(f"{table.name}.parquet"))
            # two traces have nodes
            expected = dict.fromkeys((*SPLIT, "label", "label_output"), 4) | {"node": 2}
            assert len(files) == expected.get(table.name, 1)
            rows = [tuple(row.values()) for file in files for row in read_table(file).to_pylist()]
            order = f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {', '.join(table.key)}"
            found = connection.execute(order).fetchall()
            key = [list(table.columns).index(name) for name in table.key]
            assert found == sorted(rows, key=lambda row: [row[i] for i in key]) != [], table.name


def test_a_table_may_have_files_in_several_folders(folder: Path) -> None:
    behaviour = folder / "circuits" / "plural" / "faithfulness.parquet"
    case = folder / "cases" / "indirect_object" / behaviour.name
    rows = read_table(behaviour).to_pylist()
    assert "faithfulness" in TABLE_FOLDERS["circuits/*"] and "faithfulness" in TABLE_FOLDERS["cases/*"]
    for files in ([behaviour, case], [case]):
        for file in (behaviour, case):
            file.unlink(missing_ok=True)
        for file in files:
            write_table(FAITHFULNESS, [row | {"behaviour": file.parent.name} for row in rows], file)
        build_catalog(folder)
        with open_catalog(folder) as connection:
            found = connection.sql("SELECT behaviour FROM faithfulness ORDER BY behaviour").fetchall()
        assert [behaviour for (behaviour,) in found] == sorted(file.parent.name for file in files)


def test_a_table_without_files_is_an_empty_view_of_the_same_types(study: Study, tmp_path: Path) -> None:
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as empty, open_catalog(study.folder) as full:
        for table in TABLES:
            assert list(columns(empty, table.name).items()) == list(columns(full, table.name).items())
            assert empty.execute(f"FROM {table.name}").fetchall() == []
        for macro in macros():
            rows = empty.execute(fill_in(macro.example, FILLED)).fetchall()
            assert len(rows) == (not macro.is_table), macro.name


@pytest.mark.parametrize("home", ["elsewhere", "a folder", "it's", "seed=1/study", "é", "[old]", "a [1] *"])
def test_a_catalogue_works_after_its_folder_is_moved(
    folder: Path, tmp_path: Path, home: str, expected, monkeypatch
) -> None:
    moved = tmp_path / "moved" / home
    moved.parent.mkdir(parents=True)
    # folders next to it that its name matches as a glob pattern
    for name in ("old", "a 1 *", "a [1] b"):
        shutil.copytree(folder / "features", moved.parent / name / "features")
    folder.rename(moved)
    monkeypatch.chdir(moved.parent)
    relative = f"{moved.name}/catalog.duckdb"
    for connection in (open_catalog(moved), open_catalog(relative), duckdb.connect(relative, read_only=True)):
        with connection:
            assert counts(connection) == expected
    monkeypatch.chdir(moved)
    with duckdb.connect("catalog.duckdb", read_only=True) as connection:
        assert counts(connection) == expected
    build_catalog(Path())
    with open_catalog(moved) as connection:
        assert counts(connection) == expected
        assert "seed" not in columns(connection, "feature") | columns(connection, "token")


def test_an_attached_catalogue_works_after_its_folder_is_set(study: Study, tmp_path: Path, expected) -> None:
    with duckdb.connect(tmp_path / "other.duckdb") as connection:
        connection.execute(f"ATTACH '{study.folder}/catalog.duckdb' AS there (READ_ONLY)")
        with pytest.raises(duckdb.IOException, match="No files found"):
            connection.execute("FROM there.feature")
        connection.execute(f"SET VARIABLE circuitloom_root = '{study.folder}/'")
        for table, number in zip(("feature", "token"), expected, strict=False):
            assert connection.execute(f"SELECT count(*) FROM there.{table}").fetchall() == [(number,)]
        assert connection.execute("SELECT max(len(features)) FROM there.code").fetchall() != [(0,)]
        # macros name views, which DuckDB looks for in the database in use
        connection.execute("USE there")
        assert counts(connection) == expected


def test_files_of_another_run_or_layer_appear_without_a_rebuild(study: Study, folder: Path, expected) -> None:
    write_features(folder, make_tokens(40), RUN, 2, study.z[RUN, LAYER])
    with open_catalog(folder) as connection:
        rows = connection.sql("SELECT run, layer, count(*) FROM feature GROUP BY ALL ORDER BY ALL").fetchall()
        assert [row[:2] for row in rows] == [
            (run, layer) for run in RUNS for layer in ((1, 2, 10) if run == RUN else (1, 10))
        ]
        twin = connection.execute("FROM similar_features(?, ?, ?) LIMIT 1", [RUN, LAYER, FEATURE]).fetchall()
    assert twin[0][:3] == (RUN, 2, FEATURE) and twin[0][3] == pytest.approx(1)


@pytest.mark.parametrize("run", RUNS)
def test_a_query_of_one_run_and_layer_reads_one_file(study: Study, run: str) -> None:
    with open_catalog(study.folder) as connection:
        for table in SPLIT:
            query = f"EXPLAIN ANALYZE SELECT * FROM {table} WHERE run = '{run}' AND layer = 10"
            plan = connection.execute(query).fetchall()[0][1]
            assert "Scanning Files: 1/4" in plan and "Total Files Read: 1" in plan, plan
            assert f"/{run}/layer10/" in plan.replace("\n", "")


def test_damaged_files_of_other_runs_do_no_harm(folder: Path, expected) -> None:
    # the first file by name: DuckDB reads the columns from it
    kept = folder / "features" / RUN / f"layer{LAYER}"
    for file in folder.glob("features/*/*/*.parquet"):
        if file.parent != kept:
            file.write_bytes(b"PAR1" + b"x" * 100 + b"PAR1")
    with open_catalog(folder) as connection:
        for name in ("top_examples", "feature_card"):
            assert connection.execute(f"FROM {name}(?, ?, ?)", [RUN, LAYER, FEATURE]).fetchall()
        for table in SPLIT:
            query = f"SELECT count(*) FROM {table} WHERE run = ? AND layer = ?"
            assert connection.execute(query, [RUN, LAYER]).fetchall() != [(0,)]
            with pytest.raises(duckdb.Error):
                connection.execute(f"FROM {table} WHERE layer = {LAYER}").fetchall()


def test_a_rebuild_replaces_the_catalogue_completely_or_not_at_all(
    folder: Path, expected, monkeypatch
) -> None:
    path = folder / "catalog.duckdb"
    before = path.read_bytes()
    every = list(build.statements(folder))
    for stop in (0, 1, 8, len(every) - 1):
        with monkeypatch.context() as patch:
            patch.setattr(
                build, "statements", lambda _, stop=stop: [*every[:stop], "SELECT nonsense", *every[stop:]]
            )
            with pytest.raises(duckdb.BinderException):
                build_catalog(folder)
        assert path.read_bytes() == before
    with open_catalog(folder) as reader:
        (folder / "corpus" / "concept.parquet").unlink()
        build_catalog(folder)
        assert counts(reader) == expected
    with open_catalog(folder) as connection:
        assert counts(connection) == expected
        assert connection.execute("FROM concept").fetchall() == []
    assert {file.name for file in folder.glob("catalog*")} == {"catalog.duckdb"}


@pytest.mark.parametrize("name", ["catalog.duckdb", "catalog.duckdb.new"])
def test_a_catalogue_is_rebuilt_after_a_killed_writer(folder: Path, name: str, expected) -> None:
    code = "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); c.sql('CREATE VIEW v AS SELECT 1'); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(folder / name)], check=True)
    assert (folder / f"{name}.wal").is_file()
    assert build_catalog(folder) == folder / "catalog.duckdb"
    for open_connection in (open_catalog, open_sandbox):
        with open_connection(folder) as connection:
            assert counts(connection) == expected
    assert {file.name for file in folder.glob("catalog*")} == {"catalog.duckdb"}


def test_building_does_not_use_duckdbs_default_connection(study: Study, tmp_path: Path) -> None:
    pending = duckdb.execute("SELECT range FROM range(3)")
    for folder in (study.folder, tmp_path):
        build_catalog(folder)
    assert pending.fetchall() == [(0,), (1,), (2,)]


def test_a_sandbox_reads_every_view(study: Study, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_sandbox(os.path.relpath(study.folder)) as connection:
        for table in TABLES:
            assert run_statement(connection, f"FROM {table.name}").read_all().num_rows, table.name


def test_a_sandbox_reads_a_folder_with_glob_characters_in_its_name(study, tmp_path):
    folder = tmp_path / "a[b]*c"
    shutil.copytree(study.folder, folder)
    rows = run_statement(open_sandbox(folder), "SELECT count(*) AS n FROM feature").read_all().to_pylist()
    assert rows[0]["n"] > 0
