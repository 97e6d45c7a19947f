"""Case study of greater-than: which components make a model predict an end year later than the start year?"""

import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.causal_effects import AblationKind, replacement_values
from ...ablation.circuits import CircuitAblations, ablate_circuit, draw_random_features
from ...ablation.common_circuit import means_by_layer
from ...ablation.components import ReplacementValues, feature_basis, head_basis
from ...ablation.metrics import RecordedPass
from ...ablation.patching import subtract_feature
from ...attribution.paths import PathSearch
from ...config.cases.greater_than import GreaterThanCase
from ...config.circuits import parse_feature
from ...core.progress import progress
from ...corpus.prompt_text import print_notes, read_prompt
from ...corpus.templates import FINDING, TESTING
from ...dictionaries.cross_layer import require_one_output
from ...language_model.hooks import Site
from ...language_model.model import LanguageModel
from ..case_report import CaseReport
from ..context import CaseContext
from .measurements import (
    FEATURES,
    GreaterThanResults,
    describe_years,
    direct_year_effects,
    edited_metric,
    equal_probability,
    find_circuit,
    find_common_years,
    input_contributions,
    layer_curves,
    measure_conditions,
    mlp_effects,
    patch_start_year,
    strongest_head,
    variances,
    without_feature_name,
    year_metrics,
)
from .prompts import YearPrompts, read_task
from .report import make_report

STEPS = 8


def study_greater_than(name: str, context: CaseContext, case: GreaterThanCase) -> CaseReport:
    """Returns the report of the case study `name`. Raises ValueError if fewer than four prompts are usable, or if the
    config names a layer or feature that does not exist."""
    results = measure_greater_than(name, context, case)
    return make_report(name, results, case, context.tokenizer.strings(), context.model.layers)


def measure_greater_than(name: str, context: CaseContext, case: GreaterThanCase) -> GreaterThanResults:
    """Returns all measurements of the case study. Raises the errors of `study_greater_than`."""
    model, run = context.model, context.run
    user = "the case study of greater-than"
    transcoders = {layer: require_one_output(each, user) for layer, each in context.transcoders.items()}
    # 1. Prompts, in two halves
    answers, prompts = read_task(case, context.tokenizer, context.context_length)
    read = (read_prompt(text, context.tokenizer, context.context_length) for text in prompts.text)
    print_notes(name, (note for prompt in read for note in prompt.notes))
    finding, testing = prompts.of(FINDING), prompts.of(TESTING)
    finding_metrics, testing_metrics = (
        year_metrics(half, answers, context.tokenizer.separator_id) for half in (finding, testing)
    )
    with progress(f"case study {name}", STEPS, "steps") as bar:
        # 2. The layer whose MLP matters most, and the metric with MLPs replaced or ablated
        mlp_effect = mlp_effects(_record(model, finding), transcoders, finding, answers)
        layer = _choose_layer(case, context, mlp_effect)
        dictionary = transcoders[layer]
        passes = _record(model, prompts)
        conditions = measure_conditions(passes, transcoders, prompts, answers)
        bar.update(1)
        # 3. The layer's features with the largest variance, and the metric without one feature
        variance = variances(model, dictionary, finding)
        top = variance[FEATURES].topk(min(case.features, dictionary.width)).indices
        feature = int(top[0]) if case.feature is None else parse_feature(case.feature).feature
        if feature >= dictionary.width:
            raise ValueError(f"layer {layer} has features 0 to {dictionary.width - 1}, not {feature}")
        edits = {Site(dictionary.site_out, layer): subtract_feature(dictionary, feature, prompts.scored)}
        conditions[without_feature_name(layer, feature)] = edited_metric(passes, prompts, answers, edits)
        equal = equal_probability(passes, prompts, answers)
        # 4. Few features against few neurons of the layer
        curves = layer_curves(model, run, dictionary, variance, finding_metrics, testing_metrics)
        bar.update(1)
        # 5. Activation patching of heads
        finding_patching, patching = (patch_start_year(model, half, answers) for half in (finding, testing))
        bar.update(1)
        # 6. Features by start year
        tracer = context.tracer()
        head = strongest_head(model, finding_patching, layer)
        years = describe_years(
            model, tracer.weights, transcoders, layer, testing, answers, top, head, case.connections
        )
        direct = direct_year_effects(model, tracer.weights, dictionary, testing, answers, top)
        bar.update(1)
        # 7. The circuit of greedy paths, the metric of this circuit alone, and the metric of the model without it
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
        # 9. What the attribution graphs of the finding half have in common, ablated on the testing half
        common = find_common_years(tracer, prompts, answers, case, means_by_layer(basis, mean))
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
        equal=equal,
        common=common,
    )


@torch.inference_mode()
def _record(model: LanguageModel, prompts: YearPrompts) -> RecordedPass:
    return RecordedPass(model, prompts.token)


def _choose_layer(
    case: GreaterThanCase, context: CaseContext, mlp_effect: Float[Tensor, "layer prompt"]
) -> int:
    """Returns the layer that the config names. The default is the layer whose MLP has the largest mean effect."""
    layers = sorted(context.transcoders)
    layer = case.layer if case.feature is None else parse_feature(case.feature).layer
    if layer is None:
        return max(layers, key=lambda each: float(mlp_effect[each].mean()))
    if layer not in layers:
        raise ValueError(
            f"layer {layer}: run {context.run} has no transcoder there; choose from {', '.join(map(str, layers))}"
        )
    return layer
