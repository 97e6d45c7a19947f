"""Prompts, metric, measurements and results of the case study of greater-than, in the order of use."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...ablation.causal_effects import AblationKind, replacement_values
from ...ablation.circuits import CircuitAblations
from ...ablation.components import Basis, feature_basis, neuron_basis
from ...ablation.faithfulness import FaithfulnessCurve, faithfulness_curve, rank
from ...ablation.metrics import Metric, PromptMetric, last_logits, make_prompt_metrics
from ...ablation.patching import HeadPatching, patch_heads, replace_mlp, set_mlp
from ...attribution.capture import ModelWeights
from ...attribution.direct_effects import AttributionTargets, logit_targets, source_columns, total_effects
from ...attribution.linearized_model import LinearizedModel
from ...attribution.paths import FEATURE, HEAD, PathSearch, find_paths, paths_to_graph, target_reader
from ...attribution.targets import tokenize_prompt
from ...attribution.tracer import Tracer
from ...config.cases.greater_than import CENTURY, YEAR, GreaterThanCase
from ...corpus.prompt_text import find_token
from ...corpus.token_arrays import scored_positions
from ...corpus.tokenizer import Tokenizer
from ...dictionaries.dictionary import Dictionary
from ...language_model.hooks import Edit, Site, capture, edited
from ...language_model.model import LanguageModel
from ...language_model.residual import norm_jvp
from ...weights.deembedding import embedding_rows, encoder_in_residual, head_layers, head_vjp
from ..context import FINDING, TESTING, fill_templates

MAX_FILLINGS = 1000
"""Maximum number of template fillings from which prompts are drawn."""
UNTOUCHED = "untouched"
ALL_REPLACED = "all MLPs replaced"
"""Names of two conditions: the untouched model, and all MLPs replaced by transcoders."""
FEATURES, NEURONS = "features", "neurons"
ABLATIONS: tuple[AblationKind, ...] = ("zero", "mean")


# Prompts


@dataclass(frozen=True)
class AnswerYears:
    """Two-digit years that are single tokens. The metric uses only the logits of these tokens."""

    token: Int[Tensor, " answer"]
    year: Int[Tensor, " answer"]
    """Last two digits of each year, ascending."""

    def select(self, logits: Float[Tensor, "prompt vocabulary"]) -> Float[Tensor, "prompt answer"]:
        """Returns the logits of the answer tokens."""
        return logits[:, self.token.to(logits.device)]


@dataclass(frozen=True)
class YearPrompts:
    """Prompts of equal length. Each prompt has a counterpart: the same text with another start year."""

    text: list[str]
    token: Int[Tensor, "prompt position"]
    start: Int[Tensor, " prompt"]
    """Last two digits of the start year."""
    other: Int[Tensor, "prompt position"]
    """Tokens of the counterparts."""
    other_start: Int[Tensor, " prompt"]
    scored: Bool[Tensor, " position"]
    """True at positions where transcoders replace MLPs: all except the first position and separators."""
    place: int
    """Position of the start year."""
    half: list[str]
    """`finding` or `testing`, for each prompt."""
    dropped: int
    """Number of drawn prompts that `make_prompts` leaves out."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.text)

    def of(self, half: str) -> "YearPrompts":
        """Returns the prompts of one half."""
        return self[[i for i, each in enumerate(self.half) if each == half]]

    def spread(self, wanted: int) -> "YearPrompts":
        """Returns up to `wanted` prompts at evenly spaced indices."""
        n = min(wanted, len(self))
        return self[[(2 * i + 1) * len(self) // (2 * n) for i in range(n)]]

    def __getitem__(self, chosen: list[int]) -> "YearPrompts":
        """Returns the prompts at the given indices."""
        return replace(
            self,
            text=[self.text[i] for i in chosen],
            token=self.token[chosen],
            start=self.start[chosen],
            other=self.other[chosen],
            other_start=self.other_start[chosen],
            half=[self.half[i] for i in chosen],
        )


def find_answers(case: GreaterThanCase, tokenizer: Tokenizer) -> AnswerYears:
    """Returns the years from 00 to 99 that give a single token when filled into the template `case.answer`.

    A year follows the century as the start year does in `case.template`: with or without a blank. If only the other
    form is a token, this form is used. Raises ValueError if fewer than two years give a single token.
    """
    slot = f"{{{YEAR}}}"
    blank = " " if case.template.partition(slot)[0][-1:].isspace() else ""
    other = "" if blank else " "
    forms = [case.answer] if case.answer[0].isspace() else [blank + case.answer, other + case.answer]
    tokens = {}
    for year in range(100):
        found = [find_token(form.replace(slot, f"{year:02d}"), tokenizer) for form in forms]
        token = next((each for each in found if each is not None), None)
        if token is not None:
            tokens[year] = token
    if len(tokens) < 2:
        raise ValueError(f"the vocabulary has no tokens for years written {case.answer!r}; change `answer`")
    return AnswerYears(torch.tensor(list(tokens.values())), torch.tensor(list(tokens)))


def make_prompts(
    case: GreaterThanCase, tokenizer: Tokenizer, context_length: int, answers: AnswerYears
) -> YearPrompts:
    """Returns the prompts of a case, sorted by start year. All prompts have a counterpart.

    Every start year is a single token and has a later answer. All prompts have the same length and the same position of
    the start year. Raises ValueError if fewer than four prompts remain, or if a prompt cannot be tokenized.
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

            # leave out the last year, because no answer is later
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
        scored=scored_positions(kept[0].token[None], tokenizer.separator_id)[0],
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
    """Returns one row: the prompt of `year` with its counterpart. Returns no row if there is no counterpart. The
    counterpart has the first year in `others` that changes only the token of the year."""
    text, token = read(year)
    for other_year in others:
        _, other = read(other_year)
        if len(other) == len(token):
            changed = (token != other).nonzero()[:, 0].tolist()
            tokens = [(int(token[place]), int(other[place])) for place in changed]
            if tokens == [(token_of_year[year], token_of_year.get(other_year, -1))]:
                return [_PromptRow(text, token, other, year, other_year, changed[0], half)]
    return []


# The metric


def greater_than(
    logits: Float[Tensor, "prompt answer"], year: Int[Tensor, " answer"], start: Int[Tensor, " prompt"]
) -> Float[Tensor, " prompt"]:
    """Returns P(years later than `start`) - P(all other years). The softmax is over the answer tokens alone."""
    later = year.to(start.device) > start[:, None]
    return (logits.softmax(-1) * torch.where(later, 1.0, -1.0).to(logits)).sum(-1)


def year_metrics(prompts: YearPrompts, answers: AnswerYears, separator_id: int | None) -> list[PromptMetric]:
    """Returns the tokens and the metric of each prompt. The metric takes logits over the whole vocabulary."""

    def metric(start: int) -> Metric:
        def measure(logits: Float[Tensor, "pass vocabulary"]) -> Float[Tensor, " pass"]:
            starts = torch.full((len(logits),), start, device=logits.device)
            return greater_than(answers.select(logits), answers.year, starts)

        return measure

    metrics = [metric(start) for start in prompts.start.tolist()]
    return make_prompt_metrics(list(prompts.token), metrics, separator_id)


@torch.inference_mode()
def edited_metric(
    model: LanguageModel, prompts: YearPrompts, answers: AnswerYears, edits: Mapping[Site, Edit]
) -> Float[Tensor, " prompt"]:
    """Returns the metric of each prompt when `edits` are applied to the model."""
    with edited(model, edits):
        logits = last_logits(model, prompts.token)
    return greater_than(answers.select(logits).cpu(), answers.year, prompts.start)


# MLPs ablated or replaced


@torch.inference_mode()
def mlp_effects(
    model: LanguageModel, prompts: YearPrompts, answers: AnswerYears
) -> Float[Tensor, "layer prompt"]:
    """Returns the decrease of the metric when the MLP of one layer is mean-ablated at the last position."""
    last = torch.zeros_like(prompts.scored)
    last[-1] = True
    sites = [Site("mlp_out", layer) for layer in range(model.layers)]
    outputs = capture(model, prompts.token, sites)
    before = edited_metric(model, prompts, answers, {})
    rows = [
        before - edited_metric(model, prompts, answers, {site: set_mlp(outputs[site][:, -1].mean(0), last)})
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
    model: LanguageModel,
    transcoders: Mapping[int, Dictionary],
    prompts: YearPrompts,
    answers: AnswerYears,
) -> dict[str, Float[Tensor, " prompt"]]:
    """Returns the metric of each prompt under each condition, by the name of the condition.

    The first condition is the untouched model. Transcoders replace each MLP alone, and all MLPs at once. Ablations set
    the output of each MLP to zero, and to its mean over prompts and positions.
    """
    metric = {UNTOUCHED: edited_metric(model, prompts, answers, {})}
    replacements = {
        Site(each.site_out, layer): replace_mlp(each, prompts.scored) for layer, each in transcoders.items()
    }
    for site, edit in replacements.items():
        metric[replaced_name(site.layer)] = edited_metric(model, prompts, answers, {site: edit})
    if len(replacements) > 1:
        metric[ALL_REPLACED] = edited_metric(model, prompts, answers, replacements)
    written = {site.layer: site for site in replacements}
    sites = [written.get(layer, Site("mlp_out", layer)) for layer in range(model.layers)]
    outputs = capture(model, prompts.token, sites)
    for site, output in sorted(outputs.items(), key=lambda each: each[0].layer):
        mean = output[:, prompts.scored.to(output.device)].mean((0, 1))
        for kind, value in {"zero": 0.0, "mean": mean}.items():
            edits = {site: set_mlp(value, prompts.scored)}
            metric[ablated_name(site.layer, kind)] = edited_metric(model, prompts, answers, edits)
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
    """Returns the variance of each activation at the last position over prompts, for features and for neurons."""
    sites = {FEATURES: Site("mlp_in", dictionary.layer), NEURONS: Site("neurons", dictionary.layer)}
    captured = capture(model, prompts.token, list(sites.values()))
    last = {site: value[:, -1] for site, value in captured.items()}
    z = dictionary.encode(last[sites[FEATURES]].to(dictionary.W_enc.dtype))
    return {FEATURES: z.var(0), NEURONS: last[sites[NEURONS]].float().var(0)}


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
        # the magnitude of this difference is twice the probability of the years between the two start years
        chosen = answers.select(logits).cpu()
        own, other = (
            greater_than(chosen, answers.year, each) for each in (prompts.start, prompts.other_start)
        )
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
    """Activations, logit attributions and de-embedding scores of some features, by start year."""

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
    """Returns the activations of the given features at the last position of each prompt."""
    site = Site("mlp_in", dictionary.layer)
    x = capture(model, prompts.token, [site])[site][:, -1]
    return dictionary.encode(x.to(dictionary.W_enc.dtype))[:, feature]


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
    later = (answers.year > prompts.start[:, None]).to(effect)
    return (effect * later).sum(1) / later.sum(1) - (effect * (1 - later)).sum(1) / (1 - later).sum(1)


@torch.inference_mode()
def logit_attribution(
    weights: ModelWeights,
    dictionary: Dictionary,
    feature: Int[Tensor, " feature"],
    token: Int[Tensor, " year"],
) -> Float[Tensor, "feature year"]:
    """Returns the direct logit attribution of an activation of 1 to each token. Norm denominators are set to 1."""
    rows = weights.unembedding.rows[token]
    norm = weights.blocks[dictionary.layer].norm_after(dictionary)
    written = norm_jvp(norm, dictionary.W_dec[feature].to(rows))
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

    If layer 0 has a transcoder and the head comes after this transcoder, the score is the sum of c_i d_i. The sum runs
    over the layer-0 features i with the largest c_i. Their number is `connections`. c_i is the virtual weight from
    feature i through the head to the scored feature. d_i is the product of feature i's encoder row and the token's
    embedding.

    In all other cases, the score is the effect of the token's embedding through the head.
    """
    embedding = embedding_rows(model, weights)[token]
    reads = encoder_in_residual(weights, layer, transcoders[layer].W_enc[feature])
    read = head_vjp(weights.blocks[head[0]], head[1], reads)
    first = transcoders.get(0)
    if first is None or head[0] not in head_layers(model, 0, layer):
        return read @ embedding.T
    written = norm_jvp(weights.blocks[0].norm_after(first), first.W_dec.to(read))
    best = (read @ written.T).topk(min(connections, first.width), dim=1)
    tokens = encoder_in_residual(weights, 0, first.W_enc) @ embedding.T
    return torch.einsum("fc,fcy->fy", best.values, tokens[best.indices])


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
    later = answers.year > start
    weights = unembedding.new_zeros(1, len(unembedding))
    weights[0, answers.token[later]] = 1 / int(later.sum())
    weights[0, answers.token[~later]] = -1 / int((~later).sum())
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

    @property
    def head(self) -> int:
        """Index in `patching` of the head with the largest effect on the finding half."""
        return int(self.finding_patching.order()[0])
