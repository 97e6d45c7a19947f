"""Which feature a case is about: by concept score where there are labels, else by contrast of two sets of prompts."""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from ...config.evaluation import Evaluation
from ...evaluation.concepts import SparseActivations, label, score_features
from ...evaluation.held_out import HeldOut

SILENT = "{} at the last token of any text of the finding half; change the case's texts"


class Chosen(NamedTuple):
    """A feature and the activation above which it counts as firing."""

    layer: int
    feature: int
    threshold: float
    score: float
    """F1 on the choosing half of the documents (labelled), or how well the finding half's prompts are told apart."""


def choose_by_concept(
    codes: Mapping[int, SparseActivations],
    on: Mapping[int, Float[Tensor, "prompt feature"]],
    concepts: pa.Table,
    concept: str,
    held_out: HeldOut,
    config: Evaluation,
) -> Chosen:
    """The feature of any layer with the largest F1 for `concept` on the documents for choosing.

    `codes` has the activations on the scored tokens of `held_out`, by layer, and `on` those at the prompts' last
    tokens: a feature that fires on none of them is no candidate. Raises ValueError where the held-out text has no such
    label, or nothing fires on any prompt.
    """
    mine = concepts.filter(pc.field("concept") == concept)
    labels = label(mine, held_out)
    if not labels.names or not int(labels.positives(choosing=True)):
        raise ValueError(
            f"no held-out token of the choosing half is labelled {concept}; name another concept, or leave it out to "
            "find the feature by contrast"
        )
    found = []
    for layer, code in codes.items():
        scores = score_features(code, labels, config.thresholds)
        f1 = scores.f1_choosing[:, 0].masked_fill(~on[layer].any(0), -1.0)
        best = int(f1.argmax())
        found.append(Chosen(layer, best, float(scores.threshold[best, 0]), float(f1[best])))
    chosen = max(found, key=lambda each: each.score)
    if chosen.score < 0:
        raise ValueError(SILENT.format("no feature fires"))
    return chosen


def choose_by_contrast(
    on: Mapping[int, Float[Tensor, "prompt feature"]],
    off: Mapping[int, Float[Tensor, "prompt feature"]],
    only: tuple[int, int] | None = None,
) -> Chosen:
    """The feature of any layer, or `only` this one, that best tells prompts from their edits, at its best threshold.

    `on` and `off` are activations at the prompts' and the edits' last tokens. The score is the share of prompts above
    the threshold less that of edits; of equals the one with the larger gap between the two means counts. Raises
    ValueError where nothing fires on any prompt.
    """
    found = []
    for layer in on:
        if only is None or only[0] == layer:
            columns = range(on[layer].shape[1]) if only is None else [only[1]]
            live = [i for i in columns if bool(on[layer][:, i].any())]
            found += [(*_split(on[layer][:, i], off[layer][:, i]), layer, i) for i in live]
    if not found:
        what = "no feature fires" if only is None else f"feature {only[0]}/{only[1]} does not fire"
        raise ValueError(SILENT.format(what))
    score, _, threshold, layer, feature = max(found, key=lambda each: each[:2])
    return Chosen(layer, feature, threshold, score)


def _split(on: Float[Tensor, " prompt"], off: Float[Tensor, " prompt"]) -> tuple[float, float, float]:
    """Score, gap of the means, threshold."""
    values = torch.cat([on, off]).unique()
    between = torch.cat([values.new_zeros(1), (values[1:] + values[:-1]) / 2])
    score = (on[:, None] > between).float().mean(0) - (off[:, None] > between).float().mean(0)
    best = int(score.argmax())
    return float(score[best]), float(on.mean() - off.mean()), float(between[best])
