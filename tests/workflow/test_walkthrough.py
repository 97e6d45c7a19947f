"""docs/walkthrough.ipynb runs on the results of the workflow, and is committed with its outputs."""

import re

import nbformat
import pytest
from nbformat import NotebookNode
from tests.workflow.notebook import NOTEBOOK, QUICKSTART, run

STATEMENTS = 5
"""Number of exact statements that the last cell prints, as a list."""


def summary(notebook: NotebookNode) -> str:
    """Output of the last cell."""
    return "".join(output.text for output in notebook.cells[-1].outputs)


def committed_notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, 4)


def test_the_walkthrough_runs_on_the_tiny_study(finished) -> None:
    assert len(re.findall(r"^- ", summary(run(finished.results)), re.MULTILINE)) == STATEMENTS


def test_the_walkthrough_runs_on_quickstart() -> None:
    if not (QUICKSTART / "catalog.duckdb").is_file():
        pytest.skip("needs results/quickstart: run make reproduce")
    assert len(re.findall(r"^- ", summary(run(QUICKSTART)), re.MULTILINE)) == STATEMENTS


def test_all_cells_of_the_committed_walkthrough_ran_in_order() -> None:
    notebook = committed_notebook()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds == {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert len(re.findall(r"^- ", summary(notebook), re.MULTILINE)) == STATEMENTS


def test_the_committed_walkthrough_contains_no_paths_or_times_of_a_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 1_000_000
    assert not re.findall(r"(?<![\w./:])/(?:home|root|tmp|usr|opt|var|mnt|work|Users|private)/", text)
    for cell in committed_notebook().cells:
        assert "execution" not in cell.metadata, "run it with `make walkthrough`, which records no times"
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id), "the id of a cell is words with hyphens"
