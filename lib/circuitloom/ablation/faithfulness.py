"""How many components a behaviour needs: it is kept by the top k alone, or lost without them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..language_model.model import LanguageModel
from .causal_effects import ablated_metrics, chunks, original_logits, passes_per_chunk
from .components import Ablation, Basis, ReplacementValues
from .metrics import PromptMetric


@dataclass(frozen=True)
class FaithfulnessCurve:
    """A metric on some prompts, with the top k components alone, and without them."""

    n_kept: Int[Tensor, " size"]
    """k, ascending from 0 to all."""
    kept: Float[Tensor, "prompt size"]
    """The metric with the top k alone."""
    removed: Float[Tensor, "prompt size"]
    """The metric without the top k."""
    kl: Float[Tensor, "prompt size"]
    """KL(untouched || the top k alone), nats."""
    untouched: Float[Tensor, " prompt"]

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """Share of the behaviour that the top k recover: 0 for none; 1 for what the untouched model does.

        A ratio of means over prompts; not finite where ablating everything leaves the mean metric as it is.
        """
        return self._share(self.kept)

    @property
    def remaining(self) -> Float[Tensor, " size"]:
        """Share of the behaviour that is left without the top k: 1 for none, 0 for all; the same ratio."""
        return self._share(self.removed)

    def needed(self, share: float) -> int | None:
        """Smallest k that was tried whose top k recover `share` of the behaviour; None where none does."""
        enough = (self.faithfulness >= share).nonzero()
        return int(self.n_kept[enough[0, 0]]) if len(enough) else None

    def _share(self, metric: Float[Tensor, "prompt size"]) -> Float[Tensor, " size"]:
        none = self.kept[:, 0].double().mean()
        return (metric.double().mean(0) - none) / (self.untouched.double().mean() - none)


def rank(scores: Float[Tensor, " component"], signed: bool = False) -> Int[Tensor, " component"]:
    """Components in the order in which they are kept: by magnitude or, `signed`, those that help most first."""
    return torch.argsort(scores if signed else scores.abs(), descending=True, stable=True)


def size_grid(n: int, per_octave: int = 2) -> list[int]:
    """0, then numbers on a logarithmic grid, then n."""
    grid = {0, n}
    step = 0
    while (k := round(2 ** (step / per_octave))) < n:
        grid.add(k)
        step += 1
    return sorted(grid)


def faithfulness_curve(
    model: LanguageModel,
    basis: Basis,
    prompts: Sequence[PromptMetric],
    order: Int[Tensor, " component"],
    replacement: ReplacementValues,
    per_octave: int = 2,
) -> FaithfulnessCurve:
    """The curve of components kept in `order`; what is not kept is ablated at all of a prompt's positions.

    What `keep_error` takes away is ablated on every pass, that with all components too.
    """
    n_kept = torch.tensor(size_grid(len(basis), per_octave))
    place = torch.empty(len(basis), dtype=torch.int64)
    place[order.cpu()] = torch.arange(len(basis))
    kept, removed, kl, before = [], [], [], []
    for prompt in prompts:
        reference = original_logits(model, prompt)
        ablations = _curve_ablations(basis, prompt, place, n_kept, len(reference))
        measured = ablated_metrics(model, basis, prompt, ablations, replacement, reference)
        metric = measured.metric.cpu()
        kept.append(metric[: len(n_kept)])
        removed.append(metric[len(n_kept) :])
        kl.append(measured.kl.cpu()[: len(n_kept)])
        before.append(prompt.metric(reference[None])[0].cpu())
    return FaithfulnessCurve(n_kept, *map(torch.stack, (kept, removed, kl, before)))


def _curve_ablations(
    basis: Basis, prompt: PromptMetric, place: Tensor, n_kept: Tensor, vocabulary: int
) -> Iterator[Ablation]:
    """A pass for each k with the top k alone, then one for each k without them."""
    k = n_kept.repeat(2)
    keeps = torch.arange(len(k)) < len(n_kept)
    for part in chunks(len(k), passes_per_chunk(basis, prompt, vocabulary)):
        top = place < k[part, None]
        yield Ablation(top ^ keeps[part, None], prompt.where.cpu().expand(len(part), -1))
