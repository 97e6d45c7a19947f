"""Claims of the case study of greater-than, and the words with which texts name its answers."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.causal_effects import AblationKind
from ...ablation.common_circuit import CommonCircuit
from ...config.cases.greater_than import GreaterThanCase
from ...corpus.templates import TESTING
from ..claims import (
    Bootstrap,
    Claim,
    lead,
    leading_share,
    least_mean,
    make_claim,
    mean_correlation,
    mean_ranks,
    ratio,
)
from ..common_circuit import CommonResults, common_claims
from .measurements import (
    ALL_REPLACED,
    FEATURES,
    NEURONS,
    UNTOUCHED,
    GreaterThanResults,
    LayerCurve,
    ablated_name,
    replaced_name,
    without_feature_name,
)

ABLATION_VALUES: dict[AblationKind, str] = {"zero": "zero", "mean": "the mean"}
MakeClaim = Callable[..., Claim]
"""Type of `make_claim` after `functools.partial` binds `bootstrap`."""


def years_word(results: GreaterThanResults) -> str:
    """Returns what the answers are called in texts."""
    return "years" if results.answers.digits == "both" else "digits"


def start_word(results: GreaterThanResults) -> str:
    """Returns what the answers are compared with."""
    digits = results.answers.digits
    return "start year" if digits == "both" else f"start year's {digits} digit"


def metric_label(results: GreaterThanResults) -> str:
    """Returns the metric in words, for axes."""
    years = years_word(results)
    return f"P(later {years}) - P({'earlier' if results.answers.digits == 'tens' else 'other'} {years})"


def greater_than_claims(
    results: GreaterThanResults, case: GreaterThanCase, bootstrap: Bootstrap
) -> list[Claim]:
    """Returns the claims about the metric, features, heads, start years and the circuit."""
    parts = (_metric_claims, _feature_claims, _head_claims, _year_claims, _circuit_claims)
    make = partial(make_claim, bootstrap=bootstrap)
    claims = [claim for part in parts for claim in part(results, case, make)]
    if results.common is not None:
        claims += common_claims(common_results(results, case, results.common), bootstrap)
    return claims


def common_results(
    results: GreaterThanResults, case: GreaterThanCase, common: CommonCircuit
) -> CommonResults:
    """Returns the common circuit next to the metric of the untouched model."""
    return CommonResults(common, case, "metric", results.prompts.half, results.conditions[UNTOUCHED])


def _metric_claims(results: GreaterThanResults, case: GreaterThanCase, claim: MakeClaim) -> Iterator[Claim]:
    """Yields claims about the metric under different conditions."""
    layer, known = results.layer, case.published
    testing = np.array([half == TESTING for half in results.prompts.half])
    # if the layer or the feature was chosen on the finding half, use only the testing half for its claims
    layer_rows = slice(None) if case.layer is not None or case.feature is not None else testing
    feature_rows = slice(None) if case.feature is not None else testing
    metric = {name: values.numpy()[:, None] for name, values in results.conditions.items()}
    statement = "metric of the untouched model"
    yield claim("untouched", statement, metric[UNTOUCHED], case.untouched, published=known.untouched)
    statement = f"metric with MLP {layer} replaced by its transcoder"
    rows = metric[replaced_name(layer)][layer_rows]
    yield claim("replaced", statement, rows, case.replaced, published=known.replaced)
    names = [name for name in map(replaced_name, range(len(results.mlp_effect))) if name in metric]
    statement = "metric with one MLP replaced by its transcoder, minimum over layers"
    rows = np.concatenate([metric[name] for name in names], 1)
    yield claim("replaced_worst", statement, rows, case.replaced, statistic=least_mean)
    if ALL_REPLACED in metric:
        statement = "metric with all MLPs replaced at once"
        yield claim("replaced_all", statement, metric[ALL_REPLACED], case.replaced)
    for kind, value in {"zero": "zero", "mean": "its mean over the prompts"}.items():
        statement = f"metric with MLP {layer} set to {value}"
        rows = metric[ablated_name(layer, kind)][layer_rows]
        yield claim(f"{kind}_ablated", statement, rows, case.destroyed, relation="below")
    removed = without_feature_name(layer, results.feature)
    rows = metric[UNTOUCHED][feature_rows] - metric[removed][feature_rows]
    published = None
    if known.untouched is not None and known.without_feature is not None:
        published = known.untouched - known.without_feature
    yield claim("feature_removed", f"decrease of the metric {removed}", rows, 0.0, published=published)


def _feature_claims(results: GreaterThanResults, case: GreaterThanCase, claim: MakeClaim) -> Iterator[Claim]:
    """Yields claims that compare a few features with the same number of neurons."""
    for kind, value in ABLATION_VALUES.items():
        rows = feature_advantage(results.curves, kind, case.small)[:, None].numpy()
        statement = (
            f"metric with up to {case.small} features of layer {results.layer} alone minus metric with the same number "
            f"of neurons, the others set to {value}"
        )
        yield claim(f"few_features_{kind}", statement, rows, 0.0)


def _head_claims(results: GreaterThanResults, case: GreaterThanCase, claim: MakeClaim) -> Iterator[Claim]:
    """Yields claims about the head that was chosen on the finding half."""
    patching, head = results.patching, results.head
    name = f"head {patching.layer[head]}.{patching.head[head]}"
    rows = torch.stack([patching.effect[head], patching.total], 1).numpy()
    statement = f"share of the {start_word(results)}'s effect that {name} carries to the last position"
    yield claim("head_share", statement, rows, case.carried, statistic=ratio)
    if len(patching.head) > 1:
        others = [i for i in range(len(patching.head)) if i != head]
        rows = torch.stack([patching.effect[head], *patching.effect[others], patching.total], 1).numpy()
        statement = f"share of {name} minus the largest share of any other head"
        yield claim("head_first", statement, rows, 0.0, statistic=leading_share)


def _year_claims(results: GreaterThanResults, case: GreaterThanCase, claim: MakeClaim) -> Iterator[Claim]:
    """Yields claims about the features in `results.years`."""
    years, n = results.years, len(results.years.feature)
    features = f"the {n} features of layer {results.layer} with the largest variance"
    statement = f"direct effect of {features} on the mean logit of later {years_word(results)} minus that of the others"
    yield claim("direct_effect", statement, results.direct[:, None].numpy(), 0.0)
    year = mean_ranks(years.year.tolist())
    rows = np.stack([column for own in years.attribution.tolist() for column in (year, mean_ranks(own))], 1)
    units = years_word(results)
    statement = f"rank correlation of {units[:-1]} and direct logit attribution, mean over {features}"
    yield claim("attribution_rises", statement, rows, 0.0, statistic=mean_correlation, of=units)
    if years.score is not None:
        pairs = zip(years.activation.numpy(), years.score.numpy(), strict=True)
        # the correlation of a feature that never fires on the prompts is undefined
        columns = [column for pair in pairs if pair[0].any() for column in pair]
        statement = (
            f"correlation of de-embedding score and activation over start {units}, mean over {features}"
        )
        if columns:
            rows = np.stack(columns, 1)
            yield claim("deembedding", statement, rows, case.deembedded, statistic=mean_correlation, of=units)


def _circuit_claims(results: GreaterThanResults, case: GreaterThanCase, claim: MakeClaim) -> Iterator[Claim]:
    """Yields claims about the circuit and about the contribution of the start year's token."""
    for kind, value in ABLATION_VALUES.items():
        statement = f"share of the metric that the circuit recovers alone, all else set to {value}"
        metric = results.ablations[kind]
        rows = torch.stack([metric.circuit - metric.none, metric.untouched - metric.none], 1).numpy()
        yield claim(f"circuit_{kind}", statement, rows, case.circuit, statistic=ratio)
    metric = results.ablations["mean"]
    statement = (
        "metric with the circuit alone minus metric with random features instead, all else set to the mean"
    )
    rows = (metric.circuit - metric.random)[:, None].numpy()
    yield claim("circuit_not_drawn", statement, rows, 0.0)
    statement = "share of the metric that remains with the circuit's features set to the mean"
    # divide by `all`, not by `untouched`: `all` also has transcoders instead of MLPs, so their errors do not count
    rows = torch.stack([metric.without_features - metric.none, metric.all - metric.none], 1).numpy()
    yield claim("left_without", statement, rows, case.left, statistic=ratio, relation="below")
    token, place = results.contributions.token, results.prompts.place
    others = [i for i in range(token.shape[1]) if i != place]
    rows = token[:, [place, *others]].numpy()
    statement = (
        f"contribution of the {start_word(results)}'s token to later {years_word(results)}' logits minus the largest "
        "of any other token"
    )
    yield claim("year_first", statement, rows, 0.0, statistic=lead)


def feature_advantage(
    curves: Sequence[LayerCurve], ablation: AblationKind, small: int
) -> Float[Tensor, " prompt"]:
    """Returns the metric with k features alone minus the metric with k neurons alone, per prompt.

    The result is the mean over all k from 1 to `small` that occur in both curves.
    """
    by_units = {each.units: each.curve for each in curves if each.ablation == ablation}
    features, neurons = by_units[FEATURES], by_units[NEURONS]
    both = [k for k in features.n_kept.tolist() if 1 <= k <= small and k in neurons.n_kept.tolist()]
    means = [
        torch.stack([curve.kept[:, curve.n_kept == k][:, 0] for k in both], 1).mean(1)
        for curve in (features, neurons)
    ]
    return means[0] - means[1]
