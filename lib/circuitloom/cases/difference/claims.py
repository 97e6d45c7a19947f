"""What is claimed of a circuit for a logit difference, from what was measured on each prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.faithfulness import Curve
from ...config.cases.difference import DifferenceCase
from ..claims import Bootstrap, Claim, Statistic, measured, share_of


@dataclass(frozen=True)
class Tested:
    """The metric of a circuit on the testing half, and of what it is measured by."""

    preferred: Float[Tensor, " drawn"]
    """Of the untouched model, on all prompts of both halves."""
    untouched: Float[Tensor, " probe"]
    none: Float[Tensor, " probe"]
    """With everything ablated."""
    alone: Float[Tensor, " probe"]
    """Of the circuit, all else ablated."""
    without: Float[Tensor, " probe"]
    """Of the model without the circuit."""
    without_features: Float[Tensor, " probe"]
    """Of the model without the circuit's features, its heads left as they are."""
    transcoded: Float[Tensor, " probe"]
    """With transcoders in place of all MLPs that have one, their errors gone."""
    worth: Float[Tensor, "probe component"]
    """What the circuit loses without each of its components."""
    split_circuit: Float[Tensor, "probe subset"]
    """Of the circuit without random subsets of it."""
    split_model: Float[Tensor, "probe subset"]
    """Of the model without the same."""
    curve: Curve
    other: Curve | None
    """With neurons in place of features."""


def make_claims(tested: Tested, case: DifferenceCase, bootstrap: Bootstrap) -> list[Claim]:
    """The claims, in the order in which they are told."""
    claims = [*_of_the_model(tested, case, bootstrap), *_of_the_circuit(tested, case, bootstrap)]
    return claims if tested.other is None else [*claims, _fewer(tested.curve, tested.other, case, bootstrap)]


def _of_the_model(tested: Tested, case: DifferenceCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    right = (tested.preferred > 0).double().tolist()
    statement = "the share of prompts on which the model prefers the right token"
    yield measured("behaves", statement, right, case.positive, bootstrap)
    statement = "the model's mean logit difference, in nats,"
    yield measured("prefers", statement, tested.preferred.tolist(), case.difference, bootstrap)
    rows = _rows([tested.transcoded, tested.none, tested.untouched])
    statement = (
        "the share of the difference that is left where transcoders stand in for MLPs, without their errors,"
    )
    yield measured("explained", statement, rows, case.explained, bootstrap, share)


def _of_the_circuit(tested: Tested, case: DifferenceCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    size = tested.worth.shape[1]
    ends = [tested.none, tested.untouched]
    statement = f"the share of the difference that the circuit alone, of {size} components, recovers"
    yield measured("faithful", statement, _rows([tested.alone, *ends]), case.share, bootstrap, share)
    left = (
        ("necessary", "without the circuit", tested.without, case.remaining),
        (
            "through_features",
            "without the circuit's features, all heads as they are,",
            tested.without_features,
            case.remaining_features,
        ),
    )
    for name, how, metric, bound in left:
        statement = f"the share of the difference that is left {how}"
        yield measured(name, statement, _rows([metric, *ends]), bound, bootstrap, share, relation="below")
    statement = (
        "the mean distance of circuit and model without the same random subset of the circuit, as a share of the "
        "difference,"
    )
    rows = _rows([*ends, *(tested.split_circuit - tested.split_model).T])
    yield measured("complete", statement, rows, case.gap, bootstrap, gap, relation="below")
    statement = "the share of the circuit's components without which, each alone, the circuit loses something"
    yield measured("minimal", statement, _rows(list(tested.worth.T)), case.minimal, bootstrap, positive)


def _fewer(curve: Curve, other: Curve, case: DifferenceCase, bootstrap: Bootstrap) -> Claim:
    n_kept, n_other = curve.n_kept.double().numpy(), other.n_kept.double().numpy()
    columns = [curve.untouched, *curve.kept.T, *other.kept.T]
    return measured(
        "fewer",
        f"the number of features and heads that recover {case.share:g} of the difference alone, over that of neurons "
        "and heads,",
        _rows(columns),
        case.fewer,
        bootstrap,
        needed_ratio(n_kept, n_other, case.share),
        relation="below",
    )


def share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Of columns (metric, with nothing, untouched): the share of the behaviour; NaN where there is no behaviour."""
    metric, none, untouched = rows[:, :, :3].mean(1).T
    return share_of(metric - none, untouched - none)


def worth_share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Of columns (what is lost, with nothing, untouched): that as a share of the behaviour."""
    lost, none, untouched = rows[:, :, :3].mean(1).T
    return share_of(lost, untouched - none)


def gap(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Of columns (with nothing, untouched, differences ...): mean magnitude of the differences, as a share."""
    means = rows.mean(1)
    return share_of(np.abs(means[:, 2:]).mean(1), means[:, 1] - means[:, 0])


def positive(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """The share of columns whose mean is above 0; NaN where there are none."""
    if not rows.shape[2]:
        return np.full(len(rows), np.nan)
    return (rows.mean(1) > 0).mean(1)


def needed_ratio(
    n_kept: Float[np.ndarray, " size"], n_other: Float[np.ndarray, " other"], wanted: float
) -> Statistic:
    """Of columns (untouched, metric with each of `n_kept`, of `n_other` alone): how many it takes in the one basis,
    over how many in the other."""

    def statistic(rows: np.ndarray) -> np.ndarray:
        means = rows.mean(1)
        first, second = np.split(means[:, 1:], [len(n_kept)], 1)
        counts = [
            needed(n, share_of(kept - kept[:, :1], means[:, :1] - kept[:, :1]), wanted)
            for n, kept in ((n_kept, first), (n_other, second))
        ]
        return share_of(*counts)

    return statistic


def needed(
    n_kept: Float[np.ndarray, " size"], shares: Float[np.ndarray, "sample size"], wanted: float
) -> Float[np.ndarray, " sample"]:
    """Components at which a curve first reaches `wanted`, linear between those measured; NaN where it never does."""
    enough = shares >= wanted
    place = np.maximum(1, enough.argmax(1))
    row = np.arange(len(shares))
    before, after = shares[row, place - 1], shares[row, place]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (wanted - before) / (after - before)
    found = n_kept[place - 1] + part * (n_kept[place] - n_kept[place - 1])
    return np.where(enough.any(1), found, np.nan)


def _rows(columns: Sequence[Tensor]) -> Float[np.ndarray, "row column"]:
    return torch.stack([column.double() for column in columns], 1).numpy() if columns else np.empty((0, 0))
