"""Config of the language model. The model is pretrained by the study, or comes from a folder or the hub."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from .base import ExpandedPath, Section


class _Measured(Section):
    """Keys that all sources share."""

    loss_tokens: PositiveInt | None = None
    """Number of held-out tokens on which the model's loss is measured, in complete sequences. With null, all held-out
    tokens are used."""


class Pretrain(_Measured):
    """Pretraining of a model with GPT-2's architecture on the corpus. Muon trains the matrices of the blocks. AdamW
    trains all other parameters."""

    source: Literal["pretrain"]
    """Kind of source, which determines the other keys."""
    layers: PositiveInt = 3
    """Number of blocks."""
    d_model: PositiveInt = 128
    """Width of the residual stream."""
    heads: PositiveInt = 4
    """Number of attention heads per block. This number must divide d_model."""
    d_mlp: PositiveInt | None = None
    """Number of MLP neurons per block. With null, it is 4 times d_model."""
    tokens: PositiveInt = 20_000_000
    """Number of training tokens. If the corpus has fewer tokens, training takes several epochs."""
    batch: PositiveInt = 64
    """Number of sequences per training step."""
    learning_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon, for the matrices of the blocks."""
    learning_rate_embedding: PositiveFloat = 0.003
    """Peak learning rate of AdamW, for embeddings, norms and biases."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay of the blocks' matrices."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Fraction of the steps, at the start, during which the learning rate rises linearly."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Fraction of the steps, at the end, during which the learning rate falls linearly to zero."""
    checkpoint_every: PositiveInt = 500
    """Number of steps between checkpoints. Killed pretraining resumes from the last checkpoint."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "Pretrain":
        if self.d_model % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide d_model={self.d_model}; choose one that does"
            )
        return self


class ModelFolder(_Measured):
    """A model in a folder in the Hugging Face layout, or in a GGUF file (llama.cpp's format). Reading a GGUF file needs
    the package `gguf`, and dequantizes the weights. docs/models.md lists the architectures that run."""

    source: Literal["path"]
    """Kind of source, which determines the other keys."""
    path: ExpandedPath
    """Folder with config.json and weights, or a GGUF file, whose name ends in `.gguf`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the model's weights and activations."""


class ModelSizes(Section):
    """Sizes of a model, as in its config.json. With these sizes, `snakemake plan` does not need the hub."""

    layers: PositiveInt
    """Number of blocks."""
    d_model: PositiveInt
    """Width of the residual stream."""
    d_mlp: PositiveInt
    """Number of MLP neurons per block."""
    heads: PositiveInt
    """Number of attention heads per block."""
    key_value_heads: NonNegativeInt = 0
    """Number of key-value heads, for grouped-query attention. 0 means the same number as `heads`."""
    head_dim: NonNegativeInt = 0
    """Width of a head. 0 means d_model / heads."""
    context: PositiveInt
    """Maximum length of a sequence, in tokens."""
    vocabulary: PositiveInt
    """Number of tokens in the vocabulary."""
    gated: bool = False
    """Whether the MLP is gated, as in SwiGLU. A gated MLP has three matrices instead of two."""
    parallel: bool = False
    """Whether attention and MLP both read the residual stream at the start of the block."""


class HubModel(_Measured):
    """A model of the Hugging Face hub. TransformerLens' legacy format is also supported. docs/models.md lists the
    architectures that run."""

    source: Literal["hub"]
    """Kind of source, which determines the other keys."""
    name: str
    """Name on the hub, such as `gpt2` or `NeelNanda/GELU_1L512W_C4_Code`."""
    revision: str = "main"
    """Branch, tag or commit of the model. The results record the commit."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the model's weights and activations."""
    shape: ModelSizes | None = None
    """Sizes of the model. With null, the sizes are read from the hub. Otherwise, the sizes are compared with the
    model's config.json when the model is copied into the results."""


LanguageModel = Annotated[Pretrain | ModelFolder | HubModel, Field(discriminator="source")]
