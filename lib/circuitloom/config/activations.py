"""Config of the activation cache: which activations are stored, and in which format."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from .base import Section

SiteName = Literal["mlp_in", "mlp_out", "resid_mid", "resid_pre"]


class Activations(Section):
    """The cache of activations on the training tokens, at the chosen sites and layers."""

    sites: Annotated[list[SiteName], Field(min_length=1)] = ["mlp_in"]
    """Sites to cache. If `mlp_out` is not listed, training recomputes it from `mlp_in`."""
    layers: Literal["all"] | Annotated[list[NonNegativeInt], Field(min_length=1)] = "all"
    """Layers to cache and to train dictionaries on."""
    tokens: PositiveInt | None = None
    """Maximum number of tokens to cache. With null, every training token is cached, except separators of documents and
    the first token of each sequence."""
    dtype: Literal["float16", "bfloat16", "int8"] = "float16"
    """Number format on disk. For int8, one scale per token is also stored."""
    shard_rows: Annotated[int, Field(ge=4096, multiple_of=4096)] = 262_144
    """Number of tokens per shard. Tokens are shuffled within a shard. Memory holds two shards per layer."""
    batch: PositiveInt = 64
    """Number of sequences per forward pass."""
    jobs: PositiveInt = 1
    """Number of jobs that cache a site together, for several GPUs or nodes. The number of jobs does not change the
    results."""
