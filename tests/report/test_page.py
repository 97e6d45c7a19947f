"""The report as a file: self-contained, with unique ids, and explicit about missing parts."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.conftest import write
from tests.report.made_up_study import report_inputs
from tests.report.page import read_page

from circuitloom.catalog.build import build_catalog
from circuitloom.report.write import ReportInputs, named_features, write_report


def test_a_case_study_shows_the_labels_of_the_features_that_it_names(written) -> None:
    (row,) = written.page.rows["case_labels:caught"]
    assert (row["layer"], row["feature"], row["label"], row["f1"]) == (0, 3, "`the` after `a`", 0.75)
    assert len(written.page.cells["case_labels:caught"]) == 1


def test_features_are_not_dates_paths_or_fractions_of_words(tmp_path) -> None:
    (tmp_path / "war").mkdir()
    text = "feature 2/887 (0.2), 0/25, `1/3`; and 1.0/4 a/5/6 x3/4 3/4x 10/11/12, 2/887 again"
    (tmp_path / "war" / "result.md").write_text(text)
    inputs = replace(
        report_inputs(tmp_path), results=[tmp_path / "war" / "result.md"], case_runs={"war": "tc"}
    )
    assert named_features(inputs) == {"war": ("tc", ["2/887", "0/25", "1/3"])}


def test_the_file_refers_to_nothing_outside_it(written) -> None:
    assert written.page.links
    assert [link for link in written.page.links if not link.startswith(("#", "data:"))] == []
    assert not re.search(r"url\((?!#)", written.html)


def test_ids_are_unique_and_every_internal_link_has_its_target(written) -> None:
    assert [name for name, n in Counter(written.page.ids).items() if n > 1] == []
    wanted = {link[1:] for link in written.page.links if link.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", written.html))
    assert wanted
    assert wanted <= set(written.page.ids)


def test_claims_state_whether_they_hold(written) -> None:
    cells = written.page.cells["claims_of_case:caught"]
    assert [row[1].strip() for row in cells] == ["✓ holds", "✗ fails", "✗ fails"]
    assert [row[2] for row in cells] == ["0.5", "0.25", "not measured"]
    assert [row[4] for row in cells] == ["≥ 0.25"] * 3
    assert "1 of 3 claims hold." in written.page.text


def test_notes_say_how_a_prompt_was_read(written) -> None:
    (note,) = written.page.rows["trace:war"][0]["notes"]
    assert f"{note}." in written.page.text


def test_the_result_of_a_case_study_is_shown_with_all_its_pictures(written) -> None:
    assert "caught: a case about the" in written.page.text
    assert "Caption: the" in written.page.text
    assert written.html.count('<img alt="') == 2
    # its table comes from the catalogue instead
    assert "<td>first</td>" not in written.html


def test_massive_activations_and_median_fvu_are_shown(written) -> None:
    shares = [(row["largest_over_median"], row["top_share"]) for row in written.page.rows["activation_norm"]]
    assert shares == [(281.0, 0.96)] * 2
    assert {row["fvu_median"] for row in written.page.rows["metric_mean"]} == {0.0625}


def test_the_numbers_of_outliers_left_out_are_shown(written) -> None:
    found = {(row["run"], row["layer"]): row for row in written.page.rows["outliers"]}
    assert len(found) == 3 * 3
    # all layers together have no training of their own
    numbers = [(row["outliers_in_training"], row["outliers_in_scores"]) for row in found.values()]
    assert sorted(set(numbers)) == [(0, 1), (21, 2), (21, 3)]
    assert "Tokens that activations.outliers left out" in written.page.text


def test_times_are_added_up_per_rule_without_the_reports_own(written) -> None:
    text = written.page.text
    assert "4.0 s in total" in text
    assert "train_a" in text
    assert "write_report" not in text


def test_versions_machine_hashes_and_config_are_listed(written) -> None:
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


def test_the_common_circuit_of_a_behaviour_is_drawn_and_its_shares_are_of_testing_prompts(written) -> None:
    shares = [
        [row[name] for name in ("features", "n_prompts", "untouched", "ablated", "recovered", "remaining")]
        for row in written.page.rows["common_shares:plural"]
    ]
    assert shares == [
        ["common circuit", 2, 5.5, 1.5, 0.75, 0.25],
        ["random features", 2, 5.5, 1.5, 0.125, 0.875],
        ["all aggregated features", 2, 5.5, 1.5, 1.0, 0.0625],
    ]
    assert [row["node"] for row in written.page.rows["common_nodes:plural"]] == [0, 1, 3]
    (drawn,) = re.findall(
        r"<svg[^>]*>(?:(?!</svg>).)*common to the graphs of.*?</svg>", written.html, re.DOTALL
    )
    # the feature with its label, and not the one that few graphs have
    assert "b vs c" in drawn and "{thing}" in drawn and "0/9" not in drawn and "logits" in drawn


def test_what_the_corpus_left_out_is_listed(written) -> None:
    assert written.page.cells["notices"] == [["train", "blank", "2", "2 documents of the are blank"]]
    assert "The corpus left nothing out" not in written.page.text


def empty_study(folder: Path) -> ReportInputs:
    inputs = report_inputs(folder, layers=())
    build_catalog(folder)
    return inputs


def test_missing_parts_are_stated(tmp_path) -> None:
    inputs = empty_study(tmp_path / "empty")
    write_report(inputs, tmp_path / "report.html")
    text = " ".join(read_page((tmp_path / "report.html").read_text()).text.split())
    for line in (
        "No dictionary was evaluated.",
        "No dictionary was trained in this study.",
        "No activations were cached for training.",
        "Training and scores left no token out.",
        "No density was measured.",
        "This text has no annotated concepts.",
        "No prompt was traced",
        "No behaviour was measured",
        "The study has no case studies",
        "No feature was predicted",
        "The language model was not pretrained",
        "The corpus left nothing out",
    ):
        assert line in text


@pytest.mark.parametrize("layers", [pytest.param((0,), marks=pytest.mark.slow), tuple(range(24))])
def test_one_layer_and_many_are_drawn(tmp_path, layers: tuple[int, ...]) -> None:
    report = write(tmp_path, layers=layers)
    shown = {row["layer"] for row in report.page.rows["history"]}
    assert len(shown) == min(len(layers), 4)
    assert {layers[0], layers[-1]} <= shown
    assert {row["layer"] for row in report.page.rows["metrics"]} == {*layers, -1}
    assert len(report.html) < 2_000_000


def test_a_missing_catalogue_is_an_error_with_a_remedy(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no catalogue at .*; make it with `snakemake catalog`"):
        write_report(report_inputs(tmp_path / "none"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_missing_weights_are_an_error_with_a_remedy(tmp_path) -> None:
    inputs = empty_study(tmp_path / "empty")
    (inputs.model / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"model: there are no weights; make them with `snakemake language_model`"
    ):
        write_report(inputs, tmp_path / "report.html")
