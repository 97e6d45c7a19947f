"""Run docs/walkthrough.ipynb; as a program, run it on results/quickstart and store the outputs in the notebook."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "walkthrough.ipynb"
QUICKSTART = ROOT / "results" / "quickstart"


def run(results: Path) -> NotebookNode:
    """The notebook with its outputs on a study's results. Raises CellExecutionError if a cell raises."""
    notebook = nbformat.read(NOTEBOOK, 4)
    client = NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    environment = {"CIRCUITLOOM_RESULTS": str(results), "PYTHONPATH": str(ROOT / "lib")}
    client.execute(env=os.environ | environment)
    # leave out the version of Python
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    nbformat.write(run(QUICKSTART), NOTEBOOK)
