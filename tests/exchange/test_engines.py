"""Spark, ClickHouse, Polars and DataFusion read a study's tables, from a folder and from a bucket, as DuckDB does.

Each engine runs in an environment of its own, .peers/ENGINE, which `make test-exchange` makes from benchmarks/peers.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from tests.catalog.tables import LAYER, OTHER_RUN, RUN, SILENT, Study, write_token_table
from tests.exchange import spark
from tests.exchange.environments import peer_python

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import open_catalog
from circuitloom.catalog.engines.generate import engine_script, portable_macros
from circuitloom.core.tables import TABLES
from circuitloom.core.token_text import name_bytes

pytestmark = pytest.mark.exchange
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "peers" / "sql_engines.py"
ENGINES = ("spark", "clickhouse", "polars", "datafusion")
ORDER = {macro.name: macro.order for macro in portable_macros()}
NULL_LISTS = {"clickhouse"}
"""Engines that read a list that is null as an empty list."""
UNMARKED = {"polars"}
"""Engines whose top examples have no [[ ]]."""
BYTES = {"polars", "datafusion"}
"""Engines that do not join the bytes of a character."""
SELECTED = [(RUN, LAYER, 0), (RUN, LAYER, 4), (RUN, 10, 11), (OTHER_RUN, LAYER, 65_537), (RUN, LAYER, SILENT)]
WANTED = ("caught", "w1", " w1", "s.", ". ", "日本", "\n", "it's", "%", "zebra", "")


def python(engine: str) -> Path:
    """Python of the engine's environment. Skips the test without it."""
    path = peer_python(engine)
    if engine == "spark" and (reason := spark.why_not()):
        pytest.skip(reason)
    return path


def ask(
    engine: str, file: Path, questions: list[dict], *options: str, **environment: str
) -> list[dict[str, Any]]:
    command = [str(python(engine)), str(SCRIPT), engine, str(file), *options]
    if engine == "spark":
        environment |= spark.settings(file.parent)
    done = subprocess.run(
        command, input=json.dumps(questions), capture_output=True, text=True, check=False, timeout=1800,
        env=os.environ | environment, cwd=file.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])["answers"]


def question(macro: str, **arguments: Any) -> dict[str, Any]:
    return {"macro": macro, "arguments": arguments, "order": ORDER[macro]}


def of_feature(macro: str, run: str, layer: int, feature: int) -> dict[str, Any]:
    return question(macro, of_run=run, of_layer=layer, of_feature=feature)


QUESTIONS = [
    *(of_feature(macro, *selected) for macro in ("top_examples", "coactivation") for selected in SELECTED),
    question("firing_rates", of_run=RUN, of_layer=LAYER),
    *(question("search", wanted=wanted) for wanted in WANTED),
]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def answers(engine: str, study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The engine's rows of all tables, and then its answers to `QUESTIONS`."""
    file = write_script(engine, study.folder, tmp_path_factory.mktemp(engine))
    return ask(engine, file, [*({"table": table.name} for table in TABLES), *QUESTIONS])


def write_script(engine: str, results: Path | str, folder: Path) -> Path:
    file = folder / "catalog.sql"
    file.write_text(engine_script(engine, results))
    return file


def expected_answer(catalog: duckdb.DuckDBPyConnection, asked: dict) -> list[list]:
    """The catalogue's rows, as JSON gives them."""
    values = list(asked["arguments"].values())
    if asked["macro"] == "firing_rates":
        rows = catalog.execute(
            "SELECT feature, n_tokens, density FROM feature WHERE run = ? AND layer = ? ORDER BY feature",
            values,
        )
    else:
        rows = catalog.execute(f"FROM {asked['macro']}({', '.join('?' for _ in values)})", values)
    return json.loads(json.dumps(rows.fetchall(), default=lambda value: value.hex()))


def alike(found: Any, expected: Any) -> bool:
    """Whether two JSON values are equal. Results of divisions may differ in the last bits."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(alike, found, expected))
    if isinstance(expected, float) and isinstance(found, float | int):
        return math.isclose(found, expected, rel_tol=1e-12) or (math.isnan(found) and math.isnan(expected))
    return found == expected


def assert_answers(engine: str, catalog: duckdb.DuckDBPyConnection, answers: list[dict]) -> None:
    assert len(answers) == len(QUESTIONS)
    for asked, answer in zip(QUESTIONS, answers, strict=True):
        expected = expected_answer(catalog, asked)
        if asked["macro"] == "top_examples" and engine in UNMARKED:
            for row in expected:
                row[4] = re.sub(r"\[\[(.*)\]\]", r"\1", row[4], flags=re.DOTALL)
        assert alike(answer["rows"], expected), (asked, answer["rows"][:3], expected[:3])


def test_every_view_has_the_values_of_the_catalogue(engine: str, answers: list[dict], catalog) -> None:
    for table, answer in zip(TABLES, answers[: len(TABLES)], strict=True):
        names = list(table.columns)
        features = ["features"] if table.name == "code" and engine in ("spark", "clickhouse") else []
        assert answer["columns"] == names + features
        rows = catalog.execute(f"SELECT {', '.join(names + features)} FROM {table.name}").fetchall()
        expected = json.loads(json.dumps(rows, default=lambda value: value.hex()))
        if engine in NULL_LISTS:
            lists = [i for i, (kind, _) in enumerate(table.columns.values()) if str(kind).startswith("list")]
            expected = [
                [[] if i in lists and x is None else x for i, x in enumerate(row)] for row in expected
            ]
        key = [names.index(name) for name in table.key]
        for rows in (answer["rows"], expected):
            rows.sort(key=lambda row: [row[i] for i in key])
        assert alike(answer["rows"], expected), table.name


def test_every_macro_has_the_rows_of_the_catalogue(engine: str, answers: list[dict], catalog) -> None:
    assert_answers(engine, catalog, answers[len(TABLES) :])


def test_characters_of_several_tokens(engine: str, tmp_path: Path) -> None:
    data = "he 他说 war".encode()
    cuts = [0, 3, 5, 6, 9]
    tokens = [name_bytes(data[start:stop]) for start, stop in zip(cuts, [*cuts[1:], len(data)], strict=True)]
    assert any("⟨" in token for token in tokens)
    write_token_table(tmp_path, np.array([tokens], object))
    # without a tokenizer, tokens with a blank contain their own
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as catalog:
        expected = catalog.execute("FROM search('war')").fetchall()
    if engine in BYTES:
        expected = [(0, 4, 0, "".join([*tokens[:4], f"[[{tokens[4]}]]"]))]
    (answer,) = ask(engine, write_script(engine, tmp_path, tmp_path), [question("search", wanted="war")])
    assert [tuple(row) for row in answer["rows"]] == expected and len(expected) == 1


def test_a_spark_cluster_of_two_workers_has_the_rows_of_the_catalogue(study, catalog, tmp_path: Path) -> None:
    file = write_script("spark", study.folder, tmp_path)
    with spark.standalone_cluster(python("spark"), tmp_path) as master:
        answers = ask("spark", file, QUESTIONS, "--master", master)
    assert_answers("spark", catalog, answers)
    # one executor on each worker
    assert spark.tasks_by_executor(tmp_path).keys() == {"0", "1"}


@pytest.mark.skipif(
    importlib.util.find_spec("moto") is None, reason="needs moto: PYTHONPATH=.cloud, make cloud"
)
@pytest.mark.parametrize("engine", ["clickhouse", "polars", "datafusion"])
def test_a_bucket_has_the_rows_of_the_catalogue(
    engine: str, study: Study, catalog, tmp_path: Path, monkeypatch
) -> None:
    from tests.storage.server import BUCKET, s3_server

    python(engine)
    with s3_server() as server:
        for path in study.folder.rglob("*.parquet"):
            server.bucket.upload_file(str(path), f"studies/{path.relative_to(study.folder)}")
        environment = {
            "AWS_ENDPOINT_URL": server.address, "AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        file = write_script(engine, f"s3://{BUCKET}/studies/", tmp_path)
        options = ["--bucket", BUCKET] if engine == "datafusion" else []
        assert_answers(engine, catalog, ask(engine, file, QUESTIONS, *options))
