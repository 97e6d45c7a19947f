"""Measurements and results of the case study of greater-than, in the order of use."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...ablation.causal_effects import AblationKind, replacement_values
from ...ablation.circuits import CircuitAblations
from ...ablation.common_circuit import CommonCircuit, find_common
from ...ablation.components import Basis, feature_basis, neuron_basis
from ...ablation.faithfulness import FaithfulnessCurve, faithfulness_curve, rank
from ...ablation.feature_sets import MeanActivations
from ...ablation.metrics import Metric, PromptMetric, RecordedPass, make_prompt_metrics
from ...ablation.patching import HeadPatching, patch_heads, replace_mlp, set_mlp
from ...attribution.capture import ModelWeights
from ...attribution.direct_effects import AttributionTargets, logit_targets, source_columns, total_effects
from ...attribution.graph import Roots
from ...attribution.linearized_model import LinearizedModel
from ...attribution.paths import FEATURE, HEAD, PathSearch, find_paths, paths_to_graph, target_reader
from ...attribution.tracer import Tracer
from ...config.cases.greater_than import GreaterThanCase
from ...corpus.templates import FINDING, TESTING, align_template
from ...dictionaries.dictionary import Dictionary
from ...language_model.hooks import Edit, Site, capture, edited
from ...language_model.model import LanguageModel
from ...language_model.residual import norm_jvp
from ...weights.deembedding import embedding_rows, encoder_in_residual, head_layers, head_vjp
from .prompts import AnswerYears, YearPrompts, prompt_slots, prompt_template, spread

UNTOUCHED = "untouched"
ALL_REPLACED = "all MLPs replaced"
"""Names of two conditions: the untouched model, and all MLPs replaced by transcoders."""
FEATURES, NEURONS = "features", "neurons"
ABLATIONS: tuple[AblationKind, ...] = ("zero", "mean")


# The metric


@torch.inference_mode()
def equal_probability(
    passes: RecordedPass, prompts: YearPrompts, answers: AnswerYears
) -> Float[Tensor, " prompt"]:
    """Returns the probability of the answer that equals the start, with a softmax over the answer tokens alone."""
    p = answers.select(passes.logits).cpu().softmax(-1)
    return (p * (answers.year == prompts.start[:, None])).sum(-1)


def year_metrics(prompts: YearPrompts, answers: AnswerYears, separator_id: int | None) -> list[PromptMetric]:
    """Returns the tokens and the metric of each prompt. The metric takes logits over the whole vocabulary."""

    def metric(start: int) -> Metric:
        def measure(logits: Float[Tensor, "pass vocabulary"]) -> Float[Tensor, " pass"]:
            starts = torch.full((len(logits),), start, device=logits.device)
            return answers.metric(answers.select(logits), starts)

        return measure

    metrics = [metric(start) for start in prompts.start.tolist()]
    return make_prompt_metrics(list(prompts.token), metrics, separator_id)


@torch.inference_mode()
def edited_metric(
    passes: RecordedPass, prompts: YearPrompts, answers: AnswerYears, edits: Mapping[Site, Edit]
) -> Float[Tensor, " prompt"]:
    """Returns the metric of each prompt when `edits` are applied to the model. `passes` is a pass over the prompts."""
    logits = passes.logits
    if edits:
        with edited(passes.model, edits):
            logits = passes.repeat(min(site.layer for site in edits))
    return answers.metric(answers.select(logits).cpu(), prompts.start)


# MLPs ablated or replaced


def _mlp_sites(model: LanguageModel, transcoders: Mapping[int, Dictionary]) -> list[Site]:
    """Returns the ablated site of each layer: the site that the run's transcoders write."""
    written = {each.site_out for each in transcoders.values()}
    return [Site(min(written, default="mlp_out"), layer) for layer in range(model.layers)]


@torch.inference_mode()
def mlp_effects(
    passes: RecordedPass,
    transcoders: Mapping[int, Dictionary],
    prompts: YearPrompts,
    answers: AnswerYears,
) -> Float[Tensor, "layer prompt"]:
    """Returns the decrease of the metric when the MLP of one layer is mean-ablated at the last position."""
    model = passes.model
    last = torch.zeros_like(prompts.scored)
    last[-1] = True
    sites = _mlp_sites(model, transcoders)
    outputs = capture(model, prompts.token, sites)
    before = edited_metric(passes, prompts, answers, {})
    rows = [
        before - edited_metric(passes, prompts, answers, {site: set_mlp(outputs[site][:, -1].mean(0), last)})
        for site in sites
    ]
    return torch.stack(rows)


def replaced_name(layer: int) -> str:
    """Returns the name of a condition: a transcoder replaces the MLP of `layer`."""
    return f"MLP {layer} replaced"


def ablated_name(layer: int, kind: str) -> str:
    """Returns the name of a condition: the MLP of `layer` is ablated."""
    return f"MLP {layer} {kind}-ablated"


def without_feature_name(layer: int, feature: int) -> str:
    """Returns the name of a condition: one feature is subtracted from the MLP's output."""
    return f"without feature {layer}/{feature}"


@torch.inference_mode()
def measure_conditions(
    passes: RecordedPass,
    transcoders: Mapping[int, Dictionary],
    prompts: YearPrompts,
    answers: AnswerYears,
) -> dict[str, Float[Tensor, " prompt"]]:
    """Returns the metric of each prompt under each condition, by the name of the condition.

    The first condition is the untouched model. Transcoders replace each MLP alone, and all MLPs at once. Ablations set
    the output of each MLP to zero, and to its mean over prompts and positions.
    """
    model = passes.model
    metric = {UNTOUCHED: edited_metric(passes, prompts, answers, {})}
    replacements = {
        Site(each.site_out, layer): replace_mlp(each, prompts.scored) for layer, each in transcoders.items()
    }
    for site, edit in replacements.items():
        metric[replaced_name(site.layer)] = edited_metric(passes, prompts, answers, {site: edit})
    if len(replacements) > 1:
        metric[ALL_REPLACED] = edited_metric(passes, prompts, answers, replacements)
    outputs = capture(model, prompts.token, _mlp_sites(model, transcoders))
    for site, output in sorted(outputs.items(), key=lambda each: each[0].layer):
        mean = output[:, prompts.scored.to(output.device)].mean((0, 1))
        for kind, value in {"zero": 0.0, "mean": mean}.items():
            edits = {site: set_mlp(value, prompts.scored)}
            metric[ablated_name(site.layer, kind)] = edited_metric(passes, prompts, answers, edits)
    return metric


# Faithfulness of the top features and neurons of one layer


@dataclass(frozen=True)
class LayerCurve:
    """Faithfulness curve of the features or neurons of one layer, ranked by the variance of their activations."""

    units: str
    """`features` or `neurons`."""
    basis: Basis
    ablation: AblationKind
    curve: FaithfulnessCurve


@torch.inference_mode()
def variances(
    model: LanguageModel, dictionary: Dictionary, prompts: YearPrompts
) -> dict[str, Float[Tensor, " component"]]:
    """Returns the variance of each activation at the last position over prompts, for features and for neurons.

    Activations of features are multiplied by the norms of their decoder rows.
    """
    sites = {FEATURES: Site(dictionary.site_in, dictionary.layer), NEURONS: Site("neurons", dictionary.layer)}
    captured = capture(model, prompts.token, list(sites.values()))
    last = {site: value[:, -1] for site, value in captured.items()}
    z = dictionary.encode(last[sites[FEATURES]].to(dictionary.dtype))
    variance = z.var(0) * dictionary.row_norm.square()
    return {FEATURES: variance, NEURONS: last[sites[NEURONS]].float().var(0)}


def layer_curves(
    model: LanguageModel,
    run: str,
    dictionary: Dictionary,
    variance: dict[str, Float[Tensor, " component"]],
    finding: Sequence[PromptMetric],
    testing: Sequence[PromptMetric],
) -> list[LayerCurve]:
    """Returns faithfulness curves on `testing`: for each kind of ablation, one of features and one of neurons.

    Components with the largest `variance` are kept first. Ablated components are set to zero, or to their mean over
    `finding`. For features, the transcoder replaces the MLP without an error term.
    """
    layer = dictionary.layer
    bases = {
        FEATURES: feature_basis(run, {layer: dictionary}, keep_error=False),
        NEURONS: neuron_basis(model, [layer]),
    }
    curves = []
    for units, unnamed in bases.items():
        basis = replace(unnamed, name=f"{unnamed.name}, layer {layer}")
        for kind in ABLATIONS:
            values = replacement_values(model, basis, finding, kind)
            curve = faithfulness_curve(model, basis, testing, rank(variance[units]), values)
            curves.append(LayerCurve(units, basis, kind, curve))
    return curves


# Activation patching of heads


def patch_start_year(model: LanguageModel, prompts: YearPrompts, answers: AnswerYears) -> HeadPatching:
    """Replace each head's output at the last position by the head's output on the counterpart.

    The effect of a head is the decrease of a contrast. The contrast is the metric for the prompt's start year minus the
    metric for the counterpart's start year. Both metrics use the same logits.
    """

    def contrast(logits: Float[Tensor, "prompt vocabulary"]) -> Float[Tensor, " prompt"]:
        # its magnitude is twice the probability of the years between the two start years, except with tens digits,
        # where each metric leaves out its own start
        chosen = answers.select(logits).cpu()
        own, other = (answers.metric(chosen, each) for each in (prompts.start, prompts.other_start))
        return own - other

    return patch_heads(model, prompts.token, prompts.other, contrast)


def strongest_head(model: LanguageModel, patching: HeadPatching, layer: int) -> tuple[int, int] | None:
    """Returns (layer, number) of the head with the largest effect. Only heads before the MLP of `layer` count. Returns
    None if there is no such head."""
    before = head_layers(model, -1, layer)
    order = [i for i in patching.order().tolist() if int(patching.layer[i]) in before]
    return (int(patching.layer[order[0]]), int(patching.head[order[0]])) if order else None


# Features by start year


@dataclass(frozen=True)
class YearFeatures:
    """Activations, logit attributions and de-embedding scores of some features, by start year.

    Activations are multiplied by the norm of the feature's decoder row, so that features are comparable.
    """

    year: Int[Tensor, " year"]
    """Start years, ascending."""
    feature: Int[Tensor, " feature"]
    activation: Float[Tensor, "feature year"]
    """Mean activation at the last position over the prompts with each start year."""
    attribution: Float[Tensor, "feature year"]
    """Result of `logit_attribution` for each year as the answer."""
    head: tuple[int, int] | None
    """(layer, number) of the head of `score`. None if no head comes before the layer's MLP."""
    score: Float[Tensor, "feature year"] | None
    """Result of `deembedding_scores` for the token of each year. None if `head` is None."""


def describe_years(
    model: LanguageModel,
    weights: ModelWeights,
    transcoders: Mapping[int, Dictionary],
    layer: int,
    prompts: YearPrompts,
    answers: AnswerYears,
    feature: Int[Tensor, " feature"],
    head: tuple[int, int] | None,
    connections: int,
) -> YearFeatures:
    """Describes the given features of `layer` by start year. De-embedding scores are computed through `head`."""
    year, row = prompts.start.unique(return_inverse=True)
    z = last_feature_activations(model, transcoders[layer], prompts, feature).cpu()
    total = z.new_zeros(len(year), len(feature)).index_add_(0, row, z)
    token = answers.token[torch.isin(answers.year, year)].to(feature.device)
    score = None
    if head is not None:
        score = deembedding_scores(
            model, weights, transcoders, layer, feature, head, token, connections
        ).cpu()
    attribution = logit_attribution(weights, transcoders[layer], feature, token).cpu()
    activation = (total / torch.bincount(row)[:, None]).T
    return YearFeatures(year, feature.cpu(), activation, attribution, head, score)


@torch.inference_mode()
def last_feature_activations(
    model: LanguageModel, dictionary: Dictionary, prompts: YearPrompts, feature: Int[Tensor, " feature"]
) -> Float[Tensor, "prompt feature"]:
    """Returns the activations of the given features at the last position of each prompt, times the norms of their
    decoder rows."""
    site = Site(dictionary.site_in, dictionary.layer)
    x = capture(model, prompts.token, [site])[site][:, -1]
    z = dictionary.encode(x.to(dictionary.dtype))[:, feature]
    return z * dictionary.row_norm[feature]


@torch.inference_mode()
def direct_year_effects(
    model: LanguageModel,
    weights: ModelWeights,
    dictionary: Dictionary,
    prompts: YearPrompts,
    answers: AnswerYears,
    feature: Int[Tensor, " feature"],
) -> Float[Tensor, " prompt"]:
    """Returns, for each prompt, the summed direct effect of the given features on a logit difference.

    The difference is the mean logit of later years minus the mean logit of all other years. Norm denominators are set
    to 1.
    """
    z = last_feature_activations(model, dictionary, prompts, feature)
    effect = (z @ logit_attribution(weights, dictionary, feature, answers.token.to(feature.device))).cpu()
    later, others = (
        mask.to(effect) for mask in (answers.later(prompts.start), answers.others(prompts.start))
    )
    return (effect * later).sum(1) / later.sum(1) - (effect * others).sum(1) / others.sum(1)


@torch.inference_mode()
def logit_attribution(
    weights: ModelWeights,
    dictionary: Dictionary,
    feature: Int[Tensor, " feature"],
    token: Int[Tensor, " year"],
) -> Float[Tensor, "feature year"]:
    """Returns the direct logit attribution of each feature to each token, where the feature writes a vector of norm 1.
    Norm denominators are set to 1."""
    rows = weights.unembedding.rows[token]
    norm = weights.blocks[dictionary.layer].norm_after(dictionary)
    unit = dictionary.W_dec[feature] / dictionary.row_norm[feature, None]
    written = norm_jvp(norm, unit.to(rows))
    return written @ rows.T


@torch.inference_mode()
def deembedding_scores(
    model: LanguageModel,
    weights: ModelWeights,
    transcoders: Mapping[int, Dictionary],
    layer: int,
    feature: Int[Tensor, " feature"],
    head: tuple[int, int],
    token: Int[Tensor, " year"],
    connections: int,
) -> Float[Tensor, "feature year"]:
    """Returns the effect of each token's embedding on each feature through a head, from weights alone.

    Effects are those on the feature's pre-activation times the norm of its decoder row.

    If layer 0 has a transcoder and the head comes after this transcoder, the score is the sum of c_i d_i. The sum runs
    over the layer-0 features i with the largest c_i / |W_dec[i]|. Their number is `connections`. c_i is the virtual
    weight from feature i through the head to the scored feature. d_i is the product of feature i's encoder row and the
    token's embedding.

    In all other cases, the score is the effect of the token's embedding through the head.
    """
    embedding = embedding_rows(model, weights)[token]
    norm = transcoders[layer].row_norm[feature, None]
    reads = encoder_in_residual(weights, layer, transcoders[layer], feature) * norm
    read = head_vjp(weights.blocks[head[0]], head[1], reads)
    first = transcoders.get(0)
    if first is None or head[0] not in head_layers(model, 0, layer):
        return read @ embedding.T
    written = norm_jvp(weights.blocks[0].norm_after(first), first.W_dec.to(read))
    weight = read @ written.T
    best = (weight / first.row_norm.to(read)).topk(min(connections, first.width), dim=1).indices
    tokens = encoder_in_residual(weights, 0, first, slice(None)) @ embedding.T
    return torch.einsum("fc,fcy->fy", weight.gather(1, best), tokens[best])


# The circuit, and contributions of inputs


@dataclass(frozen=True)
class YearCircuit:
    """Circuit: all nodes on the greedy paths of the traced prompts."""

    contribution: dict[tuple[int, int, int, int], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Contributions of each node to the target. Each prompt that has the node on a path adds one value: the sum over
    all paths that end in the node. A node is (kind, layer, number, position). The kind is a number from
    `attribution.paths`."""
    n_prompts: int = 0

    def parts(self, kind: int) -> list[tuple[int, int]]:
        """Returns (layer, number) of each node of one kind, such as each head."""
        return sorted({(layer, number) for own, layer, number, _ in self.contribution if own == kind})

    def components(self, basis: Basis) -> Bool[Tensor, " component"]:
        """Returns a mask of `basis` that is true for the circuit's features and heads."""
        kept = torch.zeros(len(basis), dtype=torch.bool)
        kinds = {"feature": FEATURE, "head": HEAD}
        for part, columns in zip(basis.parts, basis.slices, strict=True):
            numbers = [number for layer, number in self.parts(kinds[part.kind]) if layer == part.site.layer]
            kept[columns.start + torch.tensor(numbers, dtype=torch.int64)] = True
        return kept


def later_target(model: LinearizedModel, answers: AnswerYears, start: int) -> AttributionTargets:
    """Returns a target at the last position: the mean logit of later years minus the mean logit of all other years."""
    unembedding = model.captured.unembedding.weight
    later, others = (
        mask[0] for mask in (answers.later(torch.tensor([start])), answers.others(torch.tensor([start])))
    )
    weights = unembedding.new_zeros(1, len(unembedding))
    weights[0, answers.token[later]] = 1 / int(later.sum())
    weights[0, answers.token[others]] = -1 / int(others.sum())
    return logit_targets(model, torch.tensor([len(model.captured) - 1], device=weights.device), weights)


def find_circuit(
    tracer: Tracer, prompts: YearPrompts, answers: AnswerYears, search: PathSearch
) -> YearCircuit:
    """Returns all nodes on the greedy paths of all prompts as one circuit."""
    circuit = YearCircuit(n_prompts=len(prompts))
    for text, start in zip(prompts.text, prompts.start.tolist(), strict=True):
        model = tracer.linearize(text)
        root = target_reader(model, later_target(model, answers, start))
        graph = paths_to_graph(find_paths(model, root, search))
        columns = (graph.kind, graph.layer, graph.index, graph.position, graph.value)
        for kind, layer, index, position, value in zip(*(each.tolist() for each in columns), strict=True):
            if kind >= 0:
                circuit.contribution[kind, layer, index, position].append(value)
    return circuit


def find_common_years(
    tracer: Tracer,
    prompts: YearPrompts,
    answers: AnswerYears,
    case: GreaterThanCase,
    means: MeanActivations | None,
) -> CommonCircuit | None:
    """Find what the graphs of `later_target` on prompts of the finding half have in common, and measure it on both
    halves.

    At most `case.aggregated` prompts of each half are used, at evenly spaced start years, because each takes dozens of
    passes. Ablated features are set to `means`. Returns None if no graphs are made.
    """
    finding, testing = (
        [i for i, own in enumerate(prompts.half) if own == half] for half in (FINDING, TESTING)
    )
    chosen, tested = ([half[i] for i in spread(len(half), case.aggregated)] for half in (finding, testing))
    if not chosen:
        return None
    own = sorted(chosen + tested)
    read = [tracer.read(prompts.text[i]) for i in own]
    target = "later - other years" if answers.digits == "both" else f"later - other {answers.digits} digits"
    text, slots = prompt_template(case, answers), prompt_slots(case)
    template = align_template(text, target, slots, own, read, tracer.strings)
    metrics = year_metrics(prompts, answers, tracer.tokenizer.separator_id)

    def roots(number: int, model: LinearizedModel) -> Roots:
        targets = later_target(model, answers, int(prompts.start[number]))
        return Roots(targets, model.captured.resid_final.new_ones(1))

    return find_common(tracer, [template], metrics, roots, chosen, case.common, case.seed, means)


@dataclass(frozen=True)
class InputContributions:
    """Contributions of each input to the target, over all paths. All contributions sum to the target."""

    token: Float[Tensor, "prompt position"]
    error: Float[Tensor, "prompt layer position"]
    position: Float[Tensor, "prompt position"]
    """Contributions of position embeddings. They are 0 if the model has no learned position embeddings."""
    constant: Float[Tensor, " prompt"]
    """Contribution of all biases together."""

    @property
    def magnitude(self) -> Float[Tensor, " prompt"]:
        """Sum of the absolute values of all contributions."""
        parts = (self.token, self.error.flatten(1), self.position, self.constant[:, None])
        return torch.cat(parts, 1).abs().sum(1)


def input_contributions(tracer: Tracer, prompts: YearPrompts, answers: AnswerYears) -> InputContributions:
    """Returns the contribution of each input to `later_target` on each prompt."""
    rows = []
    for text, start in zip(prompts.text, prompts.start.tolist(), strict=True):
        model = tracer.linearize(text)
        effects = total_effects(model, later_target(model, answers, start))[0].cpu()
        columns = source_columns(model)
        errors = effects[columns.errors].view(columns.layers, columns.positions)
        token, position = effects[columns.embeddings], effects[columns.position_embeddings]
        rows.append((token, errors, position, effects[columns.constant]))
    return InputContributions(*(torch.stack(column) for column in zip(*rows, strict=True)))


# Results


@dataclass(frozen=True)
class GreaterThanResults:
    """All measurements of the case study. A field covers both halves of the prompts unless it names one half."""

    run: str
    prompts: YearPrompts
    answers: AnswerYears
    conditions: Mapping[str, Float[Tensor, " prompt"]]
    """Metric of each prompt, by condition."""
    layer: int
    mlp_effect: Float[Tensor, "layer finding"]
    feature: int
    """Feature of `layer` that one condition subtracts from the MLP's output."""
    variance: Float[Tensor, " feature"]
    """Variance of each activation at the last position, over prompts of the finding half."""
    curves: list[LayerCurve]
    """Faithfulness curves on the testing half."""
    finding_patching: HeadPatching
    patching: HeadPatching
    """Activation patching of heads on the testing half."""
    years: YearFeatures
    """Features of `layer` by start year, on the testing half."""
    direct: Float[Tensor, " testing"]
    """Result of `direct_year_effects` for the features of `years`, on the testing half."""
    circuit: YearCircuit
    """Circuit found on some prompts of the finding half."""
    basis: Basis
    """Candidate components of the circuit: all features and all heads, without transcoder errors."""
    ablations: Mapping[AblationKind, CircuitAblations]
    """Metrics of the circuit alone and of the model without the circuit, on the testing half."""
    contributions: InputContributions
    """Contributions of the inputs on some prompts of the testing half."""
    equal: Float[Tensor, " prompt"]
    """Result of `equal_probability`."""
    common: CommonCircuit | None = None
    """Result of `find_common_years`."""

    @property
    def head(self) -> int:
        """Index in `patching` of the head with the largest effect on the finding half."""
        return int(self.finding_patching.order()[0])
