"""Which activations are cached, and how they lie on disk."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from .base import Section

SiteName = Literal["mlp_in", "mlp_out", "resid_mid", "resid_pre"]


class Activations(Section):
    """One pass of the training tokens through the model, for all layers asked for."""

    sites: Annotated[list[SiteName], Field(min_length=1)] = ["mlp_in"]
    """Sites to store. `mlp_out` is recomputed from `mlp_in` when read, unless it is listed here."""
    layers: Literal["all"] | Annotated[list[NonNegativeInt], Field(min_length=1)] = "all"
    """Layers to store and to train dictionaries on."""
    tokens: PositiveInt | None = None
    """Rows to store at most; null stores every training token that is not a BOS."""
    dtype: Literal["float16", "bfloat16", "int8"] = "float16"
    """Number format on disk; int8 has one scale a token."""
    shard_rows: Annotated[int, Field(ge=4096, multiple_of=4096)] = 262_144
    """Rows of a shard, within which tokens are shuffled; memory holds two shards of every layer."""
    batch: PositiveInt = 64
    """Sequences a forward pass."""
    jobs: PositiveInt = 1
    """Jobs that share the shards of a site, where there are several GPUs or nodes; they make the same bytes."""
