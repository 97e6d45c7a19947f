"""Report of the case study of one feature: claims, text, tables and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from ...config.cases import FeatureCase
from ...core.plotting import BLUE, VERMILION, styled
from ...corpus.templates import TESTING
from ...evaluation.held_out import HeldOut
from ..case_report import CaseReport, number, outcome_rows, source_rows
from ..claims import Bootstrap, Claim, f1, make_claim, ratio
from .choice import Candidate, Choice
from .measurements import (
    DirectSource,
    FeatureActivity,
    FeatureSources,
    Rule,
    RuleTests,
    TextPair,
    agreement,
)

CANDIDATES_SHOWN = 5
"""Maximum number of candidates that the text describes."""
SOURCES_SHOWN = 12
"""Maximum number of direct sources in the picture."""
MAX_SOURCE_ROWS = 30
"""Maximum number of direct sources in the table."""


@dataclass(frozen=True)
class FeatureResults:
    """All measurements of the case study."""

    name: str
    case: FeatureCase
    run: str
    pairs: Sequence[TextPair]
    choice: Choice
    """The choice of the feature of `activity`."""
    activity: FeatureActivity
    sources: FeatureSources
    rule: Rule
    blind: Rule
    tests: RuleTests
    published: Mapping[str, float]
    """Measured activation at the last token of each text that has a published activation."""
    strings: list[str]
    """Text of each vocabulary token."""
    notes: Sequence[str]
    """Lines that say how texts and the answers of `effect` were read, where a reader may think otherwise."""


def make_report(results: FeatureResults, held_out: HeldOut, concepts: pa.Table) -> CaseReport:
    """Returns the report.

    Claims about held-out text use only documents that were not used to choose the feature and the rule.
    """
    case, name = results.case, results.activity.feature.name
    claims = [
        *choice_claims(case, results.choice),
        *feature_claims(results, held_out, concepts),
        *published_claims(results),
    ]
    counts = torch.bincount(held_out.token.flatten(), minlength=len(results.strings))
    return CaseReport(
        case=results.name,
        title=f"feature {name} of {results.run}",
        question=_question(case, results.run, results.pairs),
        answer=_answer(results, claims, counts),
        claims=claims,
        tables={
            "outcome": [
                *_activation_rows(results.name, results.pairs, results.activity.on, results.activity.off),
                *_test_rows(results),
            ],
            "source": _source_rows(results.name, results.sources, results.strings),
        },
        figures={
            "activations": (
                draw_activations(
                    results.activity.on, results.activity.off, results.activity.feature.threshold
                ),
                f"Activation of feature {name} at the last token of each text and of its edit. The line is the "
                "threshold above which it counts as firing.",
            ),
            "sources": (
                draw_sources(results.sources),
                f"What feature {name} reads, mean over the traced texts. Left: each token's share of the effect of all "
                "tokens, through all heads and features. Right: sources that it reads in one step.",
            ),
        },
        method=_method(results, held_out, counts),
    )


def make_empty_report(
    name: str,
    case: FeatureCase,
    run: str,
    pairs: Sequence[TextPair],
    choice: Choice,
    held_out: HeldOut,
    notes: Sequence[str],
) -> CaseReport:
    """Returns the report of a case study that found no feature. Its only claim fails."""
    caption = "Empty, because no feature was found."
    return CaseReport(
        case=name,
        title=f"no feature of {run}",
        question=_question(case, run, pairs),
        answer=[f"No feature found: {choice.reason}.", "Claims about a feature are left out."],
        claims=choice_claims(case, choice),
        tables={"outcome": [], "source": []},
        figures={each: (draw_nothing("no feature found"), caption) for each in case.figures},
        method=[
            *_candidates_text(choice),
            f"{len(pairs)} pairs of a text and its edit. {_held_out_text(held_out)}",
            *_notes_text(notes),
        ],
    )


def _question(case: FeatureCase, run: str, pairs: Sequence[TextPair]) -> str:
    subject = f"concept `{case.concept}`" if case.concept else f"texts such as `{pairs[0].text}`"
    return f"Which feature of {run} responds to {subject}, what does it read, and what does it do?"


# Claims


def choice_claims(case: FeatureCase, choice: Choice) -> list[Claim]:
    """Returns the claim that a feature was found. A feature that was found by its concept, or named, has no such
    claim."""
    by_contrast = case.feature is None and case.concept is None
    if choice.feature is not None and not by_contrast:
        return []
    n = float(len(choice.acceptable))
    statement = "number of features that respond to the texts"
    if by_contrast:
        statement = (
            f"number of features that tell texts from edits on the finding half (precision {case.precision:g}, recall "
            f"{case.recall:g}), with {case.strength:g} of their largest activation, and fire on at most "
            f"{case.dense:g} of the held-out tokens"
        )
        if case.effect is not None:
            statement += f", and raise `{case.effect}`"
    return [
        Claim("feature_found", statement, n, n, n, 1.0, len(choice.candidates), "features"),
    ]


def feature_claims(results: FeatureResults, held_out: HeldOut, concepts: pa.Table) -> list[Claim]:
    """Returns the claims about the feature, its two rules, and the tests of the fitted rule."""
    case, activity, tests = results.case, results.activity, results.tests
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    feature = f"feature {activity.feature.name}"
    scored = held_out.scored & (held_out.document % 2 == 1)

    def agrees(name: str, statement: str, predicted: Tensor, actual: Tensor, bound: float) -> Claim:
        rows = agreement(predicted, actual, scored, held_out.document).numpy()
        return make_claim(name, statement, rows, bound, bootstrap, f1, "documents")

    claims = []
    if case.concept is not None:
        annotated = _annotated(concepts, case.concept, held_out)
        statement = f"F1 of {feature} for concept `{case.concept}` on unseen documents"
        claims.append(agrees("found", statement, activity.fires, annotated, case.found))
    tested = [i for i, pair in enumerate(results.pairs) if pair.half == TESTING]
    on, off = activity.on[tested], activity.off[tested]
    apart = ((on > 0) & (off < on / 2)).double()
    statement = f"share of unseen texts on which {feature} fires more than twice as strongly as on the edit"
    claims.append(make_claim("tells_apart", statement, apart.numpy(), case.found, bootstrap, of="pairs"))
    statement = f"F1 of the blind rule (weights and indices alone) for where {feature} fires"
    predicted = results.blind.holds(held_out.token)
    claims.append(agrees("described_blind", statement, predicted, activity.fires, case.described))
    statement = f"F1 of the fitted rule for where {feature} fires"
    predicted = results.rule.holds(held_out.token)
    claims.append(agrees("described", statement, predicted, activity.fires, case.described))
    statement = "share of exchanges of one of the rule's tokens that more than halve the activation"
    claims.append(make_claim("exchanged", statement, tests.exchanged.numpy(), case.found, bootstrap, ratio))
    alone = tests.rule_alone[tests.rule_alone.isfinite()].numpy()
    statement = "share of the activation that remains when all tokens but the rule's get the mean embedding"
    claims.append(make_claim("sufficient", statement, alone, case.sufficient, bootstrap))
    if tests.effect is not None:
        statement = f"decrease of `{case.effect}` when {feature} is ablated, logits"
        claims.append(make_claim("acts", statement, tests.effect.numpy(), 0.0, bootstrap))
    return claims


def published_claims(results: FeatureResults) -> list[Claim]:
    """Returns one claim per published activation, about the relative error of the measured activation."""
    claims = []
    for i, (text, published) in enumerate(results.case.published.items(), 1):
        value = results.published[text]
        error = abs(value - published) / published
        statement = (
            f"relative error of {value:.2f}, the activation of feature {results.activity.feature.name} at the end of "
            f"{text!r}, published as {published:.2f}"
        )
        claims.append(
            Claim(
                f"published_{i}", statement, error, error, error, results.case.reproduced, 1, "texts", "below"
            )
        )
    return claims


def _annotated(concepts: pa.Table, concept: str, held_out: HeldOut) -> Bool[Tensor, "sequence position"]:
    """Returns a mask of the held-out tokens that have the concept."""
    rows = concepts.filter((pc.field("concept") == concept) & (pc.field("sequence") < len(held_out)))
    annotated = torch.zeros_like(held_out.scored)
    sequence, position = (
        torch.from_numpy(rows[c].to_numpy().astype(np.int64)) for c in ("sequence", "position")
    )
    annotated[sequence, position] = True
    return annotated


# Text


def _answer(results: FeatureResults, claims: Sequence[Claim], counts: Tensor) -> list[str]:
    by_name = {claim.name: claim for claim in claims}
    feature = results.activity.feature.name
    described = number(by_name["described"].value) or "no value"
    first = (
        f"Feature {feature} of {results.run} fires where {results.rule.words(results.strings, counts)} (F1 on unseen "
        f"documents: {described})."
    )
    if "acts" in by_name:
        lost = number(by_name["acts"].value) or "an unknown amount"
        return [first, f"Ablating it lowers `{results.case.effect}` by {lost}."]
    apart = number(by_name["tells_apart"].value) or "an unknown"
    return [first, f"It tells unseen texts from their edits on a share of {apart} of the pairs."]


def _candidates_text(choice: Choice) -> list[str]:
    """Returns a paragraph about the candidates, if the feature was chosen by contrast."""
    if not choice.candidates:
        return []

    def describe(each: Candidate) -> str:
        precision = "none" if isnan(each.precision) else number(each.precision)
        effect = "" if each.effect is None else f", effect {number(each.effect)}"
        refused = "" if each.refused is None else f": {each.refused}"
        return (
            f"{each.feature.name} (effect size {number(each.effect_size)}, precision {precision}, recall "
            f"{number(each.recall)}, strength {each.strength:.3g}, fires on {100 * each.density:.2g} % of the "
            f"held-out tokens{effect}){refused}"
        )

    # candidates whose effect was not measured come after the others, whose ranks are products with their effects
    listed = sorted(choice.acceptable, key=lambda each: (each.effect is None, -each.rank))
    listed += [each for each in choice.candidates if each.refused is not None]
    return [
        f"{choice.n_live} features of all layers fire more strongly on the finding half's texts than on their edits; "
        f"the {len(choice.candidates)} with the largest effect size were judged, and {len(choice.acceptable)} are "
        f"acceptable. The best: {'; '.join(map(describe, listed[:CANDIDATES_SHOWN]))}."
    ]


def _held_out_text(held_out: HeldOut) -> str:
    documents = held_out.document[held_out.scored].unique()
    choosing = int((documents % 2 == 0).sum())
    return (
        f"Held-out text: {held_out.n_tokens} tokens of {len(documents)} documents, {choosing} to choose on and "
        f"{len(documents) - choosing} to test on."
    )


def _notes_text(notes: Sequence[str]) -> list[str]:
    return [f"How texts and answers were read: {'; '.join(notes)}."] if notes else []


def _method(results: FeatureResults, held_out: HeldOut, counts: Tensor) -> list[str]:
    case, activity = results.case, results.activity
    how = "is named by the case" if case.feature else "was chosen by contrast of texts and edits"
    if case.concept is not None and not case.feature:
        how = f"has the largest F1 for `{case.concept}` of all layers on the choosing documents"
    return [
        f"Feature {activity.feature.name} {how}; it counts as firing above {activity.feature.threshold:.2f}. Its mean "
        f"activation is {float(activity.on.mean()):.2f} at the last token of the texts and "
        f"{float(activity.off.mean()):.2f} at the last token of their edits.",
        f"Blind rule, from weights and indices alone: it fires where {results.blind.words(results.strings, counts)}.",
        "The fitted rule has its offsets from the traced texts and its tokens from the choosing documents. Claims are "
        f"measured on the other documents and on the testing half of the texts. {_held_out_text(held_out)}",
        *_candidates_text(results.choice),
        *_notes_text(results.notes),
    ]


# Tables


def _activation_rows(
    name: str, pairs: Sequence[TextPair], on: Float[Tensor, " pair"], off: Float[Tensor, " pair"]
) -> list[dict[str, Any]]:
    """Returns two rows of the table `outcome` per pair: one for the text and one for the edit."""
    texts = [(i, pair.text, pair.half) for i, pair in enumerate(pairs)]
    edits = [(i, pair.edited, pair.half) for i, pair in enumerate(pairs)]
    columns = (
        outcome_rows(name, "activation", "text", texts, on.tolist()),
        outcome_rows(name, "activation", "edited", edits, off.tolist()),
    )
    return [row for pair in zip(*columns, strict=True) for row in pair]


def _test_rows(results: FeatureResults) -> list[dict[str, Any]]:
    """Returns rows of the table `outcome` with the results of `RuleTests`."""
    tests = results.tests
    texts = [pair.text for pair in results.pairs if pair.half == TESTING]
    prompts = [(i, text, TESTING) for i, text in enumerate(texts)]
    columns = {
        ("share_halved", "a word of the rule exchanged"): tests.exchanged[:, 0] / tests.exchanged[:, 1],
        ("share_left", "the rule's words alone"): tests.rule_alone,
    }
    if tests.effect is not None:
        columns["effect_lost", "without the feature"] = tests.effect
    return [
        row
        for (measure, condition), column in columns.items()
        for row in outcome_rows(
            results.name, measure, condition, prompts, [None if isnan(v) else v for v in column.tolist()]
        )
    ]


def _source_rows(case: str, sources: FeatureSources, strings: Sequence[str]) -> list[dict[str, Any]]:
    """Returns rows of the table `source`. The circuit `tokens` has one row per relative position. The circuit `one
    step` has the MAX_SOURCE_ROWS direct sources with the largest share."""
    n = len(sources.direct)
    effects: dict[DirectSource, list[float]] = {}
    for step in sources.direct:
        for key, value in step.items():
            effects.setdefault(key, []).append(value)
    total = sum(sum(map(abs, values)) for values in effects.values()) or 1.0
    direct = [
        {
            "kind": kind,
            "layer": layer,
            "component": component,
            "relative_position": offset,
            "effect": sum(values) / n,
            "share": sum(map(abs, values)) / total,
            "n_prompts": len(values),
        }
        for (kind, layer, component, offset), values in effects.items()
    ]
    direct = sorted(direct, key=lambda row: -row["share"])[:MAX_SOURCE_ROWS]
    tokens = [
        {
            "kind": "token",
            "relative_position": -distance,
            "token": _common_token(sources.token_ids, distance, strings),
            "effect": float(sources.by_token[:, distance].mean()),
            "share": float(sources.shares[distance]),
            "n_prompts": sum(len(ids) > distance for ids in sources.token_ids),
        }
        for distance in sources.shares.argsort(descending=True).tolist()
        if any(len(ids) > distance for ids in sources.token_ids)
    ]
    return [*source_rows(case, "tokens", tokens), *source_rows(case, "one step", direct)]


def _common_token(token_ids: Sequence[Sequence[int]], distance: int, strings: Sequence[str]) -> str | None:
    """Returns the token `distance` positions before the last token, or None if prompts have different tokens at this
    position."""
    ids = {each[distance] for each in token_ids if len(each) > distance}
    return strings[ids.pop()] if len(ids) == 1 else None


# Pictures


@styled
def draw_nothing(text: str) -> Figure:
    """Draw `text` in an empty picture."""
    figure = Figure(figsize=(6.4, 1.6), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


@styled
def draw_activations(on: Float[Tensor, " pair"], off: Float[Tensor, " pair"], threshold: float) -> Figure:
    """Draw the activation at the last token of each text and each edit. A line marks the threshold."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    spread = torch.linspace(-0.3, 0.3, len(on))
    rows = (("texts", on, BLUE, "o"), ("edits", off, VERMILION, "x"))
    for place, (_, values, colour, marker) in enumerate(rows):
        axes.scatter(values, place + spread, c=colour, marker=marker, s=18, alpha=0.8)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
    axes.set_yticks([0, 1], [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("activation at the last token (units of the MLP's output)")
    return figure


@styled
def draw_sources(sources: FeatureSources) -> Figure:
    """Draw two panels. The left panel has the share of each token, by distance from the last token. The right panel has
    the share of each direct source."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = sources.shares
    n = max(1, int((shares > 0.005).nonzero()[:, 0].max()) + 1) if bool((shares > 0.005).any()) else 1
    signs = sources.by_token[:, :n].mean(0)
    colours = [BLUE if sign >= 0 else VERMILION for sign in signs.tolist()]
    left.bar(range(n), shares[:n].tolist(), color=colours)
    left.set_xlabel("tokens before the last one")
    left.set_ylabel("share of the effect of all tokens")
    left.set_title("tokens, through all heads and features", loc="left", fontsize="medium")
    direct = direct_shares(sources)[:SOURCES_SHOWN]
    right.barh(
        [name for name, _, _ in direct],
        [share for _, share, _ in direct],
        color=[BLUE if mean >= 0 else VERMILION for _, _, mean in direct],
    )
    right.invert_yaxis()
    right.set_xlabel("share of all sources read in one step")
    right.set_title("read in one step (blue raises, vermilion lowers)", loc="left", fontsize="medium")
    return figure


def direct_shares(sources: FeatureSources) -> list[tuple[str, float, float]]:
    """Returns (name, share, mean effect) of each direct source, by descending share. Effects of a source at different
    positions are added."""
    sums: dict[str, list[float]] = {}
    for step in sources.direct:
        own: dict[str, float] = {}
        for (kind, layer, component, _), value in step.items():
            name = kind if layer is None else f"{kind} {layer}{'/' if kind == 'feature' else '.'}{component}"
            own[name] = own.get(name, 0.0) + value
        for name, value in own.items():
            sums.setdefault(name, []).append(value)
    total = sum(abs(value) for values in sums.values() for value in values) or 1.0
    n = len(sources.direct)
    rows = [(name, sum(map(abs, v)) / total, sum(v) / n) for name, v in sums.items()]
    return sorted(rows, key=lambda row: -row[1])
