"""The report as a file: it needs no other, its ids meet nowhere, and it says what is not there."""

import re
from collections import Counter
from pathlib import Path

import pytest
from tests.report.conftest import write
from tests.report.made_up_study import sources
from tests.report.page import read_page

from circuitloom.catalog.build import build_catalog
from circuitloom.report.write import ReportInputs, write_report


def test_nothing_is_referred_to_outside_the_file(written) -> None:
    assert written.page.links
    assert [link for link in written.page.links if not link.startswith(("#", "data:"))] == []
    assert not re.search(r"url\((?!#)", written.html)


def test_no_two_elements_share_an_id_and_every_link_within_finds_its_own(written) -> None:
    assert [name for name, n in Counter(written.page.ids).items() if n > 1] == []
    wanted = {link[1:] for link in written.page.links if link.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", written.html))
    assert wanted
    assert wanted <= set(written.page.ids)


def test_claims_say_in_words_whether_they_hold(written) -> None:
    cells = written.page.cells["claims_of_case:caught"]
    assert [row[1].strip() for row in cells] == ["✓ holds", "✗ fails", "✗ fails"]
    assert [row[2] for row in cells] == ["0.5", "0.25", "not measured"]
    assert [row[4] for row in cells] == ["≥ 0.25"] * 3
    assert "1 of 3 claims hold." in written.page.text


def test_a_case_s_result_is_shown_with_its_pictures_and_the_others_behind_it(written) -> None:
    assert "caught: a case about the" in written.page.text
    assert "What the picture shows: the" in written.page.text
    assert written.html.count('<img alt="') == 2
    # its table is the catalogue's
    assert "<td>first</td>" not in written.html


def test_times_are_added_up_rule_by_rule_without_the_report_s_own(written) -> None:
    text = written.page.text
    assert "4.0 s in total" in text
    assert "train_a" in text
    assert "write_report" not in text


def test_what_the_results_are_made_of_is_named(written) -> None:
    for name in (
        "torch",
        "duckdb",
        "snakemake",
        "python",
        "processor",
        "made/train.zarr",
        "tc-a/layer1",
        "source: chronicle",
    ):
        assert name.replace("made/", "corpus/") in written.page.text, name


def empty_study(folder: Path) -> ReportInputs:
    made = sources(folder, layers=())
    build_catalog(folder)
    return made


def test_what_was_not_made_is_said_to_be_missing(tmp_path) -> None:
    made = empty_study(tmp_path / "empty")
    write_report(made, tmp_path / "report.html")
    text = " ".join(read_page((tmp_path / "report.html").read_text()).text.split())
    for line in (
        "No dictionary was evaluated.",
        "No dictionary was trained in this study.",
        "No density was measured.",
        "This text has no annotated concepts.",
        "No prompt was traced",
        "No behaviour was measured",
        "The study has no case studies",
        "No feature was predicted",
        "The language model was not pretrained",
    ):
        assert line in text


@pytest.mark.parametrize("layers", [(0,), tuple(range(24))])
def test_one_layer_and_many_are_drawn(tmp_path, layers: tuple[int, ...]) -> None:
    report = write(tmp_path, layers=layers)
    shown = {row["layer"] for row in report.page.rows["history"]}
    assert len(shown) == min(len(layers), 4)
    assert {layers[0], layers[-1]} <= shown
    assert {row["layer"] for row in report.page.rows["metrics"]} == {*layers, -1}
    assert len(report.html) < 2_000_000


def test_a_report_without_a_catalogue_is_refused_with_the_remedy(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no catalogue at .*; make it with `snakemake catalog`"):
        write_report(sources(tmp_path / "none"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_missing_weights_are_named_with_the_remedy(tmp_path) -> None:
    made = empty_study(tmp_path / "empty")
    (made.model / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"model: there are no weights; make them with `snakemake language_model`"
    ):
        write_report(made, tmp_path / "report.html")
