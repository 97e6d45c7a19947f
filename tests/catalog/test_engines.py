"""SQL for other engines: the macros' common source gives the catalogue's rows, and views find the layout's files."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from tests.catalog.tables import (
    LAYER,
    OTHER_RUN,
    RUN,
    SILENT,
    SPLIT,
    Study,
    make_corpus,
    write_token_table,
)

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import open_catalog
from circuitloom.catalog.engines.dialect import CLOSING, OPENING, PARTS
from circuitloom.catalog.engines.dialects import DIALECTS
from circuitloom.catalog.engines.generate import engine_script, portable_macros
from circuitloom.catalog.queries import fill_in
from circuitloom.catalog.study_files import StudyFiles
from circuitloom.cli import main
from circuitloom.core.layout import TABLE_FOLDERS
from circuitloom.core.tables import TABLES
from circuitloom.core.token_text import name_bytes

Ask = Callable[..., list[tuple]]
ORDER = {macro.name: macro.order for macro in portable_macros()}
SELECTED = [(RUN, LAYER, 0), (RUN, LAYER, 4), (RUN, 10, 11), (OTHER_RUN, LAYER, 65_537), (RUN, LAYER, SILENT)]


def in_duckdb(folder: Path) -> Ask:
    connection = duckdb.connect()
    connection.execute(engine_script("duckdb", folder))

    def ask(macro: str, **values: Any) -> list[tuple]:
        # the value of a named parameter would be taken for the macro's own column names
        sql = f"FROM {macro}({', '.join(f'${name}' for name in values)}) ORDER BY {ORDER[macro]}"
        return connection.execute(fill_in(sql, values)).fetchall()

    return ask


def in_polars(folder: Path) -> Ask:
    tables, *queries = engine_script("polars", folder).split("\n-- query: ")
    context = pl.SQLContext()
    for statement in tables.split(";\n"):
        if statement.strip():
            context.execute(statement)
    by_name = dict(query.split("\n", 1) for query in queries)

    def ask(macro: str, **values: Any) -> list[tuple]:
        return context.execute(fill_in(by_name[macro], values), eager=True).rows()

    return ask


ENGINES = {"duckdb": in_duckdb, "polars": in_polars}


@pytest.fixture(scope="module", params=ENGINES)
def ask(request: pytest.FixtureRequest, study: Study) -> Ask:
    return ENGINES[request.param](study.folder)


def test_folders_named_like_partitions_add_no_column(study: Study) -> None:
    assert "=" in study.folder.name
    context = pl.SQLContext()
    for statement in engine_script("polars", study.folder).split("\n-- query: ")[0].split(";\n"):
        if statement.strip():
            context.execute(statement)
    for table in TABLES:
        frame = context.execute(f"SELECT * FROM {table.name}")
        assert frame.collect_schema().names() == list(table.columns)


@pytest.mark.parametrize("selected", SELECTED)
def test_coactivation_is_that_of_the_catalogue(catalog, ask: Ask, selected: tuple) -> None:
    run, layer, feature = selected
    expected = catalog.execute("FROM coactivation(?, ?, ?)", selected).fetchall()
    assert bool(expected) == (feature != SILENT)
    found = ask("coactivation", of_run=run, of_layer=layer, of_feature=feature)
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row[3:] == pytest.approx(other[3:], rel=1e-12)


@pytest.mark.parametrize("selected", SELECTED)
def test_top_examples_are_those_of_the_catalogue(catalog, ask: Ask, selected: tuple) -> None:
    run, layer, feature = selected
    expected = catalog.execute("FROM top_examples(?, ?, ?)", selected).fetchall()
    assert bool(expected) == (feature != SILENT)
    found = ask("top_examples", of_run=run, of_layer=layer, of_feature=feature)
    # Polars has no marks
    marks = all("[[" in row[4] for row in found)
    assert found == [row if marks else (*row[:4], re.sub(r"\[\[(.*)\]\]", r"\1", row[4], flags=re.S), *row[5:])
                     for row in expected]  # fmt: skip


def test_firing_rates_are_counts_of_activations(study: Study, ask: Ask) -> None:
    found = {row[0]: row[1:] for row in ask("firing_rates", of_run=RUN, of_layer=LAYER)}
    for feature, z in study.z[RUN, LAYER].items():
        n = int((z > 0).sum())
        assert found[feature] == (n, pytest.approx(n / study.scored.sum(), rel=1e-12)), feature
    assert found[SILENT] == (0, 0)


@pytest.mark.parametrize(
    "wanted",
    [
        "caught",
        "w1",
        " w1",
        "caught w1",
        "s.",
        "the",
        "é a",
        "日本",
        "\n",
        ". ",
        " ",
        "it's",
        "%",
        "zebra",
        "",
    ],
)
def test_search_finds_the_tokens_of_the_catalogue(catalog, ask: Ask, wanted: str) -> None:
    expected = catalog.execute("FROM search(?)", [wanted]).fetchall()
    assert bool(expected) == (wanted not in ("it's", "%", "zebra", ""))
    assert ask("search", wanted=wanted) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_search_joins_words_with_spaces(tmp_path: Path, engine: str) -> None:
    write_token_table(
        tmp_path, np.array([["the", "war", "", "ended", "war"], ["war", "the", "a", "b", "c"]], object)
    )
    search = ENGINES[engine](tmp_path)
    assert [row[:2] for row in search("search", wanted="the war")] == [(0, 1)]
    # the space before a token counts with the token
    assert [row[:2] for row in search("search", wanted="war ")] == [(0, 2), (1, 1)]
    assert [row[3] for row in search("search", wanted="d w")] == ["the war  ended [[war]]"]


@pytest.mark.parametrize("engine", ENGINES)
def test_search_also_finds_matches_that_overlap(tmp_path: Path, engine: str) -> None:
    write_token_table(tmp_path, np.array([[" ", "x", "a", "x", "a", "x"]], object))
    found = ENGINES[engine](tmp_path)("search", wanted="xax")
    assert [row[1] for row in found] == [3, 5]


def test_views_are_the_catalogues(study: Study, catalog) -> None:
    with duckdb.connect() as connection:
        connection.execute(engine_script("duckdb", study.folder))
        for table in TABLES:
            rows = f"FROM {table.name} ORDER BY {', '.join(table.key)}"
            assert connection.execute(rows).fetchall() == catalog.execute(rows).fetchall() != []


@pytest.mark.parametrize("engine", DIALECTS)
def test_the_patterns_of_views_find_the_files_of_the_layout(study: Study, engine: str) -> None:
    script = re.sub("^--.*", "", engine_script(engine, study.folder), flags=re.M)
    patterns = re.findall(r"[`'](?:file://)?/([^'`]*)/([^/'`]*)[`']", script)
    found = [(name, str(file)) for folder, name in patterns for file in Path("/").glob(f"{folder}/{name}")]
    expected = []
    for folder, tables in TABLE_FOLDERS.items():
        for table in tables:
            files = study.folder.glob(f"{folder}/{table}.parquet")
            expected += [(f"{table}.parquet", str(file)) for file in files]
    assert sorted(found) == sorted(expected)
    assert len(found) == len(list(study.folder.rglob("*.parquet")))


@pytest.mark.parametrize("engine", DIALECTS)
def test_a_study_without_a_stage_has_views_of_what_is_there(
    study: Study, tmp_path: Path, engine: str
) -> None:
    folder = shutil.copytree(study.folder, tmp_path / "study")
    shutil.rmtree(folder / "features")
    head, *_ = re.split(r"^(?!--)", script := engine_script(engine, folder), maxsplit=1, flags=re.M)
    kept = {table.name for table in TABLES} - set(SPLIT)
    names = r"^CREATE (?:OR REPLACE )?(?:TEMPORARY )?(?:EXTERNAL )?(?:VIEW|TABLE) (\w+)"
    views = set(re.findall(names, script, re.M)) - {"search"}
    assert views == kept
    assert "search(wanted) ORDER BY" in head and "coactivation(of_run, " not in head
    notes = " ".join(re.sub("^--", "", head, flags=re.M).split())
    assert "these macros need them: top_examples, coactivation, firing_rates" in notes
    if engine in ENGINES:
        assert len(ENGINES[engine](folder)("search", wanted="caught")) > 10


@pytest.mark.parametrize("engine", DIALECTS)
def test_nothing_of_the_template_is_left(study: Study, engine: str) -> None:
    statements = [line for line in engine_script(engine, study.folder).splitlines() if line[:2] != "--"]
    left = {name for line in statements for name in re.findall(r"\$(\w+)", line)}
    expected = {"polars": {"of_run", "of_layer", "of_feature", "wanted"}, "datafusion": {"1", "2", "3"}}
    assert left == expected.get(engine, set())
    assert "{{" not in "\n".join(statements) and "{%" not in "\n".join(statements)


def test_all_columns_have_types_that_engines_read_alike() -> None:
    # not so, for example: Spark refuses float16, and has no unsigned integers
    alike = {
        *(pa.string(), pa.binary(), pa.bool_(), pa.float32(), pa.float64()),
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    }
    for table in TABLES:
        for name, (kind, _) in table.columns.items():
            value = kind
            # text that is dictionary-encoded becomes text
            while pa.types.is_list(value) or pa.types.is_dictionary(value):
                value = value.value_type
            assert value in alike, f"{table.name}.{name}"


def test_parts_of_joined_tokens_are_the_catalogues_characters(catalog) -> None:
    generator = np.random.default_rng(0)
    texts = []
    for _ in range(300):
        data = bytes(generator.choice([0x41, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xED, 0xF0, 0x9F, 0x98], 12))
        pieces = [name_bytes(data[:cut]) for cut in (7,)] + [
            OPENING,
            name_bytes(data[7:9]),
            CLOSING,
            name_bytes(data[9:]),
        ]
        texts.append("".join(pieces))
    texts += ["⟨", "⟨#3⟩ ⟩", "", "plain", "".join(f"⟨{byte:02X}⟩" for byte in "é中😀".encode())]
    pattern = re.compile(PARTS.replace(r"\x{FDD0}", OPENING).replace(r"\x{FDD1}", CLOSING))
    for text in texts:
        ((expected,),) = catalog.execute("SELECT characters(?, '[^⟨]+|⟨')", [text]).fetchall()
        assert pattern.findall(text) == expected, text


@pytest.mark.parametrize(
    ("engine", "results", "message"),
    [
        ("oracle", ".", r"no engine 'oracle'; choose one of duckdb, spark, clickhouse, polars, datafusion$"),
        ("clickhouse", "nowhere", r"there is no folder nowhere; name a study's results"),
        ("clickhouse", ".", r"there are no tables in .*; make them with `snakemake`$"),
        ("clickhouse", "a[b]", r"engines read '\[' in a path as part of a pattern; move or link"),
        ("clickhouse", "link", r"there are no tables in .*/link; make them"),
        ("spark", "a:b", r"a:b: spark finds no files by a pattern in a path with ':'; move or link"),
        ("clickhouse", "a:b", r"there are no tables in .*a:b; make them"),
        (
            "clickhouse",
            "gs://bucket/study",
            r"gs://bucket/study: results are read from a folder or from s3://",
        ),
    ],
)
def test_errors_are_one_line(tmp_path: Path, monkeypatch, engine: str, results: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a[b]").mkdir()
    Path("a:b").mkdir()
    Path("link").symlink_to("a[b]")
    with pytest.raises(ValueError, match=message) as error:
        engine_script(engine, results)
    assert "\n" not in str(error.value)


def test_the_command_prints_or_writes_the_file(study: Study, tmp_path: Path, monkeypatch, capsys) -> None:
    expected = engine_script("clickhouse", study.folder)
    output = tmp_path / "out.sql"
    for more in ([], [str(output)]):
        arguments = ["circuitloom", "catalog", "--engine", "clickhouse", str(study.folder), *more]
        monkeypatch.setattr(sys, "argv", arguments)
        main()
        printed = capsys.readouterr().out
        assert printed == expected if not more else printed.startswith(f"{output}: ")
    assert output.read_text() == expected
    monkeypatch.setattr(sys, "argv", ["circuitloom", "catalog", "--engine", "oracle", str(study.folder)])
    with pytest.raises(SystemExit, match=r"^circuitloom: catalog: there is no engine 'oracle'; choose"):
        main()


def test_files_match_a_pattern_within_one_folder(tmp_path: Path) -> None:
    for path in (
        "features/r/layer0/code.parquet",
        "features/r/code.parquet",
        "features/r/layer0/x/code.parquet",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"text")
    files = StudyFiles(tmp_path)
    assert files.matching("features/*/*/code.parquet") == ["features/r/layer0/code.parquet"]
    assert files.matching("cases/*/claim.parquet") == []
    assert files.read("features/r/code.parquet") == b"text"
    assert files.read("features/r/layer0") is None


def test_the_spacing_of_a_study_is_that_of_its_catalogue(tmp_path: Path) -> None:
    make_corpus(tmp_path, ["<pad>", *(f"w{i}" for i in range(200))])
    assert StudyFiles(tmp_path).spacing() == " "
    build_catalog(tmp_path)
    with open_catalog(tmp_path) as catalog:
        assert catalog.sql("SELECT spacing()").fetchall() == [(" ",)]
