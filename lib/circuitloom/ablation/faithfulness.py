"""Faithfulness curves: the metric when only the top k components are kept, or only the top k are ablated."""

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
    """Metric of each prompt when only the top k components are kept or ablated, for several k."""

    n_kept: Int[Tensor, " size"]
    """Values of k, ascending from 0 to the number of components."""
    kept: Float[Tensor, "prompt size"]
    """Metric when only the top k components are kept."""
    removed: Float[Tensor, "prompt size"]
    """Metric when only the top k components are ablated."""
    kl: Float[Tensor, "prompt size"]
    """KL(unmodified model || only the top k components kept), in nats."""
    untouched: Float[Tensor, " prompt"]
    """Metric of the unmodified model."""

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """(kept - all ablated) / (untouched - all ablated). Each term is the metric's mean over prompts.

        The ratio is 1 if the top k components recover the metric. The ratio is not finite if the denominator is 0.
        """
        return self._normalized(self.kept)

    @property
    def remaining(self) -> Float[Tensor, " size"]:
        """(removed - all ablated) / (untouched - all ablated). Each term is the metric's mean over prompts.

        The ratio is 1 if ablating the top k components does not change the metric.
        """
        return self._normalized(self.removed)

    def needed(self, share: float) -> int | None:
        """Returns the smallest measured k with faithfulness >= `share`. Returns None if no k reaches `share`."""
        enough = (self.faithfulness >= share).nonzero()
        return int(self.n_kept[enough[0, 0]]) if len(enough) else None

    def _normalized(self, metric: Float[Tensor, "prompt size"]) -> Float[Tensor, " size"]:
        none = self.kept[:, 0].double().mean()
        return (metric.double().mean(0) - none) / (self.untouched.double().mean() - none)


def rank(scores: Float[Tensor, " component"], signed: bool = False) -> Int[Tensor, " component"]:
    """Returns component numbers sorted by descending |score|, or by descending score if `signed` is True."""
    return torch.argsort(scores if signed else scores.abs(), descending=True, stable=True)


def size_grid(n: int, per_octave: int = 2) -> list[int]:
    """Returns the values of k of a curve: 0, n, and `per_octave` values per doubling from 1 to n."""
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
    """Measure the faithfulness curve of the ranking `order`.

    The top k components are order[:k]. Components are ablated at the positions in `prompt.where`. If the basis leaves
    out dictionary errors, the errors are missing even when all components are kept. Only `untouched` includes the
    errors.
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
    """Yields chunks of passes. The first half keeps only the top k components. The second half ablates the top k."""
    k = n_kept.repeat(2)
    keep_top = torch.arange(len(k)) < len(n_kept)
    for part in chunks(len(k), passes_per_chunk(basis, prompt, vocabulary)):
        top = rank_of < k[part, None]
        yield Ablation(top ^ keep_top[part, None], prompt.where.cpu().expand(len(part), -1))
