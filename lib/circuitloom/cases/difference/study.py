"""The case study of a logit difference: its circuit of features and heads, found on some prompts, tested on others."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...ablation.causal_effects import find_fill, with_all
from ...ablation.components import Basis, feature_basis, head_basis, neuron_basis
from ...ablation.faithfulness import keep_top
from ...ablation.metrics import PromptMetric
from ...attribution.trace_tables import TraceRows
from ...config.cases.difference import DifferenceCase
from ...config.circuits import Circuits, Prompt
from ...core.progress import progress
from ..case_report import CaseReport
from ..context import FINDING, TESTING, CaseContext
from .circuit import (
    CircuitExperiment,
    CircuitSearch,
    Ranking,
    choose_ranking,
    draw_subsets,
    split_circuit,
    worth,
)
from .claims import Tested
from .drawn import DrawnPrompt, draw_prompts, probe_prompts
from .report import DifferenceResults, FoundCircuit, TopComponents, report


def study_difference(name: str, opened: CaseContext, case: DifferenceCase) -> CaseReport:
    """Find the circuit on half of the prompts, test it on the other half.

    Raises ValueError where a prompt or token cannot be read.
    """
    drawn = draw_prompts(case.prompts, case.slots, case.count, case.seed)
    probes = probe_prompts(drawn, opened.tokenizer, opened.context)
    tests = [i for i, prompt in enumerate(drawn) if prompt.half == TESTING]
    testing = [probes[i] for i in tests]
    finding = [probe for probe, prompt in zip(probes, drawn, strict=True) if prompt.half == FINDING]
    heads = head_basis(opened.model)
    with progress(f"cases: {name}", 4, "steps") as bar:
        bench = _open_bench(opened, feature_basis(opened.run, opened.transcoders) + heads, finding, case)
        found = find_circuit(bench, finding, case)
        bar.update()
        curves = [_measure("features and heads", bench, found.ranking, testing)]
        if case.compare:
            bench = _open_bench(opened, neuron_basis(opened.model) + heads, finding, case)
            ranking = choose_ranking(bench, finding, case.recovered)
            curves.append(_measure("neurons and heads", bench, ranking, testing))
        bar.update()
        metric = _conditions(opened, found, probes)
        tested = _test(found, metric, tests, testing, curves, case)
        bar.update()
        traced = _trace(opened, [prompt for prompt in drawn if prompt.half == FINDING][: case.traced])
        bar.update()
    return report(DifferenceResults(name, case, drawn, found, metric, tested, curves, traced))


def find_circuit(
    bench: CircuitExperiment, probes: Sequence[PromptMetric], case: DifferenceCase
) -> FoundCircuit:
    """The circuit, on the finding half; without components where ablating everything lowers nothing."""
    ranking = choose_ranking(bench, probes, case.recovered)
    search = CircuitSearch(bench, probes)
    # with nothing to spare, what is worth nothing could not go before what is worth something
    top = search.find(ranking, (1 + case.recovered) / 2)
    circuit = search.prune(top, case.recovered, case.least)
    return FoundCircuit(bench, ranking, top, circuit, float(search.shares([circuit])[0]))


def _open_bench(
    opened: CaseContext, basis: Basis, finding: Sequence[PromptMetric], case: DifferenceCase
) -> CircuitExperiment:
    return CircuitExperiment(opened.model, basis, find_fill(opened.model, basis, finding, case.ablation))


def _measure(
    name: str, bench: CircuitExperiment, ranking: Ranking, testing: Sequence[PromptMetric]
) -> TopComponents:
    curve = keep_top(bench.model, bench.basis, testing, ranking.order, bench.fill)
    return TopComponents(name, bench.basis, ranking, curve)


def _conditions(
    opened: CaseContext, found: FoundCircuit, probes: Sequence[PromptMetric]
) -> Float[Tensor, "drawn condition"]:
    """The metric under each of `CONDITIONS`."""
    nothing = found.circuit[:0]
    alone = found.bench.alone(probes, [nothing, found.circuit])
    without = found.bench.without(probes, [nothing, found.circuit, found.features])
    stand_in = feature_basis(opened.run, opened.transcoders, keeps_error=False)
    transcoded = [
        probe.metric(with_all(opened.model, stand_in, probe)[None]).double().cpu() for probe in probes
    ]
    return torch.cat([without[:, :1], alone, without[:, 1:], torch.stack(transcoded)], 1)


def _test(
    found: FoundCircuit,
    metric: Float[Tensor, "drawn condition"],
    tests: Sequence[int],
    testing: Sequence[PromptMetric],
    curves: Sequence[TopComponents],
    case: DifferenceCase,
) -> Tested:
    untouched, none, alone, without, without_features, transcoded = metric[list(tests)].T
    subsets = draw_subsets(found.circuit, case.subsets, case.seed)
    split = split_circuit(found.bench, testing, found.circuit, subsets)
    return Tested(
        preferred=metric[:, 0],
        untouched=untouched,
        none=none,
        alone=alone,
        without=without,
        without_features=without_features,
        transcoded=transcoded,
        worth=worth(found.bench, testing, found.circuit, torch.arange(len(found.circuit))),
        split_circuit=split[0],
        split_model=split[1],
        curve=curves[0].curve,
        other=curves[1].curve if len(curves) > 1 else None,
    )


def _trace(opened: CaseContext, prompts: Sequence[DrawnPrompt]) -> list[TraceRows]:
    tracer = opened.tracer()
    traces = [tracer.trace(Prompt(text=each.text, target=each.target), Circuits()) for each in prompts]
    return [TraceRows(trace, f"prompt {i}", tracer.strings) for i, trace in enumerate(traces)]
