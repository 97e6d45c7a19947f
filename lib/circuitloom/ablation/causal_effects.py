"""Effects of components on a metric: first-order estimates from gradients, and measurements by ablation."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..language_model.hooks import Edit, ReadingEdit, edited
from ..language_model.model import LanguageModel
from .components import (
    Ablation,
    Basis,
    CrossLayerComponents,
    Gradients,
    Part,
    Pending,
    ReplacementValues,
)
from .metrics import PromptMetric, kl_divergence, last_logits

CHUNK_ELEMENTS = 2**24
"""Largest number of elements of a tensor [pass, position, value]. It limits the number of parallel passes."""

AblationKind = Literal["zero", "mean", "position_mean"]
"""Value of an ablated component.

`zero` is 0. `mean` is the component's mean over prompts and positions. `position_mean` is the component's mean over
prompts at each position."""


class AblatedMetrics(NamedTuple):
    """Metric and KL divergence of each forward pass with ablations."""

    metric: Float[Tensor, " pass"]
    kl: Float[Tensor, " pass"]
    """KL(reference || pass) of the next-token distributions, in nats."""


@torch.inference_mode()
def ablated_metrics(
    model: LanguageModel,
    basis: Basis,
    prompt: PromptMetric,
    ablations: Iterable[Ablation],
    replacement: ReplacementValues,
    reference: Float[Tensor, " vocabulary"],
) -> AblatedMetrics:
    """Returns the metric and the KL divergence of each forward pass.

    Each item of `ablations` is a chunk of passes that run at once. `reference` holds the logits of the reference pass.
    """
    metric, kl = [reference.new_zeros(0)], [reference.new_zeros(0)]
    for logits in ablated_logits(model, basis, prompt, ablations, replacement):
        metric.append(prompt.metric(logits))
        kl.append(kl_divergence(reference, logits))
    return AblatedMetrics(torch.cat(metric), torch.cat(kl))


def ablated_logits(
    model: LanguageModel,
    basis: Basis,
    prompt: PromptMetric,
    ablations: Iterable[Ablation],
    replacement: ReplacementValues,
) -> Iterator[Float[Tensor, "pass vocabulary"]]:
    """Yields the logits at the last position under ablation, one tensor per item of `ablations`."""
    where = prompt.where.to(model.device)
    for ablated, at in ablations:
        ablation = Ablation(ablated.to(model.device), at.to(model.device))
        with torch.inference_mode(), basis.ablating(model, ablation, where, replacement):
            logits = last_logits(model, prompt.token.expand(len(ablated), -1))
        yield logits


@torch.inference_mode()
def original_logits(model: LanguageModel, prompt: PromptMetric) -> Float[Tensor, " vocabulary"]:
    """Returns the logits at the last position in the unmodified model."""
    return last_logits(model, prompt.token[None])[0]


@torch.inference_mode()
def unablated_logits(
    model: LanguageModel, basis: Basis, prompt: PromptMetric
) -> Float[Tensor, " vocabulary"]:
    """Returns the logits at the last position with no component ablated.

    The result equals `original_logits`, unless the basis leaves out dictionary errors.
    """
    where = prompt.where.to(model.device)
    none = torch.zeros(1, len(basis), dtype=torch.bool, device=model.device)
    with basis.ablating(model, Ablation(none, where[None]), where, [None] * len(basis.parts)):
        return last_logits(model, prompt.token[None])[0]


def passes_per_chunk(basis: Basis, prompt: PromptMetric, vocabulary: int) -> int:
    """Returns the number of passes that run at once within `CHUNK_ELEMENTS`, at least 1."""
    widest = max(part.width * part.size for part in basis.parts)
    return max(1, CHUNK_ELEMENTS // max(len(prompt) * widest, vocabulary, len(basis)))


def chunks(total: int, size: int) -> Iterator[Int[Tensor, " pass"]]:
    """Yields the indices 0 to `total` - 1 in chunks of at most `size`."""
    return iter(torch.arange(total).split(size)) if total else iter(())


@torch.inference_mode()
def replacement_values(
    model: LanguageModel, basis: Basis, prompts: Sequence[PromptMetric], kind: AblationKind
) -> ReplacementValues:
    """Returns the values that ablated components are set to, one entry per part of the basis.

    For `zero`, each entry is None. For `mean`, an entry has one row: the mean over all prompts and positions. For
    `position_mean`, an entry has one row per position: the mean over prompts. Only positions in `prompt.where` count.
    Raises ValueError if `position_mean` is used and prompts differ in length or in `prompt.where`.
    """
    if kind == "zero":
        return [None] * len(basis.parts)
    first = prompts[0]
    aligned = all(torch.equal(prompt.where, first.where) for prompt in prompts)
    if kind == "position_mean" and not aligned:
        raise ValueError(
            "prompts differ in length or in positions of separators, so position_mean is not defined; use mean"
        )
    total: list[Tensor] = []
    n = 0
    for prompt in prompts:
        values = component_values(model, basis, prompt)
        # components are ablated only at the positions in `where`
        values = [value * prompt.where[:, None].to(value.device) for value in values]
        if kind == "mean":
            values = [value.sum(0, keepdim=True) for value in values]
        total = [sum_ + value for sum_, value in zip(total, values, strict=True)] if total else values
        n += int(prompt.where.sum()) if kind == "mean" else 1
    return [value / n for value in total]


def component_values(
    model: LanguageModel, basis: Basis, prompt: PromptMetric
) -> list[Float[Tensor, "position _"]]:
    """Returns the values of all components without ablation, one tensor per part of the basis."""
    values: dict[int, Tensor] = {}

    def record(number: int, part: Part) -> Edit:
        def keep(x: Tensor, y: Tensor) -> Tensor:
            values[number] = part.values(x, y)[0]
            return y

        return ReadingEdit(part.reads, keep)

    with torch.inference_mode(), ExitStack() as stack:
        for number, part in enumerate(basis.parts):
            stack.enter_context(edited(model, {part.site: record(number, part)}))
        last_logits(model, prompt.token[None])
    return [values[number] for number in range(len(basis.parts))]


@dataclass(frozen=True)
class ComponentAttribution:
    """Attribution patching: first-order estimate of the ablation effect of each component at each position."""

    effect: Float[Tensor, "position component"]
    """Estimated drop of the metric: (value - replacement value) times the gradient of the metric.

    For a head, the products of all d_head values are summed."""
    active: Bool[Tensor, "position component"]
    """Whether the position may be ablated and the component's value differs from the replacement value."""
    activation: Float[Tensor, "position component"]
    """Activation of a feature or neuron. For a head, the L2 norm of the head's slice of the input of W_O."""


@dataclass(frozen=True)
class CausalEffects:
    """Measured effects on the metric. Each component is ablated alone."""

    component: Int[Tensor, " effect"]
    """Number of the ablated component within the basis."""
    position: Int[Tensor, " effect"]
    """Position of the ablation; -1 if all positions are ablated at once."""
    activation: Float[Tensor, " effect"]
    """Activation as in `ComponentAttribution`.

    If all positions are ablated at once, this is the activation with the largest magnitude."""
    attribution: Float[Tensor, " effect"]
    """First-order estimate of `effect`."""
    effect: Float[Tensor, " effect"]
    """Metric without the ablation minus metric with the ablation."""
    kl: Float[Tensor, " effect"]
    """KL(without the ablation || with the ablation) of the next-token distributions, in nats."""

    def __len__(self) -> int:
        """Number of ablations."""
        return len(self.component)


def attribute_components(
    model: LanguageModel,
    basis: Basis,
    prompt: PromptMetric,
    replacement: ReplacementValues,
    ablated: Bool[Tensor, " component"] | None = None,
) -> ComponentAttribution:
    """Estimate the effects of all components from one forward and one backward pass (attribution patching).

    With `ablated`, these components are ablated in both passes. The effects of the others are estimated."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    pending: Pending = {}
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        where = prompt.where.to(model.device)
        mask = torch.zeros(len(basis), dtype=torch.bool) if ablated is None else ablated
        mask = mask.to(model.device)
        for number, (part, own) in enumerate(zip(basis.parts, basis.slices, strict=True)):
            ablation = Ablation(mask[None, own], where[None])
            leaf = _add_leaf(number, part, ablation, where, replacement[number], seen, pending)
            stack.enter_context(edited(model, {part.site: leaf}))
        metric = prompt.metric(last_logits(model, prompt.token[None])).sum()
        leaves = [seen[number][1] for number in range(len(basis.parts))]
        # where a transcoder replaces an MLP, nothing reads the neurons of this MLP
        gradients = torch.autograd.grad(metric, leaves, allow_unused=True, materialize_grads=True)
    of_run: dict[str | None, dict[int, Tensor]] = defaultdict(dict)
    columns = []
    # from the last layer on, because features write to later ones
    for number in reversed(range(len(basis.parts))):
        part = basis.parts[number]
        at_sites = of_run[part.run] if isinstance(part, CrossLayerComponents) else {}
        at_sites[part.site.layer] = gradients[number]
        columns.insert(0, _columns(part, seen[number][0], at_sites, where, replacement[number]))
    return ComponentAttribution(*(torch.cat(parts, 1) for parts in zip(*columns, strict=True)))


def _add_leaf(
    number: int,
    part: Part,
    ablation: Ablation,
    where: Tensor,
    replacement: Tensor | None,
    seen: dict[int, tuple[Tensor, Tensor]],
    pending: Pending,
) -> Edit:
    """Returns an edit that ablates and adds a leaf tensor of zeros. The edit stores (component values, leaf) in
    seen[number]."""
    values = replacement if bool(ablation.ablated.any()) else None

    def edit(x: Tensor, y: Tensor) -> Tensor:
        leaf = torch.zeros_like(y, requires_grad=True)
        seen[number] = part.values(x, y).detach()[0], leaf
        return part.ablate(x, y, ablation, where, values, pending) + leaf

    return ReadingEdit(part.reads, edit)


def _columns(
    part: Part, value: Tensor, gradients: Gradients, where: Tensor, replacement: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (effect, active, activation) of `ComponentAttribution` for one part."""
    change = (value if replacement is None else value - replacement) * where[:, None]
    own = {layer: gradients[layer][0] for layer in part.outputs}
    effect = change * part.pull_gradient(own)
    shape = (part.width, part.size)
    grouped = value.unflatten(1, shape)
    activation = grouped[..., 0] if part.size == 1 else torch.linalg.vector_norm(grouped, dim=-1)
    return effect.unflatten(1, shape).sum(-1), (change != 0).unflatten(1, shape).any(-1), activation


def causal_effects(
    model: LanguageModel,
    basis: Basis,
    prompt: PromptMetric,
    replacement: ReplacementValues,
    each_position: bool = False,
    most: int | None = None,
) -> CausalEffects:
    """Ablate each active component alone and measure the metric.

    By default, a component is ablated at all positions in `prompt.where` at once. With `each_position`, each ablation
    covers one position. `most` limits the number of ablations. The ablations with the largest |attribution| are made.
    Results are sorted by component, then by position.
    """
    first_order = attribute_components(model, basis, prompt, replacement)
    position, component = _candidates(first_order, each_position, most)
    positions = torch.arange(len(prompt))
    device = first_order.effect.device
    reference = unablated_logits(model, basis, prompt)
    size = passes_per_chunk(basis, prompt, len(reference))

    def ablations():
        for part in chunks(len(component), size):
            ablated = torch.zeros(len(part), len(basis), dtype=torch.bool)
            ablated[torch.arange(len(part)), component[part].cpu()] = True
            own = position[part].cpu()[:, None]
            yield Ablation(ablated, torch.where(own < 0, prompt.where.cpu(), positions == own))

    before = prompt.metric(reference[None])
    after = ablated_metrics(model, basis, prompt, ablations(), replacement, reference)
    row = torch.arange(len(component), device=device)
    if each_position:
        activation, attribution = (
            first_order.activation[position, component],
            first_order.effect[position, component],
        )
    else:
        masked = first_order.activation[:, component] * prompt.where.to(device)[:, None]
        activation = masked[masked.abs().argmax(0), row]
        attribution = first_order.effect[:, component].sum(0)
    return CausalEffects(component, position, activation, attribution, before - after.metric, after.kl)


def _candidates(
    first_order: ComponentAttribution, each_position: bool, most: int | None
) -> tuple[Int[Tensor, " effect"], Int[Tensor, " effect"]]:
    """Returns the position and the component number of each ablation. Position -1 means all positions."""
    active = first_order.active if each_position else first_order.active.any(0, keepdim=True)
    size = (first_order.effect if each_position else first_order.effect.sum(0, keepdim=True)).abs()
    position, component = active.nonzero(as_tuple=True)
    if most is not None and most < len(component):
        kept = size[position, component].topk(most).indices.sort().values
        position, component = position[kept], component[kept]
    order = torch.argsort(component, stable=True)
    position, component = position[order], component[order]
    return (position if each_position else torch.full_like(position, -1)), component


def mean_attribution(
    model: LanguageModel,
    basis: Basis,
    prompts: Sequence[PromptMetric],
    replacement: ReplacementValues,
    ablated: Bool[Tensor, " component"] | None = None,
) -> Float[Tensor, " component"]:
    """Returns the first-order effect of each component, summed over positions and averaged over prompts. With
    `ablated`, these components are ablated."""
    total = torch.zeros(len(basis), dtype=torch.float64)
    for prompt in prompts:
        effect = attribute_components(model, basis, prompt, replacement, ablated).effect
        total += effect.sum(0).double().cpu()
    return total / len(prompts)


def mean_effect(
    attribution: Float[Tensor, " component"], measured: Sequence[CausalEffects]
) -> Float[Tensor, " component"]:
    """Returns the mean effect of each component over prompts.

    If the effect was not measured on a prompt, the first-order estimate is used. `attribution` is the result of
    `mean_attribution`. `measured` holds the result of `causal_effects` for each prompt, with `each_position` = False.
    """
    total = attribution.clone()
    for effects in measured:
        change = (effects.effect - effects.attribution).to(total) / len(measured)
        total.index_add_(0, effects.component.to(total.device), change)
    return total
