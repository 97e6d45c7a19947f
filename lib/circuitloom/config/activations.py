"""Config of the activation cache: which activations are stored, and in which format."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from .base import Batch, Section

SiteName = Literal["mlp_in", "mlp_out", "mlp_added", "attn_added", "resid_mid", "resid_pre"]
MLP_INPUTS: tuple[SiteName, ...] = ("mlp_in", "resid_mid")
"""Sites that a transcoder can read: the MLP's input, and the residual stream before the norm of the MLP."""
MLP_OUTPUTS: tuple[SiteName, ...] = ("mlp_out", "mlp_added")
"""Sites that are functions of mlp_in: what the MLP returns, and what it adds to the residual stream."""


class Outliers(Section):
    """Tokens whose activations have a norm far above the others' (massive activations). Scale, loss and FVU of a
    dictionary can be those of a few such tokens."""

    action: Literal["keep", "drop", "cap"] = "keep"
    """`keep`: they are treated as other tokens. `drop`: they are left out of training and of all scores, and keep their
    activation where activations are replaced. `cap`: in training, their activations are scaled down to the bound."""
    above: Annotated[float, Field(gt=1)] = 20
    """Bound of the norm, as a multiple of the median norm at the same site and layer. Tokens above it are outliers."""


class Activations(Section):
    """The cache of activations on the training tokens, at the chosen sites and layers."""

    sites: Annotated[list[SiteName], Field(min_length=1)] = ["mlp_in"]
    """Sites to cache. If `mlp_out` or `mlp_added` is not listed, training recomputes it from `mlp_in`."""
    layers: Literal["all"] | Annotated[list[NonNegativeInt], Field(min_length=1)] = "all"
    """Layers to cache and to train dictionaries on."""
    tokens: PositiveInt | None = None
    """Maximum number of tokens to cache. With null, every training token is cached, except separators of documents and
    the first token of each sequence."""
    dtype: Literal["float16", "bfloat16", "int8"] = "float16"
    """Number format on disk. For int8, one scale per token is also stored."""
    shard_rows: Annotated[int, Field(ge=4096, multiple_of=4096)] = 262_144
    """Number of tokens per shard. Tokens are shuffled within a shard. Memory holds two shards per layer."""
    batch: Batch = "auto"
    """Number of sequences per forward pass. With `auto`, the activations of a pass take at most 2 GB, with at most 64
    sequences. The number depends on the model and on `corpus.context`, not on the machine. It changes results only by
    rounding."""
    jobs: PositiveInt = 1
    """Number of jobs that cache a site together, for several GPUs or nodes. The number of jobs does not change the
    results."""
    outliers: Outliers = Outliers()
    """Tokens of very large norm. The table `activation_norm` says whether there are any."""
