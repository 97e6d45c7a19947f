"""Measure how ablating an SAE feature at resid_mid changes the MLP features in the same layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config.activations import MLP_OUTPUTS
from ..dictionaries.cross_layer import LayerDictionary
from ..dictionaries.dictionary import Dictionary
from ..language_model.hooks import Site, capture, find_module
from ..language_model.model import LanguageModel

CHUNK_ELEMENTS = 2**24
"""Largest number of pre-activations [ablation, feature] that are computed at once."""


@dataclass(frozen=True)
class FeatureEffects:
    """Effects of source features on target features.

    Pairs are sorted by source, then by target. A pair is left out if the target never changes.
    """

    source: Int[Tensor, " pair"]
    target: Int[Tensor, " pair"]
    n_tokens: Int[Tensor, " pair"]
    """Number of tokens on which the source is ablated. Means are taken over these tokens."""
    n_changed: Int[Tensor, " pair"]
    """Number of tokens on which the target's activation changes when the source is ablated."""
    effect: Float[Tensor, " pair"]
    """Mean drop of the target's activation when the source is ablated."""
    absolute: Float[Tensor, " pair"]
    """Mean absolute change of the target's activation when the source is ablated."""

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.source)


@torch.inference_mode()
def capture_resid_mid(
    model: LanguageModel,
    token: Int[Tensor, "sequence position"],
    where: Bool[Tensor, "sequence position"],
    layer: int,
    batch: int = 32,
) -> Float[Tensor, "token d"]:
    """Returns resid_mid of `layer` at the positions in `where`, as float32.

    The model runs on `batch` sequences at a time. Raises ValueError if the model has no resid_mid.
    """
    site = Site("resid_mid", layer)
    parts = [
        capture(model, tokens, [site])[site][places.to(model.device)].float()
        for tokens, places in zip(token.split(batch), where.split(batch), strict=True)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def feature_effects(
    model: LanguageModel,
    source: Dictionary,
    target: LayerDictionary,
    stream: Float[Tensor, "token d"],
    per_source: int | None = None,
    most: int | None = None,
) -> Iterator[FeatureEffects]:
    """Measure the effects of the features of `source` on the features of `target`.

    `source` is an SAE on resid_mid. `target` is a transcoder, or an SAE on mlp_out or mlp_added, of the same layer.
    `stream` holds resid_mid of each token. Each source feature is ablated from `stream`. Then the layer's norm, MLP and
    target features are recomputed for the same token, as far as they lie before the site that the target reads.

    `per_source` limits the number of tokens on which a source feature is ablated. These tokens are evenly spaced over
    the tokens on which the feature fires. `most` limits the number of targets per source feature. The targets with the
    largest mean absolute change are kept.

    Each yielded item covers consecutive source features. Raises ValueError if a dictionary is at another site, if the
    dictionaries are in different layers, or if the model has no resid_mid.
    """
    _check(source, target)
    layer = _Layer(model, source, target)
    token, feature, value = _ablations(source, stream, per_source)
    before = layer.encode(stream)
    firing = torch.bincount(feature, minlength=source.width)
    rest: tuple[Tensor, Tensor] | None = None
    for chunk in torch.arange(len(token), device=token.device).split(max(1, CHUNK_ELEMENTS // target.width)):
        pair, sums = layer.changes(stream, token[chunk], feature[chunk], value[chunk], before)
        if rest is not None:
            pair, sums = torch.cat([rest[0], pair]), torch.cat([rest[1], sums])
        pair, sums = _sum_by_key(pair, sums)
        # the last source may continue in the next chunk
        last = int(feature[chunk[-1]])
        done = pair < last * target.width if int(chunk[-1]) + 1 < len(token) else torch.ones_like(pair).bool()
        rest = pair[~done], sums[~done]
        if done.any():
            yield _result(pair[done], sums[done], firing, target.width, most)


class _Layer:
    """Norm and MLP between resid_mid and the target dictionary."""

    def __init__(self, model: LanguageModel, source: Dictionary, target: LayerDictionary) -> None:
        self.source, self.target = source, target
        # raises if the model has no resid_mid
        find_module(model, Site("resid_mid", source.layer))
        norm = model.norm(source.layer, model.anatomy.norm_mlp)
        self.norm = torch.nn.Identity() if norm is None else norm
        self.mlp = model.map_to(target.site_out, source.layer)
        self.dtype = next(self.mlp.parameters()).dtype

    def encode(
        self, stream: Float[Tensor, "token d"]
    ) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
        """Returns (token, feature, activation) of each active target feature, sorted by token."""
        return _encode_sparse(self.target, stream, self._target_input)

    def changes(
        self,
        stream: Tensor,
        token: Tensor,
        feature: Tensor,
        value: Tensor,
        before: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Int[Tensor, " pair"], Float[Tensor, "pair 3"]]:
        """Returns the changes of target activations, one row per ablation and target feature.

        The first array holds source * F + target, where F is the number of target features. The second array has three
        columns: drop, |drop|, and 1 if the drop is not 0.
        """
        width = self.target.width
        ablated = self.source.subtract_feature(stream[token], feature, value)
        row, after, value_after = self.target.encode_sparse(self._target_input(ablated))
        row_before, target, value_before = _rows_of(before, token)
        key = torch.cat([row_before * width + target, row * width + after])
        key, change = _sum_by_key(key, torch.cat([value_before, -value_after])[:, None])
        change = change[:, 0]
        pair = feature[key // width] * width + key % width
        return pair, torch.stack([change, change.abs(), (change != 0).to(change.dtype)], 1)

    def _target_input(self, stream: Float[Tensor, "token d"]) -> Float[Tensor, "token d_in"]:
        x = stream.to(self.dtype)[None]
        if self.target.site_in != "resid_mid":
            x = self.norm(x)
            x = x if self.target.is_transcoder else self.mlp(x)
        return x[0].to(self.target.dtype)


def _encode_sparse(
    dictionary: LayerDictionary, stream: Tensor, to_input: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode `to_input(stream)` with `Dictionary.encode_sparse`, in chunks of tokens."""
    parts = []
    size = max(1, CHUNK_ELEMENTS // dictionary.width)
    for start in range(0, len(stream), size):
        token, feature, value = dictionary.encode_sparse(to_input(stream[start : start + size]))
        parts.append((token + start, feature, value))
    token, feature, value = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return token, feature, value


def _check(source: Dictionary, target: LayerDictionary) -> None:
    if (source.site_in, source.site_out) != ("resid_mid", "resid_mid"):
        raise ValueError(
            f"the sources are features from {source.site_in} to {source.site_out}; name a run of SAEs on resid_mid"
        )
    if not (target.is_transcoder or (target.is_sae and target.site_out in MLP_OUTPUTS)):
        raise ValueError(
            f"the targets are features from {target.site_in} to {target.site_out}; name transcoders, or SAEs on "
            "mlp_out or mlp_added"
        )
    if source.layer != target.layer:
        raise ValueError(
            f"sources are in layer {source.layer}, targets in layer {target.layer}; give dictionaries of one layer"
        )


def _ablations(source: Dictionary, stream: Tensor, per_source: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (token, feature, activation) of each ablation, sorted by feature."""
    token, feature, value = _encode_sparse(source, stream, lambda x: x.to(source.dtype))
    order = torch.argsort(feature, stable=True)
    if per_source is not None:
        total = torch.bincount(feature, minlength=source.width)
        start = total.cumsum(0) - total
        own = feature[order]
        place = torch.arange(len(order), device=order.device) - start[own]
        n, m = total[own], torch.clamp(total[own], max=per_source)
        # keep the places floor((2j + 1) n / 2m) for j < m; the number of kept places rises at exactly these places
        upto, before = (-((n - 2 * m * (place + i)) // (2 * n)) for i in (1, 0))
        kept = upto > before
        order = order[kept]
    return token[order], feature[order], value[order]


def _rows_of(
    entries: tuple[Tensor, Tensor, Tensor], token: Int[Tensor, " row"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (row, feature, value) of each entry whose token is token[row].

    `entries` holds (token, feature, value), sorted by token.
    """
    owner, feature, value = entries
    start, stop = torch.searchsorted(owner, token), torch.searchsorted(owner, token, right=True)
    count = stop - start
    row = torch.repeat_interleave(torch.arange(len(token), device=token.device), count)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row] + start[row]
    return row, feature[place], value[place]


def _sum_by_key(key: Int[Tensor, " entry"], value: Float[Tensor, "entry column"]) -> tuple[Tensor, Tensor]:
    """Returns the distinct keys in ascending order, and the sum of values per key as float64."""
    distinct, place = key.unique(return_inverse=True)
    total = torch.zeros(len(distinct), value.shape[1], dtype=torch.float64, device=value.device)
    return distinct, total.index_add_(0, place, value.double())


def _result(
    pair: Tensor, sums: Tensor, firing: Int[Tensor, " feature"], width: int, most: int | None
) -> FeatureEffects:
    source = pair // width
    kept = sums[:, 1] > 0
    if most is not None:
        # sort by source, then by descending magnitude
        order = torch.argsort(sums[:, 1], descending=True, stable=True)
        order = order[torch.argsort(source[order], stable=True)]
        place = torch.arange(len(order), device=order.device) - torch.searchsorted(source, source[order])
        kept[order[place >= most]] = False
    pair, source, sums = pair[kept], source[kept], sums[kept]
    n = firing[source]
    return FeatureEffects(source, pair % width, n, sums[:, 2].long(), sums[:, 0] / n, sums[:, 1] / n)
