"""Case study of one feature: what it reads, which rules predict where it fires, and what its ablation does."""

import itertools
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution.linearized_model import LinearizedModel
from ...config.cases import FeatureCase
from ...config.circuits import parse_feature
from ...config.evaluation import Evaluation
from ...corpus.prompt_text import print_notes
from ...evaluation.concept_matching import scored_activations, sparse_activations
from ...evaluation.concepts import SparseActivations, concept_annotations, score_features
from ...evaluation.held_out import HeldOut
from ...language_model.hooks import Site
from ...weights.deembedding import embed_vocabulary
from ..case_report import CaseReport
from ..context import FINDING, TESTING, CaseContext, fill_templates
from .measurements import (
    ChosenFeature,
    FeatureActivity,
    TextPair,
    blind_rule,
    effect_answers,
    fit_rule,
    last_activations,
    run_rule_tests,
    trace_sources,
)
from .report import FeatureResults, make_report

OVERSAMPLING = 20
"""Number of drawn pairs per needed pair. Drawn pairs with equal texts count once."""
SILENT = "{} at the last token of any text of the finding half; change the case's texts"
"""Error message. The placeholder gets words such as "no feature fires"."""


def study_feature(
    name: str,
    context: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    case: FeatureCase,
    evaluation: Evaluation,
) -> CaseReport:
    """Returns the report of the case study `name`. `concepts` is the table `concept` of the held-out text. Raises
    ValueError if a text cannot be tokenized, if no feature fires, or if no held-out token has the concept."""
    # 1. Draw texts and their edits, and linearize the model on each
    pairs = draw_pairs(case)
    answers, notes = effect_answers(context, case, [pair.text for pair in pairs])
    print_notes(name, notes)
    tracer = context.tracer()
    prompts = [(tracer.linearize(pair.text), tracer.linearize(pair.edited)) for pair in pairs]
    # 2. Choose the feature on the finding half and the choosing documents
    activity = choose_feature(context, held_out, concepts, case, evaluation, pairs, prompts)
    feature = activity.feature
    finding = [i for i, pair in enumerate(pairs) if pair.half == FINDING and activity.on[i] > 0]
    testing = [i for i, pair in enumerate(pairs) if pair.half == TESTING]
    # 3. Trace what the feature reads on texts of the finding half
    traced = [prompts[i][0] for i in finding[: case.traced]]
    sources = trace_sources(traced, feature)
    # 4. Describe the feature by a blind rule, then by a rule fitted on the choosing documents
    vocabulary = len(tracer.strings)
    first = context.transcoders.get(0)
    tokens = embed_vocabulary(context.model, tracer.weights, first, vocabulary)
    blind = blind_rule(traced, feature.layer, feature.feature, tokens, case.least_share)
    rule = fit_rule(
        held_out.token,
        activity.fires,
        held_out.scored & (held_out.document % 2 == 0),
        sources.offsets(case.least_share),
        vocabulary,
    )
    # 5. Test the rule on the testing half, and compare with published activations
    tested = [(prompts[i][0], answers[i]) for i in testing]
    tests = run_rule_tests(context, held_out, case, feature, rule, tested)
    published = {
        text: float(last_activations(tracer.linearize(text), feature.layer)[feature.feature])
        for text in case.published
    }
    return make_report(
        FeatureResults(
            name, case, context.run, pairs, activity, sources, rule, blind, tests, published, tracer.strings, notes
        ),
        held_out,
        concepts,
    )  # fmt: skip


def draw_pairs(case: FeatureCase) -> list[TextPair]:
    """Returns pairs with distinct texts. Pairs belong alternately to the finding and the testing half. Raises
    ValueError if a half is empty."""
    pairs = []
    for text, edited in zip(case.texts, case.edited, strict=True):
        distinct: dict[str, str] = {}
        for drawn, edit in fill_templates([text, edited], case.slots, OVERSAMPLING * case.prompts, case.seed):
            distinct.setdefault(drawn, edit)
        halves = zip(list(distinct.items())[: case.prompts], itertools.cycle((FINDING, TESTING)))
        pairs += [TextPair(*each, half) for each, half in halves]
    if {pair.half for pair in pairs} != {FINDING, TESTING}:
        raise ValueError("the templates give a single text; add words to `slots`: each half needs a text")
    return pairs


def choose_feature(
    context: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    case: FeatureCase,
    evaluation: Evaluation,
    pairs: Sequence[TextPair],
    prompts: Sequence[tuple[LinearizedModel, LinearizedModel]],
) -> FeatureActivity:
    """Returns the feature of the case study, and where this feature fires.

    A feature that the config names is used. Otherwise, if the config names a concept, `choose_by_concept` is called.
    Otherwise `choose_by_contrast` is called. Raises ValueError if the named feature does not exist, or if no feature
    fires at the last token of any text.
    """
    sites = [Site("mlp_in", layer) for layer in context.transcoders]
    inputs = scored_activations(context.model, sites, held_out, evaluation.batch)
    codes = {site.layer: sparse_activations(context.transcoders[site.layer], x) for site, x in inputs.items()}
    finding = [i for i, pair in enumerate(pairs) if pair.half == FINDING]
    on, off = (
        {
            layer: torch.stack([last_activations(pair[side], layer) for pair in prompts])
            for layer in context.transcoders
        }
        for side in (0, 1)
    )
    finding_on, finding_off = ({layer: z[finding] for layer, z in side.items()} for side in (on, off))
    if case.concept is not None and case.feature is None:
        feature = choose_by_concept(codes, finding_on, concepts, case.concept, held_out, evaluation)
    else:
        named = None if case.feature is None else parse_feature(case.feature)
        only = None if named is None else (named.layer, named.feature)
        if only is not None and (only[0] not in on or only[1] >= on[only[0]].shape[1]):
            raise ValueError(f"there is no feature {case.feature} in {context.run}; name another")
        feature = choose_by_contrast(finding_on, finding_off, only)
    code = codes[feature.layer]
    own = (code.feature == feature.feature) & (code.value > feature.threshold)
    fired = torch.zeros(held_out.n_tokens, dtype=torch.bool)
    fired[code.token[own].long()] = True
    fires = torch.zeros_like(held_out.scored)
    fires[held_out.scored] = fired
    return FeatureActivity(
        feature, fires, on[feature.layer][:, feature.feature], off[feature.layer][:, feature.feature]
    )


def choose_by_concept(
    codes: Mapping[int, SparseActivations],
    on: Mapping[int, Float[Tensor, "prompt feature"]],
    concepts: pa.Table,
    concept: str,
    held_out: HeldOut,
    config: Evaluation,
) -> ChosenFeature:
    """Returns the feature of any layer with the largest F1 for `concept` on the choosing documents.

    Features that fire on no prompt are skipped. codes[layer] has activations on the scored tokens of `held_out`.
    on[layer] has activations at the last token of each prompt. Raises ValueError if no token of the choosing documents
    has the concept, or if no feature fires on any prompt.
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
        raise ValueError(SILENT.format("no feature fires"))
    return chosen


def choose_by_contrast(
    on: Mapping[int, Float[Tensor, "prompt feature"]],
    off: Mapping[int, Float[Tensor, "prompt feature"]],
    only: tuple[int, int] | None = None,
) -> ChosenFeature:
    """Returns the feature of any layer that best separates texts from edits, with its best threshold.

    on[layer] has activations at the last token of each text. off[layer] has activations at the last token of each edit.
    The score is the share of texts above the threshold minus the share of edits above the threshold. Features with
    equal scores are ranked by mean(on) - mean(off). If `only` (layer, number) is given, only the threshold of this
    feature is chosen. Raises ValueError if no feature fires on any text.
    """
    candidates = []
    for layer in on:
        if only is None or only[0] == layer:
            columns = range(on[layer].shape[1]) if only is None else [only[1]]
            live = [i for i in columns if bool(on[layer][:, i].any())]
            candidates += [(*_separate(on[layer][:, i], off[layer][:, i]), layer, i) for i in live]
    if not candidates:
        what = "no feature fires" if only is None else f"feature {only[0]}/{only[1]} does not fire"
        raise ValueError(SILENT.format(what))
    score, _, threshold, layer, feature = max(candidates, key=lambda each: each[:2])
    return ChosenFeature(layer, feature, threshold, score)


def _separate(on: Float[Tensor, " prompt"], off: Float[Tensor, " prompt"]) -> tuple[float, float, float]:
    """Returns the best score over thresholds, mean(on) - mean(off), and the threshold with the best score."""
    values = torch.cat([on, off]).unique()
    thresholds = torch.cat([values.new_zeros(1), (values[1:] + values[:-1]) / 2])
    score = (on[:, None] > thresholds).float().mean(0) - (off[:, None] > thresholds).float().mean(0)
    best = int(score.argmax())
    return float(score[best]), float(on.mean() - off.mean()), float(thresholds[best])
