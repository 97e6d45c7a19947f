"""docs/walkthrough.ipynb runs on what the workflow makes, and is committed as it ran."""

import re

import nbformat
import pytest
from nbformat import NotebookNode
from tests.workflow.notebook import NOTEBOOK, QUICKSTART, run

CLAIMS = 5
"""That the notebook's last cell says are exact."""


def said(notebook: NotebookNode) -> str:
    """What the last cell prints."""
    return "".join(output.text for output in notebook.cells[-1].outputs)


def committed_one() -> NotebookNode:
    return nbformat.read(NOTEBOOK, 4)


def test_the_walkthrough_holds_on_a_finished_study(finished) -> None:
    assert len(re.findall(r"^- ", said(run(finished.results)), re.MULTILINE)) == CLAIMS


def test_the_walkthrough_holds_on_quickstart() -> None:
    if not (QUICKSTART / "catalog.duckdb").is_file():
        pytest.skip("results/quickstart is not there: make reproduce")
    assert len(re.findall(r"^- ", said(run(QUICKSTART)), re.MULTILINE)) == CLAIMS


def test_the_committed_walkthrough_ran_from_its_first_cell_to_its_last() -> None:
    notebook = committed_one()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds == {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert len(re.findall(r"^- ", said(notebook), re.MULTILINE)) == CLAIMS


def test_the_committed_walkthrough_holds_nothing_of_the_machine_it_ran_on() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 1_000_000
    assert not re.findall(r"(?<![\w./:])/(?:home|root|tmp|usr|opt|var|mnt|work|Users|private)/", text)
    for cell in committed_one().cells:
        assert "execution" not in cell.metadata, "run it by `make walkthrough`, which records no times"
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id), "a cell's id says what it is about"
