"""Faithfulness curves: the metric for several k when only the top k components are kept, or only they are ablated."""

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
    """Metric of each prompt for several k, with only the top k components kept and with only the top k ablated."""

    n_kept: Int[Tensor, " size"]
    """Values of k, ascending from 0 to the number of components."""
    kept: Float[Tensor, "prompt size"]
    """Metric when the top k are kept and all other components ablated."""
    removed: Float[Tensor, "prompt size"]
    """Metric when the top k are ablated."""
    kl: Float[Tensor, "prompt size"]
    """KL(unmodified model || only the top k kept), in nats."""
    untouched: Float[Tensor, " prompt"]
    """Metric of the unmodified model."""

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """(kept - all ablated) / (untouched - all ablated), where each term is a mean over prompts.

        It is 1 if the top k recover the untouched metric, and not finite if ablating all components does not change it.
        """
        return self._normalized(self.kept)

    @property
    def remaining(self) -> Float[Tensor, " size"]:
        """The ratio of `faithfulness`, computed from `removed`. It is 1 if the metric does not need the top k."""
        return self._normalized(self.removed)

    def needed(self, share: float) -> int | None:
        """Smallest measured k whose faithfulness is at least `share`, or None if no k reaches it."""
        enough = (self.faithfulness >= share).nonzero()
        return int(self.n_kept[enough[0, 0]]) if len(enough) else None

    def _normalized(self, metric: Float[Tensor, "prompt size"]) -> Float[Tensor, " size"]:
        none = self.kept[:, 0].double().mean()
        return (metric.double().mean(0) - none) / (self.untouched.double().mean() - none)


def rank(scores: Float[Tensor, " component"], signed: bool = False) -> Int[Tensor, " component"]:
    """Component numbers sorted by descending |score| or, if `signed`, by descending score."""
    return torch.argsort(scores if signed else scores.abs(), descending=True, stable=True)


def size_grid(n: int, per_octave: int = 2) -> list[int]:
    """Values of k from 0 to n, both included. Between them, `per_octave` values are added per doubling of k."""
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
    """Measure the curve whose top k components are the first k of `order`.

    Components are ablated at each prompt's positions `where`. If the basis leaves out dictionary errors, they are
    missing from every pass, even when all components are kept.
    """
    n_kept = torch.tensor(size_grid(len(basis), per_octave))
    rank_of = torch.empty(len(basis), dtype=torch.int64)
    rank_of[order.cpu()] = torch.arange(len(basis))
    kept, removed, kl, before = [], [], [], []
    for prompt in prompts:
        reference = original_logits(model, prompt)
        ablations = _curve_ablations(basis, prompt, rank_of, n_kept, len(reference))
        measured = ablated_metrics(model, basis, prompt, ablations, replacement, reference)
        metric = measured.metric.cpu()
        kept.append(metric[: len(n_kept)])
        removed.append(metric[len(n_kept) :])
        kl.append(measured.kl.cpu()[: len(n_kept)])
        before.append(prompt.metric(reference[None])[0].cpu())
    return FaithfulnessCurve(n_kept, *map(torch.stack, (kept, removed, kl, before)))


def _curve_ablations(
    basis: Basis, prompt: PromptMetric, rank_of: Tensor, n_kept: Tensor, vocabulary: int
) -> Iterator[Ablation]:
    """Yields ablations: first one pass per k that keeps only the top k, then one pass per k that ablates the top k."""
    k = n_kept.repeat(2)
    keep_top = torch.arange(len(k)) < len(n_kept)
    for part in chunks(len(k), passes_per_chunk(basis, prompt, vocabulary)):
        top = rank_of < k[part, None]
        yield Ablation(top ^ keep_top[part, None], prompt.where.cpu().expand(len(part), -1))
