"""Passes of a probe with components ablated: what they are set to, and what becomes of the prediction."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..language_model.model import LanguageModel
from .basis import Basis, Edit, Fill, editing
from .components import Ablation, Part
from .probes import Probe, divergence, last_logits

AT_ONCE = 2**24
"""Numbers (pass, position, value) of one part of a basis held at once."""

Kind = Literal["zero", "mean", "position_mean"]
"""What ablated components are set to: zero; their mean over all positions of a set of prompts at which components may
be ablated; their mean over the prompts at each position."""


class Measured(NamedTuple):
    """What passes predict."""

    metric: Float[Tensor, " pass"]
    kl: Float[Tensor, " pass"]
    """KL from the prediction that they are compared with, nats."""


@torch.inference_mode()
def measure(
    model: LanguageModel,
    basis: Basis,
    probe: Probe,
    ablations: Iterable[Ablation],
    fill: Fill,
    reference: Float[Tensor, " vocabulary"],
) -> Measured:
    """The metric on passes with components ablated, one chunk of them an `Ablation`; `reference` is for KL."""
    metric, kl = [reference.new_zeros(0)], [reference.new_zeros(0)]
    for logits in ablated_logits(model, basis, probe, ablations, fill):
        metric.append(probe.metric(logits))
        kl.append(divergence(reference, logits))
    return Measured(torch.cat(metric), torch.cat(kl))


def ablated_logits(
    model: LanguageModel, basis: Basis, probe: Probe, ablations: Iterable[Ablation], fill: Fill
) -> Iterator[Float[Tensor, "pass vocabulary"]]:
    """Logits behind the prompt with components ablated, chunk by chunk."""
    where = probe.where.to(model.device)
    for gone, at in ablations:
        ablation = Ablation(gone.to(model.device), at.to(model.device))
        with torch.inference_mode(), basis.ablating(model, ablation, where, fill):
            logits = last_logits(model, probe.token.expand(len(gone), -1))
        yield logits


@torch.inference_mode()
def untouched(model: LanguageModel, probe: Probe) -> Float[Tensor, " vocabulary"]:
    """Logits behind the prompt with nothing ablated."""
    return last_logits(model, probe.token[None])[0]


@torch.inference_mode()
def with_all(model: LanguageModel, basis: Basis, probe: Probe) -> Float[Tensor, " vocabulary"]:
    """Logits with every component in place: the untouched model's, but for errors that the basis leaves out."""
    where = probe.where.to(model.device)
    none = torch.zeros(1, len(basis), dtype=torch.bool, device=model.device)
    with basis.ablating(model, Ablation(none, where[None]), where, [None] * len(basis.parts)):
        return last_logits(model, probe.token[None])[0]


def passes_at_once(basis: Basis, probe: Probe, vocabulary: int) -> int:
    """How many passes a chunk may have."""
    widest = max(part.width * part.size for part in basis.parts)
    return max(1, AT_ONCE // max(len(probe) * widest, vocabulary, len(basis)))


def chunks(total: int, size: int) -> Iterator[Int[Tensor, " pass"]]:
    """Numbers of passes, `size` at a time."""
    return iter(torch.arange(total).split(size)) if total else iter(())


@torch.inference_mode()
def find_fill(model: LanguageModel, basis: Basis, probes: Sequence[Probe], kind: Kind) -> Fill:
    """What ablated components are set to, over these prompts.

    Raises ValueError for a mean at each position where prompts differ in length or in where they are ablated.
    """
    if kind == "zero":
        return [None] * len(basis.parts)
    first = probes[0]
    alike = all(torch.equal(probe.where, first.where) for probe in probes)
    if kind == "position_mean" and not alike:
        raise ValueError("prompts differ in length, or in their BOS: no mean at each position; use mean")
    total: list[Tensor] = []
    n = 0
    for probe in probes:
        seen = observe(model, basis, probe)
        # nothing at other positions is ever ablated
        seen = [value * probe.where[:, None].to(value.device) for value in seen]
        if kind == "mean":
            seen = [value.sum(0, keepdim=True) for value in seen]
        total = [mine + new for mine, new in zip(total, seen, strict=True)] if total else seen
        n += int(probe.where.sum()) if kind == "mean" else 1
    return [value / n for value in total]


def observe(model: LanguageModel, basis: Basis, probe: Probe) -> list[Float[Tensor, "position _"]]:
    """The values of each part's components on the prompt, nothing ablated."""
    seen: dict[int, Tensor] = {}

    def see(number: int, part: Part) -> Edit:
        def keep(x: Tensor, y: Tensor) -> Tensor:
            seen[number] = part.values(x, y)[0]
            return y

        return keep

    with torch.inference_mode(), ExitStack() as stack:
        for number, part in enumerate(basis.parts):
            stack.enter_context(editing(model, part.site, see(number, part)))
        last_logits(model, probe.token[None])
    return [seen[number] for number in range(len(basis.parts))]
