"""Which language model is studied: trained here, from a folder, or from the hub."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from .base import ExpandedPath, Section


class Pretrain(Section):
    """Train a GPT-2-shaped model on the corpus: Muon for the matrices, AdamW for the rest."""

    source: Literal["pretrain"]
    """Which kind of source this is."""
    layers: PositiveInt = 3
    """Number of blocks."""
    d_model: PositiveInt = 128
    """Residual width, d."""
    heads: PositiveInt = 4
    """Attention heads a block; divides d_model."""
    d_mlp: PositiveInt | None = None
    """MLP neurons a block; null is 4 d_model."""
    tokens: PositiveInt = 20_000_000
    """Tokens trained on, over as many epochs as that takes."""
    batch: PositiveInt = 64
    """Sequences a step."""
    learning_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate_embedding: PositiveFloat = 0.003
    """Peak learning rate of AdamW, for embeddings, norms and biases."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of the matrices."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the steps over which the learning rate rises."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of the steps, the last, over which the learning rate falls linearly to zero."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints, from which a killed run resumes."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "Pretrain":
        if self.d_model % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide d_model={self.d_model}; choose one that does"
            )
        return self


class ModelFolder(Section):
    """A folder in the Hugging Face layout."""

    source: Literal["path"]
    """Which kind of source this is."""
    path: ExpandedPath
    """The folder, with config.json and weights."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format the model runs in."""


class ModelSizes(Section):
    """The sizes of a model, as its config.json would state them: a plan then needs nothing of the hub."""

    layers: PositiveInt
    """Number of blocks."""
    d_model: PositiveInt
    """Residual width."""
    d_mlp: PositiveInt
    """MLP neurons a block."""
    heads: PositiveInt
    """Attention heads a block."""
    key_value_heads: NonNegativeInt = 0
    """Heads of keys and values, where queries share them; 0: as many as heads."""
    context: PositiveInt
    """Longest sequence, in tokens."""
    vocabulary: PositiveInt
    """Number of tokens."""
    gated: bool = False
    """The MLP has a gate: three matrices, not two."""
    parallel: bool = False
    """Attention and MLP read the same residual stream."""


class HubModel(Section):
    """A model of the Hugging Face hub; repositories in TransformerLens' legacy format included."""

    source: Literal["hub"]
    """Which kind of source this is."""
    name: str
    """Name on the hub, such as `gpt2` or `NeelNanda/GELU_1L512W_C4_Code`."""
    revision: str = "main"
    """Branch, tag or commit; the commit it resolves to is recorded in the results."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format the model runs in."""
    shape: ModelSizes | None = None
    """The model's sizes; null reads them from the hub. Stated ones are checked against the model's once it is there."""


LanguageModel = Annotated[Pretrain | ModelFolder | HubModel, Field(discriminator="source")]
