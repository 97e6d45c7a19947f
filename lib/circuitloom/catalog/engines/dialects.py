"""The dialects of the engines."""

from collections.abc import Mapping, Sequence

from ..queries import macros, quoted
from ..study_files import S3
from .dialect import BYTES_STAY, PARTS, Dialect, NamedFilesDialect, PortableMacro, WholeTextDialect


class _DuckDB(WholeTextDialect):
    """DuckDB. Local studies have catalog.duckdb, which holds more macros."""

    title = "DuckDB (tested with 2.0.0)"
    usage = """duckdb -init FILE

import duckdb
connection = duckdb.connect()
connection.execute(open("FILE").read())
connection.sql("FROM coactivation('RUN', 0, 17) ORDER BY overlap DESC LIMIT 10")"""
    marks = ("chr(64976)", "chr(64977)")

    def prepare(self) -> list[str]:
        wanted = ("characters", "whole_text", "unpacked")
        return [macro.sql.rstrip(";") for macro in macros() if macro.name in wanted]

    def files(self, place: str) -> str:
        return f"read_parquet({quoted(place)}, hive_partitioning = false)"

    def macro(self, macro: PortableMacro, select: str) -> str:
        return f"CREATE OR REPLACE MACRO {macro.name}({', '.join(macro.parameters)}) AS TABLE\n{select}"

    def unpacked(self, packed: str, n: str) -> str:
        return f"unpacked({packed}, {n})"

    def length(self, text: str) -> str:
        return f"length({text})"

    def marked(self, tokens: str, place: str) -> str:
        token = f"CASE WHEN i = {place} + 1 THEN {self.in_marks('t')} ELSE t END"
        words = f"list_transform({tokens}, lambda t, i: {token})"
        return self.shown(f"array_to_string({words}, {quoted(self.spacing)})")


class _Spark(NamedFilesDialect, WholeTextDialect):
    """Spark SQL, from version 4.0: temporary views and temporary SQL functions."""

    title = "Spark SQL (tested with 4.3.0)"
    usage = """from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
for statement in open("FILE").read().split(";\\n"):
    if statement.strip():
        spark.sql(statement)
spark.sql("SELECT * FROM coactivation('RUN', 0, 17) ORDER BY overlap DESC LIMIT 10").show()

On a cluster, all nodes must find the files at the same path: docs/engines.md."""
    types = {"text": "STRING", "integer": "INT"}
    create_view = "CREATE OR REPLACE TEMPORARY VIEW"
    # Hadoop takes the text before it for a scheme
    refused = ":"
    marks = (r"'\uFDD0'", r"'\uFDD1'")

    def whole_text(self, joined: str) -> str:
        # not an SQL function: Spark allows no call of one on the result of a lambda function
        opening, closing = self.marks
        character = (
            f"concat(if(contains(part, {opening}), {opening}, ''), "
            "decode(unhex(regexp_replace(part, '[^0-9A-F]', '')), 'UTF-8'), "
            f"if(contains(part, {closing}), {closing}, ''))"
        )
        text = f"if(char_length(part) > 1 AND startswith(part, '⟨'), {character}, part)"
        return f"array_join(transform(regexp_extract_all({joined}, r'{PARTS}', 0), part -> {text}), '')"

    def named_files(self, name: str, place: str) -> str:
        # without a scheme, a cluster would look for the files in its own file system
        scheme = "file://" if not place.startswith(S3) else ""
        path = quoted(scheme + place.replace(S3, "s3a://", 1))
        # lists the files and reads a footer once; a view over parquet.`path` does so in every query
        return f"{self.create_view} {name} USING parquet OPTIONS (path {path})"

    def macro(self, macro: PortableMacro, select: str) -> str:
        parameters = ", ".join(f"{name} {self.types[kind]}" for name, kind in macro.parameters.items())
        return (
            f"CREATE OR REPLACE TEMPORARY FUNCTION {macro.name}({parameters}) RETURNS TABLE RETURN\n{select}"
        )

    def unpacked(self, packed: str, n: str) -> str:
        size = f"CAST(length({packed}) / {n} AS INT)"
        number = f"conv(hex(substring({packed}, i * {size} + 1, {size})), 16, 10)"
        return f"transform(sequence(0, {n} - 1), i -> CAST({number} AS INT))"

    def exploded(self, values: str) -> str:
        return f"explode({values})"

    def joined(self, value: str, order: str) -> str:
        return f"listagg({value}, {quoted(self.spacing)}) WITHIN GROUP (ORDER BY {order})"

    def substring(self, text: str, start: str, length: str) -> str:
        return f"substring({text}, CAST({start} AS INT), CAST({length} AS INT))"

    def marked(self, tokens: str, place: str) -> str:
        words = f"transform({tokens}, (t, i) -> CASE WHEN i = {place} THEN {self.in_marks('t')} ELSE t END)"
        return self.shown(f"array_join({words}, {quoted(self.spacing)})")


class _ClickHouse(WholeTextDialect):
    """ClickHouse: views and parameterized views."""

    title = "ClickHouse (tested with 26.9, as chDB 4.4.0)"
    usage = """clickhouse local --queries-file FILE --interactive

from chdb.session import Session
session = Session()
session.query(open("FILE").read())
session.query("SELECT * FROM coactivation(of_run = 'RUN', of_layer = 0, of_feature = 17) ORDER BY overlap DESC")

A server reads local files only below its `user_files_path`."""
    types = {"text": "String", "integer": "Int32"}
    reads_partitions = True
    marks = (r"'\xEF\xB7\x90'", r"'\xEF\xB7\x91'")

    def __post_init__(self) -> None:
        self.notes.append(
            "an empty list and a list that is null are the same: ClickHouse's arrays are never null"
        )

    def prepare(self) -> list[str]:
        opening, closing = self.marks
        pattern = PARTS.replace("\\", "\\\\")
        character = (
            f"concat(if(position(part, {opening}) > 0, {opening}, ''), "
            "unhex(replaceRegexpAll(part, '[^0-9A-F]', '')), "
            f"if(position(part, {closing}) > 0, {closing}, ''))"
        )
        return [
            f"""CREATE OR REPLACE FUNCTION whole_text AS joined -> if(
    position(joined, '⟨') > 0,
    arrayStringConcat(
        arrayMap(
            part -> if(lengthUTF8(part) > 1 AND startsWith(part, '⟨'), {character}, part),
            extractAll(joined, '{pattern}')
        )
    ),
    joined
)"""
        ]

    def files(self, place: str) -> str:
        if not place.startswith(S3):
            return f"file({quoted(place)}, 'Parquet')"
        address = place
        if self.endpoint:
            address = f"{self.endpoint.rstrip('/')}/{place.removeprefix(S3)}"
        return f"s3({quoted(address)}, 'Parquet')"

    def macro(self, macro: PortableMacro, select: str) -> str:
        return f"CREATE OR REPLACE VIEW {macro.name} AS\n{select}"

    def parameter(self, name: str, macro: PortableMacro) -> str:
        return f"{{{name}:{self.types[macro.parameters[name]]}}}"

    def unpacked(self, packed: str, n: str) -> str:
        # columns of Parquet files may be null, which range() refuses
        row, count = f"assumeNotNull({packed})", f"assumeNotNull({n})"
        size = f"intDiv(length({row}), {count})"
        number = f"toInt32(reinterpretAsUInt32(reverse(substring({row}, i * {size} + 1, {size}))))"
        return f"arrayMap(i -> {number}, range({count}))"

    def exploded(self, values: str) -> str:
        return f"arrayJoin({values})"

    def joined(self, value: str, order: str) -> str:
        rows = f"arraySort(row -> row.1, groupArray(({order}, {value})))"
        return f"arrayStringConcat(arrayMap(row -> row.2, {rows}), {quoted(self.spacing)})"

    def contains(self, text: str, part: str) -> str:
        return f"position({text}, {part}) > 0"

    def length(self, text: str) -> str:
        return f"toInt64(lengthUTF8({text}))"

    def substring(self, text: str, start: str, length: str) -> str:
        return f"substringUTF8({text}, {start}, {length})"

    def marked(self, tokens: str, place: str) -> str:
        token = f"if(i = {place} + 1, {self.in_marks('t')}, t)"
        words = f"arrayMap((t, i) -> {token}, {tokens}, arrayEnumerate({tokens}))"
        return self.shown(f"arrayStringConcat({words}, {quoted(self.spacing)})")


class _DataFusion(NamedFilesDialect):
    """DataFusion: external tables, views and prepared statements."""

    title = "DataFusion (tested with 55.0.0)"
    usage = """datafusion-cli -f FILE

from datafusion import SessionContext
context = SessionContext()
for statement in open("FILE").read().split(";\\n"):
    if statement.strip():
        context.sql(statement)
context.sql("EXECUTE coactivation('RUN', 0, 17)").show()

For a bucket, first `context.register_object_store("s3://", AmazonS3("BUCKET", ...))`."""
    expands_patterns = False

    def __post_init__(self) -> None:
        self.notes += [
            "the view `code` has no column `features`: there is no function that applies an expression to a list",
            BYTES_STAY.format(reason="there is no function that applies an expression to a list"),
            "a macro is a prepared statement: EXECUTE gives its rows in their usual order, and no query can read them",
        ]

    def prepare(self) -> list[str]:
        # otherwise a pattern would match only names in the first folder with a *
        return ["SET datafusion.execution.listing_table_ignore_subdirectory = false"]

    def named_files(self, name: str, place: str) -> str:
        return f"CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION {quoted(place)}"

    def macro(self, macro: PortableMacro, select: str) -> str:
        kinds = ", ".join(self.types[kind] for kind in macro.parameters.values())
        return f"PREPARE {macro.name}({kinds}) AS\n{select}\nORDER BY {macro.order}"

    def parameter(self, name: str, macro: PortableMacro) -> str:
        return f"${list(macro.parameters).index(name) + 1}"

    def firing_on_mine(self) -> str:
        digits = [f"16 * (strpos('0123456789abcdef', substr(digits, {i}, 1)) - 1)" for i in range(1, 9)]
        number = digits[0].removeprefix("16 * ")
        for digit in digits[1:]:
            number = f"16 * ({number}) + {digit.removeprefix('16 * ')}"
        return f"""SELECT layer, {number} AS feature
FROM (
    SELECT layer, lpad(substr(all_digits, size * number + 1, size), 8, '0') AS digits
    FROM (
        SELECT
            code.layer AS layer,
            encode(code.packed, 'hex') AS all_digits,
            character_length(encode(code.packed, 'hex')) / code.n_features AS size,
            unnest(range(0, code.n_features)) AS number
        FROM code
        JOIN mine ON mine.sequence = code.sequence AND mine.position = code.position
        WHERE code.run = $of_run
    )
)"""

    def length(self, text: str) -> str:
        return f"character_length({text})"

    def substring(self, text: str, start: str, length: str) -> str:
        return f"substr({text}, {start}, {length})"

    def marked(self, tokens: str, place: str) -> str:
        token = self.in_marks(f"array_element({tokens}, CAST({place} AS BIGINT) + 1)")
        # array_slice() takes no other integers
        index = f"CAST({place} AS BIGINT)"
        before = f"array_slice({tokens}, 1, {index})"
        after = f"array_slice({tokens}, {index} + 2, CAST(array_length({tokens}) AS BIGINT))"
        return (
            f"array_to_string(array_concat({before}, make_array({token}), {after}), {quoted(self.spacing)})"
        )


class _Polars(Dialect):
    """Polars: tables of its SQLContext, and queries whose parameters are filled in."""

    title = "Polars (tested with 2.1.0)"
    usage = """import re
import polars as pl
tables, *queries = open("FILE").read().split("\\n-- query: ")
context = pl.SQLContext()
for statement in tables.split(";\\n"):
    if statement.strip():
        context.execute(statement)
queries = dict(query.split("\\n", 1) for query in queries)
def ask(name, **values):
    texts = {key: repr(v) if isinstance(v, int) else "'" + v.replace("'", "''") + "'" for key, v in values.items()}
    return context.execute(re.sub(r"\\$(\\w+)", lambda match: texts[match[1]], queries[name]))
ask("coactivation", of_run="RUN", of_layer=0, of_feature=17).head(10).collect()"""
    defines_macros = False
    reads_partitions = True

    def __post_init__(self) -> None:
        self.notes += [
            "the view `code` has no column `features`: there is no function that reads numbers from bytes; "
            "co-activation is counted in `activation` instead",
            "`text` of top_examples has no [[ ]]: there is no function that takes a part of a list",
            BYTES_STAY.format(reason="there is no function that applies an expression to a list"),
            "macros are queries: the SQL of a SQLContext has neither functions of its own nor parameters",
        ]

    def view(self, table: str, places: Sequence[str], columns: str) -> list[str]:
        (statement,) = super().view(table, places, columns)
        # the table of a SQLContext is a lazy frame: nothing is read
        return [statement.replace("CREATE OR REPLACE VIEW", "CREATE TABLE", 1)]

    def macro(self, macro: PortableMacro, select: str) -> str:
        return f"-- query: {macro.name}\n-- {macro.description}\n{select}\nORDER BY {macro.order}"

    def parameter(self, name: str, macro: PortableMacro) -> str:
        return f"${name}"

    def firing_on_mine(self) -> str:
        return (
            "SELECT activation.layer AS layer, activation.feature AS feature\n"
            "FROM activation\n"
            "JOIN mine ON mine.sequence = activation.sequence AND mine.position = activation.position\n"
            "WHERE activation.run = $of_run"
        )

    def joined(self, value: str, order: str) -> str:
        return f"array_to_string(array_agg({value} ORDER BY {order}), {quoted(self.spacing)})"

    def contains(self, text: str, part: str) -> str:
        # strpos() takes its second argument for a regular expression
        return f"replace({text}, {part}, '') <> {text}"

    def substring(self, text: str, start: str, length: str) -> str:
        return f"substr({text}, {start}, {length})"

    def marked(self, tokens: str, place: str) -> str:
        return f"array_to_string({tokens}, {quoted(self.spacing)})"


DIALECTS: Mapping[str, type[Dialect]] = {
    "duckdb": _DuckDB,
    "spark": _Spark,
    "clickhouse": _ClickHouse,
    "polars": _Polars,
    "datafusion": _DataFusion,
}
