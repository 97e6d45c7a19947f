"""Report of the case study of greater-than: claims, text, tables and pictures."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ...ablation.behaviour import faithfulness_rows
from ...ablation.causal_effects import AblationKind
from ...ablation.faithfulness import FaithfulnessCurve
from ...attribution.paths import EMBEDDING, FEATURE, HEAD, POSITION
from ...config.cases.greater_than import Digits, GreaterThanCase
from ...core.plotting import BLUE, GREEN, ORANGE, VERMILION, styled
from ..case_report import CaseReport, number, outcome_rows, source_rows
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
from ..context import FINDING, TESTING
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

KINDS = {FEATURE: "feature", HEAD: "head", EMBEDDING: "token", POSITION: "position"}
"""Names of node kinds in the table `source`. The keys are numbers from `attribution.paths`."""
ABLATION_VALUES: dict[AblationKind, str] = {"zero": "zero", "mean": "the mean"}
DIGITS_WORDS: dict[Digits, str] = {"both": "last two digits", "tens": "tens digit", "units": "units digit"}
MakeClaim = Callable[..., Claim]
"""Type of `make_claim` after `functools.partial` binds `bootstrap`."""


def make_report(
    name: str, results: GreaterThanResults, case: GreaterThanCase, strings: list[str]
) -> CaseReport:
    """Returns the report of the case study. `strings` has the text of each vocabulary token."""
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    year = "year" if results.answers.digits == "both" else "digit"
    return CaseReport(
        case=name,
        title="a span of years ends after it starts",
        question=(
            f"After a text such as `{results.prompts.text[0]}`, does the model prefer {_years(results)} later than the "
            f"{_start(results)}, and which components make it do so?"
        ),
        answer=_answer(results),
        claims=greater_than_claims(results, case, bootstrap),
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
                f"Features of layer {results.layer} by {year}: activation at the last position, de-embedding score "
                f"(how strongly the weights read the {year}), and direct logit attribution to the {year} as the "
                "answer.",
            ),
        },
        method=list(_method(results, case, strings)),
    )


def _years(results: GreaterThanResults) -> str:
    """Returns what the answers are called in texts."""
    return "years" if results.answers.digits == "both" else "digits"


def _start(results: GreaterThanResults) -> str:
    """Returns what the answers are compared with."""
    digits = results.answers.digits
    return "start year" if digits == "both" else f"start year's {digits} digit"


def _metric_label(results: GreaterThanResults) -> str:
    years = _years(results)
    return f"P(later {years}) - P({'earlier' if results.answers.digits == 'tens' else 'other'} {years})"


# Claims


def greater_than_claims(
    results: GreaterThanResults, case: GreaterThanCase, bootstrap: Bootstrap
) -> list[Claim]:
    """Returns the claims about the metric, features, heads, start years and the circuit."""
    parts = (_metric_claims, _feature_claims, _head_claims, _year_claims, _circuit_claims)
    make = partial(make_claim, bootstrap=bootstrap)
    return [claim for part in parts for claim in part(results, case, make)]


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
    statement = f"share of the {_start(results)}'s effect that {name} carries to the last position"
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
    statement = (
        f"direct effect of {features} on the mean logit of later {_years(results)} minus that of the others"
    )
    yield claim("direct_effect", statement, results.direct[:, None].numpy(), 0.0)
    year = mean_ranks(years.year.tolist())
    rows = np.stack([column for own in years.attribution.tolist() for column in (year, mean_ranks(own))], 1)
    units = _years(results)
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
        f"contribution of the {_start(results)}'s token to later {_years(results)}' logits minus the largest of any "
        "other token"
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


# Text


def _mean(values: Tensor) -> str:
    return number(float(values.mean()))


def _answer(results: GreaterThanResults) -> list[str]:
    circuit, metric = results.circuit, results.ablations["mean"]
    return [
        f"The metric, the probability of later {_years(results)} minus that of the others, is "
        f"{_mean(results.conditions[UNTOUCHED])}, and {_mean(results.conditions[replaced_name(results.layer)])} with "
        f"MLP {results.layer} replaced by its transcoder.",
        f"A circuit of {len(circuit.parts(FEATURE))} features and {len(circuit.parts(HEAD))} heads alone has a metric "
        f"of {_mean(metric.circuit)} on unseen prompts, against {_mean(metric.none)} with all components ablated.",
    ]


def _method(results: GreaterThanResults, case: GreaterThanCase, strings: list[str]) -> Iterator[str]:
    prompts, answers = results.prompts, results.answers
    halves = [prompts.half.count(half) for half in (FINDING, TESTING)]
    first, last = (_year_text(results, int(end)) for end in (prompts.start.min(), prompts.start.max()))
    unusable = "the start year is not one token"
    if answers.digits != "both":
        unusable = f"the {_start(results)} is not one token or has no later digit"
    if answers.digits == "tens":
        unusable += ", or no earlier one"
    yield (
        f"{_softmax_text(results)} {len(prompts)} prompts with {_start(results)}s from {first} to {last}: "
        f"{halves[0]} to choose on, {halves[1]} to test on; {prompts.dropped} were left out, because of their length "
        f"or because {unusable}. Transcoders replace MLPs without error terms, except at separators of documents."
    )
    order = results.mlp_effect.mean(1).argsort(descending=True).tolist()
    listed = ", ".join(f"layer {i} {_mean(results.mlp_effect[i])}" for i in order[:3])
    how = "chosen by this effect" if case.layer is None and case.feature is None else "named by the case"
    yield (
        f"Decrease of the metric when an MLP is set to its mean over the prompts at the last position: {listed}. The "
        f"layer studied is {results.layer}, {how}."
    )
    patching = results.patching
    shares = patching.effect.mean(1) / patching.total.mean()
    listed = ", ".join(
        f"head {patching.layer[i]}.{patching.head[i]} {number(float(shares[i]))}"
        for i in results.finding_patching.order()[:3].tolist()
    )
    yield (
        f"Heads are patched at the last position from a prompt with another {_start(results)}. Share of the effect of "
        f"patching the complete prompt, chosen on one half and measured on the other: {listed}."
    )
    years = results.years
    largest = [_year_text(results, year) for year in years.year[years.activation.argmax(1)].tolist()]
    listed = ", ".join(
        f"{results.layer}/{feature} ({number(float(results.variance[feature]))}, {year})"
        for feature, year in zip(years.feature.tolist(), largest, strict=True)
    )
    through = "" if years.head is None else " De-embedding goes through head {}.{}.".format(*years.head)
    yield (
        f"Features of layer {results.layer} with the largest variance over the prompts (variance, {_start(results)} "
        f"of the largest activation): {listed}.{through}"
    )
    yield _circuit_text(results)
    yield _contributions_text(results, strings)


def _year_text(results: GreaterThanResults, year: int) -> str:
    return f"{year:02d}" if results.answers.digits == "both" else str(year)


def _softmax_text(results: GreaterThanResults) -> str:
    """Returns sentences that say what the answers are."""
    answers = results.answers
    if answers.digits == "both":
        return f"The softmax is over the {len(answers.year)} two-digit years that are single tokens."
    asked = f"The answers are single digits: the next token is the {answers.digits} digit of the end year."
    equal = f"The {_start(results)} itself has a probability of {_mean(results.equal)} among all digits"
    if answers.digits == "tens":
        return f"{asked} {equal}; it is left out of the softmax, because the units digit decides there."
    return (
        f"{asked} Prompts end with the tens digit of the start year. The softmax is over all digits. {equal}; it "
        "counts as not later."
    )


def _circuit_text(results: GreaterThanResults) -> str:
    circuit, metric = results.circuit, results.ablations["mean"]
    features, heads = (
        sum(part.width for part in results.basis.parts if part.kind == kind) for kind in ("feature", "head")
    )
    return (
        f"The circuit is the union of the greedy paths of {circuit.n_prompts} prompts: {len(circuit.parts(FEATURE))} "
        f"of {features} features and {len(circuit.parts(HEAD))} of {heads} heads. Metric with all else set to the "
        f"mean: {_mean(metric.circuit)}; with random features instead {_mean(metric.random)}; with only the "
        f"circuit's features set to the mean {_mean(metric.without_features)}; untouched {_mean(metric.untouched)}."
    )


def _contributions_text(results: GreaterThanResults, strings: list[str]) -> str:
    inputs, prompts = results.contributions, results.prompts
    value = inputs.token.sum(1) + inputs.error.sum((1, 2)) + inputs.position.sum(1) + inputs.constant
    tokens = inputs.token.mean(0)

    def place_name(position: int) -> str:
        if position == prompts.place:
            return f"the {_start(results)}"
        offset, token = _place(results, position, strings).values()
        return f"position {offset}" if token is None else repr(token.strip())

    largest = tokens.abs().argsort(descending=True)[:3].tolist()
    listed = ", ".join(f"{place_name(i)} {number(float(tokens[i]))}" for i in largest)
    return (
        f"The mean logit of later {_years(results)} minus that of the others is {_mean(value)} on {len(value)} traced "
        "prompts. It is the sum of the contributions of tokens, positions, errors and biases through all features and "
        f"heads; the largest tokens contribute {listed}. By magnitude, the {_start(results)}'s token has a share of "
        f"{_mean(inputs.token[:, prompts.place].abs() / inputs.magnitude)} and transcoder errors "
        f"{_mean(inputs.error.abs().sum((1, 2)) / inputs.magnitude)}."
    )


# Tables


def _outcome_rows(name: str, results: GreaterThanResults) -> Iterator[dict[str, Any]]:
    prompts = list(zip(range(len(results.prompts)), results.prompts.text, results.prompts.half, strict=True))
    for condition, values in results.conditions.items():
        yield from outcome_rows(name, "greater_than", condition, prompts, values.tolist())
    for half, patching in {FINDING: results.finding_patching, TESTING: results.patching}.items():
        own = [prompt for prompt in prompts if prompt[2] == half]
        yield from outcome_rows(name, "shift", "other start year", own, patching.total.tolist())
        for layer, head, values in zip(patching.layer, patching.head, patching.effect.tolist(), strict=True):
            yield from outcome_rows(name, "shift", f"head {layer}.{head} patched", own, values)


def _path_rows(name: str, results: GreaterThanResults, strings: list[str]) -> list[dict[str, Any]]:
    """Returns rows of the table `source`, one per node of the circuit. Effects are means over traced prompts."""
    circuit, sources = results.circuit, []
    for (kind, layer, index, position), values in circuit.contribution.items():
        source = {"kind": KINDS[kind], "effect": sum(values) / circuit.n_prompts, "n_prompts": len(values)}
        source |= {"layer": layer, "component": index} if kind in (FEATURE, HEAD) else {}
        sources.append(source | _place(results, position, strings))
    return _ranked(name, "paths", sources, sum(abs(source["effect"]) for source in sources))


def _contribution_rows(name: str, results: GreaterThanResults, strings: list[str]) -> list[dict[str, Any]]:
    """Returns rows of the table `source`, one per input. Effects are means over traced prompts."""
    inputs, sources = results.contributions, []

    def add(kind: str, values: Tensor, place: dict[str, Any], layer: int | None = None) -> None:
        if values.any():
            n = int((values != 0).sum())
            sources.append(
                {"kind": kind, "layer": layer, "effect": float(values.mean()), "n_prompts": n} | place
            )

    for position in range(inputs.token.shape[1]):
        place = _place(results, position, strings)
        add("token", inputs.token[:, position], place)
        add("position", inputs.position[:, position], place)
        for layer in range(inputs.error.shape[1]):
            add("error", inputs.error[:, layer, position], place, layer)
    add("constant", inputs.constant, {})
    return _ranked(name, "leaves", sources, float(inputs.magnitude.mean()))


def _place(results: GreaterThanResults, position: int, strings: list[str]) -> dict[str, Any]:
    """Returns the columns `relative_position` and `token` of the table `source`. `token` is None if prompts have
    different tokens at this position."""
    here = results.prompts.token[:, position]
    same = bool((here == here[0]).all()) and int(here[0]) < len(strings)
    return {
        "relative_position": position - results.prompts.token.shape[1] + 1,
        "token": strings[int(here[0])] if same else None,
    }


def _ranked(name: str, circuit: str, sources: list[dict[str, Any]], total: float) -> list[dict[str, Any]]:
    """Returns rows of the table `source`, by descending |effect|. The share of a source is |effect| / `total`."""
    sources = sorted(sources, key=lambda source: -abs(source["effect"]))
    shares = [abs(source["effect"]) / total if total else 0.0 for source in sources]
    shared = [source | {"share": share} for source, share in zip(sources, shares, strict=True)]
    return source_rows(name, circuit, shared)


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
        # even if no component is ablated, transcoders replace the MLPs
        removed = torch.stack([metric.all, metric.without], 1)
        kl = torch.stack([metric.kl_none, metric.kl], 1)
        names = {"behaviour": name, "basis": results.basis.name, "ablation": kind, "ranking": "circuit"}
        curve = FaithfulnessCurve(size, kept, removed, kl, metric.untouched)
        yield from faithfulness_rows(names, len(components), curve)


def _year_rows(name: str, results: GreaterThanResults) -> Iterator[dict[str, Any]]:
    years = results.years
    head = None if years.head is None else "{}.{}".format(*years.head)
    for rank, feature in enumerate(years.feature.tolist()):
        for i, year in enumerate(years.year.tolist()):
            yield {
                "case_study": name, "run": results.run, "layer": results.layer, "feature": feature, "rank": rank,
                "variance": float(results.variance[feature]), "year": year, "head": head,
                "activation": float(years.activation[rank, i]),
                "logit_attribution": float(years.attribution[rank, i]),
                "deembedding_score": None if years.score is None else float(years.score[rank, i]),
            }  # fmt: skip


# Pictures


@styled
def draw_metric(results: GreaterThanResults, bootstrap: Bootstrap, bound: float) -> Figure:
    """Draw the mean metric, with intervals, when one MLP is replaced or ablated. A line marks `bound`, the claimed
    minimum of the metric with MLPs replaced."""
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
        value, low, high = bootstrap.means(results.conditions[name].numpy() for name in names.values())
        axes.bar(x, value, 0.25, color=colour, label=label)
        axes.errorbar(
            x, value, [value - low, high - value], fmt="none", ecolor="black", capsize=2, linewidth=1
        )
    untouched = float(results.conditions[UNTOUCHED].mean())
    axes.axhline(untouched, color="black", linestyle="--", linewidth=1, label=f"untouched: {untouched:.3f}")
    axes.axhline(bound, color="grey", linestyle=":", linewidth=1, label=f"claimed when replaced: {bound:g}")
    ticks = [*layers, *([len(layers)] if ALL_REPLACED in results.conditions else [])]
    axes.set_xticks(ticks, [str(layer) if layer in layers else "all" for layer in ticks])
    axes.set(xlabel="layer of the MLP", ylabel=_metric_label(results))
    axes.axhline(0, color="black", linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    return figure


@styled
def draw_layer_curves(results: GreaterThanResults, bootstrap: Bootstrap, small: int) -> Figure:
    """Draw the metric against k, for k features alone and k neurons alone. Each kind of ablation has one panel."""
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
    panels[0].set_ylabel(_metric_label(results))
    panels[-1].legend(fontsize="small", loc="lower right")
    return figure


def _draw_curve(panel: Any, layer_curve: LayerCurve, bootstrap: Bootstrap) -> None:
    colour, marker, name = {
        FEATURES: (BLUE, "o", "transcoder features"),
        NEURONS: (VERMILION, "s", "neurons"),
    }[layer_curve.units]
    value, low, high = bootstrap.means(layer_curve.curve.kept.double().numpy().T)
    k = layer_curve.curve.n_kept.numpy()
    panel.plot(k, value, color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=name)
    panel.fill_between(k, low, high, color=colour, alpha=0.2, linewidth=0)


@styled
def draw_years(results: GreaterThanResults) -> Figure:
    """Draw activation, de-embedding score and direct logit attribution of each feature against the year."""
    years = results.years
    rows: list[tuple[str, str, str, Any]] = [
        ("activation", "start year", BLUE, years.activation),
        ("logit attribution (per unit)", f"{_years(results)[:-1]} as the answer", GREEN, years.attribution),
    ]
    if years.score is not None:
        rows.insert(1, ("de-embedding score", "start year", VERMILION, years.score))
    across = len(years.feature)
    figure = Figure(figsize=(3.4 * across + 0.6, 2.3 * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), across, squeeze=False, sharex=True)
    for row, (name, what, colour, values) in zip(panels, rows, strict=True):
        for panel, own in zip(row, values.numpy(), strict=True):
            panel.plot(years.year.numpy(), own, color=colour, linewidth=1.3)
            panel.axhline(0, color="black", linewidth=0.6)
            panel.set_xlabel(f"{what} ({DIGITS_WORDS[results.answers.digits]})", fontsize="small")
        row[0].set_ylabel(name)
    for panel, feature in zip(panels[0], years.feature.tolist(), strict=True):
        panel.set_title(f"feature {results.layer}/{feature}", fontsize="medium")
    return figure
