"""Report of the case study of greater-than: claims, text, tables and pictures."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...ablation.behaviour import faithfulness_rows
from ...ablation.common_circuit import common_outcomes, edge_rows, node_rows
from ...ablation.faithfulness import FaithfulnessCurve
from ...attribution.paths import EMBEDDING, FEATURE, HEAD, POSITION
from ...config.cases.greater_than import GreaterThanCase
from ...corpus.templates import FINDING, TESTING
from ..case_report import CaseReport, number, outcome_rows, source_rows
from ..claims import Bootstrap
from ..common_circuit import common_figure, common_sentences
from .claims import common_results, greater_than_claims, start_word, years_word
from .figures import draw_layer_curves, draw_metric, draw_years
from .measurements import UNTOUCHED, GreaterThanResults, replaced_name

KINDS = {FEATURE: "feature", HEAD: "head", EMBEDDING: "token", POSITION: "position"}
"""Names of node kinds in the table `source`. The keys are numbers from `attribution.paths`."""


def make_report(
    name: str, results: GreaterThanResults, case: GreaterThanCase, strings: list[str], layers: int
) -> CaseReport:
    """Returns the report of the case study. `strings` has the text of each vocabulary token, `layers` is the number of
    layers of the model."""
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    year = "year" if results.answers.digits == "both" else "digit"
    return CaseReport(
        case=name,
        title="a span of years ends after it starts",
        question=(
            f"After a text such as `{results.prompts.text[0]}`, does the model prefer {years_word(results)} later than "
            f"the {start_word(results)}, and which components make it do so?"
        ),
        answer=_answer(results),
        claims=greater_than_claims(results, case, bootstrap),
        tables={
            "outcome": list(_outcome_rows(name, results)),
            "source": [*_path_rows(name, results, strings), *_contribution_rows(name, results, strings)],
            "faithfulness": list(_faithfulness_rows(name, results)),
            "year": list(_year_rows(name, results)),
            "aggregate_node": [] if results.common is None else list(node_rows(name, results.common)),
            "aggregate_edge": [] if results.common is None else list(edge_rows(name, results.common)),
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
            "common": common_figure(results.common, layers, 1),
        },
        method=list(_method(results, case, strings)),
    )


# Text


def _mean(values: Tensor) -> str:
    return number(float(values.mean()))


def _answer(results: GreaterThanResults) -> list[str]:
    circuit, metric = results.circuit, results.ablations["mean"]
    return [
        f"The metric, the probability of later {years_word(results)} minus that of the others, is "
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
        unusable = f"the {start_word(results)} is not one token or has no later digit"
    if answers.digits == "tens":
        unusable += ", or no earlier one"
    yield (
        f"{_softmax_text(results)} {len(prompts)} prompts with {start_word(results)}s from {first} to {last}: "
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
        f"Heads are patched at the last position from a prompt with another {start_word(results)}. Share of the effect "
        f"of patching the complete prompt, chosen on one half and measured on the other: {listed}."
    )
    years = results.years
    largest = [_year_text(results, year) for year in years.year[years.activation.argmax(1)].tolist()]
    listed = ", ".join(
        f"{results.layer}/{feature} ({number(float(results.variance[feature]))}, {year})"
        for feature, year in zip(years.feature.tolist(), largest, strict=True)
    )
    through = "" if years.head is None else " De-embedding goes through head {}.{}.".format(*years.head)
    yield (
        f"Features of layer {results.layer} with the largest variance over the prompts (variance, "
        f"{start_word(results)} of the largest activation): {listed}.{through}"
    )
    yield _circuit_text(results)
    yield _contributions_text(results, strings)
    if results.common is not None:
        yield from common_sentences(common_results(results, case, results.common))


def _year_text(results: GreaterThanResults, year: int) -> str:
    return f"{year:02d}" if results.answers.digits == "both" else str(year)


def _softmax_text(results: GreaterThanResults) -> str:
    """Returns sentences that say what the answers are."""
    answers = results.answers
    if answers.digits == "both":
        return f"The softmax is over the {len(answers.year)} two-digit years that are single tokens."
    asked = f"The answers are single digits: the next token is the {answers.digits} digit of the end year."
    equal = f"The {start_word(results)} itself has a probability of {_mean(results.equal)} among all digits"
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
            return f"the {start_word(results)}"
        offset, token = _place(results, position, strings).values()
        return f"position {offset}" if token is None else repr(token.strip())

    largest = tokens.abs().argsort(descending=True)[:3].tolist()
    listed = ", ".join(f"{place_name(i)} {number(float(tokens[i]))}" for i in largest)
    return (
        f"The mean logit of later {years_word(results)} minus that of the others is {_mean(value)} on {len(value)} "
        "traced prompts. It is the sum of the contributions of tokens, positions, errors and biases through all "
        f"features and heads; the largest tokens contribute {listed}. By magnitude, the {start_word(results)}'s token "
        f"has a share of {_mean(inputs.token[:, prompts.place].abs() / inputs.magnitude)} and transcoder errors "
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
    if results.common is not None:
        texts = list(zip(results.prompts.text, results.prompts.half, strict=True))
        yield from common_outcomes(name, "greater_than", results.common, texts)


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
