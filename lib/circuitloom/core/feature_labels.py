"""Labels of features as graphs, tables and exports show them, read from the files of the table `label`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from .formatting import escape_invisible, format_number
from .layout import FREQUENT, PLANTED, Layout
from .tables import read_table

COMPARED = (FREQUENT, PLANTED)
"""Sources of labels that are scored for comparison only."""
UNDESCRIBED = "none"
"""Kind of a label that says that nothing describes the feature."""


@dataclass(frozen=True)
class FeatureLabel:
    """The label of a feature, and how well it says where the feature fires."""

    text: str
    f1: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "FeatureLabel | None":
        """Returns the label in the columns `feature_label` and `label_f1` of a node, or None."""
        text = row.get("feature_label")
        return None if text is None else cls(escape_invisible(text), row.get("label_f1"))

    @property
    def scored(self) -> str:
        """The label with its F1 in brackets."""
        return self.text if self.f1 is None else f"{self.text} (F1 {format_number(self.f1, 2)})"


LabelsByFeature = Mapping[tuple[int, int], FeatureLabel]
"""Maps (layer, feature) to the feature's label."""


def read_feature_labels(
    layout: Layout, run: str, features: Iterable[tuple[int, int]] | None = None
) -> dict[tuple[int, int], FeatureLabel]:
    """Returns the labels of a run's features, as `best_labels` of all files of the run."""
    return best_labels(layout.label_files(run), features)


def best_labels(
    files: Iterable[Path], features: Iterable[tuple[int, int]] | None = None
) -> dict[tuple[int, int], FeatureLabel]:
    """Returns the best label by F1 of each (layer, feature) in files of one run, as the macro `labels` chooses it.

    By default, `features` are all features. Features that nothing describes are left out.
    """
    chosen = None if features is None else set(features)
    best: dict[tuple[int, int], tuple[tuple[float, str], str, FeatureLabel]] = {}
    for file in files:
        rows = read_table(file, ~pc.field("source").isin(COMPARED))
        for row in rows.select(["layer", "feature", "source", "kind", "label", "f1"]).to_pylist():
            place = (row["layer"], row["feature"])
            if chosen is not None and place not in chosen:
                continue
            # the highest F1 first, and of equal ones the first source
            rank = (math.inf if row["f1"] is None else -row["f1"], row["source"])
            if place not in best or rank < best[place][0]:
                label = FeatureLabel(escape_invisible(row["label"]), row["f1"])
                best[place] = (rank, row["kind"], label)
    return {place: label for place, (_, kind, label) in sorted(best.items()) if kind != UNDESCRIBED}
