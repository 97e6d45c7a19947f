"""The language model: pretrained here, from a folder, or from the hub."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from .base import ExpandedPath, Section


class Pretrain(Section):
    """Pretrain a model of GPT-2's architecture on the corpus: Muon for matrices, AdamW for other parameters."""

    source: Literal["pretrain"]
    """Kind of source."""
    layers: PositiveInt = 3
    """Number of blocks."""
    d_model: PositiveInt = 128
    """Width of the residual stream."""
    heads: PositiveInt = 4
    """Attention heads per block; divides d_model."""
    d_mlp: PositiveInt | None = None
    """MLP neurons per block; null: 4 d_model."""
    tokens: PositiveInt = 20_000_000
    """Training tokens; several epochs if the corpus has fewer."""
    batch: PositiveInt = 64
    """Sequences per training step."""
    learning_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate_embedding: PositiveFloat = 0.003
    """Peak learning rate of AdamW, for embeddings, norms and biases."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of the matrices."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Fraction of the steps during which the learning rate rises linearly."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Fraction of the steps, at the end, during which the learning rate falls linearly to zero."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; a killed run resumes from the last one."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "Pretrain":
        if self.d_model % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide d_model={self.d_model}; choose one that does"
            )
        return self


class ModelFolder(Section):
    """A model in a folder in the Hugging Face layout."""

    source: Literal["path"]
    """Kind of source."""
    path: ExpandedPath
    """Folder with config.json and weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the model's weights and activations."""


class ModelSizes(Section):
    """Sizes of a model, as in its config.json: with them, `snakemake plan` does not need the hub."""

    layers: PositiveInt
    """Number of blocks."""
    d_model: PositiveInt
    """Width of the residual stream."""
    d_mlp: PositiveInt
    """MLP neurons per block."""
    heads: PositiveInt
    """Attention heads per block."""
    key_value_heads: NonNegativeInt = 0
    """Number of key-value heads (grouped-query attention); 0: the same as heads."""
    context: PositiveInt
    """Longest sequence, in tokens."""
    vocabulary: PositiveInt
    """Number of tokens in the vocabulary."""
    gated: bool = False
    """The MLP is gated (SwiGLU and similar): three matrices instead of two."""
    parallel: bool = False
    """Attention and MLP run in parallel on the same residual stream."""


class HubModel(Section):
    """A model of the Hugging Face hub, also in TransformerLens' legacy format."""

    source: Literal["hub"]
    """Kind of source."""
    name: str
    """Name on the hub, such as `gpt2` or `NeelNanda/GELU_1L512W_C4_Code`."""
    revision: str = "main"
    """Branch, tag or commit; the resolved commit is recorded in the results."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the model's weights and activations."""
    shape: ModelSizes | None = None
    """Sizes of the model; null: read from the hub. They are compared with the model when it is installed."""


LanguageModel = Annotated[Pretrain | ModelFolder | HubModel, Field(discriminator="source")]
