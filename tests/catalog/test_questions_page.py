"""The page of questions: each question is run on each study, followed by its result."""

import io
import re

import pytest
from tests.catalog.tables import RUNS, make_study

from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.output import write_result
from circuitloom.catalog.queries import questions, quoted
from circuitloom.catalog.questions_page import queries_page, question_parameters
from circuitloom.catalog.sandbox import open_sandbox, run_statement
from circuitloom.core.tables import RUN, write_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    study = make_study(tmp_path_factory.mktemp("page") / "small")
    runs = [{"run": run, "kind": kind, "k": 8} for run, kind in zip(RUNS, ("sae", "transcoder"), strict=True)]
    write_table(RUN, runs, study.folder / "evaluation" / "run.parquet")
    build_catalog(study.folder)
    return study.folder


def test_there_are_twenty_questions():
    assert len(list(questions())) == 20
    assert all(question.description.endswith("?") for question in questions())


def test_every_question_has_its_sql_and_its_result(folder):
    page = queries_page({folder: "[0-9]"})
    parts = re.split(r"^## \d+\. ", page, flags=re.MULTILINE)[1:]
    assert [part.partition("\n")[0] for part in parts] == [question.description for question in questions()]
    for part in parts:
        assert part.count("```sql") == 1 and part.count("small:") == 1
        assert "```text" in part or "No rows" in part
        assert not re.search(r"\{\w+\}", part), "a parameter is not filled in"


def test_the_questions_are_about_the_feature_that_matches_the_pattern_best(folder):
    names = question_parameters(open_sandbox(folder), "[0-9]")
    rows = run_statement(
        open_sandbox(folder), f"FROM features_on('[0-9]') WHERE run = {quoted(names['run'])} LIMIT 1"
    ).read_all()
    assert [names["layer"], names["feature"]] == [rows["layer"][0].as_py(), rows["feature"][0].as_py()]


def test_a_result_without_rows_is_printed_as_its_heading(folder):
    stream = io.StringIO()
    write_result(
        run_statement(open_sandbox(folder), "SELECT run, layer FROM feature WHERE false"), "table", stream, 80
    )
    assert stream.getvalue().split()[:2] == ["run", "layer"]


def test_quotes_in_a_literal_are_doubled():
    assert quoted("it's") == "'it''s'" and quoted(3) == "3"
