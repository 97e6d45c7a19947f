"""The best label of each feature, from files and from the catalogue."""

from pathlib import Path

import pytest

from circuitloom.attribution.tracer import feature_labels
from circuitloom.catalog.build import build_catalog
from circuitloom.catalog.client import CatalogClient
from circuitloom.core.feature_labels import FeatureLabel, read_feature_labels
from circuitloom.core.layout import Layout
from circuitloom.core.tables import EXAMPLE, LABEL, write_table

RUN = "tc-[a]"


def label(
    layer: int,
    feature: int,
    text: str,
    f1: float | None,
    source: str = "rule",
    kind: str = "token",
    run: str = RUN,
):
    return {
        "run": run,
        "layer": layer,
        "feature": feature,
        "label": text,
        "source": source,
        "kind": kind,
        "f1": f1,
    }


ROWS = {
    ("rules", RUN, 0): [
        label(0, 0, "`was`", 0.75),
        label(0, 0, "for comparison", 0.99, "frequent"),
        label(0, 0, "for comparison", 0.99, "planted"),
        label(0, 1, "`caught` after\t`was`", 0.5),
        label(0, 2, "nothing describes it", 0.25, kind="none"),
        label(0, 3, "not scored", None),
        label(0, 4, "by a rule", 0.5),
        label(0, 5, "only for comparison", 0.9, "frequent"),
    ],
    ("model", RUN, 0): [
        label(0, 0, "a verb", 0.5, "a-model", "text"),
        label(0, 1, "the passive of catch", 0.625, "a-model", "text"),
        label(0, 3, "scored", 0.125, "z-model", "text"),
        label(0, 4, "by a model", 0.5, "a-model", "text"),
    ],
    ("rules", RUN, 10): [label(10, 1, "of layer 10", 1.0)],
    ("rules", "tc-a", 0): [label(0, 0, "of another run", 1.0, run="tc-a")],
}
BEST = {
    (0, 0): FeatureLabel("`was`", 0.75),
    (0, 1): FeatureLabel("the passive of catch", 0.625),
    (0, 3): FeatureLabel("scored", 0.125),
    (0, 4): FeatureLabel("by a model", 0.5),
    (10, 1): FeatureLabel("of layer 10", 1.0),
}
"""The highest F1 wins, of equal ones the first source. Sources for comparison and the kind `none` do not count."""


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("labels"))
    for (maker, run, layer), rows in ROWS.items():
        write_table(LABEL, rows, layout.labels(maker, run, layer))
    build_catalog(layout.root)
    return layout


def test_the_best_label_of_each_feature_is_read(layout) -> None:
    assert read_feature_labels(layout, RUN) == BEST
    assert read_feature_labels(layout, RUN, [(0, 1), (0, 2), (7, 7)]) == {(0, 1): BEST[0, 1]}
    assert read_feature_labels(layout, "none") == {}


def test_the_catalogue_gives_the_same_labels(layout) -> None:
    client = CatalogClient(layout.root)
    places = [(layer, feature) for layer in (0, 10) for feature in range(6)]
    assert client.labels(RUN, places) == BEST
    assert client.labels(RUN, [(0, 4)]) == {(0, 4): BEST[0, 4]}
    assert client.labels(RUN, []) == client.labels("none", places) == {}


def test_control_characters_of_a_label_are_shown(tmp_path: Path) -> None:
    write_table(LABEL, [label(0, 1, "`a\n`\u202e", 0.5)], Layout(tmp_path).labels("rules", RUN, 0))
    assert read_feature_labels(Layout(tmp_path), RUN)[0, 1].text == "`a↵`\\u202e"


def test_a_label_is_shown_with_its_f1() -> None:
    assert BEST[0, 1].scored == "the passive of catch (F1 0.62)"
    assert FeatureLabel("x", None).scored == "x"
    assert FeatureLabel.of({"feature_label": "x", "label_f1": 0.5}) == FeatureLabel("x", 0.5)
    assert FeatureLabel.of({"feature_label": None, "label_f1": None}) is None
    assert FeatureLabel.of({}) is None


def test_a_feature_without_a_label_is_described_by_its_most_frequent_tokens(layout) -> None:
    window = {"band": 0, "window_start": 4, "position": 5, "layer": 0, "run": RUN, "activation": 1.0}
    rows = [
        window | {"feature": feature, "rank": rank, "tokens": ["no", token]}
        for feature in (1, 2) for rank, token in enumerate((" by", " fire", " fire"))
    ]  # fmt: skip
    write_table(EXAMPLE, rows, layout.feature_table(RUN, 0, "example"))
    found = feature_labels(layout.root, RUN, [(0, 1), (0, 2), (0, 3), (3, 3)])
    assert found == {
        (0, 1): "the passive of catch (F1 0.62)", (0, 2): "fires on fire, by", (0, 3): "scored (F1 0.12)",
    }  # fmt: skip
