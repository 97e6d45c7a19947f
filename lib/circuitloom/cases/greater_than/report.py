"""Claims, text, tables and pictures of the case study of greater-than."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ...ablation.behaviour import faithfulness_rows
from ...ablation.causal_effects import AblationKind
from ...ablation.circuits import CircuitAblations
from ...ablation.components import Basis
from ...ablation.faithfulness import FaithfulnessCurve
from ...attribution.paths import EMBEDDING, FEATURE, HEAD, POSITION
from ...config.cases.greater_than import GreaterThanCase
from ...core.plotting import BLUE, GREEN, ORANGE, VERMILION, styled
from ..case_report import CaseReport, number
from ..claims import Bootstrap, Claim, fraction_of, make_claim, mean, ratio
from ..context import FINDING, TESTING
from .measurements import (
    ALL_REPLACED,
    FEATURES,
    NEURONS,
    UNTOUCHED,
    AnswerYears,
    HeadPatching,
    InputContributions,
    LayerCurve,
    YearCircuit,
    YearFeatures,
    YearPrompts,
    ablated_name,
    replaced_name,
    without_feature_name,
)

KINDS = {FEATURE: "feature", HEAD: "head", EMBEDDING: "token", POSITION: "position"}
VALUE_NAMES: dict[AblationKind, str] = {"zero": "zero", "mean": "the mean"}
METRIC_LABEL = "P(later years) - P(other years)"


@dataclass(frozen=True)
class GreaterThanResults:
    """Everything that the case study measured; tensors over prompts have all of them unless a half is named."""

    run: str
    prompts: YearPrompts
    answers: AnswerYears
    conditions: Mapping[str, Float[Tensor, " prompt"]]
    """The metric, by condition."""
    layer: int
    mlp_effect: Float[Tensor, "layer finding"]
    feature: int
    """The feature of the layer that was subtracted."""
    variance: Float[Tensor, " feature"]
    """Of each of the layer's features, finding half."""
    curves: list[LayerCurve]
    """On the testing half."""
    finding_patching: HeadPatching
    """On the finding half."""
    patching: HeadPatching
    """On the testing half."""
    years: YearFeatures
    """On the testing half."""
    direct: Float[Tensor, " testing"]
    """Direct effect of the features of `years` on the mean logit of later years minus that of the others."""
    circuit: YearCircuit
    """Found on prompts of the finding half."""
    basis: Basis
    """The features of all layers, without error terms, and the heads."""
    ablations: Mapping[AblationKind, CircuitAblations]
    """On the testing half."""
    contributions: InputContributions
    """On traced prompts of the testing half."""

    @property
    def head(self) -> int:
        """Row of the head with the largest effect on the finding half."""
        return int(self.finding_patching.order()[0])


def make_report(
    name: str, results: GreaterThanResults, case: GreaterThanCase, strings: list[str]
) -> CaseReport:
    """The report of the case; `strings` is the text of each token of the vocabulary."""
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    claims = greater_than_claims(results, case)
    return CaseReport(
        case=name,
        title="a span of years ends after it starts",
        question=(
            f"After a text such as `{results.prompts.text[0]}`, does the model prefer years later than the start year, "
            "and which components make it do so?"
        ),
        answer=_answer(results),
        claims=claims,
        tables={
            "outcome": list(_outcome_rows(name, results)),
            "source": [*_path_rows(name, results, strings), *_contribution_rows(name, results, strings)],
            "faithfulness": list(_faithfulness_rows(name, results)),
            "year": list(_year_rows(name, results)),
        },
        figures={
            "metric": (
                draw_metric(results, bootstrap, case.replaced),
                "The metric with each layer's MLP replaced by its transcoder or ablated, and with all MLPs replaced: "
                "means over the prompts, with intervals.",
            ),
            "kept": (
                draw_layer_curves(results, bootstrap, case.small),
                f"The metric with k features, or k neurons, of layer {results.layer} alone, those of the largest "
                "variance first; bands are intervals over the testing half.",
            ),
            "years": (
                draw_years(results),
                f"Features of layer {results.layer} by year: activation at the last position, de-embedding score (how "
                "strongly the weights read the year), and direct logit attribution to the year as the answer.",
            ),
        },
        method=list(_method(results, case, strings)),
    )


# Claims


def greater_than_claims(results: GreaterThanResults, case: GreaterThanCase) -> list[Claim]:
    """All claims, those about the metric first."""
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    parts = (_metric_claims, _feature_claims, _head_claims, _year_claims, _circuit_claims)
    return [claim for part in parts for claim in part(results, case, bootstrap)]


def _metric_claims(
    results: GreaterThanResults, case: GreaterThanCase, bootstrap: Bootstrap
) -> Iterator[Claim]:
    """The model untouched, with MLPs replaced, with the layer's MLP ablated, without a feature."""
    layer, known = results.layer, case.published
    # a layer that was chosen was chosen on the finding half: measure it on the testing half alone
    layer_given = case.layer is not None or case.feature is not None

    def metric(condition: str, everywhere: bool) -> np.ndarray:
        chosen = [everywhere or half == TESTING for half in results.prompts.half]
        return results.conditions[condition].numpy()[chosen, None]

    def claim(name: str, what: str, condition: str, everywhere: bool, bound: float, **keys) -> Claim:
        return make_claim(name, f"metric {what}", metric(condition, everywhere), bound, bootstrap, **keys)

    yield claim(
        "untouched", "of the untouched model", UNTOUCHED, True, case.untouched, published=known.untouched
    )
    what = f"with MLP {layer} replaced by its transcoder"
    yield claim("replaced", what, replaced_name(layer), layer_given, case.replaced, published=known.replaced)
    names = [
        name for name in results.conditions if name in map(replaced_name, range(len(results.mlp_effect)))
    ]
    columns = np.concatenate([metric(name, True) for name in names], 1)
    statement = "metric with one MLP replaced by its transcoder, minimum over layers"
    yield make_claim("replaced_worst", statement, columns, case.replaced, bootstrap, least_mean)
    if ALL_REPLACED in results.conditions:
        yield claim("replaced_all", "with all MLPs replaced at once", ALL_REPLACED, True, case.replaced)
    for kind, words in {"zero": "zero", "mean": "its mean over the prompts"}.items():
        what, condition = f"with MLP {layer} set to {words}", ablated_name(layer, kind)
        yield claim(f"{kind}_ablated", what, condition, layer_given, case.destroyed, relation="below")
    removed = without_feature_name(layer, results.feature)
    drop = metric(UNTOUCHED, case.feature is not None) - metric(removed, case.feature is not None)
    published = None
    if known.untouched is not None and known.without_feature is not None:
        published = known.untouched - known.without_feature
    statement = f"decrease of the metric {removed}"
    yield make_claim("feature_removed", statement, drop, 0.0, bootstrap, published=published)


def _feature_claims(
    results: GreaterThanResults, case: GreaterThanCase, bootstrap: Bootstrap
) -> Iterator[Claim]:
    """Few features against the same number of neurons."""
    for kind, words in VALUE_NAMES.items():
        rows = feature_advantage(results.curves, kind, case.small)[:, None].numpy()
        statement = (
            f"metric with up to {case.small} features of layer {results.layer} alone minus metric with the same number "
            f"of neurons, the others set to {words}"
        )
        yield make_claim(f"few_features_{kind}", statement, rows, 0.0, bootstrap)


def _head_claims(results: GreaterThanResults, case: GreaterThanCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """The head that was chosen on the finding half."""
    patching, head = results.patching, results.head
    name = f"head {patching.layer[head]}.{patching.head[head]}"
    rows = torch.stack([patching.effect[head], patching.total], 1).numpy()
    statement = f"share of the start year's effect that {name} carries to the last position"
    yield make_claim("head_share", statement, rows, case.carried, bootstrap, ratio)
    if len(patching.head) > 1:
        others = [i for i in range(len(patching.head)) if i != head]
        rows = torch.stack([patching.effect[head], *patching.effect[others], patching.total], 1).numpy()
        statement = f"share of {name} minus the largest share of any other head"
        yield make_claim("head_first", statement, rows, 0.0, bootstrap, leading_share)


def _year_claims(results: GreaterThanResults, case: GreaterThanCase, bootstrap: Bootstrap) -> Iterator[Claim]:
    """The layer's features of the largest variance: what they promote, and what their weights read."""
    years, n = results.years, len(results.years.feature)
    features = f"the {n} features of layer {results.layer} with the largest variance"
    yield make_claim(
        "direct_effect",
        f"direct effect of {features} on the mean logit of later years minus that of the others",
        results.direct[:, None].numpy(), 0.0, bootstrap,
    )  # fmt: skip
    year = mean_ranks(years.year.tolist())
    rows = np.stack([column for own in years.attribution.tolist() for column in (year, mean_ranks(own))], 1)
    statement = f"rank correlation of year and direct logit attribution, mean over {features}"
    yield make_claim("attribution_rises", statement, rows, 0.0, bootstrap, mean_correlation, of="years")
    if years.score is not None:
        pairs = zip(years.activation.numpy(), years.score.numpy(), strict=True)
        # a feature that never fires on the prompts has no correlation
        columns = [column for pair in pairs if pair[0].any() for column in pair]
        statement = f"correlation of de-embedding score and activation over start years, mean over {features}"
        if columns:
            rows = np.stack(columns, 1)
            yield make_claim(
                "deembedding", statement, rows, case.deembedded, bootstrap, mean_correlation, of="years"
            )


def _circuit_claims(
    results: GreaterThanResults, case: GreaterThanCase, bootstrap: Bootstrap
) -> Iterator[Claim]:
    """The circuit alone, the model without its features, and the token that contributes most."""
    for kind, words in VALUE_NAMES.items():
        statement = f"share of the metric that the circuit recovers alone, all else set to {words}"
        metric = results.ablations[kind]
        rows = torch.stack([metric.circuit - metric.none, metric.untouched - metric.none], 1).numpy()
        yield make_claim(f"circuit_{kind}", statement, rows, case.circuit, bootstrap, ratio)
    metric = results.ablations["mean"]
    statement = (
        "metric with the circuit alone minus metric with random features instead, all else set to the mean"
    )
    rows = (metric.circuit - metric.random)[:, None].numpy()
    yield make_claim("circuit_not_drawn", statement, rows, 0.0, bootstrap)
    statement = "share of the metric that remains with the circuit's features set to the mean"
    # transcoders replace MLPs in every pass, so that their errors do not count
    rows = torch.stack([metric.without_features - metric.none, metric.all - metric.none], 1).numpy()
    yield make_claim("left_without", statement, rows, case.left, bootstrap, ratio, relation="below")
    token, place = results.contributions.token, results.prompts.place
    others = [i for i in range(token.shape[1]) if i != place]
    rows = token[:, [place, *others]].numpy()
    statement = (
        "contribution of the start year's token to later years' logits minus the largest of any other token"
    )
    yield make_claim("year_first", statement, rows, 0.0, bootstrap, lead)


def feature_advantage(
    curves: Sequence[LayerCurve], ablation: AblationKind, small: int
) -> Float[Tensor, " prompt"]:
    """Metric with k features alone minus metric with k neurons alone, mean over the sizes k up to `small`."""
    by_units = {each.units: each.curve for each in curves if each.ablation == ablation}
    features, neurons = by_units[FEATURES], by_units[NEURONS]
    both = [k for k in features.n_kept.tolist() if 1 <= k <= small and k in neurons.n_kept.tolist()]
    means = [
        torch.stack([curve.kept[:, curve.n_kept == k][:, 0] for k in both], 1).mean(1)
        for curve in (features, neurons)
    ]
    return means[0] - means[1]


def least_mean(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """The smallest mean of any column."""
    return rows.mean(1).min(-1)


def lead(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Mean of the first column minus the largest mean of the others."""
    means = rows.mean(1)
    return means[:, 0] - means[:, 1:].max(-1)


def leading_share(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """`lead` of all columns but the last, over the mean of the last; NaN where that is not positive."""
    return fraction_of(lead(rows[:, :, :-1]), rows[:, :, -1].mean(1))


def mean_correlation(rows: Float[np.ndarray, "sample row column"]) -> Float[np.ndarray, " sample"]:
    """Pearson correlation of each pair of columns, averaged; not finite where a column is constant."""
    x = rows - rows.mean(1, keepdims=True)
    product = (x[:, :, ::2] * x[:, :, 1::2]).sum(1)
    size = (x**2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (product / np.sqrt(size[:, ::2] * size[:, 1::2])).mean(-1)


def mean_ranks(values: Sequence[float]) -> Float[np.ndarray, " value"]:
    """Rank of each value, ascending from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[inverse]


# Text


def _answer(results: GreaterThanResults) -> list[str]:
    circuit, metric = results.circuit, results.ablations["mean"]
    untouched = float(results.conditions[UNTOUCHED].mean())
    replaced = float(results.conditions[replaced_name(results.layer)].mean())
    return [
        f"The metric, the probability of later years minus that of the others, is {number(untouched)}, and "
        f"{number(replaced)} with MLP {results.layer} replaced by its transcoder.",
        f"A circuit of {len(circuit.parts(FEATURE))} features and {len(circuit.parts(HEAD))} heads alone has a metric "
        f"of {number(float(metric.circuit.mean()))} on unseen prompts, against "
        f"{number(float(metric.none.mean()))} with all components ablated.",
    ]


def _method(results: GreaterThanResults, case: GreaterThanCase, strings: list[str]) -> Iterator[str]:
    prompts, answers = results.prompts, results.answers
    halves = [prompts.half.count(half) for half in (FINDING, TESTING)]
    yield (
        f"The softmax is over the {len(answers.year)} two-digit years that are single tokens. {len(prompts)} prompts "
        f"with start years from {int(prompts.start.min()):02d} to {int(prompts.start.max()):02d}: {halves[0]} to "
        f"choose on, {halves[1]} to test on; {prompts.dropped} were left out, because of their length or because the "
        "start year is not one token. Transcoders replace MLPs without error terms, except at BOS."
    )
    effect = results.mlp_effect.mean(1)
    order = effect.argsort(descending=True).tolist()
    listed = ", ".join(f"layer {i} {number(float(effect[i]))}" for i in order[:3])
    how = (
        "named by the case" if case.layer is not None or case.feature is not None else "chosen by this effect"
    )
    yield (
        f"Decrease of the metric when an MLP is set to its mean over the prompts at the last position: {listed}. The "
        f"layer studied is {results.layer}, {how}."
    )
    yield _heads_text(results)
    yield _features_text(results)
    yield f"{_circuit_text(results)} {_paths_text(results)}"
    yield _contributions_text(results, strings)


def _heads_text(results: GreaterThanResults) -> str:
    patching = results.patching
    shares = patching.effect.mean(1) / patching.total.mean()
    listed = ", ".join(
        f"head {patching.layer[i]}.{patching.head[i]} {number(float(shares[i]))}"
        for i in results.finding_patching.order()[:3].tolist()
    )
    return (
        "Heads are patched at the last position from a prompt with another start year. Share of the effect of "
        f"exchanging the complete prompt, chosen on one half and measured on the other: {listed}."
    )


def _features_text(results: GreaterThanResults) -> str:
    years = results.years
    listed = ", ".join(
        f"{results.layer}/{feature} ({number(float(results.variance[feature]))}, {int(years.year[at]):02d})"
        for feature, at in zip(years.feature.tolist(), years.activation.argmax(1).tolist(), strict=True)
    )
    through = "" if years.head is None else " De-embedding goes through head {}.{}.".format(*years.head)
    return (
        f"Features of layer {results.layer} with the largest variance over the prompts (variance, start year of the "
        f"largest activation): {listed}.{through}"
    )


def _circuit_text(results: GreaterThanResults) -> str:
    circuit, metric = results.circuit, results.ablations["mean"]
    features, heads = len(circuit.parts(FEATURE)), len(circuit.parts(HEAD))
    total = sum(part.width for part in results.basis.parts if part.kind == "feature")
    total_heads = sum(part.width for part in results.basis.parts) - total
    return (
        f"The circuit is the union of the greedy paths of {circuit.n_prompts} prompts: {features} of {total} features "
        f"and {heads} of {total_heads} heads. Metric with all else set to the mean: "
        f"{number(float(metric.circuit.mean()))}; with the same number of random features and the same heads "
        f"{number(float(metric.random.mean()))}; with the circuit's features alone set to the mean "
        f"{number(float(metric.without_features.mean()))}; untouched {number(float(metric.untouched.mean()))}."
    )


def _paths_text(results: GreaterThanResults) -> str:
    circuit = results.circuit
    ends: dict[int, float] = defaultdict(float)
    for (kind, _, _, position), values in circuit.contribution.items():
        if kind == EMBEDDING:
            ends[position] += sum(values) / circuit.n_prompts
    own, total = ends.get(results.prompts.place, 0.0), sum(ends.values())
    return f"Its paths bring {number(total)} from token embeddings, {number(own)} of it from the start year."


def _contributions_text(results: GreaterThanResults, strings: list[str]) -> str:
    inputs, prompts = results.contributions, results.prompts
    value = inputs.token.sum(1) + inputs.error.sum((1, 2)) + inputs.position.sum(1) + inputs.constant
    tokens = inputs.token.mean(0)
    best = tokens.abs().argsort(descending=True)[:3].tolist()
    last = prompts.token.shape[1] - 1

    def place_name(position: int) -> str:
        if position == prompts.place:
            return "the start year"
        here = prompts.token[:, position]
        if (here == here[0]).all():
            return repr(strings[int(here[0])].strip())
        return f"the token {last - position} before the last" if position < last else "the last token"

    listed = ", ".join(f"{place_name(i)} {number(float(tokens[i]))}" for i in best)
    error = float((inputs.error.abs().sum((1, 2)) / inputs.magnitude).mean())
    share = float((inputs.token[:, prompts.place].abs() / inputs.magnitude).mean())
    return (
        f"The mean logit of later years minus that of the others is {number(float(value.mean()))} on {len(value)} "
        "traced prompts. It is the sum of the contributions of tokens, positions, errors and biases through all "
        f"features and heads; the largest tokens contribute {listed}. By magnitude, the start year's token has a share "
        f"of {number(share)} and transcoder errors {number(error)}."
    )


# Tables


def _outcome_rows(name: str, results: GreaterThanResults) -> Iterator[dict[str, Any]]:
    prompts = results.prompts
    columns = list(zip(range(len(prompts)), prompts.text, prompts.half, strict=True))

    def rows(measure: str, condition: str, values: list[float], chosen: list) -> Iterator[dict[str, Any]]:
        for (prompt, text, half), value in zip(chosen, values, strict=True):
            yield {
                "case_study": name, "measure": measure, "condition": condition, "prompt": prompt, "text": text,
                "half": half, "value": value,
            }  # fmt: skip

    for condition, values in results.conditions.items():
        yield from rows("greater_than", condition, values.tolist(), columns)
    for half, patching in {FINDING: results.finding_patching, TESTING: results.patching}.items():
        chosen = [column for column in columns if column[2] == half]
        yield from rows("shift", "other start year", patching.total.tolist(), chosen)
        for layer, head, values in zip(patching.layer, patching.head, patching.effect.tolist(), strict=True):
            yield from rows("shift", f"head {layer}.{head} patched", values, chosen)


def _path_rows(name: str, results: GreaterThanResults, strings: list[str]) -> list[dict[str, Any]]:
    """Rows of `source`, circuit `paths`: nodes of greedy paths; effects are means over the traced prompts."""
    circuit, rows = results.circuit, []
    for (kind, layer, index, position), values in circuit.contribution.items():
        component = kind in (FEATURE, HEAD)
        rows.append(
            {
                "kind": KINDS[kind],
                "layer": layer if component else None,
                "component": index if component else None,
                **_place(results, position, strings),
                "effect": sum(values) / circuit.n_prompts,
                "n_prompts": len(values),
            }
        )
    return _ranked(name, "paths", rows, sum(abs(row["effect"]) for row in rows))


def _contribution_rows(name: str, results: GreaterThanResults, strings: list[str]) -> list[dict[str, Any]]:
    """Rows of `source`, circuit `leaves`: contributions of inputs; effects are means over the traced prompts."""
    inputs, rows = results.contributions, []

    def add(kind: str, values: Tensor, layer: int | None = None, position: int | None = None) -> None:
        if values.any():
            place = {"relative_position": None, "token": None}
            if position is not None:
                place = _place(results, position, strings)
            rows.append(
                {
                    "kind": kind,
                    "layer": layer,
                    "component": None,
                    **place,
                    "effect": float(values.mean()),
                    "n_prompts": int((values != 0).sum()),
                }
            )

    for position in range(inputs.token.shape[1]):
        add("token", inputs.token[:, position], position=position)
        add("position", inputs.position[:, position], position=position)
        for layer in range(inputs.error.shape[1]):
            add("error", inputs.error[:, layer, position], layer, position)
    add("constant", inputs.constant)
    return _ranked(name, "leaves", rows, float(inputs.magnitude.mean()))


def _place(results: GreaterThanResults, position: int, strings: list[str]) -> dict[str, Any]:
    """Offset from the last token, and the token there if it is the same on all prompts."""
    here = results.prompts.token[:, position]
    same = bool((here == here[0]).all()) and int(here[0]) < len(strings)
    return {
        "relative_position": position - results.prompts.token.shape[1] + 1,
        "token": strings[int(here[0])] if same else None,
    }


def _ranked(name: str, circuit: str, rows: list[dict[str, Any]], total: float) -> list[dict[str, Any]]:
    rows = sorted(rows, key=lambda row: -abs(row["effect"]))
    return [
        {
            "case_study": name,
            "circuit": circuit,
            "rank": rank,
            **row,
            "share": abs(row["effect"]) / total if total else 0.0,
        }
        for rank, row in enumerate(rows)
    ]


def _faithfulness_rows(name: str, results: GreaterThanResults) -> Iterator[dict[str, Any]]:
    for each in results.curves:
        names = {
            "behaviour": name,
            "basis": each.basis.name,
            "ablation": each.ablation,
            "ranking": "variance",
        }
        yield from faithfulness_rows(names, len(each.basis), each.curve)
    components = results.circuit.components(results.basis)
    for kind, metric in results.ablations.items():
        size = torch.tensor([0, int(components.sum())])
        kept = torch.stack([metric.none, metric.circuit], 1)
        # transcoders replace MLPs even where no component is ablated
        removed = torch.stack([metric.all, metric.without], 1)
        kl = torch.stack([metric.kl_none, metric.kl], 1)
        names = {"behaviour": name, "basis": results.basis.name, "ablation": kind, "ranking": "circuit"}
        curve = FaithfulnessCurve(size, kept, removed, kl, metric.untouched)
        yield from faithfulness_rows(names, len(components), curve)


def _year_rows(name: str, results: GreaterThanResults) -> Iterator[dict[str, Any]]:
    years = results.years
    for rank, feature in enumerate(years.feature.tolist()):
        for i, year in enumerate(years.year.tolist()):
            yield {
                "case_study": name,
                "run": results.run,
                "layer": results.layer,
                "feature": feature,
                "rank": rank,
                "variance": float(results.variance[feature]),
                "year": year,
                "activation": float(years.activation[rank, i]),
                "logit_attribution": float(years.attribution[rank, i]),
                "deembedding_score": None if years.score is None else float(years.score[rank, i]),
                "head": None if years.head is None else "{}.{}".format(*years.head),
            }


# Pictures


@styled
def draw_metric(results: GreaterThanResults, bootstrap: Bootstrap, bound: float) -> Figure:
    """The metric of the untouched model and of each condition, layer by layer, with intervals."""
    layers = range(len(results.mlp_effect))
    styles = {
        "replaced by transcoder": (BLUE, replaced_name),
        "set to zero": (VERMILION, lambda layer: ablated_name(layer, "zero")),
        "set to its mean": (ORANGE, lambda layer: ablated_name(layer, "mean")),
    }
    figure = Figure(figsize=(max(6.0, 1.0 * len(layers) + 2.5), 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (label, (colour, condition)) in enumerate(styles.items()):
        names = {layer: condition(layer) for layer in layers if condition(layer) in results.conditions}
        x = [layer + 0.27 * (place - 1) for layer in names]
        if place == 0 and ALL_REPLACED in results.conditions:
            names, x = {**names, -1: ALL_REPLACED}, [*x, len(layers)]
        rows = [
            bootstrap.interval(results.conditions[name].numpy()[:, None], mean) for name in names.values()
        ]
        value, low, high = (np.array(column, float) for column in zip(*rows, strict=True))
        axes.bar(x, value, 0.25, color=colour, label=label)
        axes.errorbar(
            x, value, [value - low, high - value], fmt="none", ecolor="black", capsize=2, linewidth=1
        )
    untouched = float(results.conditions[UNTOUCHED].mean())
    axes.axhline(untouched, color="black", linestyle="--", linewidth=1, label=f"untouched: {untouched:.3f}")
    axes.axhline(bound, color="grey", linestyle=":", linewidth=1, label=f"claimed when replaced: {bound:g}")
    ticks = [*layers, *([len(layers)] if ALL_REPLACED in results.conditions else [])]
    axes.set_xticks(ticks, [str(layer) if layer in layers else "all" for layer in ticks])
    axes.set(xlabel="layer of the MLP", ylabel=METRIC_LABEL)
    axes.axhline(0, color="black", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


@styled
def draw_layer_curves(results: GreaterThanResults, bootstrap: Bootstrap, small: int) -> Figure:
    """The metric with k features, or k neurons, of the layer alone; one panel per ablation."""
    kinds = list(dict.fromkeys(each.ablation for each in results.curves))
    figure = Figure(figsize=(4.4 * len(kinds), 4.0), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for each in results.curves:
            if each.ablation == kind:
                _draw_curve(panel, each, bootstrap)
        untouched = float(results.curves[0].curve.untouched.mean())
        panel.axhline(untouched, color="black", linestyle="--", linewidth=1, label="untouched model")
        panel.axvspan(1, small, color="grey", alpha=0.12, linewidth=0, label=f"compared: 1 to {small}")
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xlim(left=0)
        panel.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
        panel.set_title(f"the others set to {'zero' if kind == 'zero' else 'their mean'}")
        panel.set_xlabel("components kept, k")
    panels[0].set_ylabel(METRIC_LABEL)
    panels[-1].legend(fontsize="small", loc="lower right")
    return figure


def _draw_curve(panel: Any, layer_curve: LayerCurve, bootstrap: Bootstrap) -> None:
    colour, marker, name = {
        FEATURES: (BLUE, "o", "transcoder features"),
        NEURONS: (VERMILION, "s", "neurons"),
    }[layer_curve.units]
    columns = layer_curve.curve.kept.double().numpy().T
    rows = [bootstrap.interval(column[:, None], mean) for column in columns]
    value, low, high = (np.array(each, float) for each in zip(*rows, strict=True))
    k = layer_curve.curve.n_kept.numpy()
    panel.plot(k, value, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=name)
    panel.fill_between(k, low, high, color=colour, alpha=0.2, linewidth=0)


@styled
def draw_years(results: GreaterThanResults) -> Figure:
    """Activation, de-embedding score and direct logit attribution of the layer's features by year."""
    years = results.years
    rows: list[tuple[str, str, str, Any]] = [
        ("activation", "start year", BLUE, years.activation),
        ("logit attribution (per unit)", "year as the answer", GREEN, years.attribution),
    ]
    if years.score is not None:
        rows.insert(1, ("de-embedding score", "start year", VERMILION, years.score))
    across = len(years.feature)
    figure = Figure(figsize=(3.4 * across + 0.6, 2.3 * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), across, squeeze=False, sharex=True)
    for line, (name, what, colour, values) in zip(panels, rows, strict=True):
        for panel, own in zip(line, values.numpy(), strict=True):
            panel.plot(years.year.numpy(), own, color=colour, linewidth=1.3)
            panel.axhline(0, color="black", linewidth=0.6)
            panel.set_xlabel(f"{what} (last two digits)", fontsize="small")
        line[0].set_ylabel(name)
    for panel, feature in zip(panels[0], years.feature.tolist(), strict=True):
        panel.set_title(f"feature {results.layer}/{feature}", fontsize="medium")
    return figure
