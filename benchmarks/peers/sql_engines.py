"""Answers of an engine to questions about a study, in the environment of that engine.

    circuitloom catalog --engine polars results/NAME catalog.polars.sql
    .peers/polars/bin/python benchmarks/peers/sql_engines.py polars catalog.polars.sql < questions.json

Each question is a table, {"table": NAME}, or a macro, {"macro": NAME, "arguments": {...}, "order": "...", "rounds": 3}.
Prints JSON: the engine's version, the seconds it takes to read the file, the process's peak memory in bytes, and the
rows and seconds of each answer.
"""

import argparse
import json
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from clock import peak_memory


def statements(text: str) -> list[str]:
    return [statement for statement in text.split(";\n") if statement.strip()]


def literal(value: Any) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


class Engine(ABC):
    """An engine that calls macros in FROM and returns Arrow tables."""

    def call(self, question: dict) -> str:
        return f"{question['macro']}({', '.join(map(literal, question['arguments'].values()))})"

    def query(self, question: dict) -> str:
        if "table" in question:
            return f"SELECT * FROM {question['table']}"
        return f"SELECT * FROM {self.call(question)} ORDER BY {question['order']}"

    @abstractmethod
    def ask(self, question: dict) -> Any:
        """Answer a question. `rows` reads the result."""

    def rows(self, result: Any) -> tuple[list[str], list[list]]:
        """Columns and rows of what `ask` returned."""
        return result.column_names, [list(row.values()) for row in result.to_pylist()]


class DuckDB(Engine):
    def __init__(self, file: Path, arguments: argparse.Namespace) -> None:
        import duckdb

        self.version = duckdb.__version__
        self.connection = duckdb.connect()
        self.connection.execute(f"SET threads = {arguments.threads}")
        self.connection.execute(file.read_text())

    def ask(self, question: dict) -> Any:
        return self.connection.sql(self.query(question)).to_arrow_table()


class Spark(Engine):
    def __init__(self, file: Path, arguments: argparse.Namespace) -> None:
        import pyspark
        from pyspark.sql import SparkSession

        self.version = pyspark.__version__
        builder = SparkSession.builder.master(arguments.master or f"local[{arguments.threads}]")
        options = {
            # as many partitions as threads: 200, the default, are for clusters
            "spark.sql.shuffle.partitions": arguments.threads,
            # of a cluster, use all workers from the start
            "spark.scheduler.minRegisteredResourcesRatio": 1.0,
            "spark.driver.memory": "4g",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
        }
        for key, value in options.items():
            builder = builder.config(key, value)
        self.session = builder.getOrCreate()
        for statement in statements(file.read_text()):
            self.session.sql(statement)

    def ask(self, question: dict) -> Any:
        frame = self.session.sql(self.query(question))
        return frame.columns, frame.collect()

    def rows(self, result: Any) -> tuple[list[str], list[list]]:
        columns, rows = result
        return columns, [[bytes(x) if isinstance(x, bytearray) else x for x in row] for row in rows]


class ClickHouse(Engine):
    def __init__(self, file: Path, arguments: argparse.Namespace) -> None:
        import chdb
        from chdb.session import Session

        self.version = (
            f"chdb {chdb.__version__}, ClickHouse {chdb.query('SELECT version()', 'TSV').data().strip()}"
        )
        self.session = Session()
        self.session.query(f"SET max_threads = {arguments.threads}")
        self.session.query(file.read_text())

    def call(self, question: dict) -> str:
        values = (f"{name} = {literal(value)}" for name, value in question["arguments"].items())
        return f"{question['macro']}({', '.join(values)})"

    def ask(self, question: dict) -> Any:
        return self.session.query(self.query(question), "ArrowStream").bytes()

    def rows(self, result: bytes) -> tuple[list[str], list[list]]:
        import pyarrow as pa

        table = pa.ipc.open_stream(result).read_all()
        columns = []
        for column in table.columns:
            try:
                columns.append(column.to_pylist())
            except UnicodeDecodeError:
                # ClickHouse has one type for text and bytes
                columns.append(column.cast(pa.binary()).to_pylist())
        return table.column_names, [list(row) for row in zip(*columns, strict=True)]


class Polars(Engine):
    def __init__(self, file: Path, arguments: argparse.Namespace) -> None:
        os.environ["POLARS_MAX_THREADS"] = str(arguments.threads)
        import polars as pl

        self.version = pl.__version__
        self.context = pl.SQLContext()
        tables, *queries = file.read_text().split("\n-- query: ")
        for statement in statements(tables):
            self.context.execute(statement)
        self.queries = dict(query.split("\n", 1) for query in queries)

    def query(self, question: dict) -> str:
        if "table" in question:
            return f"SELECT * FROM {question['table']}"
        values = {name: literal(value) for name, value in question["arguments"].items()}
        return re.sub(r"\$(\w+)", lambda match: values[match[1]], self.queries[question["macro"]])

    def ask(self, question: dict) -> Any:
        return self.context.execute(self.query(question), eager=True)

    def rows(self, result: Any) -> tuple[list[str], list[list]]:
        return result.columns, [list(row) for row in result.rows()]


class DataFusion(Engine):
    def __init__(self, file: Path, arguments: argparse.Namespace) -> None:
        import datafusion
        from datafusion import SessionConfig, SessionContext

        self.version = datafusion.__version__
        self.context = SessionContext(SessionConfig().with_target_partitions(arguments.threads))
        if arguments.bucket:
            from datafusion.object_store import AmazonS3

            store = AmazonS3(arguments.bucket, endpoint=os.environ["AWS_ENDPOINT_URL"], allow_http=True)
            self.context.register_object_store("s3://", store, None)
        for statement in statements(file.read_text()):
            self.context.sql(statement)

    def query(self, question: dict) -> str:
        if "table" in question:
            return f"SELECT * FROM {question['table']}"
        return f"EXECUTE {self.call(question)}"

    def ask(self, question: dict) -> Any:
        return self.context.sql(self.query(question)).to_arrow_table()


ENGINES = {
    "duckdb": DuckDB, "spark": Spark, "clickhouse": ClickHouse, "polars": Polars, "datafusion": DataFusion
}  # fmt: skip


def plain(value: Any) -> Any:
    """JSON of bytes, dates and the numbers of libraries."""
    return value.hex() if isinstance(value, bytes) else float(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--master", help="address of a Spark cluster")
    parser.add_argument("--bucket", help="name of a bucket at AWS_ENDPOINT_URL")
    arguments = parser.parse_args()
    started = time.perf_counter()
    engine = ENGINES[arguments.engine](arguments.file, arguments)
    opened = time.perf_counter() - started
    answers = []
    for question in json.load(sys.stdin):
        seconds = []
        for _ in range(question.get("rounds", 1)):
            started = time.perf_counter()
            result = engine.ask(question)
            seconds.append(time.perf_counter() - started)
        columns, rows = engine.rows(result)
        answers.append({"columns": columns, "rows": rows, "seconds": seconds})
    found = {"version": engine.version, "opened": opened, "peak": peak_memory(), "answers": answers}
    print(json.dumps(found, default=plain))


if __name__ == "__main__":
    main()
