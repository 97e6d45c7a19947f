"""The case study of one feature: found, traced, described blind and then unblinded, and its rule put to the test."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...circuits.deembedding import read_tokens
from ...circuits.local_model import LocalModel
from ...circuits.study import Tracer
from ...config.cases import FeatureCase
from ...config.circuits import parse_place
from ...config.evaluation import Evaluation
from ...evaluation.held_out import HeldOut
from ...evaluation.matching import encode, scored_activations
from ...language_model.model import Site
from ..claims import Bootstrap, Claim, f1, measured, ratio
from ..findings import Findings
from ..opening import Opened
from ..prompts import FINDING, TESTING, fill
from .blind import blind_rule
from .choosing import Chosen, choose_by_concept, choose_by_contrast
from .figures import draw_activations, draw_sources
from .reading import read_sources, source_rows
from .rule import Rule, count, fit_rule
from .testing import Tests, run_tests

SPARE = 20
"""Times as many pairs are drawn as are wanted: some differ in their edits alone."""


class Pair(NamedTuple):
    """A text at whose last token the feature is to fire, and its edit, at whose it is not."""

    text: str
    edited: str
    half: str
    """finding or testing."""


@dataclass(frozen=True)
class Subject:
    """The feature, where it fires, and what has been read of it."""

    chosen: Chosen
    fires: Bool[Tensor, "sequence position"]
    """On held-out text, above the threshold."""
    on: Float[Tensor, " pair"]
    """Its activation at the texts' last tokens."""
    off: Float[Tensor, " pair"]
    """The same of the edits."""

    @property
    def name(self) -> str:
        """LAYER/NUMBER."""
        return f"{self.chosen.layer}/{self.chosen.feature}"


def study_feature(
    name: str,
    opened: Opened,
    held_out: HeldOut,
    concepts: pa.Table,
    case: FeatureCase,
    evaluation: Evaluation,
) -> Findings:
    """The case called `name`, with `concepts` the table of that name for the held-out text.

    Raises ValueError where a text cannot be read, nothing fires, or the concept labels no held-out token.
    """
    pairs = draw_pairs(case)
    tracer = opened.tracer()
    prompts = [(tracer.local_model(pair.text), tracer.local_model(pair.edited)) for pair in pairs]
    subject = _find(opened, held_out, concepts, case, evaluation, pairs, prompts)
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
    claims = _claims(case, held_out, concepts, subject, pairs, rule, blind, tests)
    claims += _published(case, tracer, subject)
    counts = torch.bincount(held_out.token.flatten(), minlength=vocabulary)
    return Findings(
        case=name,
        title=f"feature {subject.name} of {opened.run}",
        claims=claims,
        tables={
            "outcome": _outcomes(name, pairs, subject) + tests.rows(name, [pairs[i].text for i in testing]),
            "source": source_rows(name, reading, tracer.strings),
        },
        figures={
            "activations": (
                draw_activations(subject.on, subject.off, subject.chosen.threshold),
                f"How strongly feature {subject.name} fires at the last token of each text and of its edit; the line "
                "is the threshold.",
            ),
            "sources": (
                draw_sources(reading),
                f"What feature {subject.name} reads: shares of its pre-activation that come from each token before, "
                "through all heads and features, and from what it reads in one step; means over the traced texts.",
            ),
        },
        remarks=_remarks(case, subject, rule, blind, tracer.strings, counts),
    )


def draw_pairs(case: FeatureCase) -> list[Pair]:
    """The texts, each with one edit, those of each template for finding and for testing in turn; no text twice."""
    pairs = []
    for text, edited in zip(case.texts, case.edited, strict=True):
        distinct: dict[str, str] = {}
        for drawn, edit in fill([text, edited], case.slots, SPARE * case.prompts, case.seed):
            distinct.setdefault(drawn, edit)
        halves = zip(list(distinct.items())[: case.prompts], itertools.cycle((FINDING, TESTING)))
        pairs += [Pair(*each, half) for each, half in halves]
    if {pair.half for pair in pairs} != {FINDING, TESTING}:
        raise ValueError(
            "the templates give one text in all; the case needs texts to find and to test on: add words"
        )
    return pairs


def _find(
    opened: Opened,
    held_out: HeldOut,
    concepts: pa.Table,
    case: FeatureCase,
    evaluation: Evaluation,
    pairs: Sequence[Pair],
    prompts: Sequence[tuple[LocalModel, LocalModel]],
) -> Subject:
    sites = [Site("mlp_in", layer) for layer in opened.transcoders]
    inputs = scored_activations(opened.model, sites, held_out, evaluation.batch)
    codes = {site.layer: encode(opened.transcoders[site.layer], x) for site, x in inputs.items()}
    finding = [i for i, pair in enumerate(pairs) if pair.half == FINDING]
    on, off = (
        {
            layer: torch.stack([last_activations(pair[side], layer) for pair in prompts])
            for layer in opened.transcoders
        }
        for side in (0, 1)
    )
    found_on, found_off = ({layer: z[finding] for layer, z in side.items()} for side in (on, off))
    if case.concept is not None and case.feature is None:
        chosen = choose_by_concept(codes, found_on, concepts, case.concept, held_out, evaluation)
    else:
        place = None if case.feature is None else parse_place(case.feature)
        only = None if place is None else (place.layer, place.feature)
        if only is not None and (only[0] not in on or only[1] >= on[only[0]].shape[1]):
            raise ValueError(f"there is no feature {case.feature} in {opened.run}; name another")
        chosen = choose_by_contrast(found_on, found_off, only)
    code = codes[chosen.layer]
    mine = (code.feature == chosen.feature) & (code.value > chosen.threshold)
    fired = torch.zeros(held_out.n_tokens, dtype=torch.bool)
    fired[code.token[mine].long()] = True
    fires = torch.zeros_like(held_out.scored)
    fires[held_out.scored] = fired
    own = chosen.layer, chosen.feature
    return Subject(chosen, fires, on[own[0]][:, own[1]], off[own[0]][:, own[1]])


def last_activations(prompt: LocalModel, layer: int) -> Float[Tensor, " feature"]:
    """Activations of all features of a layer at a prompt's last token."""
    z = prompt.frozen.resid_final.new_zeros(prompt.dictionaries[layer].width)
    active = prompt.active(layer, len(prompt.frozen) - 1)
    z[prompt.features.feature[active]] = prompt.features.activation[active]
    return z.cpu()


def _claims(
    case: FeatureCase,
    held_out: HeldOut,
    concepts: pa.Table,
    subject: Subject,
    pairs: Sequence[Pair],
    rule: Rule,
    blind: Rule,
    tests: Tests,
) -> list[Claim]:
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    fires = f"feature {subject.name}"
    scored = held_out.scored & (held_out.document % 2 == 1)

    def agreement(name: str, statement: str, said: Tensor, true: Tensor, bound: float) -> Claim:
        rows = count(said, true, scored, held_out.document).rows.numpy()
        return measured(name, statement, rows, bound, bootstrap, f1, "documents")

    claims = []
    if case.concept is not None:
        labelled = _labelled(concepts, case.concept, held_out)
        statement = f"how well {fires} says `{case.concept}` on unseen documents (F1)"
        claims.append(agreement("found", statement, subject.fires, labelled, case.found))
    tested = [i for i, pair in enumerate(pairs) if pair.half == TESTING]
    on, off = subject.on[tested], subject.off[tested]
    apart = ((on > 0) & (off < on / 2)).double()
    statement = (
        f"the share of unseen texts on which {fires} fires more than twice as strongly as on their edits"
    )
    claims.append(measured("tells_apart", statement, apart.numpy(), case.found, bootstrap, of="pairs"))
    statement = f"how well the tokens named blind, from weights and indices, say where {fires} fires (F1)"
    said = blind.holds(held_out.token)
    claims.append(agreement("described_blind", statement, said, subject.fires, case.described))
    statement = f"how well the rule, written after its circuit was read, says where {fires} fires (F1)"
    said = rule.holds(held_out.token)
    claims.append(agreement("described", statement, said, subject.fires, case.described))
    statement = "the share of exchanges of one of the rule's words that take more than half of its activation"
    claims.append(measured("exchanged", statement, tests.exchanged.numpy(), case.found, bootstrap, ratio))
    left = tests.left[tests.left.isfinite()].numpy()
    statement = "the share of the activation that is left where all other words are made the mean embedding"
    claims.append(measured("sufficient", statement, left, case.sufficient, bootstrap))
    if tests.effect is not None:
        statement = f"what ablating {fires} takes from {case.effect} (logits)"
        claims.append(measured("acts", statement, tests.effect.numpy(), 0.0, bootstrap))
    return claims


def _published(case: FeatureCase, tracer: Tracer, subject: Subject) -> list[Claim]:
    """The feature on texts whose activation was published."""
    claims = []
    for number, (text, published) in enumerate(case.published.items(), 1):
        value = float(
            last_activations(tracer.local_model(text), subject.chosen.layer)[subject.chosen.feature]
        )
        off = abs(value - published) / published
        statement = (
            f"how far {value:.2f}, the activation of feature {subject.name} at the end of {text!r}, is from the "
            f"published {published:.2f}, as a share of it,"
        )
        claims.append(
            Claim(f"published_{number}", statement, off, off, off, case.reproduced, 1, "texts", "below")
        )
    return claims


def _labelled(concepts: pa.Table, concept: str, held_out: HeldOut) -> Bool[Tensor, "sequence position"]:
    """Where the concept is labelled."""
    mine = concepts.filter((pc.field("concept") == concept) & (pc.field("sequence") < len(held_out)))
    labelled = torch.zeros_like(held_out.scored)
    sequence, position = (
        torch.from_numpy(mine[c].to_numpy().astype(np.int64)) for c in ("sequence", "position")
    )
    labelled[sequence, position] = True
    return labelled


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
