"""Passes of a prompt with components ablated: what they are set to, and what becomes of the prediction. What each
component alone does to a prediction: to first order, and measured by ablating it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..language_model.hooks import Edit, edited
from ..language_model.model import LanguageModel
from .components import Ablation, Basis, Part, ReplacementValues
from .metrics import PromptMetric, kl_divergence, last_logits

AT_ONCE = 2**24
"""Numbers (pass, position, value) of one part of a basis held at once."""

AblationKind = Literal["zero", "mean", "position_mean"]
"""What ablated components are set to: zero; their mean over all positions of a set of prompts at which components may
be ablated; their mean over the prompts at each position."""


class AblatedMetrics(NamedTuple):
    """What passes predict."""

    metric: Float[Tensor, " pass"]
    kl: Float[Tensor, " pass"]
    """KL from the prediction that they are compared with, nats."""


@torch.inference_mode()
def ablated_metrics(
    model: LanguageModel,
    basis: Basis,
    prompt: PromptMetric,
    ablations: Iterable[Ablation],
    replacement: ReplacementValues,
    reference: Float[Tensor, " vocabulary"],
) -> AblatedMetrics:
    """The metric on passes with components ablated, one chunk of them an `Ablation`; `reference` is for KL."""
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
    """Logits behind the prompt with components ablated, chunk by chunk."""
    where = prompt.where.to(model.device)
    for ablated, at in ablations:
        ablation = Ablation(ablated.to(model.device), at.to(model.device))
        with torch.inference_mode(), basis.ablating(model, ablation, where, replacement):
            logits = last_logits(model, prompt.token.expand(len(ablated), -1))
        yield logits


@torch.inference_mode()
def original_logits(model: LanguageModel, prompt: PromptMetric) -> Float[Tensor, " vocabulary"]:
    """Logits behind the prompt with nothing ablated."""
    return last_logits(model, prompt.token[None])[0]


@torch.inference_mode()
def unablated_logits(
    model: LanguageModel, basis: Basis, prompt: PromptMetric
) -> Float[Tensor, " vocabulary"]:
    """Logits with every component in place: the untouched model's, but for errors that the basis leaves out."""
    where = prompt.where.to(model.device)
    none = torch.zeros(1, len(basis), dtype=torch.bool, device=model.device)
    with basis.ablating(model, Ablation(none, where[None]), where, [None] * len(basis.parts)):
        return last_logits(model, prompt.token[None])[0]


def passes_per_chunk(basis: Basis, prompt: PromptMetric, vocabulary: int) -> int:
    """How many passes a chunk may have."""
    widest = max(part.width * part.size for part in basis.parts)
    return max(1, AT_ONCE // max(len(prompt) * widest, vocabulary, len(basis)))


def chunks(total: int, size: int) -> Iterator[Int[Tensor, " pass"]]:
    """Numbers of passes, `size` at a time."""
    return iter(torch.arange(total).split(size)) if total else iter(())


@torch.inference_mode()
def replacement_values(
    model: LanguageModel, basis: Basis, prompts: Sequence[PromptMetric], kind: AblationKind
) -> ReplacementValues:
    """What ablated components are set to, over these prompts.

    Raises ValueError for a mean at each position where prompts differ in length or in where they are ablated.
    """
    if kind == "zero":
        return [None] * len(basis.parts)
    first = prompts[0]
    alike = all(torch.equal(prompt.where, first.where) for prompt in prompts)
    if kind == "position_mean" and not alike:
        raise ValueError("prompts differ in length, or in their BOS: no mean at each position; use mean")
    total: list[Tensor] = []
    n = 0
    for prompt in prompts:
        seen = component_values(model, basis, prompt)
        # nothing at other positions is ever ablated
        seen = [value * prompt.where[:, None].to(value.device) for value in seen]
        if kind == "mean":
            seen = [value.sum(0, keepdim=True) for value in seen]
        total = [mine + new for mine, new in zip(total, seen, strict=True)] if total else seen
        n += int(prompt.where.sum()) if kind == "mean" else 1
    return [value / n for value in total]


def component_values(
    model: LanguageModel, basis: Basis, prompt: PromptMetric
) -> list[Float[Tensor, "position _"]]:
    """The values of each part's components on the prompt, nothing ablated."""
    seen: dict[int, Tensor] = {}

    def see(number: int, part: Part) -> Edit:
        def keep(x: Tensor, y: Tensor) -> Tensor:
            seen[number] = part.values(x, y)[0]
            return y

        return keep

    with torch.inference_mode(), ExitStack() as stack:
        for number, part in enumerate(basis.parts):
            stack.enter_context(edited(model, {part.site: see(number, part)}))
        last_logits(model, prompt.token[None])
    return [seen[number] for number in range(len(basis.parts))]


@dataclass(frozen=True)
class ComponentAttribution:
    """Components on a prompt, and what taking each away would change if the model were linear."""

    effect: Float[Tensor, "position component"]
    """(value - what it is set to) times the metric's gradient, summed over the component's values."""
    active: Bool[Tensor, "position component"]
    """Ablating it there changes something."""
    activation: Float[Tensor, "position component"]
    """Value of a feature or neuron; of a head, the norm of its output."""


@dataclass(frozen=True)
class CausalEffects:
    """What became of a prediction when components were ablated, each alone."""

    component: Int[Tensor, " effect"]
    """Number within the basis."""
    position: Int[Tensor, " effect"]
    """Where it was ablated; -1 for all positions at once."""
    activation: Float[Tensor, " effect"]
    """As in `Attribution`; the largest by magnitude where it was ablated at all positions."""
    attribution: Float[Tensor, " effect"]
    """The effect to first order."""
    effect: Float[Tensor, " effect"]
    """Metric before, minus after."""
    kl: Float[Tensor, " effect"]
    """KL(before || after), nats."""

    def __len__(self) -> int:
        """Number of ablations."""
        return len(self.component)


def attribute_components(
    model: LanguageModel, basis: Basis, prompt: PromptMetric, replacement: ReplacementValues
) -> ComponentAttribution:
    """First-order effects of all components, from one pass forward and one back."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        where = prompt.where.to(model.device)
        for number, part in enumerate(basis.parts):
            none = Ablation(torch.zeros(1, part.width, dtype=torch.bool, device=model.device), where[None])
            leaf = _add_leaf(number, part, none, where, seen)
            stack.enter_context(edited(model, {part.site: leaf}))
        metric = prompt.metric(last_logits(model, prompt.token[None])).sum()
        leaves = [seen[number][1] for number in range(len(basis.parts))]
        # where a reconstruction stands for an MLP's output, nothing reads its neurons
        gradients = torch.autograd.grad(metric, leaves, allow_unused=True, materialize_grads=True)
    parts = zip(basis.parts, range(len(basis.parts)), gradients, replacement, strict=True)
    columns = [
        _columns(part, seen[number][0], gradient, where, filled) for part, number, gradient, filled in parts
    ]
    return ComponentAttribution(*(torch.cat(values, 1) for values in zip(*columns, strict=True)))


def _add_leaf(
    number: int, part: Part, none: Ablation, where: Tensor, seen: dict[int, tuple[Tensor, Tensor]]
) -> Edit:
    """Adds a zero, to differentiate by, to what a site holds with all components."""

    def edit(x: Tensor, y: Tensor) -> Tensor:
        leaf = torch.zeros_like(y, requires_grad=True)
        seen[number] = part.values(x, y).detach()[0], leaf
        return part.ablate(x, y, none, where, None) + leaf

    return edit


def _columns(
    part: Part, value: Tensor, gradient: Tensor, where: Tensor, replacement: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Effect, activity and activation of one part's components, each [position, component]."""
    change = (value if replacement is None else value - replacement) * where[:, None]
    effect = change * part.pull(gradient[0])
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
    """Ablate each active component alone, nothing else held, at all of the prompt's positions or at each by itself.

    With `most`, only so many: those of the largest attribution. Rows are in the order of components and positions.
    """
    first = attribute_components(model, basis, prompt, replacement)
    position, component = _candidates(first, each_position, most)
    places = torch.arange(len(prompt))
    device = first.effect.device
    reference = unablated_logits(model, basis, prompt)
    at_once = passes_per_chunk(basis, prompt, len(reference))

    def ablations():
        for part in chunks(len(component), at_once):
            ablated = torch.zeros(len(part), len(basis), dtype=torch.bool)
            ablated[torch.arange(len(part)), component[part].cpu()] = True
            own = position[part].cpu()[:, None]
            yield Ablation(ablated, torch.where(own < 0, prompt.where.cpu(), places == own))

    before = prompt.metric(reference[None])
    after = ablated_metrics(model, basis, prompt, ablations(), replacement, reference)
    row = torch.arange(len(component), device=device)
    if each_position:
        activation, attribution = first.activation[position, component], first.effect[position, component]
    else:
        shown = first.activation[:, component] * prompt.where.to(device)[:, None]
        activation = shown[shown.abs().argmax(0), row]
        attribution = first.effect[:, component].sum(0)
    return CausalEffects(component, position, activation, attribution, before - after.metric, after.kl)


def _candidates(
    first: ComponentAttribution, each_position: bool, most: int | None
) -> tuple[Int[Tensor, " effect"], Int[Tensor, " effect"]]:
    """Position (-1 for all) and component of what is to be ablated."""
    active = first.active if each_position else first.active.any(0, keepdim=True)
    size = (first.effect if each_position else first.effect.sum(0, keepdim=True)).abs()
    position, component = active.nonzero(as_tuple=True)
    if most is not None and most < len(component):
        kept = size[position, component].topk(most).indices.sort().values
        position, component = position[kept], component[kept]
    order = torch.argsort(component, stable=True)
    position, component = position[order], component[order]
    return (position if each_position else torch.full_like(position, -1)), component


def mean_attribution(
    model: LanguageModel, basis: Basis, prompts: Sequence[PromptMetric], replacement: ReplacementValues
) -> Float[Tensor, " component"]:
    """Mean over the prompts of each component's first-order effect, at all positions at once."""
    total = torch.zeros(len(basis), dtype=torch.float64)
    for prompt in prompts:
        total += attribute_components(model, basis, prompt, replacement).effect.sum(0).double().cpu()
    return total / len(prompts)


def mean_effect(
    attribution: Float[Tensor, " component"], measured: Sequence[CausalEffects]
) -> Float[Tensor, " component"]:
    """Mean over the prompts of each component's effect: measured where it was, else to first order.

    `attribution` is `mean_attribution`; `measured` has the effects, at all positions at once, on each prompt.
    """
    total = attribution.clone()
    for effects in measured:
        change = (effects.effect - effects.attribution).to(total) / len(measured)
        total.index_add_(0, effects.component.to(total.device), change)
    return total
