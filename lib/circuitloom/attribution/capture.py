"""Capture a forward pass: activations, attention patterns and norm denominators.

With frozen attention patterns and norm denominators, the model is linear between MLPs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..dictionaries.dictionary import Encoder
from ..language_model.hooks import Site, capture, observed_modules
from ..language_model.lm_head import LMHead, find_lm_head
from ..language_model.model import LanguageModel
from ..language_model.residual import (
    Attention,
    Norm,
    Unembedding,
    read_attention,
    read_norm,
    read_norm_after_mlp,
    read_unembedding,
    scaling,
)

SUM_TOLERANCE = 1e-3
"""Largest relative difference between the final residual stream and the sum of block outputs."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with denominators frozen at their values on one prompt. Its output is affine in its input."""

    norm: Norm | None
    """None if the model has no norm here. Then `vjp` and `jvp` return their argument unchanged."""
    sigma: Float[Tensor, " position"]
    """Denominator of the norm at each position, including epsilon."""

    def vjp(
        self, v: Float[Tensor, "*batch d"], position: slice | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch d"]:
        """Returns the vector-Jacobian product through the frozen norm: P(gain * v) / sigma[position].

        P subtracts the mean in a LayerNorm and is the identity in an RMSNorm. If `position` is a slice, the first
        dimension of v is the position.
        """
        if self.norm is None:
            return v
        sigma = self.sigma[position]
        return self.norm.vjp(v) / sigma.view(sigma.shape + (1,) * (v.dim() - sigma.dim()))

    def jvp(self, x: Float[Tensor, "*batch position d"]) -> Float[Tensor, "*batch position d"]:
        """Returns the Jacobian-vector product through the frozen norm: gain * P x / sigma."""
        return x if self.norm is None else self.norm.gain * self.norm.project(x) / self.sigma[:, None]

    @property
    def bias(self) -> Float[Tensor, " d"] | float:
        """Bias of the norm; 0 if the model has no norm here."""
        return 0.0 if self.norm is None else self.norm.bias


@dataclass(frozen=True)
class BlockWeights:
    """Attention weights and norms of one block."""

    attention: Attention
    norm_attention: Norm | None
    norm_attention_after: Norm | None
    norm_mlp: Norm | None
    norm_mlp_after: Norm | None

    def norm_before(self, dictionary: Encoder) -> Norm | None:
        """Returns the norm between the residual stream and the input of this block's dictionary, or None."""
        return self.norm_mlp if dictionary.is_after_norm else None

    def norm_after(self, dictionary: Encoder) -> Norm | None:
        """Returns the norm between the output of this block's dictionary and the residual stream, or None."""
        return self.norm_mlp_after if dictionary.is_before_norm else None


@dataclass(frozen=True)
class ModelWeights:
    """Weights of everything between the MLPs: attention, norms and unembedding."""

    blocks: list[BlockWeights]
    unembedding: Unembedding
    lm_head: LMHead
    """Computes the original model's logits, with any soft-capping."""


@dataclass(frozen=True)
class CapturedLayer:
    """Activations of one block on one prompt, and the weights of the block's attention."""

    attention: Attention
    pattern: Float[Tensor, "head target source"]
    norm_attention: FrozenNorm
    norm_attention_after: FrozenNorm
    norm_mlp: FrozenNorm
    norm_mlp_after: FrozenNorm
    resid_pre: Float[Tensor, "position d"]
    resid_mid: Float[Tensor, "position d"] | None
    """Residual stream before the norm of the MLP. None if attention and MLP run in parallel."""
    mlp_in: Float[Tensor, "position d"]
    """Input of the MLP, after the norm."""
    mlp_out: Float[Tensor, "position d"]
    """Output of the MLP, before any norm that follows the MLP."""
    mlp_added: Float[Tensor, "position d"]
    """What the MLP adds to the residual stream, after any norm that follows the MLP."""

    def norm_before(self, dictionary: Encoder | None) -> FrozenNorm:
        """Returns the norm between the residual stream and the input of this layer's dictionary. Without a dictionary,
        returns the norm before mlp_in."""
        if dictionary is None or dictionary.is_after_norm:
            return self.norm_mlp
        return FrozenNorm(None, torch.ones_like(self.norm_mlp.sigma))

    def norm_after(self, dictionary: Encoder | None) -> FrozenNorm:
        """Returns the norm between the output of this layer's dictionary and the residual stream. Without a dictionary,
        returns the norm after mlp_out."""
        if dictionary is None or dictionary.is_before_norm:
            return self.norm_mlp_after
        return FrozenNorm(None, torch.ones_like(self.norm_mlp_after.sigma))

    def input(self, dictionary: Encoder) -> Float[Tensor, "position d"]:
        """Returns the value that this layer's dictionary reads, in the model's own numbers."""
        if dictionary.is_after_norm:
            return self.mlp_in
        assert self.resid_mid is not None, "a model with parallel blocks has no resid_mid"
        return self.resid_mid

    def output(self, dictionary: Encoder | None) -> Float[Tensor, "position d"]:
        """Returns the value that this layer's dictionary reconstructs. Without a dictionary, returns mlp_out."""
        return self.mlp_out if dictionary is None or dictionary.is_before_norm else self.mlp_added

    def heads_vjp(
        self, g: Float[Tensor, "*batch d"], position: slice | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch head d_head"]:
        """Backpropagate `g` from attention's output at `position` to the input of W_O, split into heads.

        If a norm follows attention, `g` is the gradient with respect to the output of this norm.
        """
        v = self.norm_attention_after.vjp(g, position)
        heads, size, _ = self.attention.W_O.shape
        return (v @ self.attention.W_O.flatten(0, 1).T).unflatten(-1, (heads, size))

    def attention_vjp(self, g: Float[Tensor, "position target d"]) -> Float[Tensor, "position target d"]:
        """Backpropagate `g` from attention's output to the residual stream before attention.

        `g` and the result cover positions 0 to len(g) - 1.
        """
        n = len(g)
        u = self.heads_vjp(g, slice(n))
        pattern = self.pattern[:, :n, :n]
        # the shape is [head, source, target x d_head], so that each head takes one matrix product
        mixed = pattern.transpose(1, 2) @ u.permute(2, 0, 1, 3).flatten(2)
        mixed = mixed.unflatten(2, (g.shape[1], -1)).permute(1, 2, 0, 3).flatten(2)
        return self.norm_attention.vjp(mixed @ self.attention.W_V.movedim(1, 2).flatten(0, 1), slice(n))

    def attention_vjp_at(
        self, g: Float[Tensor, "target d"], position: Int[Tensor, " target"], n: int
    ) -> Float[Tensor, "position target d"]:
        """Same as `attention_vjp`, but the gradient of target i is g[i] at position[i] and 0 at other positions.

        The result covers positions 0 to n - 1.
        """
        u = self.heads_vjp(g, position)
        v = torch.einsum("nhe,hde->nhd", u, self.attention.W_V)
        pattern = self.pattern[:, position, :n].permute(1, 2, 0)
        return self.norm_attention.vjp((pattern @ v).transpose(0, 1), slice(n))

    def attention_jvp(self, x: Float[Tensor, "*batch position d"]) -> Float[Tensor, "*batch position d"]:
        """Returns the Jacobian-vector product from the residual stream before attention to attention's output."""
        values = torch.einsum("...sd,hde->...hse", self.norm_attention.jvp(x), self.attention.W_V)
        mixed = self.pattern @ values
        return self.norm_attention_after.jvp(torch.einsum("...hte,hed->...td", mixed, self.attention.W_O))

    def head_values(self) -> Float[Tensor, "head position d_head"]:
        """Returns the value vectors of each head, without the biases of the norm and of the values."""
        return torch.einsum("sd,hde->hse", self.norm_attention.jvp(self.resid_pre), self.attention.W_V)

    def attention_constant(self) -> Float[Tensor, "position d"]:
        """Returns the part of attention's output that comes from biases of norms, values and output projection."""
        attention = self.attention
        bias = self.norm_attention.bias + torch.zeros_like(self.resid_pre[0])
        value = torch.einsum("d,hde->he", bias, attention.W_V) + attention.b_V
        mixed = torch.einsum("hts,he,hed->td", self.pattern, value, attention.W_O) + attention.b_O
        return self.norm_attention_after.jvp(mixed) + self.norm_attention_after.bias


@dataclass(frozen=True)
class CapturedPass:
    """Captured forward pass of one prompt."""

    token: Int[Tensor, " position"]
    embedding: Float[Tensor, "position d"]
    position_embedding: Float[Tensor, "position d"] | None
    """Learned position embedding; None if the model has no position embedding in the residual stream."""
    layers: list[CapturedLayer]
    parallel: bool
    """Whether attention and MLP of a block run in parallel."""
    norm_final: FrozenNorm
    unembedding: Unembedding
    resid_final: Float[Tensor, "position d"]
    hidden: Float[Tensor, "position d"]
    """Input of the unembedding in the original model."""
    lm_head: LMHead

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.token)

    def probabilities(self, position: int) -> Float[Tensor, " vocabulary"]:
        """Returns the next-token probabilities of the original model at `position`, with any soft-capping of the
        logits. Raises ValueError if one is not finite."""
        probabilities = self.lm_head.probabilities(self.hidden[position])
        if not probabilities.isfinite().all():
            raise ValueError("the next-token probability is not finite; check the model's weights")
        return probabilities

    def most_likely(self, n: int) -> tuple[Float[Tensor, "position n"], Int[Tensor, "position n"]]:
        """Returns the probabilities and the ids of the `n` most likely next tokens at each position, best first."""
        return self.lm_head.most_likely(self.hidden, n)

    def logits(self) -> Float[Tensor, "position vocabulary"]:
        """Returns the next-token logits minus their mean over the vocabulary, without soft-capping."""
        x = self.norm_final.jvp(self.resid_final) + self.norm_final.bias
        return x @ self.unembedding.weight.T + self.unembedding.bias


def read_weights(model: LanguageModel) -> ModelWeights:
    """Returns the weights of attention, norms and unembedding. Raises ValueError for unsupported architectures."""
    anatomy = model.anatomy
    unembedding = read_unembedding(model)
    like = unembedding.weight[0]

    def norm(layer: int, name: str | None) -> Norm | None:
        module = model.norm(layer, name)
        return None if module is None else read_norm(module, like)

    return ModelWeights(
        [
            BlockWeights(
                attention,
                norm(layer, anatomy.norm_attention),
                norm(layer, anatomy.norm_attention_after) or scaling(model, like),
                norm(layer, anatomy.norm_mlp or anatomy.norm_attention),
                read_norm_after_mlp(model, layer),
            )
            for layer, attention in enumerate(read_attention(model))
        ],
        unembedding,
        find_lm_head(model),
    )


@torch.inference_mode()
def capture_pass(
    model: LanguageModel, weights: ModelWeights, token: Int[Tensor, " position"]
) -> CapturedPass:
    """Capture the forward pass of one prompt.

    Raises ValueError if attention returns no patterns, if the residual stream is not the sum of block outputs, or if a
    hidden state is not finite.
    """
    anatomy = model.anatomy
    observed = _Observed()
    blocks = range(model.layers)
    modules = _modules(model)
    block_modules = {("block", layer): model.block(layer) for layer in blocks}
    with model.eager_attention(), observed_modules(modules | block_modules, observed.keep):
        # the pass ends before the unembedding
        [hidden] = capture(model, token[None], [Site("unembedding_in")]).values()
    model.check_finite(hidden, "the last hidden state of the prompt")

    def frozen(name: str, layer: int, norm: Norm | None) -> FrozenNorm:
        if norm is None or (name, layer) not in observed.inputs:
            return FrozenNorm(norm, weights.unembedding.weight.new_ones(len(token)))
        return FrozenNorm(norm, norm.denominator(observed.inputs[name, layer], observed.outputs[name, layer]))

    layers = []
    for layer, block in zip(blocks, weights.blocks, strict=True):
        shared = "norm_mlp" if ("norm_mlp", layer) in observed.inputs else "norm_attention"
        mlp_in = observed.inputs["mlp", layer]
        layers.append(
            CapturedLayer(
                attention=block.attention,
                pattern=_pattern(observed, layer, anatomy.architecture),
                norm_attention=frozen("norm_attention", layer, block.norm_attention),
                norm_attention_after=frozen("norm_attention_after", layer, block.norm_attention_after),
                norm_mlp=frozen(shared, layer, block.norm_mlp),
                norm_mlp_after=frozen("norm_mlp_after", layer, block.norm_mlp_after),
                resid_pre=observed.inputs["block", layer],
                # without a norm, the MLP reads the stream
                resid_mid=None if anatomy.parallel else observed.inputs.get(("norm_mlp", layer), mlp_in),
                mlp_in=mlp_in,
                mlp_out=observed.outputs["mlp", layer],
                mlp_added=observed.added("mlp", layer, model),
            )
        )
    positions = observed.outputs.get(("positions", 0))
    resid_pre = layers[0].resid_pre
    result = CapturedPass(
        token=token,
        # this includes any scaling of the embedding, as in Gemma
        embedding=resid_pre if positions is None else resid_pre - positions,
        position_embedding=positions,
        layers=layers,
        parallel=anatomy.parallel,
        norm_final=frozen("norm_final", 0, weights.unembedding.norm),
        unembedding=weights.unembedding,
        resid_final=observed.inputs["norm_final", 0],
        hidden=hidden[0],
        lm_head=weights.lm_head,
    )
    _check_sum(result, observed, model)
    return result


def _modules(model: LanguageModel) -> dict[tuple[str, int], nn.Module]:
    """Returns the modules to observe, keyed by (name, layer). Outside blocks, the layer is 0."""
    modules = {
        (name, layer): module
        for layer in range(model.layers)
        for name in (
            "attention",
            "norm_attention",
            "norm_attention_after",
            "norm_mlp",
            "norm_mlp_after",
            "mlp",
        )
        if (module := _block_module(model, layer, name)) is not None
    }
    modules["norm_final", 0] = model.module.get_submodule(model.anatomy.norm_final)
    modules["embedding", 0] = model.module.get_submodule(model.anatomy.embedding)
    if model.anatomy.positions is not None:
        modules["positions", 0] = model.module.get_submodule(model.anatomy.positions)
    return modules


def _block_module(model: LanguageModel, layer: int, name: str) -> nn.Module | None:
    if name == "mlp":
        return model.mlp(layer)
    if name == "attention":
        return model.attention(layer)
    return model.norm(layer, getattr(model.anatomy, name))


class _Observed:
    """Inputs and outputs of modules in a forward pass of one sequence, without the batch dimension."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, int], Tensor] = {}
        self.outputs: dict[tuple[str, int], Tensor] = {}
        self.other_outputs: dict[tuple[str, int], tuple] = {}

    def keep(self, key: tuple[str, int], args: tuple, kwargs: dict, output) -> None:
        """Store the input and output of the module `key`."""
        x = args[0] if args else kwargs.get("hidden_states")
        first, rest = (output, ()) if isinstance(output, Tensor) else (output[0], output[1:])
        if x is not None:
            self.inputs[key] = x[0]
        # position embeddings may have no batch dimension
        first = first[0] if first.dim() == 3 else first
        # Falcon adds attention's output to the MLP's output in place
        self.outputs[key] = first.clone() if key[0] == "mlp" else first
        self.other_outputs[key] = tuple(rest)

    def added(self, part: str, layer: int, model: LanguageModel) -> Tensor:
        """Returns what attention or the MLP of a layer adds to the residual stream."""
        after, factor = self.outputs.get((f"norm_{part}_after", layer)), model.residual_multiplier
        if after is not None:
            return after
        return self.outputs[part, layer] if factor == 1 else factor * self.outputs[part, layer]


def _pattern(observed: _Observed, layer: int, architecture: str) -> Float[Tensor, "head target source"]:
    for value in observed.other_outputs["attention", layer]:
        if isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]:
            return value[0]
    raise ValueError(f"{architecture}: its attention returns no pattern; choose another model")


def _check_sum(result: CapturedPass, observed: _Observed, model: LanguageModel) -> None:
    """Raise ValueError if the residual stream is not the sum of block outputs."""
    total = result.layers[0].resid_pre.clone()
    for layer in range(len(result.layers)):
        for part in ("attention", "mlp"):
            total += observed.added(part, layer, model)
    difference = (total - result.resid_final).norm() / result.resid_final.norm()
    if not difference < SUM_TOLERANCE:
        raise ValueError(
            f"{model.anatomy.architecture}: its residual stream is not the sum of its blocks' outputs; choose another "
            "model"
        )
