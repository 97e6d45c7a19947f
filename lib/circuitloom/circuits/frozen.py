"""A prompt's pass through the model with attention patterns and norm denominators held: between MLPs, it is linear."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..language_model.model import LanguageModel
from ..language_model.residual import (
    Attention,
    Norm,
    Unembedding,
    read_attention,
    read_norm,
    read_unembedding,
)


@dataclass(frozen=True)
class FrozenNorm:
    """A norm whose denominators are held: linear up to its bias."""

    norm: Norm | None
    """None where there is no norm: everything goes through unchanged."""
    sigma: Float[Tensor, " position"]
    """Denominator at each position, epsilon included."""

    def pull_back(
        self, v: Float[Tensor, "*batch d"], position: slice | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch d"]:
        """What vectors that read behind the norm at `position` are in front of it: P(gain * v) / sigma.

        With a slice, the first dimension of v runs over its positions.
        """
        if self.norm is None:
            return v
        sigma = self.sigma[position]
        return self.norm.pull_back(v) / sigma.view(sigma.shape + (1,) * (v.dim() - sigma.dim()))

    def push(self, x: Float[Tensor, "*batch position d"]) -> Float[Tensor, "*batch position d"]:
        """What a change x in front of the norm is behind it: gain * P x / sigma."""
        return x if self.norm is None else self.norm.gain * self.norm.project(x) / self.sigma[:, None]

    @property
    def bias(self) -> Float[Tensor, " d"] | float:
        """What the norm gives for zero."""
        return 0.0 if self.norm is None else self.norm.bias


@dataclass(frozen=True)
class Block:
    """What one block does that no prompt changes."""

    attention: Attention
    norm_attention: Norm | None
    norm_attention_after: Norm | None
    norm_mlp: Norm | None
    norm_mlp_after: Norm | None


@dataclass(frozen=True)
class Weights:
    """What the model's parts do between MLPs, read once for all prompts."""

    blocks: list[Block]
    unembedding: Unembedding


@dataclass(frozen=True)
class FrozenLayer:
    """One block on one prompt."""

    attention: Attention
    pattern: Float[Tensor, "head target source"]
    norm_attention: FrozenNorm
    norm_attention_after: FrozenNorm
    norm_mlp: FrozenNorm
    norm_mlp_after: FrozenNorm
    resid_pre: Float[Tensor, "position d"]
    mlp_in: Float[Tensor, "position d"]
    """What the MLP reads, behind its norm."""
    mlp_out: Float[Tensor, "position d"]
    """What the MLP gives, in front of a norm behind it."""

    def pull_heads(
        self, g: Float[Tensor, "*batch d"], position: slice | Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch head d_head"]:
        """What vectors that read the block's attention at `position` read in each head's mix of values."""
        v = self.norm_attention_after.pull_back(g, position)
        heads, size, _ = self.attention.W_O.shape
        return (v @ self.attention.W_O.flatten(0, 1).T).unflatten(-1, (heads, size))

    def pull_attention(self, g: Float[Tensor, "position target d"]) -> Float[Tensor, "position target d"]:
        """What vectors that read the block's attention at the first positions read in front of it, at each of them."""
        n = len(g)
        u = self.pull_heads(g, slice(n))
        pattern = self.pattern[:, :n, :n]
        # [head, source, target x d_head]: one product a head
        mixed = pattern.transpose(1, 2) @ u.permute(2, 0, 1, 3).flatten(2)
        mixed = mixed.unflatten(2, (g.shape[1], -1)).permute(1, 2, 0, 3).flatten(2)
        return self.norm_attention.pull_back(mixed @ self.attention.W_V.movedim(1, 2).flatten(0, 1), slice(n))

    def pull_attention_from(
        self, g: Float[Tensor, "target d"], position: Int[Tensor, " target"], n: int
    ) -> Float[Tensor, "position target d"]:
        """As `pull_attention`, of vectors that each read at one position; of the first n positions."""
        u = self.pull_heads(g, position)
        read = torch.einsum("nhe,hde->nhd", u, self.attention.W_V)
        seen = self.pattern[:, position, :n].permute(1, 2, 0)
        return self.norm_attention.pull_back((seen @ read).transpose(0, 1), slice(n))

    def push_attention(self, x: Float[Tensor, "*batch position d"]) -> Float[Tensor, "*batch position d"]:
        """What a change x of the stream in front of attention is in what attention adds to it."""
        values = torch.einsum("...sd,hde->...hse", self.norm_attention.push(x), self.attention.W_V)
        mixed = self.pattern @ values
        return self.norm_attention_after.push(torch.einsum("...hte,hed->...td", mixed, self.attention.W_O))

    def head_values(self) -> Float[Tensor, "head position d_head"]:
        """Values that heads take from each position, biases of norm and values left out."""
        return torch.einsum("sd,hde->hse", self.norm_attention.push(self.resid_pre), self.attention.W_V)

    def attention_constant(self) -> Float[Tensor, "position d"]:
        """What attention adds to the stream whatever it reads: biases of its norms, values and output."""
        attention = self.attention
        bias = self.norm_attention.bias + torch.zeros_like(self.resid_pre[0])
        value = torch.einsum("d,hde->he", bias, attention.W_V) + attention.b_V
        mixed = torch.einsum("hts,he,hed->td", self.pattern, value, attention.W_O) + attention.b_O
        return self.norm_attention_after.push(mixed) + self.norm_attention_after.bias


@dataclass(frozen=True)
class FrozenPass:
    """A prompt's pass: what entered the residual stream, what each block did, what came out."""

    token: Int[Tensor, " position"]
    embedding: Float[Tensor, "position d"]
    positions: Float[Tensor, "position d"] | None
    """Learned embedding of positions, where the model adds one to the stream."""
    layers: list[FrozenLayer]
    parallel: bool
    """A layer's MLP does not read what its own attention writes."""
    norm_final: FrozenNorm
    unembedding: Unembedding
    resid_final: Float[Tensor, "position d"]
    probabilities: Float[Tensor, "position vocabulary"]
    """Of the next token, as the model itself gives them: some cap their logits, which is left out here."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.token)

    def logits(self) -> Float[Tensor, "position vocabulary"]:
        """Next-token logits, their mean over the vocabulary taken off."""
        read = self.norm_final.push(self.resid_final) + self.norm_final.bias
        return read @ self.unembedding.weight.T + self.unembedding.bias


def read_weights(model: LanguageModel) -> Weights:
    """What the parts of `model` do; ValueError where one is of a kind that circuits do not go through."""
    anatomy = model.anatomy
    unembedding = read_unembedding(model)
    like = unembedding.weight[0]

    def norm(layer: int, name: str | None) -> Norm | None:
        module = model.norm(layer, name)
        return None if module is None else read_norm(module, like)

    return Weights(
        [
            Block(
                attention,
                norm(layer, anatomy.norm_attention),
                norm(layer, anatomy.norm_attention_after),
                norm(layer, anatomy.norm_mlp or anatomy.norm_attention),
                norm(layer, anatomy.norm_mlp_after),
            )
            for layer, attention in enumerate(read_attention(model))
        ],
        unembedding,
    )
