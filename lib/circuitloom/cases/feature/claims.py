"""What is claimed of a feature: that it says its concept, that its rule says where it fires, and what tests found."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool
from torch import Tensor

from ...attribution.tracer import Tracer
from ...config.cases import FeatureCase
from ...evaluation.held_out import HeldOut
from ..claims import Bootstrap, Claim, f1, measured, ratio
from ..context import TESTING
from .rule import Rule, count
from .subject import Pair, Subject, last_activations
from .testing import Tests


def make_claims(
    case: FeatureCase,
    held_out: HeldOut,
    concepts: pa.Table,
    subject: Subject,
    pairs: Sequence[Pair],
    rule: Rule,
    blind: Rule,
    tests: Tests,
) -> list[Claim]:
    """What is claimed of the feature, of what nothing was chosen on."""
    bootstrap = Bootstrap(case.resamples, case.confidence, case.seed)
    fires = f"feature {subject.name}"
    scored = held_out.scored & (held_out.document % 2 == 1)

    def agree(name: str, statement: str, said: Tensor, true: Tensor, bound: float) -> Claim:
        rows = count(said, true, scored, held_out.document).rows.numpy()
        return measured(name, statement, rows, bound, bootstrap, f1, "documents")

    claims = []
    if case.concept is not None:
        labelled = _labelled(concepts, case.concept, held_out)
        statement = f"how well {fires} says `{case.concept}` on unseen documents (F1)"
        claims.append(agree("found", statement, subject.fires, labelled, case.found))
    tested = [i for i, pair in enumerate(pairs) if pair.half == TESTING]
    on, off = subject.on[tested], subject.off[tested]
    apart = ((on > 0) & (off < on / 2)).double()
    statement = (
        f"the share of unseen texts on which {fires} fires more than twice as strongly as on their edits"
    )
    claims.append(measured("tells_apart", statement, apart.numpy(), case.found, bootstrap, of="pairs"))
    statement = f"how well the tokens named blind, from weights and indices, say where {fires} fires (F1)"
    said = blind.holds(held_out.token)
    claims.append(agree("described_blind", statement, said, subject.fires, case.described))
    statement = f"how well the rule, written after its circuit was read, says where {fires} fires (F1)"
    said = rule.holds(held_out.token)
    claims.append(agree("described", statement, said, subject.fires, case.described))
    statement = "the share of exchanges of one of the rule's words that take more than half of its activation"
    claims.append(measured("exchanged", statement, tests.exchanged.numpy(), case.found, bootstrap, ratio))
    left = tests.left[tests.left.isfinite()].numpy()
    statement = "the share of the activation that is left where all other words are made the mean embedding"
    claims.append(measured("sufficient", statement, left, case.sufficient, bootstrap))
    if tests.effect is not None:
        statement = f"what ablating {fires} takes from {case.effect} (logits)"
        claims.append(measured("acts", statement, tests.effect.numpy(), 0.0, bootstrap))
    return claims


def published_claims(case: FeatureCase, tracer: Tracer, subject: Subject) -> list[Claim]:
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
