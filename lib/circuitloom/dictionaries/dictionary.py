"""Trained dictionaries (SAEs and transcoders) and their files."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from ..config.activations import MLP_INPUTS, MLP_OUTPUTS
from ..core.atomic_io import write_atomically
from .mapped_file import MappedFile, is_large

E = TypeVar("E", bound="Encoder")

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
PLAIN_FIELDS = ("act", "k", "layer", "site_in")
"""Fields of a dictionary that config.json has under their own names."""
UNIT_TOLERANCE = 1e-5
"""Largest distance from 1 of the norm of a decoder row that is 1 up to rounding."""
MATRICES = ("W_enc", "W_dec")
"""Tensors with a row per feature and dimension. Those of a mapped dictionary stay in its file."""
BLOCK_ELEMENTS = 2**24
"""Largest number of weights, and of pre-activations, of a block of features of a mapped dictionary (64 MB in
float32)."""


class Encoder(ABC):
    """What dictionaries with one output (`Dictionary`) and with several (`cross_layer.CrossLayerDictionary`) share: the
    features z = act(W_enc x + b_enc) of one layer, and the sites that are read and reconstructed.

    The encoder and the decoders of a mapped dictionary are views of its file, in the file's number format and on the
    CPU. Rows are converted to `dtype` as they are read: exactly, if `dtype` is wider. Products and sums are in `dtype`.
    All methods but `decoder` read an encoder block by block, and of a decoder only rows of features that fire."""

    W_enc: Float[Tensor, "feature d_in"]
    b_enc: Float[Tensor, " feature"]
    act: str
    k: int | None
    threshold: Float[Tensor, " feature"] | None
    site_in: str
    site_out: str
    layer: int
    file: MappedFile | None
    """File of a mapped dictionary; None for one in memory."""

    def __post_init__(self) -> None:
        if (self.act == "topk") != (self.k is not None) or (self.act == "threshold") != (
            self.threshold is not None
        ):
            raise ValueError(
                f"act {self.act} with k={self.k} and {'a' if self.threshold is not None else 'no'} threshold; set k "
                "for topk only, threshold for act threshold only"
            )

    @property
    def width(self) -> int:
        """Number of features, F."""
        return len(self.W_enc)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of inputs, activations and sums."""
        return self.b_enc.dtype

    @property
    def encoder_norm(self) -> Float[Tensor, " feature"]:
        """Norm of each encoder row."""
        if self.file is None:
            return torch.linalg.vector_norm(self.W_enc, dim=1)
        return torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in row_blocks(self, self.W_enc)])

    @property
    def d_in(self) -> int:
        """Dimension of `site_in`."""
        return self.W_enc.shape[1]

    @property
    def is_sae(self) -> bool:
        """Whether `site_in` equals `site_out`."""
        return self.site_in == self.site_out

    @property
    def is_transcoder(self) -> bool:
        """Whether the dictionary maps mlp_in or resid_mid (the MLP's input, or the residual stream before its norm) to
        mlp_out or mlp_added (the MLP's output, before or after a norm that follows the MLP)."""
        return is_transcoder(self.site_in, self.site_out)

    @property
    def is_after_norm(self) -> bool:
        """Whether `site_in` of a transcoder comes after the norm before the MLP."""
        return self.site_in == "mlp_in"

    @property
    def is_before_norm(self) -> bool:
        """Whether the norm or factor that some models apply to the MLP's output comes after `site_out`."""
        return self.site_out == "mlp_out"

    @abstractmethod
    def stored_decoder(self, output: int) -> Float[Tensor, "feature d_out"]:
        """Returns the decoder rows to layer `output`, of a mapped dictionary as views of the file. Raises KeyError if
        the features do not write to it."""

    def decoder(self, output: int) -> Float[Tensor, "feature d_out"]:
        """Returns all decoder rows to layer `output`. Those of a mapped dictionary are read into memory. Raises
        KeyError if the features do not write to it."""
        return self.stored_decoder(output).to(self.b_enc)

    def encoder_rows(self, feature: slice | Int[Tensor, "*batch"]) -> Float[Tensor, "*rows d_in"]:
        """Returns the encoder rows of some features."""
        return self._rows(self.W_enc, feature)

    def decoder_rows(self, feature: Int[Tensor, "*batch"], output: int) -> Float[Tensor, "*batch d_out"]:
        """Returns the decoder rows of some features to layer `output`. Raises KeyError if they do not write to it."""
        return self._rows(self.stored_decoder(output), feature)

    def _rows(self, matrix: Tensor, feature: slice | Tensor) -> Tensor:
        if self.file is None:
            return matrix[feature]
        rows = matrix[feature if isinstance(feature, slice) else feature.to(matrix.device)].to(self.b_enc)
        self.release()
        return rows

    @abstractmethod
    def row_norms(self, feature: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Returns the factor of some features that converts z to units of y, as `row_norm` does for all of them."""

    def release(self) -> None:
        """Drop the pages of a mapped dictionary from memory. Does nothing for one in memory."""
        if self.file is not None:
            self.file.release()

    def written(
        self, feature: Int[Tensor, "*batch"], value: Float[Tensor, "*batch"], output: int
    ) -> Float[Tensor, "*batch d_out"]:
        """Returns what features with activations `value` add to layer `output`: value * decoder row, one per entry."""
        return value[..., None] * self.decoder_rows(feature, output)

    def write_to(self, z: Float[Tensor, "*batch feature"], output: int) -> Float[Tensor, "*batch d_out"]:
        """Returns z @ decoder: what the activations z add to layer `output`."""
        if self.file is None:
            return z @ self.stored_decoder(output)
        feature = (z != 0).flatten(0, -2).any(0).nonzero()[:, 0]
        return z[..., feature] @ self.decoder_rows(feature, output)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Returns the activations z of all features."""
        if self.file is not None:
            z = x.new_zeros(*x.shape[:-1], self.width)
            token, feature, value = self.encode_sparse(x.reshape(-1, self.d_in))
            z.view(-1, self.width)[token, feature] = value
            return z
        pre = x @ self.W_enc.T + self.b_enc
        if self.act == "topk":
            assert self.k is not None
            values, features = pre.topk(self.k, dim=-1)
            return torch.zeros_like(pre).scatter_(-1, features, values.relu())
        if self.threshold is None:
            return pre.relu()
        return torch.where(pre > self.threshold, pre, 0.0)

    def encode_features(
        self, x: Float[Tensor, "*batch d_in"], feature: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "*batch chosen"]:
        """Returns the activations z of some features: encode(x)[..., feature], up to rounding."""
        # under topk, the other features decide which ones are active
        if self.act == "topk" or len(feature) == self.width:
            return self.encode(x)[..., feature]
        pre = x @ self.encoder_rows(feature).T + self.b_enc[feature]
        if self.threshold is None:
            return pre.relu()
        return torch.where(pre > self.threshold[feature], pre, 0.0)

    def encode_entries(
        self, x: Float[Tensor, "token d_in"], feature: Int[Tensor, " token"]
    ) -> Float[Tensor, " token"]:
        """Returns the activation of one feature per token."""
        here = torch.arange(len(x), device=x.device)
        if self.file is None:
            return self.encode(x)[here, feature]
        if self.act == "topk":
            token, active, value = self.encode_sparse(x)
            z = x.new_zeros(len(x))
            own = active == feature[token]
            z[token[own]] = value[own]
            return z
        pre = (x * self.encoder_rows(feature)).sum(-1) + self.b_enc[feature]
        return torch.where(pre > (0.0 if self.threshold is None else self.threshold[feature]), pre, 0.0)

    def encode_sparse(
        self, x: Float[Tensor, "token d_in"]
    ) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Float[Tensor, " entry"]]:
        """Returns (token, feature, value) of the non-zero activations, ordered by token."""
        if self.file is not None:
            return self._largest_by_block(x) if self.act == "topk" else self._active_by_block(x)
        pre = torch.addmm(self.b_enc, x, self.W_enc.T)
        if self.act == "topk":
            assert self.k is not None
            values, features = pre.topk(self.k, dim=1)
            token, rank = (values > 0).nonzero(as_tuple=True)
            return token, features[token, rank], values[token, rank]
        token, feature = (pre > (0.0 if self.threshold is None else self.threshold)).nonzero(as_tuple=True)
        return token, feature, pre[token, feature]

    def _blocks(self, x: Float[Tensor, "token d_in"]) -> Iterator[tuple[slice, Float[Tensor, "token _"]]]:
        """Yields consecutive blocks of features, and their pre-activations."""
        size = max(1, BLOCK_ELEMENTS // max(1, self.d_in, len(x)))
        for low in range(0, self.width, size):
            block = slice(low, min(low + size, self.width))
            yield block, torch.addmm(self.b_enc[block], x, self.W_enc[block].to(self.b_enc).T)
            self.release()

    def _largest_by_block(self, x: Float[Tensor, "token d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (token, feature, value) as `encode_sparse` does for topk."""
        assert self.k is not None
        values, features = x.new_zeros(len(x), 0), x.new_zeros(len(x), 0, dtype=torch.int64)
        for block, pre in self._blocks(x):
            own = pre.topk(min(self.k, pre.shape[1]), dim=1)
            candidates = torch.cat([values, own.values], 1)
            values, index = candidates.topk(min(self.k, candidates.shape[1]), dim=1)
            features = torch.cat([features, own.indices + block.start], 1).gather(1, index)
        token, rank = (values > 0).nonzero(as_tuple=True)
        return token, features[token, rank], values[token, rank]

    def _active_by_block(self, x: Float[Tensor, "token d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (token, feature, value) as `encode_sparse` does for thresholds."""
        parts = []
        for block, pre in self._blocks(x):
            token, feature = (pre > (0.0 if self.threshold is None else self.threshold[block])).nonzero(
                as_tuple=True
            )
            parts.append((token, feature + block.start, pre[token, feature]))
        token, feature, value = map(torch.cat, zip(*parts, strict=True))
        order = token.argsort(stable=True)
        return token[order], feature[order], value[order]

    def to(self: E, device: str | torch.device, dtype: torch.dtype | None = None) -> E:
        """Returns the dictionary on `device`. If `dtype` is not None, the tensors are converted to `dtype`.

        The matrices of a mapped dictionary stay where they are.
        """
        tensors = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and not (self.file is not None and name in MATRICES)
        }
        return replace(self, **{name: value.to(device, dtype) for name, value in tensors.items()})  # type: ignore[type-var]


@dataclass(frozen=True)
class Dictionary(Encoder):
    """A dictionary on raw activations x: z = act(W_enc x + b_enc), y_hat = W_dec^T z + b_dec (+ W_skip x).

    In trained dictionaries, every decoder row has unit norm, except rows of zeros. Therefore z is in units of y, and
    activations of different features are comparable. Imported dictionaries keep the norms of their rows. There, z times
    `row_norm` is in units of y.

    >>> dictionary = Dictionary(W_enc, b_enc, W_dec, b_dec, act="topk", k=16, site_in="mlp_in", site_out="mlp_out")
    >>> y_hat = dictionary(x)
    """

    W_enc: Float[Tensor, "feature d_in"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_dec: Float[Tensor, " d_out"]
    act: str
    """relu, topk or threshold. Training with batchtopk or jumprelu gives a dictionary with act threshold."""
    k: int | None = None
    """Maximum number of active features per token. None unless `act` is topk."""
    threshold: Float[Tensor, " feature"] | None = None
    """z is 0 unless the pre-activation exceeds this threshold. None unless `act` is threshold."""
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    site_in: str = "mlp_in"
    site_out: str = "mlp_out"
    layer: int = 0
    file: MappedFile | None = field(default=None, repr=False, compare=False)

    @property
    def d_out(self) -> int:
        """Dimension of `site_out`."""
        return self.W_dec.shape[1]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Layers that the features write to: `layer` alone."""
        return (self.layer,)

    def stored_decoder(self, output: int) -> Float[Tensor, "feature d_out"]:
        """Returns the decoder rows to layer `output`, of a mapped dictionary as views of the file. Raises KeyError if
        the features do not write to it."""
        if output != self.layer:
            raise KeyError(f"features of layer {self.layer} write to no other layer, such as {output}")
        return self.W_dec

    @property
    def decoder_norm(self) -> Float[Tensor, " feature"]:
        """Norm of each decoder row, as computed."""
        if self.file is None:
            return torch.linalg.vector_norm(self.W_dec, dim=1)
        return torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in row_blocks(self, self.W_dec)])

    @property
    def row_norm(self) -> Float[Tensor, " feature"]:
        """Norm of each decoder row, as a factor that converts z to units of y.

        It is exactly 1 for rows whose norm is 1 up to rounding, and for rows of zeros.
        """
        return as_row_norm(self.decoder_norm)

    def row_norms(self, feature: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Returns `row_norm` of some features."""
        return as_row_norm(torch.linalg.vector_norm(self.decoder_rows(feature, self.layer), dim=1))

    def encoder_input(self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]) -> Tensor:
        """Returns x for a transcoder and y for an SAE, in the dictionary's dtype.

        x is the value of `site_in`. y is the value of `site_out`.
        """
        return (x if self.is_transcoder else y).to(self.dtype)

    def decode(
        self, z: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """Returns the reconstruction y_hat for activations z. Only the skip connection uses x."""
        return self._add_bias(self.write(z), x)

    def decode_sparse(
        self,
        token: Int[Tensor, " entry"],
        feature: Int[Tensor, " entry"],
        value: Float[Tensor, " entry"],
        x: Float[Tensor, "token d_in"],
    ) -> Float[Tensor, "token d_out"]:
        """Returns the reconstruction y_hat. `token`, `feature` and `value` are the results of `encode_sparse`."""
        return self._add_bias(self.write_sparse(token, feature, value, len(x)), x)

    def _add_bias(self, written: Tensor, x: Tensor) -> Tensor:
        y_hat = written + self.b_dec
        return y_hat if self.W_skip is None else y_hat + x @ self.W_skip.T

    def write(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """Returns z @ W_dec. This is y_hat without bias and skip connection."""
        return self.write_to(z, self.layer)

    def write_sparse(
        self,
        token: Int[Tensor, " entry"],
        feature: Int[Tensor, " entry"],
        value: Float[Tensor, " entry"],
        n: int,
    ) -> Float[Tensor, "token d_out"]:
        """Returns z @ W_dec for `n` tokens, given the non-zero entries of z. The entries must be ordered by token."""
        start = torch.searchsorted(token, torch.arange(n, device=token.device))
        rows = self.W_dec
        if self.file is not None:
            active, feature = feature.unique(return_inverse=True)
            rows = self.decoder_rows(active, self.layer)
        return F.embedding_bag(feature, rows, start, mode="sum", per_sample_weights=value)

    # `edit`, `ablate` and `subtract_feature` can compute the same y but round differently: callers must not swap them

    def edit(
        self,
        x: Float[Tensor, "*batch d_in"],
        y: Float[Tensor, "*batch d_out"],
        edit: Callable[[Float[Tensor, "*batch feature"]], Float[Tensor, "*batch feature"]],
        keep_error: bool = True,
    ) -> Float[Tensor, "*batch d_out"]:
        """Returns y after z is replaced by edit(z). x is the value of `site_in`. y is the value of `site_out`.

        If `keep_error` is true, the result is y + (edit(z) - z) @ W_dec. Otherwise the result is decode(edit(z)).
        """
        read = self.encoder_input(x, y)
        z = self.encode(read)
        return y + self.write(edit(z) - z) if keep_error else self.decode(edit(z), read)

    def ablate(
        self,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        ablated: Callable[[Tensor, Tensor], Bool[Tensor, " entry"]],
        keep_error: bool = True,
    ) -> Float[Tensor, "token d_out"]:
        """Returns y after z is set to 0 where `ablated(token, feature)` is true.

        The arguments `x`, `y` and `keep_error` are those of `edit`.
        """
        read = self.encoder_input(x, y)
        token, feature, value = self.encode_sparse(read)
        mask = ablated(token, feature)
        if keep_error:
            return y - self.write_sparse(token[mask], feature[mask], value[mask], len(y))
        return self.decode_sparse(token[~mask], feature[~mask], value[~mask], read)

    def subtract_feature(
        self,
        y: Float[Tensor, "*batch d_out"],
        feature: int | Int[Tensor, "*batch"],
        value: Float[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch d_out"]:
        """Returns y - value * W_dec[feature]. `feature` is one feature for all tokens, or one feature per token.

        If `value` is the feature's activation, the feature is ablated.
        """
        rows = self.decoder_rows(torch.as_tensor(feature, device=value.device), self.layer)
        return y - (value[..., None] * rows).to(y.dtype)

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Returns the reconstruction y_hat of site_out. x is the value of site_in."""
        return self.decode(self.encode(x), x)


def row_blocks(dictionary: Encoder, matrix: Tensor) -> Iterator[Tensor]:
    """Yields the rows of a matrix [feature, ...] of a mapped dictionary in consecutive blocks, in the dictionary's
    dtype."""
    for rows in matrix.split(max(1, BLOCK_ELEMENTS // max(1, matrix[0].numel()))):
        yield rows.to(dictionary.b_enc)
        dictionary.release()


def as_row_norm(norm: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """Returns the norms with exactly 1 in place of numbers that are 1 up to rounding, and in place of 0."""
    # numbers of trained dictionaries keep their bits when they are multiplied by the norm
    return norm.masked_fill(((norm - 1).abs() < UNIT_TOLERANCE) | (norm == 0), 1.0)


@dataclass
class DictionaryWeights:
    """Tensors of a dictionary that are still changed: they are trained, or rewritten. `Dictionary` describes them."""

    W_enc: Float[Tensor, "feature d_in"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " feature"] | None = None
    W_skip: Float[Tensor, "d_out d_in"] | None = None

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the name and the tensor of each field that is not None."""
        for each in fields(self):
            if (value := getattr(self, each.name)) is not None:
                yield each.name, value


def is_transcoder(site_in: str, site_out: str) -> bool:
    """Whether a dictionary from `site_in` to `site_out` replaces an MLP."""
    return site_in in MLP_INPUTS and site_out in MLP_OUTPUTS


def save_dictionary(
    dictionary: Dictionary, folder: Path | str, config: dict[str, Any], source: str | None = None
) -> None:
    """Write the weights and config.json into `folder`. config.json contains the run's `config` under the key `run`.

    `source` is the file from which the dictionary was imported.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = vars(dictionary)
    save_tensors(
        folder / WEIGHTS, {name: value for name, value in values.items() if isinstance(value, Tensor)}
    )
    plain = _plain(values)
    outputs = [{"layer": dictionary.layer, "site": dictionary.site_out}]
    origin = {} if source is None else {"source": source}
    stored = {**plain, "outputs": outputs, "run": config, **origin}
    (folder / CONFIG).write_text(json.dumps(stored, indent=2) + "\n")


def save_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically as a safetensors file."""
    # converted to bytes first, so that a full disk raises OSError
    write_atomically(file, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}))


def load_dictionary(
    folder: Path | str, device: str | torch.device = "cpu", dtype: str = "float32", mapped: bool = False
) -> Dictionary:
    """Load the dictionary in `folder`. If `mapped` is true and it is large (`MAPPED`), its matrices stay in the file.

    Raises ValueError if the dictionary is missing or damaged, is a layer of a cross-layer transcoder, or is that of
    another layer than the folder's name says.

    >>> dictionary = load_dictionary("results/quickstart/dictionaries/tc-topk16-1024/layer1")
    >>> z = dictionary.encode(x)
    >>> y_hat = dictionary.decode(z, x)
    """
    config, tensors, file = read_dictionary_files(Path(folder), device, mapped)
    if "layers" in config or len(config["outputs"]) != 1:
        raise ValueError(
            f"{folder}: is a layer of a cross-layer transcoder, which this does not support; name a run of transcoders "
            "or SAEs (for a cross-layer transcoder, load_cross_layer_transcoder loads all its layers)"
        )
    loaded = Dictionary(**tensors, **_plain(config), site_out=config["outputs"][0]["site"], file=file)
    return loaded.to(device, getattr(torch, dtype))


def read_dictionary_files(
    folder: Path, device: str | torch.device = "cpu", mapped: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], MappedFile | None]:
    """Returns config.json and the tensors of a saved dictionary, and their file if they are mapped.

    They are mapped if `mapped` is true and the dictionary is large (`MAPPED`). Raises ValueError if they are missing or
    damaged, or of another layer than the folder's name says.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        weights = folder / WEIGHTS
        file = MappedFile(weights) if mapped and is_large(weights, device) else None
        tensors = load_file(weights, device=str(device)) if file is None else file.tensors
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder}: no readable dictionary ({error}); delete it and train again") from error
    named = re.fullmatch(r"layer(\d+)", folder.name)
    if named and int(named[1]) != config["layer"]:
        raise ValueError(
            f"{folder}: holds the dictionary of layer {config['layer']}; move it back, or delete it and run again"
        )
    return config, tensors, file


def is_cross_layer(folder: Path | str) -> bool:
    """Whether `folder` holds a layer of a cross-layer transcoder. False if it has no readable config.json."""
    try:
        return "layers" in json.loads((Path(folder) / CONFIG).read_text())
    except (OSError, ValueError):
        return False


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in PLAIN_FIELDS}
