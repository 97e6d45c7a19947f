"""Local replacement model of one prompt (Ameisen et al. 2025).

Dictionaries replace MLPs, and errors y - y_hat are added. Attention patterns and norm denominators are frozen. The
model is then linear between features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.progress import progress
from ..corpus.token_arrays import scored_positions
from ..corpus.tokens import Tokens
from ..dictionaries.cross_layer import LayerDictionary, add_by_layer, find_writers
from ..language_model.model import LanguageModel
from .capture import CapturedPass, FrozenNorm, ModelWeights, capture_pass


@dataclass(frozen=True)
class ActiveFeatures:
    """Features that fire on a prompt: one entry per layer, position and feature, sorted in this order."""

    layer: Int[Tensor, " active"]
    position: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    activation: Float[Tensor, " active"]

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.layer)

    def find(self, layer: int, position: int, feature: int) -> int | None:
        """Returns the index of the entry (layer, position, feature). Returns None if the feature does not fire."""
        at = (self.layer == layer) & (self.position == position) & (self.feature == feature)
        index = at.nonzero()
        return int(index[0]) if len(index) else None


class SiteGradient(NamedTuple):
    """Gradients of targets with respect to one site of the linearized model."""

    site: str
    """`LinearizedModel.site_out` of the layer, or `embedding` for the input of block 0."""
    layer: int
    g: Float[Tensor, "position target d"]


class LinearizedModel:
    """Linearized (local replacement) model of one prompt.

    The output of an MLP is y = W_dec^T z + b_dec (+ W_skip x) + error, at the site that the layer's dictionary
    reconstructs (`site_out`). With a cross-layer transcoder, W_dec^T z is the sum over all layers in `writers`. At
    position 0, at each separator of documents, and in layers without a dictionary, the error is the whole output y.
    """

    def __init__(
        self, captured: CapturedPass, dictionaries: Mapping[int, LayerDictionary], separator_id: int | None
    ) -> None:
        """`dictionaries` are transcoders, or the `layers` of a cross-layer transcoder. `separator_id` is the
        tokenizer's. Raises ValueError if a dictionary is not a transcoder or does not fit the model or the others."""
        self.captured = captured
        like = captured.resid_final
        for layer, dictionary in dictionaries.items():
            _check_dictionary(dictionary, layer, captured)
            _check_outputs(dictionary, layer, dictionaries)
        self.dictionaries: dict[int, LayerDictionary] = {
            layer: dictionary.to(like.device, like.dtype)
            for layer, dictionary in sorted(dictionaries.items())
        }
        self.writers = {layer: [] for layer in range(len(captured.layers))} | find_writers(dictionaries)
        """Maps each layer to the layers whose features write to its MLP's output, in ascending order."""
        self.replaced: Bool[Tensor, " position"] = scored_positions(captured.token[None].cpu(), separator_id)[
            0
        ].to(like.device)
        """Positions at which dictionaries replace MLPs."""
        self.features, errors, constants = _decompose_mlps(
            captured, self.dictionaries, self.writers, self.replaced
        )
        self.errors: Float[Tensor, "layer position d"] = errors
        """Output of each MLP minus the dictionary's reconstruction, at `site_out` of the layer."""
        self.mlp_constant: Float[Tensor, "layer position d"] = constants
        """Constant that each MLP adds to the residual stream, after any norm that follows the MLP.

        At `site_out`, the constant is b_dec + W_skip b at replaced positions and 0 at other positions. b is the bias of
        the norm before the dictionary's input (`norm_before`)."""
        self.attention_constant: Float[Tensor, "layer position d"] = torch.stack(
            [layer.attention_constant() for layer in captured.layers]
        )
        # the cell (layer, position) has number layer * positions + position; the features of a cell are contiguous
        cell = self.features.layer * len(captured) + self.features.position
        cells = torch.arange(len(captured.layers) * len(captured) + 1, device=cell.device)
        self._starts = torch.searchsorted(cell, cells).tolist()
        self._head_values: dict[int, Tensor] = {}
        self._rows: dict[tuple[int, int | None], tuple[Tensor, Tensor]] = {}

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.captured.layers)

    def site_in(self, layer: int) -> str:
        """Returns the site that features of a layer read: mlp_in, or resid_mid if the layer's dictionary reads that."""
        dictionary = self.dictionaries.get(layer)
        return "mlp_in" if dictionary is None else dictionary.site_in

    def site_out(self, layer: int) -> str:
        """Returns the site to which features and errors of a layer write: mlp_out, or mlp_added if the layer's
        dictionary reconstructs that."""
        dictionary = self.dictionaries.get(layer)
        return "mlp_out" if dictionary is None else dictionary.site_out

    def norm_before(self, layer: int) -> FrozenNorm:
        """Returns the frozen norm between the residual stream and `site_in` of a layer."""
        return self.captured.layers[layer].norm_before(self.dictionaries.get(layer))

    def norm_after(self, layer: int) -> FrozenNorm:
        """Returns the frozen norm between `site_out` of a layer and the residual stream."""
        return self.captured.layers[layer].norm_after(self.dictionaries.get(layer))

    def active_at(self, layer: int, position: int) -> slice:
        """Returns the slice of `features` of one layer and position."""
        cell = layer * len(self.captured) + position
        return slice(self._starts[cell], self._starts[cell + 1])

    def active_in_layer(self, layer: int, positions: int) -> slice:
        """Returns the slice of `features` of one layer at positions 0 to `positions` - 1, with `positions` >= 1."""
        return slice(self.active_at(layer, 0).start, self.active_at(layer, positions - 1).stop)

    def outputs(self, layer: int) -> tuple[int, ...]:
        """Returns the layers that features of `layer` write to, in ascending order. Its error writes to `layer`."""
        dictionary = self.dictionaries.get(layer)
        return (layer,) if dictionary is None else dictionary.outputs

    def feature_outputs(self, layer: int, active: slice, output: int) -> Float[Tensor, "active d"]:
        """Returns what each feature in the slice `active` of `features` adds to the MLP's output of layer `output`.

        It is activation times decoder row. All features of the slice are in `layer`.
        """
        return self.features.activation[active][:, None] * self.decoder_rows(layer, active, output)

    def decoder_rows(self, layer: int, active: slice, output: int) -> Float[Tensor, "active d"]:
        """Returns the decoder row to layer `output` of each feature in the slice `active`, all in `layer`."""
        return self._active_rows(layer, self.features.feature[active], output)

    def encoder_rows(self, layer: int, active: slice | Int[Tensor, " active"]) -> Float[Tensor, "active d"]:
        """Returns the encoder row of each feature that `active` selects, all in `layer`."""
        return self._active_rows(layer, self.features.feature[active], None)

    def _active_rows(self, layer: int, feature: Tensor, output: int | None) -> Tensor:
        """Returns rows of the decoder to `output`, or of the encoder if it is None. Rows of a mapped dictionary are
        read from the file once."""
        dictionary = self.dictionaries[layer]

        def read(features: Tensor) -> Tensor:
            return (
                dictionary.encoder_rows(features)
                if output is None
                else dictionary.decoder_rows(features, output)
            )

        if dictionary.file is None:
            return read(feature)
        if (layer, output) not in self._rows:
            distinct = self.features.feature[self.active_in_layer(layer, len(self.captured))].unique()
            self._rows[layer, output] = distinct, read(distinct)
        distinct, rows = self._rows[layer, output]
        return rows[torch.searchsorted(distinct, feature)]

    @cached_property
    def constant_stream(self) -> Float[Tensor, "layer_and_end position d"]:
        """Part of the residual stream that comes from biases, at the points that `residual_streams` yields."""
        return torch.stack([stream for _, stream in self._constant_streams])

    @cached_property
    def constant_block_input(self) -> Float[Tensor, "layer position d"]:
        """Part of each block's input that comes from biases."""
        return torch.stack([stream for stream, _ in self._constant_streams[:-1]])

    @cached_property
    def _constant_streams(self) -> list[tuple[Tensor, Tensor]]:
        zeros = torch.zeros_like(self.captured.resid_final)
        return list(self.block_streams(zeros, lambda _layer: zeros))

    def residual_streams(
        self, start: Float[Tensor, "*batch position d"], mlp_output: Callable[[int], Tensor]
    ) -> Iterator[Float[Tensor, "*batch position d"]]:
        """Yields the residual stream before the norm of each MLP, then the final residual stream.

        `start` is the input of the first block. `mlp_output(layer)` returns an MLP's output at `site_out` of the layer.
        `residual_streams` adds biases and skip connections, so `mlp_output` must not include them.
        """
        for _, stream in self.block_streams(start, mlp_output):
            yield stream

    def block_streams(
        self, start: Float[Tensor, "*batch position d"], mlp_output: Callable[[int], Tensor]
    ) -> Iterator[tuple[Float[Tensor, "*batch position d"], Float[Tensor, "*batch position d"]]]:
        """Yields (block's input, residual stream before the norm of the MLP) of each block, then the final residual
        stream twice. The arguments are those of `residual_streams`."""
        stream = start
        for number, layer in enumerate(self.captured.layers):
            block_input = stream
            attended = layer.attention_jvp(stream) + self.attention_constant[number]
            if not self.captured.parallel:
                stream = stream + attended
            yield block_input, stream
            output = mlp_output(number)
            dictionary = self.dictionaries.get(number)
            if dictionary is not None and dictionary.W_skip is not None:
                x = self.norm_before(number).jvp(stream) * self.replaced[:, None]
                output = output + x @ dictionary.W_skip.T
            stream = stream + self.norm_after(number).jvp(output) + self.mlp_constant[number]
            if self.captured.parallel:
                stream = stream + attended
        yield stream, stream

    def mlp_output(self, layer: int) -> Float[Tensor, "position d"]:
        """Returns the sum of a layer's feature outputs and error: the MLP's output without b_dec and W_skip x."""
        output = self.errors[layer].clone()
        for writer in self.writers[layer]:
            active = self.active_in_layer(writer, len(self.captured))
            if active.stop > active.start:
                output.index_add_(
                    0, self.features.position[active], self.feature_outputs(writer, active, layer)
                )
        return output

    def head_values(self, layer: int) -> Float[Tensor, "head position d_head"]:
        """Returns the value vectors of a layer's heads, without biases. The result is cached."""
        if layer not in self._head_values:
            self._head_values[layer] = self.captured.layers[layer].head_values()
        return self._head_values[layer]

    def skip_vjp(
        self, layer: int, g: Float[Tensor, "*batch d"], position: slice | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch d"] | float:
        """Backpropagate `g` from an MLP's output through W_skip and the norm. Returns 0.0 without W_skip."""
        dictionary = self.dictionaries.get(layer)
        if dictionary is None or dictionary.W_skip is None:
            return 0.0
        replaced = self.replaced[position]
        v = g @ dictionary.W_skip * replaced.view(replaced.shape + (1,) * (g.dim() - replaced.dim()))
        return self.norm_before(layer).vjp(v, position)

    def add_slopes(
        self,
        slopes: dict[int, Float[Tensor, "_ target"]],
        output: int,
        g: Float[Tensor, "position target d"],
    ) -> None:
        """Add to slopes[l] the gradient with respect to activations of active features of layer l, through what they
        write to the MLP's output of layer `output`.

        `g` is the gradient with respect to this output. It covers positions 0 to len(g) - 1.
        """
        for writer in self.writers[output]:
            active = self.active_in_layer(writer, len(g))
            if active.stop > active.start:
                rows = self.decoder_rows(writer, active, output)
                slope = torch.einsum("atd,ad->at", g[self.features.position[active]], rows)
                add_by_layer(slopes, {writer: slope})

    def features_vjp(
        self, layer: int, slope: Float[Tensor, "active target"], positions: int
    ) -> Float[Tensor, "position target d"]:
        """Backpropagate `slope` through active features of a layer and `norm_before`. Active features have slope 1.

        `slope` is the gradient with respect to the activations at positions 0 to `positions` - 1, which the result
        covers.
        """
        dictionary, active = self.dictionaries[layer], self.active_in_layer(layer, positions)
        position = self.features.position[active]
        read = slope.new_zeros(positions, slope.shape[1], dictionary.d_in)
        read.index_add_(0, position, slope[:, :, None] * self.encoder_rows(layer, active)[:, None])
        return self.norm_before(layer).vjp(read, slice(positions))

    def backpropagate(
        self,
        vector: Float[Tensor, "target d"],
        position: Int[Tensor, " target"],
        layer: int,
        features: bool = False,
    ) -> Iterator[SiteGradient]:
        """Yields the gradients of targets with respect to each earlier MLP's output, then to the embedding.

        The last layer comes first. The value of target i is vector[i] . stream[position[i]]. The stream is the residual
        stream before the MLP of `layer`. If `layer` is the number of layers, the stream is the final residual stream.
        Gradients flow through attention and skip connections. If `features` is True, gradients also flow through active
        features.
        """
        if not len(vector):
            return
        n = int(position.max()) + 1
        g = vector.new_zeros(n, *vector.shape)
        g[position, torch.arange(len(vector), device=vector.device)] = vector
        if layer < self.layers and not self.captured.parallel:
            # cheaper than attention_vjp: here each vector reads at a single position
            g += self.captured.layers[layer].attention_vjp_at(vector, position, n)
        yield from self.backpropagate_stream(g, layer, features)

    def backpropagate_stream(
        self,
        g: Float[Tensor, "position target d"],
        layer: int,
        features: bool = False,
        only: Int[Tensor, " target"] | None = None,
    ) -> Iterator[SiteGradient]:
        """Same as `backpropagate`, from the input of block `layer` (the final residual stream, if `layer` is the number
        of layers).

        `g` is the gradient of each target with respect to this stream at positions 0 to len(g) - 1. It is overwritten.
        If target i reads this stream at one position, only[i], the first step is cheaper with `only`.
        """
        n = len(g)
        # features of a layer write to this layer and later ones: their slopes are complete when it is reached
        slopes: dict[int, Tensor] = {}
        for earlier in range(layer - 1, -1, -1):
            block = self.captured.layers[earlier]
            g_mlp = self.norm_after(earlier).vjp(g, slice(n))
            yield SiteGradient(self.site_out(earlier), earlier, g_mlp)
            g_in = self.skip_vjp(earlier, g_mlp, slice(n))
            if features:
                self.add_slopes(slopes, earlier, g_mlp)
                if earlier in slopes:
                    g_in = g_in + self.features_vjp(earlier, slopes.pop(earlier), n)
            if not self.captured.parallel:
                g += g_in
                g_in = 0.0
            if only is None:
                g += block.attention_vjp(g) + g_in
            else:
                at_position = g[only, torch.arange(len(only), device=g.device)]
                g += block.attention_vjp_at(at_position, only, n) + g_in
                only = None
        yield SiteGradient("embedding", 0, g)


def linearize_sequences(
    language_model: LanguageModel,
    weights: ModelWeights,
    dictionaries: Mapping[int, LayerDictionary],
    text: Tokens,
    sequences: Sequence[int],
    task: str,
) -> Iterator[LinearizedModel]:
    """Yields the linearized model of each sequence that `sequences` lists. `sequences` holds indices into `text`.

    `task` is the title of the progress bar. Raises ValueError if the tokens are damaged, or if a dictionary does not
    fit the model.
    """
    with progress(task, len(sequences), "sequences") as bar:
        for sequence in sequences:
            token = text.take(slice(sequence, sequence + 1))[0]
            captured = capture_pass(language_model, weights, token)
            yield LinearizedModel(captured, dictionaries, text.separator_id)
            bar.update(1)


def _check_dictionary(dictionary: LayerDictionary, layer: int, captured: CapturedPass) -> None:
    d = captured.resid_final.shape[1]
    if not dictionary.is_transcoder:
        raise ValueError(
            f"layer {layer}: circuits go through transcoders; this dictionary maps {dictionary.site_in} to "
            f"{dictionary.site_out}; name a run of transcoders"
        )
    if (dictionary.d_in, dictionary.d_out) != (d, d) or layer >= len(captured.layers):
        raise ValueError(
            f"layer {layer}: the dictionary reads {dictionary.d_in} dimensions, the model has {d} in each of "
            f"{len(captured.layers)} layers; name a run that was trained on this model"
        )
    if not dictionary.is_after_norm and captured.parallel:
        raise ValueError(
            f"layer {layer}: the dictionary reads {dictionary.site_in}, but this model runs attention and MLP in "
            "parallel and has no resid_mid; name transcoders of mlp_in"
        )


def _check_outputs(
    dictionary: LayerDictionary, layer: int, dictionaries: Mapping[int, LayerDictionary]
) -> None:
    if dictionary.layer != layer:
        raise ValueError(
            f"layer {layer}: the dictionary is that of layer {dictionary.layer}; give it this number"
        )
    for output in dictionary.outputs:
        if output not in dictionaries:
            raise ValueError(
                f"layer {layer}: its features write to layer {output}, which has no dictionary; give all layers of "
                "the cross-layer transcoder"
            )
        if dictionaries[output].site_out != dictionary.site_out:
            raise ValueError(
                f"layer {layer}: its features write to {dictionary.site_out} of layer {output}, and the dictionary of "
                f"that layer reconstructs {dictionaries[output].site_out}; give layers of one transcoder"
            )


def _decompose_mlps(
    captured: CapturedPass,
    dictionaries: Mapping[int, LayerDictionary],
    writers: Mapping[int, Sequence[int]],
    replaced: Bool[Tensor, " position"],
) -> tuple[ActiveFeatures, Float[Tensor, "layer position d"], Float[Tensor, "layer position d"]]:
    """Returns the active features, the error of each MLP, and the constant that each MLP adds to the stream."""
    active, errors, constants = [], [], []
    entries: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for number, layer in enumerate(captured.layers):
        dictionary = dictionaries.get(number)
        error, constant = layer.output(dictionary).clone(), torch.zeros_like(layer.mlp_out)
        if dictionary is not None:
            x = layer.input(dictionary)[replaced]
            entries[number] = token, feature, value = dictionary.encode_sparse(x)
            order = torch.argsort(token * dictionary.width + feature)
            position = replaced.nonzero()[:, 0][token[order]]
            active.append((torch.full_like(position, number), position, feature[order], value[order]))
            y_hat = torch.zeros_like(x)
            for writer in writers[number]:
                token, feature, value = entries[writer]
                y_hat.index_add_(0, token, dictionaries[writer].written(feature, value, number))
            error[replaced] -= y_hat + dictionary.b_dec
            constant[replaced] += dictionary.b_dec
            if dictionary.W_skip is not None:
                error[replaced] -= x @ dictionary.W_skip.T
                bias = torch.zeros_like(x[0]) + layer.norm_before(dictionary).bias
                constant[replaced] += dictionary.W_skip @ bias
        errors.append(error)
        norm = layer.norm_after(dictionary)
        constants.append(norm.jvp(constant) + norm.bias)
    empty = captured.resid_final.new_empty(0, dtype=torch.int64)
    columns = zip(*active, strict=True) if active else (
        [empty], [empty], [empty], [captured.resid_final.new_empty(0)],
    )  # fmt: skip
    return ActiveFeatures(*map(torch.cat, columns)), torch.stack(errors), torch.stack(constants)
