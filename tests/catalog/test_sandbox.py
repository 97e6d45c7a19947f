"""Connections to the catalogue, the sandbox and the output of `circuitloom sql`."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from tests.catalog.study_folder import make_study, write_features

import circuitloom
from circuitloom.catalog.client import open_catalog
from circuitloom.catalog.output import write_result
from circuitloom.catalog.sandbox import open_sandbox, run_statement
from circuitloom.cli import main

READING = """
WITH a AS (FROM feature), b AS MATERIALIZED (FROM a) SELECT * FROM b UNION ALL FROM a ORDER BY ALL LIMIT 3
WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r WHERE x < 5) SELECT * FROM r
SELECT DISTINCT ON (name) * FROM feature QUALIFY row_number() OVER (PARTITION BY name ORDER BY feature) = 1 LIMIT 50%
SELECT * EXCLUDE (name) REPLACE (feature + 1 AS feature) FROM feature TABLESAMPLE 100%
SELECT a.feature FROM feature a ASOF JOIN feature b ON a.feature >= b.feature SEMI JOIN range(3) t(x) ON x = a.feature
SELECT x FROM feature a, LATERAL (SELECT a.feature + 1) t(x) WHERE EXISTS (FROM feature WHERE feature = x)
FROM feature SELECT name, count(*) FILTER (effect > 0), sum(feature) GROUP BY ROLLUP (name) HAVING count(*) > 0
SELECT list_transform([y FOR y IN [1, 2] IF y > 1], lambda z: z + 1), {'a': 1}.a, random(), CASE WHEN true THEN 1 END
SELECT unnest([1, 2]), DATE '2020-01-01' + INTERVAL 3 DAY, 'a' LIKE '%', 1 = ANY (SELECT feature FROM feature)
VALUES (1, 2), (3, 4)
TABLE feature
DESCRIBE feature
SUMMARIZE feature
SHOW TABLES
PIVOT feature ON feature IN (1, 2) USING sum(effect) GROUP BY name
FROM feature UNPIVOT (value FOR quantity IN (feature, effect))
FROM strongest(2)
FROM duckdb_views() WHERE NOT internal
SELECT * FROM information_schema.tables;
""".strip().splitlines()


OPEN = pytest.mark.parametrize("open_connection", [open_catalog, open_sandbox])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalog") / "it's a study"
    make_study(folder)
    return folder


def error_of_opening(path: Path) -> str:
    messages = set()
    for open_connection in (open_catalog, open_sandbox):
        with pytest.raises(ValueError) as error:
            open_connection(path)
        messages.add(str(error.value))
    (message,) = messages
    assert "\n" not in message and str(path) in message
    return message


def printed(folder: Path, statement: str, style: str, width: int | None = None) -> str:
    stream = io.StringIO()
    write_result(run_statement(open_sandbox(folder), statement), style, stream, width)
    return stream.getvalue()


def command(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "circuitloom", "sql", *arguments],
        env={**os.environ, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


@OPEN
def test_views_work_in_a_moved_or_linked_folder_and_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_connection
) -> None:
    make_study(tmp_path / "made")
    shutil.move(tmp_path / "made", tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for path in (
        tmp_path / "moved",
        "moved",
        "link",
        "moved/catalog.duckdb",
        tmp_path / "link/catalog.duckdb",
    ):
        assert run_statement(open_connection(path), "FROM feature").read_all().num_rows == 6


@OPEN
def test_a_rewritten_file_is_read_again(tmp_path: Path, open_connection) -> None:
    make_study(tmp_path / "study")
    connection = open_connection(tmp_path / "study")
    query = "SELECT count(*) AS n FROM feature"
    assert run_statement(connection, query).read_all().to_pylist() == [{"n": 6}]
    write_features(tmp_path / "study", "a", 5)
    assert run_statement(connection, query).read_all().to_pylist() == [{"n": 8}]


def test_a_missing_or_broken_catalogue_is_a_one_line_error_with_a_remedy(tmp_path: Path) -> None:
    assert "run" not in error_of_opening(tmp_path) and "make it with `snakemake catalog`" in error_of_opening(
        tmp_path
    )
    make_study(tmp_path / "study")
    valid = (tmp_path / "study" / "catalog.duckdb").read_bytes()
    corrupt = bytearray(valid)
    corrupt[3 * 4096 :: 3] = bytes(len(corrupt[3 * 4096 :: 3]))
    for name, content in {
        "empty": b"",
        "text": b"x" * 9000,
        "short": valid[:5000],
        "corrupt": bytes(corrupt),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "delete it and run `snakemake catalog`" in error_of_opening(tmp_path / name)


def test_a_catalogue_that_is_being_written_is_reported(tmp_path: Path) -> None:
    make_study(tmp_path)
    file = tmp_path / "catalog.duckdb"
    hold = f"import duckdb; c = duckdb.connect({str(file)!r}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout and writer.stdout.readline()
        assert "being written by another process" in error_of_opening(file)
        writer.communicate(b"\n")
    with duckdb.connect(file), pytest.raises(ValueError, match="open in this process"):
        open_catalog(file)


def test_a_sandbox_and_a_notebook_share_nothing(study: Path) -> None:
    sandbox, notebook = open_sandbox(study), circuitloom.open_catalog(study)
    assert notebook.sql("FROM feature").df().shape == (6, 4)
    frame = notebook.sql("FROM feature").df()
    assert notebook.sql("FROM frame").shape == frame.shape
    with pytest.raises(duckdb.CatalogException, match="frame does not exist"):
        sandbox.sql("FROM frame")
    notebook.execute("SET threads = 1")
    with pytest.raises(duckdb.InvalidInputException, match="locked"):
        sandbox.execute("SET threads = 1")
    with pytest.raises(duckdb.InvalidInputException, match="read-only"):
        notebook.execute("CREATE TABLE t AS SELECT 1")


def test_the_password_of_the_proxy_is_not_revealed(study: Path) -> None:
    query = "SELECT current_setting('http_proxy') || string_agg(setting) AS s FROM pg_settings"
    result = command(query, "--catalog", str(study), "--format", "csv", HTTP_PROXY="http://user:hush@host:1")
    assert result.returncode == 0 and "hush" not in result.stdout


@pytest.mark.parametrize("statement", READING, ids=range(len(READING)))
def test_statements_that_only_read_are_run(study: Path, statement: str) -> None:
    assert run_statement(open_sandbox(study), statement).read_all().num_columns


def test_errors_of_duckdb_become_one_line_with_their_hint(study: Path) -> None:
    connection = open_sandbox(study)
    for statement, hint in {
        "FROM featur": 'Did you mean "feature"?',
        "SELECT\n  nome\nFROM feature": 'Candidate bindings: "name"',
        "SELECT sqrt('a', 'b')": "Candidate functions: sqrt",
        "SELEC 1": 'syntax error at or near "SELEC"',
        "SELECT CASE WHEN range > 90000 THEN error('late') END FROM range(100000)": "late",
    }.items():
        with pytest.raises(ValueError) as error:
            run_statement(connection, statement).read_all()
        assert hint in str(error.value) and "\n" not in str(error.value) and "LINE" not in str(error.value)


def test_csv_and_json_contain_complete_values_and_tables_shortened_ones(study: Path) -> None:
    query = """SELECT ' the\n' AS t, 0.1::FLOAT AS f, sum(feature) AS s, 'nan'::DOUBLE AS x, NULL AS n,
        feature > 0 AS b, [1.5] AS l, {'a': DATE '2020-01-01'} AS r
        FROM feature GROUP BY feature ORDER BY feature LIMIT 2"""
    assert list(csv.reader(io.StringIO(printed(study, query, "csv")))) == [
        ["t", "f", "s", "x", "n", "b", "l", "r"],
        [" the\n", "0.1", "0", "nan", "", "false", "[1.5]", '{"a": "2020-01-01"}'],
        [" the\n", "0.1", "2", "nan", "", "true", "[1.5]", '{"a": "2020-01-01"}'],
    ]
    first, second = json.loads(printed(study, query, "json"))
    assert first == second | {"s": 0, "b": False}
    assert first == {
        **{"t": " the\n", "f": 0.1, "s": 0, "x": None, "n": None, "b": False, "l": [1.5]},
        "r": {"a": "2020-01-01"},
    }
    assert printed(study, query, "table").splitlines()[0:3:2] == [
        "t         f    s    x  n     b      l      r",
        r" the\n  0.1    0  nan  NULL  false  [1.5]  {" + '"a": "2020-01-01"}',
    ]


def test_results_without_rows_are_printed(study: Path) -> None:
    printouts = {style: printed(study, "SELECT 1 AS a LIMIT 0", style) for style in ("table", "csv", "json")}
    assert printouts == {"table": "a\n---\n", "csv": "a\n", "json": "[]\n"}


def test_only_the_longest_cells_of_a_table_are_cut_to_the_width(study: Path) -> None:
    query = "SELECT range AS a, repeat('x', 100) AS b, repeat('y', 30) AS c FROM range(2)"
    lines = printed(study, query, "table", 80).splitlines()
    assert [len(line) for line in lines[1:]] == [80] * 3
    assert lines[3] == "  1  " + "x" * 42 + "…  " + "y" * 30
    assert len(printed(study, query, "table").splitlines()[3]) > 130


def test_json_refuses_two_columns_of_one_name_and_csv_keeps_both(study: Path) -> None:
    assert printed(study, "SELECT 1 AS a, 2 AS a", "csv") == "a,a\n1,2\n"
    with pytest.raises(ValueError, match="two columns are named 'a'"):
        printed(study, "SELECT 1 AS a, 2 AS a", "json")


def test_the_command_prints_results_and_reads_statements_from_standard_input(study: Path) -> None:
    result = command(
        "-", "--catalog", str(study), "--format", "json", stdin="-- strongest\nFROM strongest(1)\n;\n"
    )
    assert json.loads(result.stdout) == [{"feature": 2, "name": "l\\n2"}]
    assert (result.returncode, result.stderr) == (0, "")


def test_errors_of_the_command_are_one_line(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, words in {
        ("SELECT 1", "--study", "nowhere"): "there is no catalogue at results/nowhere",
        ("SELECT 1",): "there is no catalogue at results/quickstart",
        ("FROM featur", "--catalog", str(study)): "Did you mean",
        ("DROP VIEW feature", "--catalog", str(study)): "only a SELECT is run here, not DROP",
    }.items():
        monkeypatch.chdir(study)
        monkeypatch.setattr(sys, "argv", ["circuitloom", "sql", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert str(exit_.value.code).startswith("circuitloom: sql: ") and words in str(exit_.value.code)
        assert "\n" not in str(exit_.value.code)


@pytest.mark.parametrize("style", ["table", "csv", "json"])
def test_a_closed_pipe_ends_quietly(study: Path, style: str) -> None:
    arguments = [
        sys.executable,
        "-m",
        "circuitloom",
        "sql",
        "FROM range(50000)",
        "--catalog",
        study,
        "--format",
        style,
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_importing_the_package_and_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, circuitloom.cli; print({'torch', 'duckdb', 'pyarrow', 'tabulate'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_notebook_gets_arrow_pandas_or_polars(study):
    catalog = circuitloom.open_catalog(study)
    arrow = catalog.sql("FROM feature").arrow().read_all()
    assert (
        arrow.num_rows == len(catalog.sql("FROM feature").df()) == len(catalog.sql("FROM feature").pl()) > 0
    )
    assert (
        arrow.column_names
        == list(catalog.sql("FROM feature").df())
        == catalog.sql("FROM feature").pl().columns
    )
