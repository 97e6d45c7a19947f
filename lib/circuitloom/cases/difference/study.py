"""Case study of a logit difference: find a circuit of features and heads, and test the circuit on other prompts."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...ablation.behaviour import read_prompts
from ...ablation.causal_effects import replacement_values, unablated_logits
from ...ablation.circuits import (
    CircuitExperiment,
    component_worth,
    draw_subsets,
    measure_completeness,
)
from ...ablation.common_circuit import CommonCircuit, align_drawn, find_common, means_by_layer, target_roots
from ...ablation.components import Basis, feature_basis, head_basis, neuron_basis
from ...ablation.faithfulness import faithfulness_curve
from ...ablation.metrics import PromptMetric
from ...attribution.trace_tables import TraceRows
from ...attribution.tracer import Tracer
from ...config.cases.difference import DifferenceCase
from ...config.circuits import Circuits, Prompt
from ...core.progress import progress
from ...corpus.prompt_text import print_notes
from ...corpus.templates import FINDING, TESTING, DrawnPrompt, draw_prompts
from ..case_report import CaseReport
from ..context import CaseContext
from .attention import measure_attention
from .measurements import (
    BasisCurve,
    CircuitMetrics,
    CircuitSearch,
    FoundCircuit,
    Ranking,
    choose_ranking,
)
from .report import DifferenceResults, make_report


def study_difference(name: str, context: CaseContext, case: DifferenceCase) -> CaseReport:
    """Returns the report of the case study `name`. Raises ValueError if a prompt cannot be tokenized, or if a target
    token is unknown."""
    # 1. Draw prompts and split them into halves
    drawn = draw_prompts(case.prompts, case.slots, case.count, case.seed)
    prompts, notes = read_prompts(drawn, context.tokenizer, context.context_length)
    print_notes(name, notes)
    testing_rows = [i for i, prompt in enumerate(drawn) if prompt.half == TESTING]
    testing = [prompts[i] for i in testing_rows]
    finding = [prompt for prompt, own in zip(prompts, drawn, strict=True) if own.half == FINDING]
    heads = head_basis(context.model)
    with progress(f"cases: {name}", 5, "steps") as bar:
        # 2. Find the circuit on the finding half
        basis = feature_basis(context.run, context.transcoders) + heads
        experiment = _experiment(context, basis, finding, case)
        circuit = find_circuit(experiment, finding, case)
        bar.update()
        # 3. Faithfulness curves on the testing half, for features and for neurons
        curves = [_curve("features and heads", experiment, circuit.ranking, testing)]
        if case.compare:
            experiment = _experiment(context, neuron_basis(context.model) + heads, finding, case)
            ranking = choose_ranking(experiment, finding, case.recovered)
            curves.append(_curve("neurons and heads", experiment, ranking, testing))
        bar.update()
        # 4. Test the circuit
        metric = measure_conditions(context, circuit, prompts)
        metrics = _test_circuit(circuit, metric, testing_rows, testing, curves, case)
        bar.update()
        # 5. Trace attribution graphs of some finding prompts
        tracer = context.tracer()
        traces = _trace(tracer, [prompt for prompt in drawn if prompt.half == FINDING][: case.traced])
        bar.update()
        # 6. Aggregate the graphs of the finding prompts, and ablate what they have in common on the testing half
        common = _find_common(tracer, case, drawn, prompts, circuit.experiment)
        bar.update()
        # 7. Explain why a head reads the right token's place
        attention = measure_attention(tracer, drawn) if case.attention else None
    return make_report(
        DifferenceResults(
            name, case, drawn, notes, circuit, metric, metrics, curves, traces, attention, common
        )
    )


def find_circuit(
    experiment: CircuitExperiment, prompts: Sequence[PromptMetric], case: DifferenceCase
) -> FoundCircuit:
    """Find the circuit on `prompts`. The circuit is empty if ablating all components does not lower the metric."""
    ranking = choose_ranking(experiment, prompts, case.recovered)
    search = CircuitSearch(experiment, prompts, case.measured)
    # find a larger circuit than `recovered` requires, so that pruning has something to remove
    top = search.find(ranking, (1 + case.recovered) / 2)
    circuit = search.prune(top, case.recovered, case.least)
    return FoundCircuit(experiment, ranking, top, circuit, float(search.shares([circuit])[0]))


def _experiment(
    context: CaseContext, basis: Basis, finding: Sequence[PromptMetric], case: DifferenceCase
) -> CircuitExperiment:
    return CircuitExperiment(
        context.model, basis, replacement_values(context.model, basis, finding, case.ablation)
    )


def _curve(
    name: str, experiment: CircuitExperiment, ranking: Ranking, testing: Sequence[PromptMetric]
) -> BasisCurve:
    curve = faithfulness_curve(experiment.model, experiment.basis, testing, ranking.order, experiment.values)
    return BasisCurve(name, experiment.basis, ranking, curve)


def measure_conditions(
    context: CaseContext, circuit: FoundCircuit, prompts: Sequence[PromptMetric]
) -> Float[Tensor, "drawn condition"]:
    """Returns the metric of each prompt under each condition. The columns are in the order of `report.CONDITIONS`."""
    nothing = circuit.circuit[:0]
    alone = circuit.experiment.alone(prompts, [nothing, circuit.circuit])
    without = circuit.experiment.without(prompts, [nothing, circuit.circuit, circuit.features])
    replacement = feature_basis(context.run, context.transcoders, keep_error=False)
    transcoded = [
        prompt.metric(unablated_logits(context.model, replacement, prompt)[None]).double().cpu()
        for prompt in prompts
    ]
    return torch.cat([without[:, :1], alone, without[:, 1:], torch.stack(transcoded)], 1)


def _find_common(
    tracer: Tracer,
    case: DifferenceCase,
    drawn: Sequence[DrawnPrompt],
    prompts: Sequence[PromptMetric],
    experiment: CircuitExperiment,
) -> CommonCircuit | None:
    """Returns the common circuits. Ablated features are set to the values of `experiment`."""
    finding = [i for i, prompt in enumerate(drawn) if prompt.half == FINDING]
    chosen = finding[: case.aggregated]
    if not chosen:
        return None
    texts = [(template.text, template.target) for template in case.prompts]
    templates = align_drawn(tracer, drawn, texts, case.slots)
    means = means_by_layer(experiment.basis, experiment.values)
    roots = target_roots(tracer, drawn)
    return find_common(tracer, templates, prompts, roots, chosen, case.common, case.seed, means)


def _test_circuit(
    circuit: FoundCircuit,
    metric: Float[Tensor, "drawn condition"],
    testing_rows: Sequence[int],
    testing: Sequence[PromptMetric],
    curves: Sequence[BasisCurve],
    case: DifferenceCase,
) -> CircuitMetrics:
    untouched, none, alone, without, without_features, transcoded = metric[list(testing_rows)].T
    subsets = draw_subsets(circuit.circuit, case.subsets, case.seed)
    subset_circuit, subset_model = measure_completeness(circuit.experiment, testing, circuit.circuit, subsets)
    places = draw_places(len(circuit.circuit), case.measured, case.seed)
    return CircuitMetrics(
        preferred=metric[:, 0],
        untouched=untouched,
        none=none,
        alone=alone,
        without=without,
        without_features=without_features,
        transcoded=transcoded,
        place=places,
        worth=component_worth(circuit.experiment, testing, circuit.circuit, places),
        subset_circuit=subset_circuit,
        subset_model=subset_model,
        curve=curves[0].curve,
        neuron_curve=curves[1].curve if len(curves) > 1 else None,
    )


def draw_places(size: int, measured: int | None, seed: int) -> Int[Tensor, " place"]:
    """Returns the indices of at most `measured` of `size` components, drawn at random, ascending. None means all."""
    if measured is None or measured >= size:
        return torch.arange(size)
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return drawn[:measured].sort().values


def _trace(tracer: Tracer, prompts: Sequence[DrawnPrompt]) -> list[TraceRows]:
    traces = [
        tracer.trace(
            Prompt(text=each.text, special_tokens=each.special_tokens, target=each.target),
            Circuits(attention_pairs=0),
        )
        for each in prompts
    ]
    return [TraceRows(trace, f"prompt {i}", tracer.strings) for i, trace in enumerate(traces)]
