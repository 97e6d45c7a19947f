"""The case study of one feature: found, traced, described blind and then unblinded, and its rule put to the test."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...config.cases import FeatureCase
from ...config.evaluation import Evaluation
from ...evaluation.held_out import HeldOut
from ...weights.deembedding import read_tokens
from ..case_report import CaseReport
from ..context import FINDING, TESTING, CaseContext
from .claims import make_claims, published_claims
from .figures import draw_activations, draw_sources
from .reading import Reading, read_sources, source_rows
from .rule import Rule, blind_rule, fit_rule
from .subject import Pair, Subject, draw_pairs, find_subject
from .testing import run_tests


def study_feature(
    name: str,
    opened: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    case: FeatureCase,
    evaluation: Evaluation,
) -> CaseReport:
    """The case called `name`, with `concepts` the table of that name for the held-out text.

    Raises ValueError where a text cannot be read, nothing fires, or the concept labels no held-out token.
    """
    pairs = draw_pairs(case)
    tracer = opened.tracer()
    prompts = [(tracer.local_model(pair.text), tracer.local_model(pair.edited)) for pair in pairs]
    subject = find_subject(opened, held_out, concepts, case, evaluation, pairs, prompts)
    finding = [i for i, pair in enumerate(pairs) if pair.half == FINDING and subject.on[i] > 0]
    testing = [i for i, pair in enumerate(pairs) if pair.half == TESTING]
    traced = [prompts[i][0] for i in finding[: case.traced]]
    reading = read_sources(traced, subject.chosen)
    vocabulary = len(tracer.strings)
    first = opened.transcoders.get(0)
    blind = blind_rule(
        traced,
        subject.chosen.layer,
        subject.chosen.feature,
        read_tokens(opened.model, tracer.weights, first, vocabulary),
        case.least_share,
    )
    choosing = held_out.document % 2 == 0
    rule = fit_rule(
        held_out.token,
        subject.fires,
        held_out.scored & choosing,
        reading.offsets(case.least_share),
        vocabulary,
    )
    tests = run_tests(opened, held_out, case, subject.chosen, rule, [prompts[i][0] for i in testing])
    claims = make_claims(case, held_out, concepts, subject, pairs, rule, blind, tests)
    claims += published_claims(case, tracer, subject)
    counts = torch.bincount(held_out.token.flatten(), minlength=vocabulary)
    return CaseReport(
        case=name,
        title=f"feature {subject.name} of {opened.run}",
        claims=claims,
        tables={
            "outcome": _outcomes(name, pairs, subject) + tests.rows(name, [pairs[i].text for i in testing]),
            "source": source_rows(name, reading, tracer.strings),
        },
        figures=_figures(subject, reading),
        remarks=_remarks(case, subject, rule, blind, tracer.strings, counts),
    )


def _figures(subject: Subject, reading: Reading) -> dict[str, tuple[Figure, str]]:
    return {
        "activations": (
            draw_activations(subject.on, subject.off, subject.chosen.threshold),
            f"How strongly feature {subject.name} fires at the last token of each text and of its edit; the line is "
            "the threshold.",
        ),
        "sources": (
            draw_sources(reading),
            f"What feature {subject.name} reads: shares of its pre-activation that come from each token before, "
            "through all heads and features, and from what it reads in one step; means over the traced texts.",
        ),
    }


def _outcomes(name: str, pairs: Sequence[Pair], subject: Subject) -> list[dict[str, Any]]:
    """Activations on texts and edits, as rows of `outcome`."""
    return [
        {
            "case_study": name,
            "measure": "activation",
            "condition": condition,
            "prompt": number,
            "text": text,
            "half": pair.half,
            "value": float(values[number]),
        }
        for number, pair in enumerate(pairs)
        for condition, text, values in (("text", pair.text, subject.on), ("edited", pair.edited, subject.off))
    ]


def _remarks(
    case: FeatureCase, subject: Subject, rule: Rule, blind: Rule, strings: list[str], counts: Tensor
) -> list[str]:
    """Which feature it is, how it was found, and both rules in words."""
    how = "named by the case" if case.feature else "found by contrast of texts and edits"
    if case.concept is not None and not case.feature:
        how = f"the feature of all layers that says `{case.concept}` best on the choosing documents"
    return [
        f"Feature {subject.name} is {how}; it counts as firing above {subject.chosen.threshold:.2f}. On texts of the "
        f"case it fires with {float(subject.on.mean()):.2f} on average, on their edits with "
        f"{float(subject.off.mean()):.2f}.",
        f"Blind, from weights and indices alone: it fires where {blind.words(strings, counts)}.",
        f"The rule, with its circuit read and the choosing documents seen: it fires where "
        f"{rule.words(strings, counts)}.",
    ]
