"""Leaves rows of very large norm (massive activations) out of training, or caps them (`activations.outliers`)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..config.activations import Outliers
from .statistics import RowSums, moments
from .store import ActivationStore, read_sites

MOMENT_ROWS = 2**20
"""Maximum number of rows from which the moments without outliers are computed. Stored rows are in random order."""

Batch = dict[str, Float[Tensor, "row d"]]
"""Rows of each site. Row i of all sites comes from the same token."""


@dataclass(frozen=True)
class OutlierLimits:
    """Bounds of the norms at each site, and what happens to rows beyond them."""

    bounds: Mapping[str, float]
    action: Literal["drop", "cap"]

    def outliers(self, batch: Batch) -> Bool[Tensor, " row"]:
        """Returns whether each row is beyond the bound at one of the sites."""
        return torch.stack([self._norms(x) > self.bounds[site] for site, x in batch.items()]).any(0)

    def apply(self, batch: Batch) -> Batch:
        """Returns a batch of the same size without outliers.

        With `drop`, the row before an outlier takes its place, because compiled steps and several processes need
        batches of one size. With `cap`, the rows of each site are scaled down to the bound.
        """
        if self.action == "cap":
            return {site: self._capped(site, x) for site, x in batch.items()}
        outlier = self.outliers(batch)
        place = torch.arange(len(outlier), device=outlier.device)
        before = torch.where(outlier, -1, place).cummax(0).values
        # outliers at the start have no row before them
        source = torch.where(before < 0, (~outlier).int().argmax(), before)
        return {site: x[source] for site, x in batch.items()}

    def _capped(self, site: str, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        norms = self._norms(x)
        return torch.where((norms > self.bounds[site])[:, None], x * (self.bounds[site] / norms)[:, None], x)

    @staticmethod
    def _norms(x: Float[Tensor, "row d"]) -> Float[Tensor, " row"]:
        return torch.linalg.vector_norm(x, dim=1)


def outlier_limits(stores: Mapping[str, ActivationStore], config: Outliers) -> OutlierLimits | None:
    """Returns the limits for the rows of `stores`. Returns None if outliers are kept.

    Raises ValueError if the median norm of a site is 0, which bounds nothing.
    """
    if config.action == "keep":
        return None
    for site, store in stores.items():
        if not store.norms.median:
            raise ValueError(
                f"activations.outliers: the median norm of {site} at layer {store.layer} is 0, so no token is an "
                "outlier; set action to keep"
            )
    bounds = {site: config.above * store.norms.median for site, store in stores.items()}
    return OutlierLimits(bounds, config.action)


@torch.no_grad()
def with_limited_moments(
    stores: Mapping[str, ActivationStore], limits: OutlierLimits, batch: int, device: torch.device | str
) -> dict[str, ActivationStore]:
    """Returns `stores` with the moments of their rows without outliers, or with capped outliers.

    The cached moments include the outliers, whose scale can be all of the scale.
    """
    rows = min(MOMENT_ROWS, *(store.rows for store in stores.values()))
    sums, n_read, n_kept = RowSums.zeros(len(stores), next(iter(stores.values())).d, device), 0, 0
    for read in read_sites(stores, batch, -(-rows // batch), device=device):
        # the last batch may continue with the first rows
        part = {site: x[: rows - n_read] for site, x in read.items()}
        n_read += len(next(iter(part.values())))
        if limits.action == "drop":
            inside = ~limits.outliers(part)
            part = {site: x[inside] for site, x in part.items()}
        else:
            part = limits.apply(part)
        for i, x in enumerate(part.values()):
            sums.add(i, x)
        n_kept += len(next(iter(part.values())))
    on_cpu = RowSums(sums.total.cpu(), sums.square.cpu(), sums.largest.cpu())
    return {
        site: replace(store, moments=moments(on_cpu, i, n_kept))
        for i, (site, store) in enumerate(stores.items())
    }
