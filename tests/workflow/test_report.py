"""Snakemake's own report is made offline, and gives every output in it a caption and a category."""

import json
import zipfile
from pathlib import Path

import pytest

NAMES = {
    "Language model": {"language_model/pretraining.png"},
    "Evaluation": {"evaluation/pareto.png"},
    "Circuits": {"circuits/war/graph.png", "circuits/caught/graph.png"},
    "Report": {"report.html"},
}


def script_value(page: str, name: str) -> dict:
    """The value of a variable of the page's script."""
    start = page.rindex(f"{name} = {{") + len(f"{name} = ")
    return json.JSONDecoder().raw_decode(page[start:])[0]


@pytest.fixture(scope="module")
def archive(finished, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("snakemake") / "out.zip"
    run = finished.snakemake("--report", str(path))
    assert run.returncode == 0, run.stdout[-3000:]
    return path


def test_every_reported_output_is_in_a_category_and_has_a_caption(archive, finished) -> None:
    page = zipfile.ZipFile(archive).read("out/report.html").decode()
    categories = script_value(page, "categories")
    files = {
        category: {file.removeprefix("results/tiny/") for own in parts.values() for file in own}
        for category, parts in categories.items()
    }
    cases = {str(file.relative_to(finished.results)) for file in finished.results.glob("cases/*/*.png")}
    assert files == {**NAMES, "Case studies": cases}
    assert set(categories["Case studies"]) == {"caught", "spans", "century", "planted"}
    results = script_value(page, "results")
    assert set(results) == {f"results/tiny/{file}" for own in files.values() for file in own}
    for name, result in results.items():
        assert len(result["caption"]) > 80, name
        assert "{{" not in result["caption"], name


def test_the_archive_contains_the_unchanged_report(archive, finished) -> None:
    content = zipfile.ZipFile(archive)
    written = (finished.results / "report.html").read_bytes()
    names = [name for name in content.namelist() if name.endswith("/report.html") and "/data/" in name]
    assert [content.read(name) for name in names] == [written]


def test_the_report_can_be_a_single_page(finished, tmp_path) -> None:
    run = finished.snakemake("--report", str(tmp_path / "out.html"))
    assert run.returncode == 0, run.stdout[-3000:]
    assert "The pruned attribution graph of a prompt" in (tmp_path / "out.html").read_text()
