"""The replacement model of one prompt: dictionaries in place of MLPs, with what they miss as a source of its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..corpus.tokens import scored_positions
from ..dictionaries.dictionary import Dictionary
from .capture import CapturedLayer, CapturedPass


@dataclass(frozen=True)
class ActiveFeatures:
    """The features that fire on a prompt, by layer, then position, then number."""

    layer: Int[Tensor, " active"]
    position: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    activation: Float[Tensor, " active"]

    def __len__(self) -> int:
        """Number of features that fire, each counted at each of its positions."""
        return len(self.layer)

    def find(self, layer: int, position: int, feature: int) -> int | None:
        """Place of a feature; None where it does not fire."""
        at = (self.layer == layer) & (self.position == position) & (self.feature == feature)
        place = at.nonzero()
        return int(place[0]) if len(place) else None


class Passage(NamedTuple):
    """Where vectors that are carried down the layers come by."""

    part: str
    """`mlp`: they read what the MLP of `layer` gives, in front of a norm behind it; `start`: what enters the first
    block."""
    layer: int
    g: Float[Tensor, "position target d"]


class LinearizedModel:
    """The frozen pass of a prompt with MLPs replaced where there is a dictionary.

    y = W_dec^T z + b_dec (+ W_skip x) + error. A layer without dictionary is all error, as is every layer at
    position 0 and at a BOS: dictionaries are not trained there. What is left is linear, so that contributions add up.
    """

    def __init__(
        self, frozen: CapturedPass, dictionaries: Mapping[int, Dictionary], bos_id: int | None
    ) -> None:
        """Raises ValueError where a dictionary is no transcoder, or has another width than the model."""
        self.frozen = frozen
        like = frozen.resid_final
        self.dictionaries = {
            layer: _checked(dictionary, layer, frozen).to(like.device, like.dtype)
            for layer, dictionary in sorted(dictionaries.items())
        }
        self.replaced: Bool[Tensor, " position"] = scored_positions(frozen.token[None].cpu(), bos_id)[0].to(
            like.device
        )
        """Positions where dictionaries stand in for MLPs."""
        self.features, errors, constants = _replace(frozen, self.dictionaries, self.replaced)
        self.errors: Float[Tensor, "layer position d"] = errors
        """What the dictionary of each layer misses, in front of a norm behind the MLP."""
        self.mlp_constant: Float[Tensor, "layer position d"] = constants
        """What the MLP of each layer adds to the stream whatever it reads: b_dec, W_skip's share of biases."""
        self.attention_constant: Float[Tensor, "layer position d"] = torch.stack(
            [layer.attention_constant() for layer in frozen.layers]
        )
        places = self.features.layer * len(frozen) + self.features.position
        steps = torch.arange(len(frozen.layers) * len(frozen) + 1, device=places.device)
        self._head_values: dict[int, Tensor] = {}
        self._starts = torch.searchsorted(places, steps).tolist()

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.frozen.layers)

    def active(self, layer: int, position: int) -> slice:
        """Places, among the active features, of those of one layer and position."""
        start = layer * len(self.frozen) + position
        return slice(self._starts[start], self._starts[start + 1])

    def all_active(self, layer: int, positions: int) -> slice:
        """Places of those of one layer at the first `positions` positions, at least one."""
        return slice(self.active(layer, 0).start, self.active(layer, positions - 1).stop)

    def decoder_rows(self, layer: int, active: slice) -> Float[Tensor, "active d"]:
        """What active features of one layer write, their activations included."""
        feature = self.features.feature[active]
        return self.dictionaries[layer].W_dec[feature] * self.features.activation[active, None]

    @cached_property
    def constant_stream(self) -> Float[Tensor, "layer_and_end position d"]:
        """What of the stream is biases, through heads and skip paths: as each MLP reads it, and at the end."""
        nothing = torch.zeros_like(self.frozen.resid_final)
        return torch.stack(list(self.ascend(nothing, lambda _layer: nothing)))

    def ascend(
        self, start: Float[Tensor, "*batch position d"], written: Callable[[int], Tensor]
    ) -> Iterator[Float[Tensor, "*batch position d"]]:
        """The frozen model run forward from what enters its first block: the stream as MLPs read it, and at the end.

        `written(layer)` is what an MLP gives, in front of a norm behind it, beside W_skip and biases.
        """
        stream = start
        for number, layer in enumerate(self.frozen.layers):
            attended = layer.push_attention(stream) + self.attention_constant[number]
            if not self.frozen.parallel:
                stream = stream + attended
            yield stream
            given = written(number)
            dictionary = self.dictionaries.get(number)
            if dictionary is not None and dictionary.W_skip is not None:
                read = layer.norm_mlp.push(stream) * self.replaced[:, None]
                given = given + read @ dictionary.W_skip.T
            stream = stream + layer.norm_mlp_after.push(given) + self.mlp_constant[number]
            if self.frozen.parallel:
                stream = stream + attended
        yield stream

    def written(self, layer: int) -> Float[Tensor, "position d"]:
        """What features and errors of a layer make of its MLP's output, biases and skip path left out."""
        active = self.all_active(layer, len(self.frozen))
        written = self.errors[layer].clone()
        if active.stop > active.start:
            written.index_add_(0, self.features.position[active], self.decoder_rows(layer, active))
        return written

    def head_values(self, layer: int) -> Float[Tensor, "head position d_head"]:
        """Values that the heads of a layer take from each position, biases left out; kept once made."""
        if layer not in self._head_values:
            self._head_values[layer] = self.frozen.layers[layer].head_values()
        return self._head_values[layer]

    def skip(
        self, layer: int, g: Float[Tensor, "*batch d"], position: slice | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch d"] | float:
        """What vectors that read the output of an MLP read in the stream in front of it, by way of W_skip."""
        dictionary = self.dictionaries.get(layer)
        if dictionary is None or dictionary.W_skip is None:
            return 0.0
        replaced = self.replaced[position]
        v = g @ dictionary.W_skip * replaced.view(replaced.shape + (1,) * (g.dim() - replaced.dim()))
        return self.frozen.layers[layer].norm_mlp.pull_back(v, position)

    def through_features(
        self, layer: int, g: Float[Tensor, "position target d"]
    ) -> Float[Tensor, "position target d"] | float:
        """What vectors that read the output of an MLP read in the stream in front of it, by way of what fires there.

        A feature that fires gives its pre-activation as it is, so that it is gone through with a slope of 1.
        """
        dictionary, active = self.dictionaries.get(layer), self.all_active(layer, len(g))
        if dictionary is None or active.stop == active.start:
            return 0.0
        feature, position = self.features.feature[active], self.features.position[active]
        slope = torch.einsum("atd,ad->at", g[position], dictionary.W_dec[feature])
        read = torch.zeros_like(g)
        read.index_add_(0, position, slope[:, :, None] * dictionary.W_enc[feature][:, None])
        return self.frozen.layers[layer].norm_mlp.pull_back(read, slice(len(g)))

    def descend(
        self,
        g: Float[Tensor, "target d"],
        position: Int[Tensor, " target"],
        layer: int,
        features: bool = False,
    ) -> Iterator[Passage]:
        """Carry vectors that read the stream at `position`, in front of the MLP of `layer`, down to the first block.

        They come by every MLP, and by the start, whose output they read through any number of heads, and with
        `features` through any number of features that fire. For vectors that read the end of the stream `layer` is
        the number of layers.
        """
        if not len(g):
            return
        n = int(position.max()) + 1
        carried = g.new_zeros(n, *g.shape)
        carried[position, torch.arange(len(g), device=g.device)] = g
        if layer < self.layers and not self.frozen.parallel:
            # at the beginning each vector reads at one position
            carried += self.frozen.layers[layer].pull_attention_from(g, position, n)
        for below in range(layer - 1, -1, -1):
            block = self.frozen.layers[below]
            through = block.norm_mlp_after.pull_back(carried, slice(n))
            yield Passage("mlp", below, through)
            skipped = self.skip(below, through, slice(n))
            if features:
                skipped = skipped + self.through_features(below, through)
            if not self.frozen.parallel:
                carried += skipped
                skipped = 0.0
            carried += block.pull_attention(carried) + skipped
        yield Passage("start", 0, carried)


def _checked(dictionary: Dictionary, layer: int, frozen: CapturedPass) -> Dictionary:
    d = frozen.resid_final.shape[1]
    if (dictionary.site_in, dictionary.site_out) != ("mlp_in", "mlp_out"):
        raise ValueError(
            f"layer {layer}: circuits go through transcoders; this dictionary maps {dictionary.site_in} to "
            f"{dictionary.site_out}; name a run of transcoders"
        )
    if (dictionary.d_in, dictionary.d_out) != (d, d) or layer >= len(frozen.layers):
        raise ValueError(
            f"layer {layer}: the dictionary reads {dictionary.d_in} dimensions, the model has {d} in each of "
            f"{len(frozen.layers)} layers; name a run that was trained on this model"
        )
    return dictionary


def _replace(
    frozen: CapturedPass, dictionaries: Mapping[int, Dictionary], replaced: Bool[Tensor, " position"]
) -> tuple[ActiveFeatures, Float[Tensor, "layer position d"], Float[Tensor, "layer position d"]]:
    """Active features; errors; constants that MLPs add to the stream."""
    active, errors, constants = [], [], []
    for number, layer in enumerate(frozen.layers):
        dictionary = dictionaries.get(number)
        error, constant = layer.mlp_out.clone(), torch.zeros_like(layer.mlp_out)
        if dictionary is not None:
            x = layer.mlp_in[replaced]
            token, feature, value = dictionary.encode_sparse(x)
            order = torch.argsort(token * dictionary.width + feature)
            place = replaced.nonzero()[:, 0][token[order]]
            active.append((torch.full_like(place, number), place, feature[order], value[order]))
            y_hat = torch.zeros_like(x).index_add_(0, token, dictionary.W_dec[feature] * value[:, None])
            error[replaced] -= y_hat + dictionary.b_dec
            constant[replaced] += dictionary.b_dec
            if dictionary.W_skip is not None:
                error[replaced] -= x @ dictionary.W_skip.T
                bias = torch.zeros_like(x[0]) + layer.norm_mlp.bias
                constant[replaced] += dictionary.W_skip @ bias
        errors.append(error)
        constants.append(_behind(layer, constant))
    empty = frozen.resid_final.new_empty(0, dtype=torch.int64)
    columns = zip(*active, strict=True) if active else (
        [empty], [empty], [empty], [frozen.resid_final.new_empty(0)],
    )  # fmt: skip
    return ActiveFeatures(*map(torch.cat, columns)), torch.stack(errors), torch.stack(constants)


def _behind(layer: CapturedLayer, constant: Float[Tensor, "position d"]) -> Float[Tensor, "position d"]:
    return layer.norm_mlp_after.push(constant) + layer.norm_mlp_after.bias
