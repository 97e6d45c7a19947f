"""Case study of one feature: what it reads, which rules predict where it fires, and what its ablation does."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from ...attribution.linearized_model import LinearizedModel
from ...config.cases import FeatureCase
from ...config.circuits import parse_feature
from ...config.evaluation import Evaluation
from ...corpus.prompt_text import AnswerToken, print_notes
from ...corpus.templates import FINDING, TESTING, fill_templates
from ...corpus.token_arrays import count_sequences
from ...corpus.tokens import Tokens
from ...evaluation.concept_matching import scored_activations, sparse_activations
from ...evaluation.held_out import HeldOut, load_sequences
from ...language_model.hooks import Site
from ...weights.deembedding import embed_vocabulary
from ..case_report import CaseReport
from ..context import CaseContext
from .choice import (
    Choice,
    ChosenFeature,
    candidate_activations,
    choose_by_concept,
    choose_by_contrast,
    choose_named,
)
from .measurements import (
    FeatureActivity,
    TextPair,
    ablation_effect,
    blind_rule,
    effect_answers,
    fit_rule,
    last_activations,
    run_rule_tests,
    trace_sources,
)
from .report import FeatureResults, make_empty_report, make_report

MIN_DOCUMENTS, MAX_TOKENS = 100, 200_000
"""Number of held-out documents to read, if they are parts of at most that many tokens."""
OVERSAMPLING = 20
"""Number of drawn pairs per needed pair. Drawn pairs with equal texts count once."""


def study_feature(
    name: str,
    context: CaseContext,
    held_out: HeldOut,
    concepts: pa.Table,
    case: FeatureCase,
    evaluation: Evaluation,
) -> CaseReport:
    """Returns the report of the case study `name`. `concepts` is the table `concept` of the held-out text. If no
    feature is found, the report says so. Raises ValueError if a text cannot be tokenized, or if no held-out token has
    the concept."""
    # 1. Draw texts and their edits, and linearize the model on each
    pairs = draw_pairs(case)
    answers, notes = effect_answers(context, case, [pair.text for pair in pairs])
    print_notes(name, notes)
    tracer = context.tracer()
    prompts = [(tracer.linearize(pair.text), tracer.linearize(pair.edited)) for pair in pairs]
    # 2. Choose the feature on the finding half and the choosing documents
    choice, activity = choose_feature(context, held_out, concepts, case, evaluation, pairs, prompts, answers)
    if activity is None:
        print_notes(name, [f"no feature found: {choice.reason}"])
        return make_empty_report(name, case, context.run, pairs, choice, held_out, notes)
    feature = activity.feature
    finding = [i for i, pair in enumerate(pairs) if pair.half == FINDING and activity.on[i] > 0]
    testing = [i for i, pair in enumerate(pairs) if pair.half == TESTING]
    # 3. Trace what the feature reads on texts of the finding half
    traced = [prompts[i][0] for i in finding[: case.traced]]
    sources = trace_sources(traced, feature)
    # 4. Describe the feature by a blind rule, then by a rule fitted on the choosing documents
    vocabulary = len(tracer.strings)
    first = context.transcoders.get(0)
    tokens = embed_vocabulary(context.model, tracer.weights, first, vocabulary, with_output=False)
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
            name, case, context.run, pairs, choice, activity, sources, rule, blind, tests, published, tracer.strings,
            notes,
        ),
        held_out,
        concepts,
    )  # fmt: skip


def load_text(tokens: Tokens, evaluation: Evaluation, case: FeatureCase) -> HeldOut:
    """Load the held-out sequences of a case study.

    These are the first `case.tokens` tokens, or `evaluation.tokens`. If they are parts of fewer than MIN_DOCUMENTS
    documents, sequences are spread evenly over all held-out text instead. Without `case.tokens`, their number is then
    doubled until they are parts of that many documents or of all, up to MAX_TOKENS. Concepts are only known for the
    first tokens.
    """
    wanted = evaluation.tokens if case.tokens is None else case.tokens
    n, most = count_sequences(tokens, wanted), count_sequences(tokens, MAX_TOKENS)
    if case.concept is not None or _count_documents(tokens, np.arange(n)) >= MIN_DOCUMENTS:
        return load_sequences(tokens, slice(n), evaluation.mask)
    # documents are numbered in order
    enough = min(MIN_DOCUMENTS, int(tokens.take_document(slice(len(tokens) - 1, len(tokens))).max()) + 1)
    rows = np.arange(n) * len(tokens) // n
    while case.tokens is None and n < most and _count_documents(tokens, rows) < enough:
        n = min(2 * n, most)
        rows = np.arange(n) * len(tokens) // n
    return load_sequences(tokens, rows, evaluation.mask)


def _count_documents(tokens: Tokens, rows: Int[np.ndarray, " sequence"]) -> int:
    return len(tokens.take_document(rows).unique())


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
    answers: Sequence[Sequence[AnswerToken]],
) -> tuple[Choice, FeatureActivity | None]:
    """Returns the choice of the feature of the case study, and where this feature fires. No feature may be chosen.

    A feature that the config names is used. Otherwise, if the config names a concept, `choose_by_concept` is called.
    Otherwise `choose_by_contrast` is called. Raises ValueError if the named feature does not exist.
    """
    finding = [i for i, pair in enumerate(pairs) if pair.half == FINDING]
    on, off = (
        {
            layer: torch.stack([last_activations(pair[side], layer) for pair in prompts])
            for layer in context.transcoders
        }
        for side in (0, 1)
    )
    finding_on, finding_off = ({layer: z[finding] for layer, z in side.items()} for side in (on, off))
    if case.feature is not None:
        named = parse_feature(case.feature)
        layer, number = named.layer, named.feature
        if layer not in on or number >= on[layer].shape[1]:
            raise ValueError(f"there is no feature {case.feature} in {context.run}; name another")
        choice = choose_named(finding_on, finding_off, layer, number)
        codes = candidate_activations(context, held_out, {layer: torch.tensor([number])}, evaluation.batch)
    elif case.concept is not None:
        sites = [Site(dictionary.site_in, layer) for layer, dictionary in context.transcoders.items()]
        inputs = scored_activations(context.model, sites, held_out, evaluation.batch)
        codes = {
            site.layer: sparse_activations(context.transcoders[site.layer], x) for site, x in inputs.items()
        }
        choice = choose_by_concept(codes, finding_on, concepts, case.concept, held_out, evaluation)
    else:

        def effect(feature: ChosenFeature) -> float:
            fires = [i for i in finding if on[feature.layer][i, feature.feature] > 0][: case.traced]
            effects = [ablation_effect(context, prompts[i][0], feature, answers[i]) for i in fires]
            return sum(effects) / len(effects)

        choice, codes = choose_by_contrast(
            context,
            held_out,
            case,
            finding_on,
            finding_off,
            evaluation.batch,
            None if case.effect is None else effect,
        )
    feature = choice.feature
    if feature is None:
        return choice, None
    code = codes[feature.layer]
    own = (code.feature == feature.feature) & (code.value > feature.threshold)
    fired = torch.zeros(held_out.n_tokens, dtype=torch.bool)
    fired[code.token[own].long()] = True
    fires = torch.zeros_like(held_out.scored)
    fires[held_out.scored] = fired
    columns = (side[feature.layer][:, feature.feature] for side in (on, off))
    return choice, FeatureActivity(feature, fires, *columns)
