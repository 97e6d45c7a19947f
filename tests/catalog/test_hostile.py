"""The sandbox refuses statements that write, or that read anything but the catalogue."""

import hashlib
import json
from itertools import product
from pathlib import Path

import duckdb
import pytest
from tests.catalog.study_folder import make_study

from circuitloom.catalog.sandbox import _TABLE_FUNCTIONS, open_sandbox, run_statement

SECRET = "plover-and-heron"
UNLISTED = "hidden-file-name"
"""Name of a file that no statement contains and no error message may reveal."""

ACTIONS = """
COPY (SELECT 1) TO '{inside}/new.csv'
COPY feature TO '{outside}/new.parquet'
COPY feature TO '{inside}/parts' (FORMAT parquet, PARTITION_BY (name))
COPY feature FROM '{outside}/secret.csv'
EXPORT DATABASE '{inside}/export'
IMPORT DATABASE '{outside}'
INSERT INTO feature VALUES (1) RETURNING *
UPDATE feature SET name = '' RETURNING *
DELETE FROM feature RETURNING *
TRUNCATE feature
MERGE INTO feature USING feature AS f ON true WHEN MATCHED THEN DELETE
CREATE TABLE t AS SELECT 1
CREATE TABLE memory.t AS SELECT 1
CREATE TEMP TABLE t AS SELECT 1
CREATE OR REPLACE VIEW memory.main.feature AS SELECT 1
CREATE TEMP MACRO root() AS '{outside}/'
CREATE SCHEMA memory.s
CREATE SEQUENCE memory.s
CREATE TYPE memory.e AS ENUM ('a')
CREATE SECRET s (TYPE http)
ALTER VIEW feature RENAME TO f
DROP VIEW feature
COMMENT ON VIEW feature IS 'x'
ATTACH '{outside}/secret.duckdb' AS s
ATTACH '{inside}/new.duckdb' AS s
DETACH catalog
USE memory
SET threads = 1
SET lock_configuration = false
RESET allowed_directories
SET VARIABLE circuitloom_root = '{outside}/'
PRAGMA enable_profiling
PRAGMA import_database('{outside}')
CALL enable_logging(storage := 'file', storage_config := {{'path': '{inside}/log'}})
CALL pragma_version()
CHECKPOINT
FORCE CHECKPOINT
VACUUM
ANALYZE
INSTALL httpfs
LOAD '{outside}/x.duckdb_extension'
UPDATE EXTENSIONS
BEGIN
COMMIT
ROLLBACK
PREPARE p AS SELECT 1
EXECUTE p
DEALLOCATE p
PIVOT feature ON name USING sum(feature)
""".strip().splitlines()

WRAPPERS = """
{}
EXPLAIN {}
EXPLAIN ANALYZE {}
WITH x AS ({}) SELECT * FROM x
WITH x AS MATERIALIZED ({}) SELECT 1
WITH RECURSIVE x AS ({}) SELECT 1
WITH y AS (WITH x AS ({}) SELECT 1) FROM y
SELECT * FROM (WITH x AS ({}) SELECT 1)
SELECT (WITH x AS ({}) SELECT 1) FROM feature
DESCRIBE WITH x AS ({}) SELECT 1
SELECT * FROM ({})
PREPARE q AS {}
CREATE TEMP TABLE q AS {}
SELECT 1; {}
{}; SELECT 1
/* SELECT 1; */ {}
-- SELECT 1\n{}
\ufeff\u00a0\u2003{}
SELECT 1\0;{}
FROM query($q${}$q$)
FROM json_execute_serialized_sql(json_serialize_sql($q$WITH x AS ({}) SELECT 1$q$))
SELECT json_serialize_plan($q$WITH x AS ({}) SELECT 1$q$)
""".strip()  # fmt: skip

NAMED_FILES = """
FROM '{path}'
FROM "{path}"
DESCRIBE '{path}'
SHOW "{path}"
SUMMARIZE '{path}'
SELECT (SELECT count(*) FROM '{path}')
WITH x AS (FROM '{path}') FROM x
SELECT json_serialize_plan('FROM "{path}"')
""".strip().splitlines()

CALLS = """
FROM feature WHERE name IN (FROM glob('{path}'))
FROM feature, LATERAL (FROM read_text('{path}'))
SELECT * FROM feature POSITIONAL JOIN read_csv(['{path}'])
FROM system.main."READ_BLOB"('{path}')
FROM histogram('{path}', s)
FROM query_table(['{path}'])
FROM query('FROM "{path}"')
FROM enable_logging(storage := 'file', storage_config := {{'path': '{path}'}})
FROM enable_profiling(format := 'json', save_location := '{path}')
""".strip().splitlines()

PATHS = [
    *("{outside}/secret.csv", "{outside}/*", "{outside}", "/etc/hostname", "*", "../*", "**/*"),
    *("{inside}/../study_outside/secret.csv", "{inside}/features/../../study_outside/*", "{inside}_outside/*"),
    *("{inside}/link.csv", "{inside}/linked/secret.json", "{inside}/linked/*", "{inside}/link*/*", "{inside}/*/*.csv"),
    *("file://{outside}/secret.txt", "FILE:{outside}/secret.txt", "/{outside}/secret.txt", "{inside}/[l]inked/*"),
    *("http://127.0.0.1:9/x.csv", "https://127.0.0.1:9/x.csv", "s3://bucket/x.csv", "hf://datasets/x/y.csv"),
    *("{outside}/secret.duckdb", "{outside}/secret.parquet", "{{{inside}/x,{outside}/secret.txt}}", "/dev/stdin"),
]  # fmt: skip

OTHER = """
SELECT write_log('x')
SELECT 'x'.write_log()
SELECT system.main."Write_Log"('x')
SELECT list_transform([1], lambda x: write_log('x'))
SELECT max(write_log('x')) OVER () FROM feature
SELECT 1 FROM feature ORDER BY write_log('x')
SELECT nextval('s')
SELECT setseed(0.5)
SELECT sleep_ms(1)
SELECT getenv('HOME')
FROM checkpoint()
FROM force_checkpoint()
FROM truncate_duckdb_logs()
FROM duckdb_secrets(redact := false)
FROM which_secret('s3://x', 's3')
FROM duckdb_settings()
FROM duckdb_logs()
FROM pragma_table_info('feature')
SELECT '\ud800'
SELECT $1

;
-- SELECT 1
SELECT 1; SELECT 2
""".strip().split("\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, and files outside the study that links in it point to."""
    place = tmp_path_factory.mktemp("catalog")
    make_study(place / "study")
    outside = place / "study_outside"
    outside.mkdir()
    for name in ("secret.csv", "secret.txt", f"{UNLISTED}.csv"):
        (outside / name).write_text(f"s\n{SECRET}\n")
    (outside / "secret.json").write_text(json.dumps({"s": SECRET}))
    with duckdb.connect(outside / "secret.duckdb") as connection:
        connection.execute(f"CREATE TABLE t AS SELECT '{SECRET}' AS s")
        connection.execute(f"COPY t TO '{outside}/secret.parquet'")
    (place / "study" / "link.csv").symlink_to(outside / "secret.csv")
    (place / "study" / "linked").symlink_to(outside)
    return place


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def state(connection: duckdb.DuckDBPyConnection) -> list:
    queries = (
        "duckdb_settings()",
        "duckdb_databases()",
        "duckdb_tables()",
        "duckdb_variables()",
        "duckdb_views()",
    )
    return [connection.execute(f"FROM {query}").fetchall() for query in queries]


def refusal(connection: duckdb.DuckDBPyConnection, statement: str) -> str:
    with pytest.raises(ValueError) as error:
        pytest.fail(f"{statement!r} gives {run_statement(connection, statement).read_all()}")
    assert "\n" not in str(error.value), statement
    return str(error.value)


def hostile(place: Path) -> list[str]:
    names = {"inside": place / "study", "outside": place / "study_outside"}
    actions = [
        wrapper.replace("\\n", "\n").format(action.format(**names))
        for wrapper, action in product(WRAPPERS.split("\n"), ACTIONS)
    ]
    pairs = [*product(NAMED_FILES, PATHS), *product(CALLS, PATHS[::6])]
    return actions + [read.format(path=path.format(**names)) for read, path in pairs] + OTHER


def test_no_hostile_statement_runs_writes_or_reveals_outside_files(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "study")
    connection = open_sandbox(place / "study")
    before, settings = snapshot(place), state(connection)
    for statement in hostile(place):
        answer = refusal(connection, statement)
        assert SECRET not in answer and UNLISTED not in answer, statement
    assert snapshot(place) == before
    assert state(connection) == settings
    assert run_statement(connection, "FROM feature").read_all().num_rows == 6


def test_no_table_function_reads_outside_the_folder_even_without_the_syntax_check(place: Path) -> None:
    connection = open_sandbox(place / "study")
    before = snapshot(place)
    names = connection.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions()"
        " WHERE function_type IN ('table', 'table_macro') AND internal"
    ).fetchall()
    assert len(names) > 100
    outside = place / "study_outside"
    paths = [f"{outside}/secret.csv", f"{outside}/*", f"{place}/study/linked/secret.parquet"]
    for (name,) in names:
        if name not in _TABLE_FUNCTIONS:
            assert f"{name}() is not allowed" in refusal(connection, f"FROM {name}('{paths[0]}')")
    for (name,), path in product(names, paths):
        for arguments in (f"'{path}'", f"['{path}']", f"'{path}', '{path}'"):
            try:
                answer = str(connection.execute(f"FROM {name}({arguments})").fetchmany(100))
            except duckdb.Error as error:
                answer = str(error)
            assert SECRET not in answer and UNLISTED not in answer, (name, arguments)
    assert snapshot(place) == before
