"""Which activations are cached, and their format on disk."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from .base import Section

SiteName = Literal["mlp_in", "mlp_out", "resid_mid", "resid_pre"]


class Activations(Section):
    """The activation cache: one pass over the training tokens stores the chosen sites and layers."""

    sites: Annotated[list[SiteName], Field(min_length=1)] = ["mlp_in"]
    """Sites to cache. `mlp_out` is recomputed from `mlp_in` when it is read, unless it is listed here."""
    layers: Literal["all"] | Annotated[list[NonNegativeInt], Field(min_length=1)] = "all"
    """Layers to cache and to train dictionaries on."""
    tokens: PositiveInt | None = None
    """Maximum number of tokens to cache; null: every training token that is not a BOS."""
    dtype: Literal["float16", "bfloat16", "int8"] = "float16"
    """Number format on disk; int8 has one scale per token."""
    shard_rows: Annotated[int, Field(ge=4096, multiple_of=4096)] = 262_144
    """Tokens per shard; tokens are shuffled within shards, and memory holds two shards per layer."""
    batch: PositiveInt = 64
    """Sequences per forward pass."""
    jobs: PositiveInt = 1
    """Number of jobs that share the shards of a site, for several GPUs or nodes. It does not change the results."""
