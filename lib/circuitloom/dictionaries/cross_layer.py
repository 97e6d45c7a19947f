"""Cross-layer transcoders (CLTs): features read the MLP's input of one layer and write to the MLP outputs of this layer
and later ones (Ameisen et al. 2025, Circuit Tracing).

    z_l = act(W_enc_l x_l + b_enc_l)
    y_hat_m = sum over l <= m of z_l W_dec[l -> m] + b_dec_m (+ W_skip_m x_m)

`CrossLayerDictionary` has the features of one layer, `CrossLayerTranscoder` has all layers. Each layer is saved in a
folder of its own. docs/clt.md has the conventions.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..core.layout import Layout
from .dictionary import (
    CONFIG,
    PLAIN_FIELDS,
    WEIGHTS,
    Dictionary,
    Encoder,
    as_row_norm,
    is_cross_layer,
    is_transcoder,
    load_dictionary,
    read_dictionary_files,
    row_blocks,
    save_tensors,
)
from .mapped_file import MappedFile

ByLayer = Mapping[int, Float[Tensor, "..."]]
"""Tensors of several layers, by the layer's number in the model."""


@dataclass(frozen=True)
class CrossLayerDictionary(Encoder):
    """The features of a cross-layer transcoder that read layer `layer`, on raw activations.

    W_dec[i, o] is what feature i adds to the output of layer outputs[o] per unit of z. `b_dec` and `W_skip` belong to
    the output of layer `layer`, whichever layers write to it. `row_norm` is 1 for all features of trained transcoders.
    """

    W_enc: Float[Tensor, "feature d_in"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature output d_out"]
    b_dec: Float[Tensor, " d_out"]
    act: str
    """relu, topk or threshold, as in `Dictionary`."""
    outputs: tuple[int, ...]
    """Layers that the features write to, in ascending order. The first one is `layer`."""
    scales: tuple[float, ...]
    """Scale of each output, sqrt(E|y|^2 / d_out) of the training data. 1 for all outputs if it is unknown."""
    k: int | None = None
    threshold: Float[Tensor, " feature"] | None = None
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    site_in: str = "mlp_in"
    site_out: str = "mlp_out"
    layer: int = 0
    file: MappedFile | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_transcoder(self.site_in, self.site_out):
            raise ValueError(
                f"layer {self.layer}: a cross-layer transcoder maps an MLP's input to MLP outputs, not {self.site_in} "
                f"to {self.site_out}"
            )
        ascending = all(a < b for a, b in pairwise(self.outputs))
        if not self.outputs or self.outputs[0] != self.layer or not ascending:
            raise ValueError(
                f"layer {self.layer}: the outputs are {list(self.outputs)}; they must be in ascending order and begin "
                "with the layer itself"
            )
        if not len(self.outputs) == len(self.scales) == self.W_dec.shape[1]:
            raise ValueError(
                f"layer {self.layer}: {len(self.outputs)} outputs, {len(self.scales)} scales and decoders for "
                f"{self.W_dec.shape[1]}; the numbers must agree"
            )

    @property
    def d_out(self) -> int:
        """Dimension of `site_out`."""
        return self.W_dec.shape[2]

    @property
    def decoder_norm(self) -> Float[Tensor, " feature"]:
        """Norm of each feature's concatenated decoder rows, each relative to its output's scale and times the scale of
        the feature's own layer, as computed."""
        blocks = [self.W_dec] if self.file is None else row_blocks(self, self.W_dec)
        return torch.cat([self._norm(rows) for rows in blocks])

    def _norm(self, rows: Float[Tensor, "_ output d_out"]) -> Float[Tensor, " _"]:
        relative = torch.tensor([self.scales[0] / scale for scale in self.scales]).to(rows)
        return torch.linalg.vector_norm(rows * relative[:, None], dim=(1, 2))

    @property
    def row_norm(self) -> Float[Tensor, " feature"]:
        """`decoder_norm`, exactly 1 for features whose norm is 1 up to rounding, and for those without an effect."""
        return as_row_norm(self.decoder_norm)

    def row_norms(self, feature: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Returns `row_norm` of some features."""
        return as_row_norm(self._norm(self._rows(self.W_dec, feature)))

    def stored_decoder(self, output: int) -> Float[Tensor, "feature d_out"]:
        """Returns the decoder rows to layer `output`, of a mapped dictionary as views of the file. Raises KeyError if
        the features do not write to it."""
        if output not in self.outputs:
            raise KeyError(f"features of layer {self.layer} write to {list(self.outputs)}, not to {output}")
        return self.W_dec[:, self.outputs.index(output)]

    def write(self, z: Float[Tensor, "*batch feature"]) -> dict[int, Float[Tensor, "*batch d_out"]]:
        """Returns what the activations z add to each output, without biases and skip connections."""
        if self.file is not None:
            return {output: self.write_to(z, output) for output in self.outputs}
        return self._by_output(z @ self.W_dec.flatten(1))

    def write_sparse(
        self,
        token: Int[Tensor, " entry"],
        feature: Int[Tensor, " entry"],
        value: Float[Tensor, " entry"],
        n: int,
    ) -> dict[int, Float[Tensor, "token d_out"]]:
        """Returns what the non-zero activations of `n` tokens add to each output. `token`, `feature` and `value` are
        the results of `encode_sparse`."""
        start = torch.searchsorted(token, torch.arange(n, device=token.device))
        if self.file is None:
            rows = self.W_dec.flatten(1)
        else:
            active, feature = feature.unique(return_inverse=True)
            rows = self._rows(self.W_dec, active).flatten(1)
        return self._by_output(F.embedding_bag(feature, rows, start, mode="sum", per_sample_weights=value))

    def _by_output(self, wide: Tensor) -> dict[int, Tensor]:
        return dict(zip(self.outputs, wide.split(self.d_out, dim=-1), strict=True))

    def add_bias(
        self, written: Float[Tensor, "*batch d_out"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """Returns y_hat of layer `layer`: `written`, which all features wrote to it, plus b_dec (+ W_skip x)."""
        y_hat = written + self.b_dec
        return y_hat if self.W_skip is None else y_hat + x @ self.W_skip.T


LayerDictionary = Dictionary | CrossLayerDictionary
"""The features that read one layer. They write to the layers in `outputs`."""


def find_writers(dictionaries: Mapping[int, LayerDictionary]) -> dict[int, list[int]]:
    """Maps each layer that has a dictionary to the layers whose features write to its output, in ascending order."""
    return {
        output: [layer for layer in sorted(dictionaries) if output in dictionaries[layer].outputs]
        for output in sorted(dictionaries)
    }


class CrossLayerTranscoder:
    """A cross-layer transcoder, on raw activations.

    >>> transcoder = load_cross_layer_transcoder("results/STUDY/dictionaries/RUN")
    >>> z = transcoder.encode({0: x_0, 1: x_1})
    >>> y_hat = transcoder.decode(z, {0: x_0, 1: x_1})
    """

    layers: dict[int, CrossLayerDictionary]
    """The dictionary of each layer, in the order of the layers."""

    def __init__(self, layers: Iterable[CrossLayerDictionary]) -> None:
        """Raises ValueError if there are no layers, or if a layer writes to one that is missing, or if sites or
        dimensions differ between layers."""
        self.layers = {each.layer: each for each in sorted(layers, key=lambda each: each.layer)}
        if not self.layers:
            raise ValueError("a cross-layer transcoder needs at least one layer")
        for each in self.layers.values():
            if missing := set(each.outputs) - self.layers.keys():
                raise ValueError(
                    f"layer {each.layer} writes to layer {min(missing)}, which the transcoder lacks; give all layers"
                )
        kinds = {(each.site_in, each.site_out, each.d_in, each.d_out) for each in self.layers.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"layers of a cross-layer transcoder have different sites or sizes: {sorted(kinds)}"
            )

    @property
    def first(self) -> CrossLayerDictionary:
        """The dictionary of the first layer, for what all layers share: sites and dimensions."""
        return next(iter(self.layers.values()))

    @cached_property
    def writers(self) -> dict[int, list[int]]:
        """Maps each layer to the layers whose features write to its output, in ascending order."""
        return find_writers(self.layers)

    def encode(self, xs: ByLayer) -> dict[int, Tensor]:
        """Returns the activations z of all features, [*batch, feature], of the layers in `xs`.

        xs[l] is the value of `site_in` at layer l, [*batch, d_in].
        """
        return {layer: self.layers[layer].encode(x) for layer, x in xs.items()}

    def write(self, zs: ByLayer) -> dict[int, Tensor]:
        """Returns what the activations `zs` add to each output, without biases and skip connections.

        Outputs that no layer in `zs` writes to are left out.
        """
        written: dict[int, Tensor] = {}
        for layer, z in zs.items():
            add_by_layer(written, self.layers[layer].write(z))
        return written

    def decode(self, zs: ByLayer, xs: ByLayer) -> dict[int, Tensor]:
        """Returns the reconstruction y_hat of each layer, [*batch, d_out]. Only skip connections use the values of
        `xs`. `zs` and `xs` have all layers."""
        written = self.write(zs)
        return {layer: self.layers[layer].add_bias(written[layer], xs[layer]) for layer in self.layers}

    def reconstruct(self, xs: ByLayer) -> dict[int, Tensor]:
        """Returns the reconstruction y_hat of each layer, [token, d_out], for inputs of all layers, [token, d_in].

        Only active features are decoded, and activations of all features exist for one layer at a time.
        """
        written: dict[int, Tensor] = {}
        for layer, each in self.layers.items():
            entries = each.encode_sparse(xs[layer])
            add_by_layer(written, each.write_sparse(*entries, len(xs[layer])))
        return {layer: each.add_bias(written[layer], xs[layer]) for layer, each in self.layers.items()}

    def __call__(self, xs: ByLayer) -> dict[int, Tensor]:
        """Returns the reconstruction y_hat of each layer. xs[l] is the value of `site_in` at layer l."""
        return self.decode(self.encode(xs), xs)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "CrossLayerTranscoder":
        """Returns the transcoder on `device`. If `dtype` is not None, the tensors are converted to `dtype`."""
        return CrossLayerTranscoder(each.to(device, dtype) for each in self.layers.values())


def add_by_layer(totals: dict[int, Tensor], parts: Mapping[int, Tensor]) -> None:
    """Add parts[l] to totals[l] for each layer l in `parts`. No tensor is changed in place."""
    for layer, part in parts.items():
        totals[layer] = totals[layer] + part if layer in totals else part


def save_cross_layer_transcoder(
    transcoder: CrossLayerTranscoder, folders: Mapping[int, Path], config: dict[str, Any]
) -> None:
    """Write each layer into its folder: weights, and config.json with the run's `config` under the key `run`."""
    for layer, each in transcoder.layers.items():
        save_cross_layer_dictionary(each, folders[layer], list(transcoder.layers), config)


def save_cross_layer_dictionary(
    dictionary: CrossLayerDictionary,
    folder: Path,
    layers: list[int],
    config: dict[str, Any],
    source: str | None = None,
) -> None:
    """Write one layer of a cross-layer transcoder of `layers` into `folder`. `config` is that of the run. `source` is
    the file from which the layer was imported."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = vars(dictionary)
    save_tensors(
        folder / WEIGHTS, {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    )
    outputs = [
        {"layer": output, "site": dictionary.site_out, "scale": scale}
        for output, scale in zip(dictionary.outputs, dictionary.scales, strict=True)
    ]
    plain = {name: fields[name] for name in PLAIN_FIELDS}
    origin = {} if source is None else {"source": source}
    content = {**plain, "outputs": outputs, "layers": layers, "run": config, **origin}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")


def load_cross_layer_transcoder(
    run: Path | str | Iterable[Path | str],
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    mapped: bool = False,
) -> CrossLayerTranscoder:
    """Load the cross-layer transcoder of a run: the run's folder, or the folders of all its layers. `mapped` is that of
    `load_dictionary`.

    Raises ValueError if a layer is missing or damaged, or if the layers belong to different transcoders.

    >>> transcoder = load_cross_layer_transcoder("results/STUDY/dictionaries/RUN")
    """
    if isinstance(run, Path | str):
        folders = sorted(each for each in Path(run).glob("layer*") if each.is_dir())
        if not folders:
            raise ValueError(f"{run}: has no folders layer0, layer1, ...; name the folder of a run")
    else:
        folders = [Path(each) for each in run]
    read = {folder: read_dictionary_files(folder, device, mapped) for folder in folders}
    for folder, (config, _, _) in read.items():
        if "layers" not in config:
            raise ValueError(
                f"{folder}: is not a layer of a cross-layer transcoder; load it with load_dictionary"
            )
    found = sorted(config["layer"] for config, _, _ in read.values())
    for folder, (config, _, _) in read.items():
        if sorted(config["layers"]) != found:
            raise ValueError(
                f"{folder}: belongs to a transcoder of layers {config['layers']}, and layers {found} are given; give "
                "exactly its layers, or delete the run and train again"
            )
    runs = {json.dumps(config["run"], sort_keys=True) for config, _, _ in read.values()}
    if len(runs) > 1:
        raise ValueError(f"{folders[0].parent}: its layers are of different runs; delete it and train again")
    layers = [_dictionary(*each) for each in read.values()]
    return CrossLayerTranscoder(layers).to(device, getattr(torch, dtype))


def load_layer(
    folder: Path | str, device: str | torch.device = "cpu", mapped: bool = False
) -> LayerDictionary:
    """Load the features in `folder`, whatever they write to, without the other layers of a cross-layer transcoder.
    `mapped` and the errors are those of `load_dictionary`."""
    if not is_cross_layer(folder):
        return load_dictionary(folder, device, mapped=mapped)
    return _dictionary(*read_dictionary_files(Path(folder), device, mapped)).to(device, torch.float32)


def load_layers(
    folders: Iterable[Path | str],
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    mapped: bool = False,
) -> dict[int, LayerDictionary]:
    """Load the dictionaries of one run, by layer, from the folders of its layers. The run is a cross-layer transcoder,
    or has one dictionary per layer. `mapped` is that of `load_dictionary`.

    Raises ValueError if a dictionary is missing or damaged, or if layers of a cross-layer transcoder are missing.
    """
    folders = list(folders)
    if any(is_cross_layer(folder) for folder in folders):
        return dict(load_cross_layer_transcoder(folders, device, dtype, mapped).layers)
    return {
        each.layer: each for each in (load_dictionary(folder, device, dtype, mapped) for folder in folders)
    }


def run_names(results: Path) -> list[str]:
    """Returns the names of the runs of the study in the folder `results`, in alphabetical order."""
    folders = Layout(results).dictionaries.glob(f"*/layer*/{CONFIG}")
    return sorted({folder.parts[-3] for folder in folders})


def load_run(
    results: Path, run: str, device: str | torch.device = "cpu", mapped: bool = False
) -> dict[int, LayerDictionary]:
    """Load the dictionaries of a run of the study in the folder `results`, by layer. `mapped` is that of
    `load_dictionary`.

    Raises ValueError if there is no such run, and as `load_layers` does.
    """
    known = run_names(results)
    if run not in known:
        listed = ", ".join(known) or "none: run `snakemake dictionaries`"
        raise ValueError(f"{results} has no dictionaries of a run {run}; choose from {listed}")
    layers = sorted((Layout(results).dictionaries / run).glob("layer*"))
    return load_layers((layer for layer in layers if (layer / CONFIG).is_file()), device, mapped=mapped)


def require_one_output(dictionary: LayerDictionary, user: str) -> Dictionary:
    """Returns the dictionary. Raises ValueError if it is a layer of a cross-layer transcoder. `user` says what does not
    support it."""
    if isinstance(dictionary, Dictionary):
        return dictionary
    raise ValueError(
        f"layer {dictionary.layer}: {user} cannot use a cross-layer transcoder, whose features write to several "
        "layers; name a run of transcoders"
    )


def _dictionary(
    config: dict[str, Any], tensors: dict[str, Tensor], file: MappedFile | None
) -> CrossLayerDictionary:
    outputs = config["outputs"]
    return CrossLayerDictionary(
        **tensors,
        **{name: config[name] for name in PLAIN_FIELDS},
        outputs=tuple(output["layer"] for output in outputs),
        scales=tuple(output["scale"] for output in outputs),
        site_out=outputs[0]["site"],
        file=file,
    )
