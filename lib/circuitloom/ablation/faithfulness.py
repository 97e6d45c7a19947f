"""Faithfulness curves: the metric as a function of k.

The metric is measured when only the top k components are kept, and when only the top k components are ablated.
"""

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
    """Metric of each prompt for several k.

    It is measured when only the top k components are kept, and when only the top k components are ablated.
    """

    n_kept: Int[Tensor, " size"]
    """Values of k, ascending from 0 to the number of components."""
    kept: Float[Tensor, "prompt size"]
    """Metric when the top k components are kept and all other components are ablated."""
    removed: Float[Tensor, "prompt size"]
    """Metric when only the top k components are ablated."""
    kl: Float[Tensor, "prompt size"]
    """KL(unmodified model || only the top k kept), in nats."""
    untouched: Float[Tensor, " prompt"]
    """Metric of the unmodified model."""

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """(kept - all ablated) / (untouched - all ablated), where each term is a mean metric over prompts.

        The ratio is 1 if the top k components recover the metric of the unmodified model. The ratio is not finite if
        the unmodified model has the same metric as the model with all components ablated.
        """
        return self._normalized(self.kept)

    @property
    def remaining(self) -> Float[Tensor, " size"]:
        """(removed - all ablated) / (untouched - all ablated), where each term is a mean metric over prompts.

        The ratio is 1 if the metric stays the same when the top k components are ablated.
        """
        return self._normalized(self.removed)

    def needed(self, share: float) -> int | None:
        """Returns the smallest measured k whose faithfulness is at least `share`.

        Returns None if no k reaches this faithfulness.
        """
        enough = (self.faithfulness >= share).nonzero()
        return int(self.n_kept[enough[0, 0]]) if len(enough) else None

    def _normalized(self, metric: Float[Tensor, "prompt size"]) -> Float[Tensor, " size"]:
        none = self.kept[:, 0].double().mean()
        return (metric.double().mean(0) - none) / (self.untouched.double().mean() - none)


def rank(scores: Float[Tensor, " component"], signed: bool = False) -> Int[Tensor, " component"]:
    """Returns the component numbers, sorted by descending |score|. If `signed` is True, sorts by descending score."""
    return torch.argsort(scores if signed else scores.abs(), descending=True, stable=True)


def size_grid(n: int, per_octave: int = 2) -> list[int]:
    """Returns the values of k at which a curve is measured.

    0 and n are included. From 1 to n, there are `per_octave` values per doubling of k.
    """
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
    """Measure the faithfulness curve of a ranking of components.

    The top k components are the first k in `order`. Components are ablated only at the positions marked in
    `prompt.where`. If the basis leaves out dictionary errors, the errors are missing at these positions in every pass,
    even when all components are kept. Only the pass for `untouched` has all errors.
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
    """Yields chunks of ablations.

    The first passes keep only the top k components, one pass per k. The following passes ablate only the top k
    components, again one pass per k.
    """
    k = n_kept.repeat(2)
    keep_top = torch.arange(len(k)) < len(n_kept)
    for part in chunks(len(k), passes_per_chunk(basis, prompt, vocabulary)):
        top = rank_of < k[part, None]
        yield Ablation(top ^ keep_top[part, None], prompt.where.cpu().expand(len(part), -1))
