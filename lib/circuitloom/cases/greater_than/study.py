"""The case study of greater-than: which components make a model end a span of years after it starts?"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...ablation.causal_effects import AblationKind, replacement_values
from ...ablation.circuits import CircuitAblations, ablate_circuit, draw_random_features
from ...ablation.components import ReplacementValues, feature_basis, head_basis
from ...attribution.paths import PathSearch
from ...attribution.targets import find_token, tokenize_prompt
from ...config.cases.greater_than import CENTURY, YEAR, GreaterThanCase
from ...config.circuits import parse_feature
from ...core.progress import progress
from ...corpus.tokenizer import Tokenizer
from ...corpus.tokens import scored_positions
from ...language_model.hooks import Site
from ..case_report import CaseReport
from ..context import FINDING, TESTING, CaseContext, fill_templates
from .measurements import (
    FEATURES,
    AnswerYears,
    YearPrompts,
    describe_years,
    direct_year_effects,
    edited_metric,
    find_circuit,
    input_contributions,
    layer_curves,
    measure_conditions,
    mlp_effects,
    patch_heads,
    strongest_head,
    subtract_feature,
    variances,
    without_feature_name,
    year_metrics,
)
from .report import GreaterThanResults, make_report

STEPS = 7
MAX_FILLINGS = 1000
"""Fillings of the template to draw from."""


def study_greater_than(name: str, context: CaseContext, case: GreaterThanCase) -> CaseReport:
    """Report of the case `name`.

    Raises ValueError where too few prompts have a start year of one token, or a named layer or feature does not exist.
    """
    results = measure_greater_than(name, context, case)
    return make_report(name, results, case, context.tokenizer.strings())


def measure_greater_than(name: str, context: CaseContext, case: GreaterThanCase) -> GreaterThanResults:
    """All measurements of the case; raises as `study_greater_than`."""
    model, transcoders, run = context.model, context.transcoders, context.run
    # 1. Prompts, in two halves
    answers = find_answers(case.answer, context.tokenizer.strings())
    prompts = make_prompts(case, context.tokenizer, context.context_length, answers)
    finding, testing = prompts.of(FINDING), prompts.of(TESTING)
    finding_metrics, testing_metrics = (
        year_metrics(half, answers, context.tokenizer.bos_id) for half in (finding, testing)
    )
    with progress(f"case study {name}", STEPS, "steps") as bar:
        # 2. The layer whose MLP matters most, and the metric with MLPs replaced or ablated
        mlp_effect = mlp_effects(model, finding, answers)
        layer = _choose_layer(case, context, mlp_effect)
        dictionary = transcoders[layer]
        conditions = measure_conditions(model, transcoders, prompts, answers)
        bar.update(1)
        # 3. The layer's features of the largest variance, and the metric without one of them
        variance = variances(model, dictionary, finding)
        top = variance[FEATURES].topk(min(case.features, dictionary.width)).indices
        feature = int(top[0]) if case.feature is None else parse_feature(case.feature).feature
        if feature >= dictionary.width:
            raise ValueError(f"layer {layer} has features 0 to {dictionary.width - 1}, not {feature}")
        edits = {Site("mlp_out", layer): subtract_feature(dictionary, feature, prompts.scored)}
        conditions[without_feature_name(layer, feature)] = edited_metric(model, prompts, answers, edits)
        # 4. Few features against few neurons of the layer
        curves = layer_curves(model, run, dictionary, variance, finding_metrics, testing_metrics)
        bar.update(1)
        # 5. Activation patching of heads
        finding_patching, patching = (patch_heads(model, half, answers) for half in (finding, testing))
        bar.update(1)
        # 6. Features by start year
        tracer = context.tracer()
        head = strongest_head(model, finding_patching, layer)
        years = describe_years(
            model, tracer.weights, transcoders, layer, testing, answers, top, head, case.connections
        )
        direct = direct_year_effects(model, tracer.weights, dictionary, testing, answers, top)
        bar.update(1)
        # 7. The circuit of greedy paths, and the metric with it alone and without it
        search = PathSearch(case.length, case.width)
        circuit = find_circuit(tracer, finding.spread(case.traced), answers, search)
        basis = feature_basis(run, transcoders, keep_error=False) + head_basis(model)
        components = circuit.components(basis)
        mean = replacement_values(model, basis, finding_metrics, "mean")
        random_features = draw_random_features(basis, components, mean, case.seed)
        values: dict[AblationKind, ReplacementValues] = {"zero": [None] * len(mean), "mean": mean}
        ablations: dict[AblationKind, CircuitAblations] = {
            kind: ablate_circuit(model, basis, components, random_features, each, testing_metrics)
            for kind, each in values.items()
        }
        bar.update(2)
        # 8. Contributions of tokens and errors to the answer, through all features and heads
        contributions = input_contributions(tracer, testing.spread(case.traced), answers)
        bar.update(1)
    return GreaterThanResults(
        run=run,
        prompts=prompts,
        answers=answers,
        conditions=conditions,
        layer=layer,
        mlp_effect=mlp_effect,
        feature=feature,
        variance=variance[FEATURES].cpu(),
        curves=curves,
        finding_patching=finding_patching,
        patching=patching,
        years=years,
        direct=direct,
        circuit=circuit,
        basis=basis,
        ablations=ablations,
        contributions=contributions,
    )


def _choose_layer(
    case: GreaterThanCase, context: CaseContext, mlp_effect: Float[Tensor, "layer prompt"]
) -> int:
    """The layer named by the case or its feature; otherwise the layer with a transcoder and the largest effect."""
    layers = sorted(context.transcoders)
    layer = case.layer if case.feature is None else parse_feature(case.feature).layer
    if layer is None:
        return max(layers, key=lambda each: float(mlp_effect[each].mean()))
    if layer not in layers:
        raise ValueError(
            f"layer {layer}: run {context.run} has no transcoder there; choose from {', '.join(map(str, layers))}"
        )
    return layer


# Prompts


def find_answers(answer: str, strings: list[str]) -> AnswerYears:
    """The years 00 to 99 that are single tokens when written as `answer`; ValueError for fewer than two."""
    tokens = {}
    for year in range(100):
        try:
            tokens[year] = find_token(answer.replace(f"{{{YEAR}}}", f"{year:02d}"), strings)
        except ValueError:
            continue
    if len(tokens) < 2:
        raise ValueError(f"the vocabulary has no tokens for years written {answer!r}; change `answer`")
    return AnswerYears(torch.tensor(list(tokens.values())), torch.tensor(list(tokens)))


def make_prompts(
    case: GreaterThanCase, tokenizer: Tokenizer, context_length: int, answers: AnswerYears
) -> YearPrompts:
    """The prompts of a case, in the order of start years.

    Only prompts of the most common length and position of the start year are kept. Raises ValueError where fewer than
    four remain, or a prompt cannot be read.
    """
    generator = random.Random(case.seed)
    years = list(range(case.first, case.last + 1))
    slots = {**case.slots, CENTURY: case.centuries}
    filled = [texts for (texts,) in fill_templates([case.template], slots, MAX_FILLINGS, case.seed)]
    token_of_year = dict(zip(answers.year.tolist(), answers.token.tolist(), strict=True))
    rows: list[_PromptRow] = []
    wanted = 0
    for number, year in enumerate(years):
        own = generator.sample(filled, min(case.fillings, len(filled)))
        wanted += len(own)
        for n, text in enumerate(own):
            half = (FINDING, TESTING)[(number if len(own) == 1 else n) % 2]
            others = [each for each in generator.sample(years, len(years)) if each != year]

            def read(each: int, text=text) -> tuple[str, Tensor]:
                written = text.replace(f"{{{YEAR}}}", f"{each:02d}")
                return written, tokenize_prompt(written, tokenizer, context_length)

            # no answer is later than the last year
            if token_of_year.get(year, -1) in read(year)[1].tolist() and year < max(token_of_year):
                rows += _pair(read, year, others, token_of_year, half)
    places = Counter((len(row.token), row.place) for row in rows)
    kept = [row for row in rows if (len(row.token), row.place) == places.most_common(1)[0][0]]
    if len(kept) < 4:
        raise ValueError(
            f"{case.template!r}: {len(kept)} of {wanted} prompts have a start year that is one token; change the "
            "template, or `answer`"
        )
    return YearPrompts(
        text=[row.text for row in kept],
        token=torch.stack([row.token for row in kept]),
        start=torch.tensor([row.year for row in kept]),
        other=torch.stack([row.other for row in kept]),
        other_start=torch.tensor([row.other_year for row in kept]),
        scored=scored_positions(kept[0].token[None], tokenizer.bos_id)[0],
        place=kept[0].place,
        half=[row.half for row in kept],
        dropped=wanted - len(kept),
    )


class _PromptRow(NamedTuple):
    """A prompt and its counterpart."""

    text: str
    token: Int[Tensor, " position"]
    other: Int[Tensor, " position"]
    year: int
    other_year: int
    place: int
    half: str


def _pair(
    read: Callable[[int], tuple[str, Tensor]],
    year: int,
    others: Sequence[int],
    token_of_year: dict[int, int],
    half: str,
) -> list[_PromptRow]:
    """The prompt of a year with the first of `others` whose prompt differs in the year's token alone; empty if none."""
    text, token = read(year)
    for other_year in others:
        _, other = read(other_year)
        if len(other) == len(token):
            changed = (token != other).nonzero()[:, 0].tolist()
            tokens = [(int(token[place]), int(other[place])) for place in changed]
            if tokens == [(token_of_year[year], token_of_year.get(other_year, -1))]:
                return [_PromptRow(text, token, other, year, other_year, changed[0], half)]
    return []
