"""What is claimed of greater-than, each claim with what was measured."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.causal_effects import Kind
from ...config.cases.greater_than import GreaterThanCase
from ..claims import Bootstrap, Claim, measured, ratio, share_of
from ..context import TESTING
from .circuit import Alone
from .keeping import advantage
from .measured import YearMeasurements, removing
from .passes import ALL, UNTOUCHED, ablating, replacing

SET_TO: dict[Kind, str] = {"zero": "zero", "mean": "the mean"}
"""How ablations read."""


def make_claims(found: YearMeasurements, case: GreaterThanCase) -> list[Claim]:
    """All claims, the metric's first."""
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    parts = (_on_metric, _on_features, _on_heads, _on_years, _on_circuit)
    return [claim for part in parts for claim in part(found, case, bootstrap)]


def _on_metric(found: YearMeasurements, case: GreaterThanCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """The model untouched, with MLPs replaced, with the layer's MLP ablated, without a feature."""
    layer, known = found.layer, case.published
    # where the layer was found, it was on the finding half
    layer_given = case.layer is not None or case.feature is not None

    def metric(condition: str, everywhere: bool) -> np.ndarray:
        return over(found, found.conditions[condition], everywhere)

    def claim(name: str, what: str, condition: str, everywhere: bool, bound: float, **keys) -> Claim:
        statement = f"the metric {what}"
        return measured(name, statement, metric(condition, everywhere), bound, bootstrap, **keys)

    yield claim(
        "untouched", "of the untouched model", UNTOUCHED, True, case.untouched, published=known.untouched
    )
    what = f"with MLP {layer} replaced by its transcoder"
    yield claim("replaced", what, replacing(layer), layer_given, case.replaced, published=known.replaced)
    names = [name for name in found.conditions if name in map(replacing, range(len(found.layer_effect)))]
    columns = np.concatenate([metric(name, True) for name in names], 1)
    statement = "the metric with one MLP replaced by its transcoder, at the layer where it is lowest,"
    yield measured("replaced_worst", statement, columns, case.replaced, bootstrap, least)
    if ALL in found.conditions:
        yield claim("replaced_all", "with all MLPs replaced at once", ALL, True, case.replaced)
    for kind, words in {"zero": "zero", "mean": "its mean over the prompts"}.items():
        what, condition = f"with MLP {layer} set to {words}", ablating(layer, kind)
        yield claim(f"{kind}_ablated", what, condition, layer_given, case.destroyed, relation="below")
    removed = removing(layer, found.feature)
    drop = metric(UNTOUCHED, case.feature is not None) - metric(removed, case.feature is not None)
    published = None
    if known.untouched is not None and known.without_feature is not None:
        published = known.untouched - known.without_feature
    statement = f"what the metric loses {removed}"
    yield measured("feature_removed", statement, drop, 0.0, bootstrap, published=published)


def _on_features(found: YearMeasurements, case: GreaterThanCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """Few features against as few neurons."""
    for kind, words in SET_TO.items():
        rows = advantage(found.kept, kind, case.small)[:, None].numpy()
        statement = (
            f"how much more of the metric up to {case.small} features of layer {found.layer} keep than as many "
            f"neurons, the others set to {words},"
        )
        yield measured(f"few_features_{kind}", statement, rows, 0.0, bootstrap)


def _on_heads(found: YearMeasurements, case: GreaterThanCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """The head that was found on one half, on the other."""
    shifts, head = found.shifts, found.head
    name = f"head {shifts.layer[head]}.{shifts.head[head]}"
    rows = torch.stack([shifts.shift[head], shifts.total], 1).numpy()
    statement = f"the share of the start year's effect that goes through {name} behind the last token"
    yield measured("head_share", statement, rows, case.carried, bootstrap, ratio)
    if len(shifts.head) > 1:
        others = [i for i in range(len(shifts.head)) if i != head]
        rows = torch.stack([shifts.shift[head], *shifts.shift[others], shifts.total], 1).numpy()
        statement = f"by how much {name}'s share exceeds that of any other head"
        yield measured("head_first", statement, rows, 0.0, bootstrap, leading_share)


def _on_years(found: YearMeasurements, case: GreaterThanCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """The layer's features of the highest variance: what they promote, and what their weights read."""
    years, n = found.years, len(found.years.feature)
    features = f"the {n} features of layer {found.layer} of the highest variance"
    yield measured(
        "direct_effect",
        f"what {features} add directly to the mean logit of later years, less that of the others,",
        found.direct[:, None].numpy(), 0.0, bootstrap,
    )  # fmt: skip
    year = ranks(years.year.tolist())
    rows = np.stack([column for own in years.attribution.tolist() for column in (year, ranks(own))], 1)
    statement = f"the rank correlation of year and logit attribution, mean over {features},"
    yield measured("attribution_rises", statement, rows, 0.0, bootstrap, correlation, of="years")
    if years.score is not None:
        pairs = zip(years.activation.numpy(), years.score.numpy(), strict=True)
        # a feature that never fires on the prompts correlates with nothing
        columns = [column for pair in pairs if pair[0].any() for column in pair]
        statement = (
            f"the correlation of de-embedding score and activation over start years, mean over {features},"
        )
        if columns:
            rows = np.stack(columns, 1)
            yield measured(
                "deembedding", statement, rows, case.deembedded, bootstrap, correlation, of="years"
            )


def _on_circuit(found: YearMeasurements, case: GreaterThanCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """What the circuit keeps alone, what is left without it, and where it comes from."""
    for kind, words in SET_TO.items():
        statement = f"the share of the behaviour that the circuit alone keeps, all else set to {words},"
        alone = found.alone[kind]
        rows = _share(alone, alone.kept)
        yield measured(f"circuit_{kind}", statement, rows, case.circuit, bootstrap, ratio)
    alone = found.alone["mean"]
    statement = (
        "how much more of the metric the circuit keeps than as many drawn features, all else set to the mean,"
    )
    yield measured(
        "circuit_not_drawn", statement, (alone.kept - alone.drawn)[:, None].numpy(), 0.0, bootstrap
    )
    statement = "the share of the behaviour that is left with the circuit's features alone set to the mean"
    # transcoders stand in for MLPs on all these passes: what their errors take is not the circuit's doing
    rows = torch.stack([alone.featureless - alone.none, alone.all - alone.none], 1).numpy()
    yield measured("left_without", statement, rows, case.left, bootstrap, ratio, relation="below")
    token, place = found.leaves.token, found.prompts.place
    others = [i for i in range(token.shape[1]) if i != place]
    rows = token[:, [place, *others]].numpy()
    statement = "how much more the start year's token adds to the logits of later years than any other token"
    yield measured("year_first", statement, rows, 0.0, bootstrap, lead)


def _share(alone: Alone, part: Float[Tensor, " prompt"]) -> Float[np.ndarray, "prompt 2"]:
    """What passes recover of the behaviour, and all of it: the metric beside that with nothing there."""
    return torch.stack([part - alone.none, alone.untouched - alone.none], 1).numpy()


def over(
    found: YearMeasurements, values: Float[Tensor, " prompt"], everywhere: bool
) -> Float[np.ndarray, "chosen 1"]:
    """Values of all prompts, or of the testing half."""
    chosen = [everywhere or half == TESTING for half in found.prompts.half]
    return values.numpy()[chosen, None]


def least(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """The least of the columns' means."""
    return rows.mean(1).min(-1)


def lead(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """The first column's mean less the largest of the others'."""
    means = rows.mean(1)
    return means[:, 0] - means[:, 1:].max(-1)


def leading_share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """The lead of the first column, the last left out, as a share of the last; not defined as in `ratio`."""
    return share_of(lead(rows[:, :, :-1]), rows[:, :, -1].mean(1))


def correlation(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Pearson's, of each two columns; their mean. Not finite where one is constant."""
    x = rows - rows.mean(1, keepdims=True)
    product = (x[:, :, ::2] * x[:, :, 1::2]).sum(1)
    size = (x**2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (product / np.sqrt(size[:, ::2] * size[:, 1::2])).mean(-1)


def ranks(values: Sequence[float]) -> Float[np.ndarray, " value"]:
    """Place of each value in ascending order, the mean of their places for equal ones."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[inverse]
