"""The choice of the feature of a case study, on the finding half of the texts and on the choosing documents.

A feature is named by the case, or has the largest F1 for the case's concept, or separates texts from edits. By contrast
the steps are:

1. `shortlist` ranks the features of all layers by effect size: the standardized difference between texts and edits.
2. `candidate_activations` says where the best of them fire on held-out text.
3. `judge` gives each a threshold, and precision, recall and density. It refuses features that do not matter.
4. `choose_candidate` takes the best of the others, or none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...config.cases import FeatureCase
from ...config.evaluation import Evaluation
from ...evaluation.concept_matching import ENCODE_BATCH
from ...evaluation.concepts import SparseActivations, concept_annotations, score_features
from ...evaluation.held_out import HeldOut, passes
from ...language_model.batches import Batch
from ...language_model.hooks import Site, capture
from ..context import CaseContext

MAX_ABLATED = 16
"""Maximum number of candidates whose effect on the case's metric is measured."""
Activations = Mapping[int, Float[Tensor, "prompt feature"]]
"""Activations of all features at the last token of each prompt, by layer."""


class ChosenFeature(NamedTuple):
    """A feature and its threshold. The feature counts as firing above the threshold."""

    layer: int
    feature: int
    threshold: float
    score: float
    """F1 on the choosing documents if the feature was chosen by its concept. Otherwise, the share of texts above the
    threshold minus the share of edits above the threshold, on the finding half."""

    @property
    def name(self) -> str:
        """Name of the feature, written LAYER/NUMBER."""
        return f"{self.layer}/{self.feature}"


@dataclass(frozen=True)
class Candidate:
    """A feature that separates texts from edits, with measurements on the finding half and the choosing documents."""

    feature: ChosenFeature
    effect_size: float
    """(mean over texts - mean over edits) / standard deviation over both. At most 2."""
    precision: float
    """Share of texts among the texts and edits above a threshold that was chosen on other pairs. NaN if there are
    none."""
    recall: float
    """Share of texts above a threshold that was chosen on other pairs."""
    density: float
    """Share of held-out tokens above the threshold."""
    strength: float
    """Mean activation at the last token of the texts, divided by the largest activation on held-out text. Infinite if
    the feature never fires there."""
    sparsity: float = 1.0
    """1 - density / `case.dense`: 1 if the feature never fires on held-out text, 0 at the largest density allowed."""
    effect: float | None = None
    """Mean decrease of the case's metric when the feature is ablated. None if it was not measured."""
    refused: str | None = None
    """Why the feature is no answer. None if it is acceptable."""

    @property
    def rank(self) -> float:
        """Effect size times precision times strength (at most 1) times sparsity, times `effect` if it was measured."""
        # many features separate a few templates perfectly, so that their effect sizes are nearly equal
        matters = self.effect_size * self.precision * min(1.0, self.strength) * self.sparsity
        return matters * (1.0 if self.effect is None else self.effect)


@dataclass(frozen=True)
class Choice:
    """The chosen feature, or the reason why there is none."""

    feature: ChosenFeature | None
    reason: str = ""
    """Says why no feature was chosen. Empty if one was."""
    candidates: Sequence[Candidate] = ()
    """Judged features, best effect size first. Empty unless the feature was chosen by contrast."""
    n_live: int = 0
    """Number of features that fire more on texts than on edits. 0 unless the feature was chosen by contrast."""

    @property
    def acceptable(self) -> list[Candidate]:
        """Candidates that were not refused."""
        return [each for each in self.candidates if each.refused is None]


def choose_by_concept(
    codes: Mapping[int, SparseActivations],
    on: Activations,
    concepts: pa.Table,
    concept: str,
    held_out: HeldOut,
    config: Evaluation,
) -> Choice:
    """Returns the feature of any layer with the largest F1 for `concept` on the choosing documents.

    Features that fire on no prompt are skipped. codes[layer] has activations on the scored tokens of `held_out`.
    on[layer] has activations at the last token of each prompt. Raises ValueError if no token of the choosing documents
    has the concept.
    """
    annotations = concept_annotations(concepts.filter(pc.field("concept") == concept), held_out)
    if not annotations.names or not int(annotations.positives(choosing=True)):
        raise ValueError(
            f"no held-out token of the choosing documents has concept {concept}; name another concept, or leave it "
            "out to choose the feature by contrast"
        )
    candidates = []
    for layer, code in codes.items():
        scores = score_features(code, annotations, config.thresholds)
        f1 = scores.f1_choosing[:, 0].masked_fill(~on[layer].any(0), -1.0)
        best = int(f1.argmax())
        candidates.append(ChosenFeature(layer, best, float(scores.threshold[best, 0]), float(f1[best])))
    chosen = max(candidates, key=lambda each: each.score)
    if chosen.score < 0:
        return Choice(None, "no feature fires at the last token of any text of the finding half")
    return Choice(chosen)


def choose_named(on: Activations, off: Activations, layer: int, feature: int) -> Choice:
    """Returns the feature that the case names, with the threshold that best separates texts from edits."""
    own, edits = on[layer][:, feature], off[layer][:, feature]
    if not bool(own.any()):
        return Choice(
            None, f"feature {layer}/{feature} does not fire at the last token of any text of the finding half"
        )
    threshold, score = separate(own, edits)
    return Choice(ChosenFeature(layer, feature, threshold, score))


def separate(
    on: Float[Tensor, " prompt"], off: Float[Tensor, " prompt"], highest: bool = False
) -> tuple[float, float]:
    """Returns the threshold that best separates texts from edits, and the share of texts above it minus the share of
    edits above it. Thresholds lie in the middle between two neighbouring activations, or at 0. Of equally good
    thresholds, the lowest is taken, or the highest."""
    values = torch.cat([on, off]).unique()
    thresholds = torch.cat([values.new_zeros(1), (values[1:] + values[:-1]) / 2])
    score = (on[:, None] > thresholds).float().mean(0) - (off[:, None] > thresholds).float().mean(0)
    best = int((score == score.max()).nonzero()[-1]) if highest else int(score.argmax())
    return float(thresholds[best]), float(score[best])


# Choice by contrast


def shortlist(on: Activations, off: Activations, count: int) -> tuple[list[tuple[float, int, int]], int]:
    """Returns (effect size, layer, feature) of the `count` features with the largest effect size, and the number of
    features that fire more on texts than on edits."""
    rows: list[tuple[float, int, int]] = []
    n_live = 0
    for layer in on:
        difference = on[layer].mean(0) - off[layer].mean(0)
        spread = torch.cat([on[layer], off[layer]]).std(0, correction=0)
        size = torch.where(difference > 0, difference / spread, 0.0)
        n_live += int((size > 0).sum())
        best = size.topk(min(count, len(size)))
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        rows += [(value, layer, feature) for value, feature in found if value > 0]
    return sorted(rows, key=lambda row: -row[0])[:count], n_live


@torch.inference_mode()
def candidate_activations(
    context: CaseContext, held_out: HeldOut, features: Mapping[int, Int[Tensor, " _"]], batch: Batch
) -> dict[int, SparseActivations]:
    """Returns the activations of some features of each layer on the scored tokens, on the CPU.

    Nothing else is kept: memory grows with the activations of these features, not with tokens times width. Raises
    ValueError if an activation is not finite.
    """
    sites = [Site(context.transcoders[layer].site_in, layer) for layer in features]
    parts: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in features}
    start = 0
    for part in passes(held_out, context.model, batch):
        for site, value in capture(context.model, part.token, sites).items():
            dictionary = context.transcoders[site.layer]
            x = value[part.scored]
            context.model.check_finite(x, f"layer {site.layer}: {site.name} on held-out text")
            for done in range(0, len(x), ENCODE_BATCH):
                token, feature, z = dictionary.encode_sparse(
                    x[done : done + ENCODE_BATCH].to(dictionary.b_enc)
                )
                own = torch.isin(feature, features[site.layer].to(feature.device))
                token = token[own] + start + done
                parts[site.layer].append((token.cpu(), feature[own].cpu(), z[own].cpu()))
        start += part.n_tokens
    found = {}
    for layer, own in parts.items():
        token, feature, value = (torch.cat(column) for column in zip(*own, strict=True))
        found[layer] = SparseActivations(token, feature, value, context.transcoders[layer].width)
    return found


def judge(
    on: Float[Tensor, " prompt"],
    off: Float[Tensor, " prompt"],
    held_out: Float[Tensor, " entry"],
    n_tokens: int,
    layer: int,
    feature: int,
    case: FeatureCase,
) -> Candidate:
    """Returns the measurements of one feature, and whether they make it an answer.

    `on` and `off` are activations on the finding half. `held_out` has the activations above 0 on the `n_tokens` scored
    tokens of the choosing documents. The threshold separates texts from edits, and is at least `case.strength` of the
    largest of `held_out`.
    """
    largest = float(held_out.max()) if len(held_out) else 0.0
    floor = case.strength * largest

    def threshold_of(texts: Tensor, edits: Tensor) -> float:
        return max(separate(texts, edits, highest=True)[0], floor)

    threshold = threshold_of(on, off)
    # each half of the pairs is judged by the threshold of the other half
    true = false = 0
    turn = torch.arange(len(on)) % 2
    for fold in (0, 1):
        fitted, tested = turn != fold, turn == fold
        own = threshold_of(on[fitted], off[fitted]) if bool(fitted.any()) else threshold
        true += int((on[tested] > own).sum())
        false += int((off[tested] > own).sum())
    spread = float(torch.cat([on, off]).std(correction=0))
    candidate = Candidate(
        ChosenFeature(
            layer,
            feature,
            threshold,
            float((on > threshold).float().mean() - (off > threshold).float().mean()),
        ),
        effect_size=float(on.mean() - off.mean()) / spread if spread else 0.0,
        precision=true / (true + false) if true + false else float("nan"),
        recall=true / len(on),
        density=int((held_out > threshold).sum()) / max(1, n_tokens),
        strength=float(on.mean()) / largest if largest else float("inf"),
    )
    if candidate.density and case.dense:
        candidate = replace(candidate, sparsity=1 - candidate.density / case.dense)
    return replace(candidate, refused=_refusal(candidate, case))


def _refusal(candidate: Candidate, case: FeatureCase) -> str | None:
    """Returns why a feature is no answer, or None."""
    if candidate.density > case.dense:
        return "fires on too much held-out text"
    if candidate.strength < case.strength:
        return "fires too weakly on the texts"
    if candidate.recall < case.recall:
        return "fires on too few texts"
    # NaN is refused too
    if not candidate.precision >= case.precision:
        return "fires on too many edits"
    return None


def choose_candidate(
    candidates: Sequence[Candidate],
    n_live: int,
    effect: Callable[[ChosenFeature], float] | None = None,
) -> Choice:
    """Returns the acceptable candidate of the largest rank. `effect` measures the decrease of the case's metric when a
    feature is ablated; candidates that do not lower it are refused."""
    acceptable = sorted((each for each in candidates if each.refused is None), key=lambda each: -each.rank)
    if effect is not None:
        measured = {}
        for each in acceptable[:MAX_ABLATED]:
            value = effect(each.feature)
            refused = None if value > 0 else "does not raise the metric"
            measured[each.feature.name] = replace(each, effect=value, refused=refused)
        candidates = [measured.get(each.feature.name, each) for each in candidates]
        acceptable = [each for each in measured.values() if each.refused is None]
    if acceptable:
        return Choice(
            max(acceptable, key=lambda each: each.rank).feature, candidates=candidates, n_live=n_live
        )
    counts = {
        reason: sum(each.refused == reason for each in candidates)
        for reason in dict.fromkeys(each.refused for each in candidates if each.refused)
    }
    listed = ", ".join(f"{n} {_plural(reason, n)}" for reason, n in counts.items())
    why = f"of the {len(candidates)} with the largest effect size, {listed}" if candidates else "none fires"
    return Choice(
        None,
        f"{n_live} features fire more strongly at the last token of the finding half's texts than of their edits; "
        f"{why}",
        candidates,
        n_live,
    )


def _plural(reason: str, n: int) -> str:
    verb, _, rest = reason.partition(" ")
    if n == 1:
        return reason
    return f"{ {'fires': 'fire', 'does': 'do'}[verb] } {rest}"


def choose_by_contrast(
    context: CaseContext,
    held_out: HeldOut,
    case: FeatureCase,
    on: Activations,
    off: Activations,
    batch: Batch,
    effect: Callable[[ChosenFeature], float] | None,
) -> tuple[Choice, dict[int, SparseActivations]]:
    """Returns the feature that best separates texts from edits and matters, and the activations of all candidates on
    the scored tokens, by layer.

    on[layer] and off[layer] have activations at the last token of the finding half's texts and edits.
    """
    rows, n_live = shortlist(on, off, case.candidates)
    by_layer = {layer: torch.tensor([f for _, own, f in rows if own == layer]) for _, layer, _ in rows}
    codes = candidate_activations(context, held_out, by_layer, batch) if rows else {}
    choosing = held_out.document[held_out.scored] % 2 == 0
    candidates = []
    for _, layer, feature in rows:
        values = _values_of(codes[layer], feature, choosing)
        n_tokens = int(choosing.sum())
        candidates.append(
            judge(on[layer][:, feature], off[layer][:, feature], values, n_tokens, layer, feature, case)
        )
    return choose_candidate(candidates, n_live, effect), codes


def _values_of(
    code: SparseActivations, feature: int, tokens: Bool[Tensor, " token"]
) -> Float[Tensor, " entry"]:
    """Returns the activations of one feature on the tokens of a mask."""
    own = code.feature == feature
    return code.value[own][tokens[code.token[own].long()]]
