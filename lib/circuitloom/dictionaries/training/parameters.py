"""Trainable weights of a dictionary: initialisation, and conversion to a dictionary on raw activations."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...config.dictionaries import Run
from ..dictionary import Dictionary, DictionaryWeights

INITIAL_DECODER_NORM = 0.1
"""Initial norm of each decoder row. This norm is small compared with the norm √d of normalised outputs."""
PER_FEATURE = ("W_enc", "b_enc", "W_dec", "threshold")
"""Parameters with one row or entry per feature."""
RATE_TOKENS = 8192
"""Number of tokens on which `initial_rate` is set."""
BLOCK_ENTRIES = 2**22
"""Maximum number of pre-activations in memory."""


@dataclass(frozen=True)
class Scales:
    """The scales of x and y, and the moments of y.

    Training divides x and y by their scales. Then E|x|^2 = d_in and E|y|^2 = d_out. With `loss: paper`, the scales are
    1.
    """

    x: float
    """sqrt(E|x|^2 / d_in)."""
    y: float
    """sqrt(E|y|^2 / d_out)."""
    variance: float
    """V = E|y - mean|^2 of raw y."""
    y_mean: Float[Tensor, " d_out"]
    """Mean of raw y."""

    @property
    def normalised_variance(self) -> float:
        """V = E|y - mean|^2 after y is divided by its scale."""
        return self.variance / self.y**2


@dataclass
class Parameters(DictionaryWeights):
    """Trainable weights for normalised x and y."""

    W_dec: Float[Tensor, "feature d_written"]
    """d_written is d_out. For a layer of a cross-layer transcoder, it is the number of outputs times d_out."""
    b_in: Float[Tensor, " d_in"] | None = None
    """Vector that is subtracted from the encoder's input. Only `loss: paper` and published transcoders use this vector.
    """

    def tensors(self, without: Collection[str] = ()) -> list[Tensor]:
        """Returns each tensor once, except the parameters named in `without`.

        In an SAE with `loss: paper`, b_dec and b_in are the same tensor.
        """
        named = {id(value): value for name, value in self.named() if name not in without}
        return list(named.values())

    @property
    def encoder_bias(self) -> Float[Tensor, " feature"]:
        """The encoder's total bias: b_enc - W_enc b_in, or b_enc if b_in is None."""
        return self.b_enc if self.b_in is None else self.b_enc - self.W_enc @ self.b_in

    @property
    def decoder_norm(self) -> Float[Tensor, " feature"]:
        """Norm |W_dec[i]| of each decoder row."""
        return torch.linalg.vector_norm(self.W_dec, dim=1)


def initial_parameters(
    run: Run,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    x_mean: Float[Tensor, " d_in"],
    scales: Scales,
    features: slice = slice(None),
    device: torch.device | None = None,
) -> Parameters:
    """Returns the initial parameters of the run's features in the slice `features`, on `device`.

    `x` and `y` are a sample of raw activations. Each feature is initialised from one token, which is drawn with the
    run's seed. The encoder row is the unit vector along x - mean. The decoder row has the direction of y - mean. b_enc
    makes all pre-activations 0 at the mean of x, or gives each feature the run's `initial_rate`. b_dec is the
    normalised mean of y. Raises ValueError if the sample is too small for this rate.
    """
    # random directions gave a higher FVU and seven times as many dead features (docs/log.md)
    tokens = initial_tokens(run, len(x))[features]
    rate_sample = x[:RATE_TOKENS]
    x, y = (side[tokens.to(side.device)].to(device or side.device) for side in (x, y))
    x_centre = x_mean.to(x.device)
    W_enc = unit_rows(x - x_centre)
    parameters = Parameters(
        W_enc=W_enc,
        b_enc=-W_enc @ x_centre / scales.x,
        W_dec=INITIAL_DECODER_NORM * unit_rows(y - scales.y_mean.to(y.device)),
        b_dec=scales.y_mean.to(y.device) / scales.y,
        threshold=torch.full((len(W_enc),), run.initial_threshold, device=x.device)
        if run.act == "jumprelu"
        else None,
        W_skip=torch.zeros(y.shape[1], x.shape[1], device=x.device) if run.skip else None,
    )
    if run.initial_rate is not None:
        threshold = 0.0 if parameters.threshold is None else run.initial_threshold
        parameters.b_enc = threshold - _reached(run, W_enc, rate_sample) / scales.x
    for name, value in parameters.named():
        setattr(parameters, name, value.requires_grad_(True))
    return parameters


def sample_rows(run: Run) -> int:
    """Returns the number of rows that the sample of `initial_parameters` should have."""
    return run.width if run.initial_rate is None else max(run.width, RATE_TOKENS)


def _reached(
    run: Run, W_enc: Float[Tensor, "feature d_in"], x: Float[Tensor, "token d_in"]
) -> Float[Tensor, " feature"]:
    """Returns for each feature a value that W_enc x exceeds on a fraction `run.initial_rate` of the tokens."""
    assert run.initial_rate is not None
    kept = round(run.initial_rate * len(x))
    if not 0 < kept < len(x):
        raise ValueError(
            f"run {run.name}: initial_rate={run.initial_rate:g} is none or all of the {len(x)} tokens on which it is "
            "set; choose another, or cache more tokens"
        )
    found = []
    for rows in W_enc.split(max(1, BLOCK_ENTRIES // len(x))):
        largest = (rows @ x.to(rows.device).T).topk(kept + 1, dim=1).values
        # between two tokens, so that rounding does not decide
        found.append((largest[:, kept - 1] + largest[:, kept]) / 2)
    return torch.cat(found)


def initial_tokens(run: Run, rows: int) -> Int[Tensor, " feature"]:
    """Returns the token of a sample of `rows` tokens from which each of the run's features is initialised."""
    generator = torch.Generator().manual_seed(run.seed)
    return torch.randperm(max(rows, run.width), generator=generator)[: run.width] % rows


def unit_rows(matrix: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """Returns rows of unit norm. Rows of zeros stay zero."""
    return matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def with_unit_rows(parameters: Parameters) -> Parameters:
    """Returns parameters with decoder rows of unit norm that compute the same function.

    A feature's activation is multiplied by the previous norm of the decoder row. Decoder rows of zeros stay zero.
    """
    norm, threshold = parameters.decoder_norm, parameters.threshold
    return replace(
        parameters,
        W_enc=parameters.W_enc * norm[:, None],
        b_enc=parameters.b_enc * norm,
        W_dec=parameters.W_dec / norm.clamp_min(1e-30)[:, None],
        threshold=None if threshold is None else threshold * norm,
    )


@torch.no_grad()
def to_dictionary(
    parameters: Parameters, run: Run, layer: int, scales: Scales, batch_threshold: float = 0.0
) -> Dictionary:
    """Returns the trained dictionary, converted to raw activations. Decoder rows have unit norm.

    `batch_threshold` is a batchtopk run's threshold on z |W_dec[i]|, in normalised units. The act of the dictionary is
    relu, topk or threshold.
    """
    unit = with_unit_rows(parameters)
    return Dictionary(W_dec=unit.W_dec, **raw_fields(unit, run, layer, scales, batch_threshold))


def raw_fields(
    unit: Parameters, run: Run, layer: int, scales: Scales, batch_threshold: float
) -> dict[str, Any]:
    """Returns the fields of the trained dictionary on raw activations, except those about decoders. The arguments are
    those of `to_dictionary`, with parameters from `with_unit_rows`."""
    threshold = unit.threshold
    if threshold is not None:
        threshold = threshold * scales.y
    elif run.act == "batchtopk":
        threshold = torch.full_like(unit.b_enc, batch_threshold * scales.y)
    skip = unit.W_skip
    return {
        "W_enc": unit.W_enc * (scales.y / scales.x),
        "b_enc": unit.b_enc * scales.y,
        "b_dec": unit.b_dec * scales.y,
        "act": {"relu": "relu", "topk": "topk"}.get(run.act, "threshold"),
        "k": run.k if run.act == "topk" else None,
        "threshold": threshold,
        "W_skip": None if skip is None else skip * (scales.y / scales.x),
        "site_in": run.site_in,
        "site_out": run.site_out,
        "layer": layer,
    }
