"""The case study of a logit difference: its circuit of features and heads, found on some prompts, tested on others."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...circuits.ablation import find_fill, with_all
from ...circuits.basis import Basis, feature_basis, head_basis, neuron_basis
from ...circuits.faithfulness import keep_top
from ...circuits.probes import Probe
from ...circuits.study_rows import StudyRows
from ...config.cases.difference import DifferenceCase
from ...config.circuits import Circuits, Prompt
from ...progress import progress
from ..findings import Findings
from ..opening import Opened
from ..prompts import FINDING, TESTING
from .circuit import Bench, Ranking, Search, choose_ranking, draw_subsets, split_circuit, worth
from .claims import Tested
from .drawn import DrawnPrompt, draw_prompts, probe_prompts
from .report import Found, Measured, Results, report


def study_difference(name: str, opened: Opened, case: DifferenceCase) -> Findings:
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
    return report(Results(name, case, drawn, found, metric, tested, curves, traced))


def find_circuit(bench: Bench, probes: Sequence[Probe], case: DifferenceCase) -> Found:
    """The circuit, on the finding half; without components where ablating everything lowers nothing."""
    ranking = choose_ranking(bench, probes, case.recovered)
    search = Search(bench, probes)
    # with nothing to spare, what is worth nothing could not go before what is worth something
    top = search.find(ranking, (1 + case.recovered) / 2)
    circuit = search.prune(top, case.recovered, case.least)
    return Found(bench, ranking, top, circuit, float(search.shares([circuit])[0]))


def _open_bench(opened: Opened, basis: Basis, finding: Sequence[Probe], case: DifferenceCase) -> Bench:
    return Bench(opened.model, basis, find_fill(opened.model, basis, finding, case.ablation))


def _measure(name: str, bench: Bench, ranking: Ranking, testing: Sequence[Probe]) -> Measured:
    curve = keep_top(bench.model, bench.basis, testing, ranking.order, bench.fill)
    return Measured(name, bench.basis, ranking, curve)


def _conditions(opened: Opened, found: Found, probes: Sequence[Probe]) -> Float[Tensor, "drawn condition"]:
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
    found: Found,
    metric: Float[Tensor, "drawn condition"],
    tests: Sequence[int],
    testing: Sequence[Probe],
    curves: Sequence[Measured],
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


def _trace(opened: Opened, prompts: Sequence[DrawnPrompt]) -> list[StudyRows]:
    tracer = opened.tracer()
    traces = [tracer.trace(Prompt(text=each.text, target=each.target), Circuits()) for each in prompts]
    return [StudyRows(trace, f"prompt {i}", tracer.strings) for i, trace in enumerate(traces)]
