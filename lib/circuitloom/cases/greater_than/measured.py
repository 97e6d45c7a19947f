"""Everything that the case study of greater-than measures, in the order in which one thing needs another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ...ablation.causal_effects import Kind, find_fill
from ...ablation.components import Basis, Fill, feature_basis, head_basis
from ...ablation.metrics import PromptMetric
from ...attribution.paths import PathSearch
from ...attribution.tracer import Tracer
from ...config.cases.greater_than import GreaterThanCase
from ...config.circuits import parse_feature
from ...core.progress import progress
from ...language_model.hooks import Site
from ..context import FINDING, TESTING, CaseContext
from .circuit import Alone, Leaves, YearCircuit, draw_like, find_circuit, find_leaves, keep_alone
from .keeping import FEATURES, Kept, keep_curves, variances
from .passes import HeadShifts, conditions, layer_effects, measure, patch_heads, without_feature
from .prompts import Answers, YearPrompts, find_answers, make_prompts, year_probes
from .years import FeatureYears, carrying_head, describe_years, direct_effects

STEPS = 7


@dataclass(frozen=True)
class YearMeasurements:
    """What was measured; tensors over prompts are over all of them, or over those of a half where it is said."""

    run: str
    prompts: YearPrompts
    answers: Answers
    conditions: Mapping[str, Float[Tensor, " prompt"]]
    """The metric, by what was done to the model."""
    layer: int
    layer_effect: Float[Tensor, "layer finding"]
    feature: int
    """The feature of the layer that was removed."""
    variance: Float[Tensor, " feature"]
    """Of each of the layer's features on the finding half."""
    kept: list[Kept]
    """On the testing half, as is what follows."""
    finding_shifts: HeadShifts
    """On the finding half."""
    shifts: HeadShifts
    years: FeatureYears
    direct: Float[Tensor, " testing"]
    """What the features of `years` add, together, to the mean logit of later years less that of the others."""
    circuit: YearCircuit
    """Found on prompts of the finding half."""
    basis: Basis
    """The features of all layers, whose transcoders stand in for MLPs, and the heads."""
    alone: Mapping[Kind, Alone]
    leaves: Leaves

    @property
    def head(self) -> int:
        """Place, among the shifts, of the head that carries the year: found on the finding half."""
        return int(self.finding_shifts.order()[0])


def measure_all(name: str, opened: CaseContext, case: GreaterThanCase) -> YearMeasurements:
    """All of it; ValueError where prompts, layer or feature are not there."""
    model, transcoders = opened.model, opened.transcoders
    answers = find_answers(case.answer, opened.tokenizer.strings())
    prompts = make_prompts(case, opened.tokenizer, opened.context, answers)
    finding, testing = prompts.of(FINDING), prompts.of(TESTING)
    bos_id = opened.tokenizer.bos_id
    probes = [year_probes(half, answers, bos_id) for half in (finding, testing)]
    with progress(f"case study {name}", STEPS, "steps") as bar:
        effect = layer_effects(model, finding, answers)
        layer = _layer(case, opened, effect)
        dictionary = transcoders[layer]
        found = conditions(model, transcoders, prompts, answers)
        bar.update(1)
        ranking = variances(model, dictionary, finding)
        top = ranking[FEATURES].topk(min(case.features, dictionary.width)).indices
        feature = int(top[0]) if case.feature is None else parse_feature(case.feature).feature
        if feature >= dictionary.width:
            raise ValueError(f"layer {layer} has features 0 to {dictionary.width - 1}, not {feature}")
        edit = without_feature(dictionary, feature, prompts.scored)
        found[removing(layer, feature)] = measure(model, prompts, answers, {Site("mlp_out", layer): edit})
        kept = keep_curves(model, opened.run, dictionary, ranking, probes[0], probes[1])
        bar.update(1)
        finding_shifts, shifts = (patch_heads(model, half, answers) for half in (finding, testing))
        bar.update(1)
        tracer = opened.tracer()
        head = carrying_head(model, finding_shifts, layer)
        years = describe_years(
            model, tracer.weights, transcoders, layer, testing, answers, top, head, case.connections
        )
        direct = direct_effects(model, tracer.weights, dictionary, testing, answers, top)
        bar.update(1)
        circuit, basis, alone = _find_circuit(opened, tracer, case, finding, answers, probes)
        bar.update(2)
        leaves = find_leaves(tracer, spread(testing, case.traced), answers)
        bar.update(1)
    return YearMeasurements(
        opened.run, prompts, answers, found, layer, effect, feature, ranking[FEATURES].cpu(), kept, finding_shifts,
        shifts, years, direct, circuit, basis, alone, leaves,
    )  # fmt: skip


def _layer(case: GreaterThanCase, opened: CaseContext, effect: Float[Tensor, "layer prompt"]) -> int:
    """The layer that is named, or by name of the feature; else, of those with a transcoder, that of largest effect."""
    layers = sorted(opened.transcoders)
    layer = case.layer if case.feature is None else parse_feature(case.feature).layer
    if layer is None:
        return max(layers, key=lambda each: float(effect[each].mean()))
    if layer not in layers:
        raise ValueError(
            f"layer {layer}: run {opened.run} has no transcoder there; choose from {', '.join(map(str, layers))}"
        )
    return layer


def _find_circuit(
    opened: CaseContext,
    tracer: Tracer,
    case: GreaterThanCase,
    finding: YearPrompts,
    answers: Answers,
    probes: Sequence[Sequence[PromptMetric]],
) -> tuple[YearCircuit, Basis, dict[Kind, Alone]]:
    traced = spread(finding, case.traced)
    circuit = find_circuit(tracer, traced, answers, PathSearch(case.length, case.width))
    features = feature_basis(opened.run, opened.transcoders, keeps_error=False)
    basis = features + head_basis(opened.model)
    own = circuit.components(basis)
    mean = find_fill(opened.model, basis, probes[0], "mean")
    drawn = draw_like(basis, own, mean, case.seed)
    fills: dict[Kind, Fill] = {"zero": [None] * len(mean), "mean": mean}
    alone: dict[Kind, Alone] = {}
    for kind, fill in fills.items():
        alone[kind] = keep_alone(opened.model, basis, own, drawn, fill, probes[1])
    return circuit, basis, alone


def spread(prompts: YearPrompts, wanted: int) -> YearPrompts:
    """So many prompts, or all there are, evenly spaced over the start years."""
    n = min(wanted, len(prompts))
    return prompts[[(2 * i + 1) * len(prompts) // (2 * n) for i in range(n)]]


def removing(layer: int, feature: int) -> str:
    """Name of the condition in which a feature is taken from what the MLP gives."""
    return f"without feature {layer}/{feature}"
