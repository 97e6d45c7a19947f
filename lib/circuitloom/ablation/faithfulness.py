"""How many components a behaviour needs: it is kept by the top k alone, or lost without them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..language_model.model import LanguageModel
from .causal_effects import chunks, measure, passes_at_once, untouched
from .components import Ablation, Basis, Fill
from .metrics import PromptMetric


@dataclass(frozen=True)
class Curve:
    """A metric on some probes, with the top k components alone, and without them."""

    n_kept: Int[Tensor, " size"]
    """k, ascending from 0 to all."""
    kept: Float[Tensor, "probe size"]
    """The metric with the top k alone."""
    removed: Float[Tensor, "probe size"]
    """The metric without the top k."""
    kl: Float[Tensor, "probe size"]
    """KL(untouched || the top k alone), nats."""
    untouched: Float[Tensor, " probe"]

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """Share of the behaviour that the top k recover: 0 for none; 1 for what the untouched model does.

        A ratio of means over probes; not finite where ablating everything leaves the mean metric as it is.
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

    def _share(self, metric: Float[Tensor, "probe size"]) -> Float[Tensor, " size"]:
        none = self.kept[:, 0].double().mean()
        return (metric.double().mean(0) - none) / (self.untouched.double().mean() - none)


def rank(scores: Float[Tensor, " component"], signed: bool = False) -> Int[Tensor, " component"]:
    """Components in the order in which they are kept: by magnitude or, `signed`, those that help most first."""
    return torch.argsort(scores if signed else scores.abs(), descending=True, stable=True)


def sizes(n: int, per_octave: int = 2) -> list[int]:
    """0, then numbers on a logarithmic grid, then n."""
    grid = {0, n}
    step = 0
    while (k := round(2 ** (step / per_octave))) < n:
        grid.add(k)
        step += 1
    return sorted(grid)


def keep_top(
    model: LanguageModel,
    basis: Basis,
    probes: Sequence[PromptMetric],
    order: Int[Tensor, " component"],
    fill: Fill,
    per_octave: int = 2,
) -> Curve:
    """The curve of components kept in `order`; what is not kept is ablated at all of a probe's positions.

    What `keeps_error` takes away is gone on every pass, that with all components too.
    """
    n_kept = torch.tensor(sizes(len(basis), per_octave))
    place = torch.empty(len(basis), dtype=torch.int64)
    place[order.cpu()] = torch.arange(len(basis))
    kept, removed, kl, before = [], [], [], []
    for probe in probes:
        reference = untouched(model, probe)
        ablations = _curve_ablations(basis, probe, place, n_kept, len(reference))
        measured = measure(model, basis, probe, ablations, fill, reference)
        metric = measured.metric.cpu()
        kept.append(metric[: len(n_kept)])
        removed.append(metric[len(n_kept) :])
        kl.append(measured.kl.cpu()[: len(n_kept)])
        before.append(probe.metric(reference[None])[0].cpu())
    return Curve(n_kept, *map(torch.stack, (kept, removed, kl, before)))


def _curve_ablations(
    basis: Basis, probe: PromptMetric, place: Tensor, n_kept: Tensor, vocabulary: int
) -> Iterator[Ablation]:
    """A pass for each k with the top k alone, then one for each k without them."""
    k = n_kept.repeat(2)
    keeps = torch.arange(len(k)) < len(n_kept)
    for part in chunks(len(k), passes_at_once(basis, probe, vocabulary)):
        top = place < k[part, None]
        yield Ablation(top ^ keeps[part, None], probe.where.cpu().expand(len(part), -1))
