"""A prompt's pass through the model with attention patterns and norm denominators held: between MLPs, it is linear.
The pass of a prompt through the model, watched, and put together as a frozen one."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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
class BlockWeights:
    """What one block does that no prompt changes."""

    attention: Attention
    norm_attention: Norm | None
    norm_attention_after: Norm | None
    norm_mlp: Norm | None
    norm_mlp_after: Norm | None


@dataclass(frozen=True)
class ModelWeights:
    """What the model's parts do between MLPs, read once for all prompts."""

    blocks: list[BlockWeights]
    unembedding: Unembedding


@dataclass(frozen=True)
class CapturedLayer:
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
class CapturedPass:
    """A prompt's pass: what entered the residual stream, what each block did, what came out."""

    token: Int[Tensor, " position"]
    embedding: Float[Tensor, "position d"]
    positions: Float[Tensor, "position d"] | None
    """Learned embedding of positions, where the model adds one to the stream."""
    layers: list[CapturedLayer]
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


def read_weights(model: LanguageModel) -> ModelWeights:
    """What the parts of `model` do; ValueError where one is of a kind that circuits do not go through."""
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
                norm(layer, anatomy.norm_attention_after),
                norm(layer, anatomy.norm_mlp or anatomy.norm_attention),
                norm(layer, anatomy.norm_mlp_after),
            )
            for layer, attention in enumerate(read_attention(model))
        ],
        unembedding,
    )


TOLERANCE = 1e-3
"""Share of the residual stream's norm by which it may differ from the sum of what was written to it."""


@torch.inference_mode()
def capture_pass(
    model: LanguageModel, weights: ModelWeights, token: Int[Tensor, " position"]
) -> CapturedPass:
    """The pass of one prompt.

    Raises ValueError where attention hands out no patterns, or the stream is not the sum of what blocks write.
    """
    anatomy = model.anatomy
    seen = _Seen()
    blocks = range(model.layers)
    parts = _parts(model)
    starts = {("block", layer): model.block(layer) for layer in blocks}
    with model.exposing_patterns(), seen.watching(parts | starts):
        probabilities = model.logits(token[None])[0].softmax(-1)

    def frozen(name: str, layer: int, norm: Norm | None) -> FrozenNorm:
        if norm is None:
            return FrozenNorm(None, weights.unembedding.weight.new_ones(len(token)))
        return FrozenNorm(norm, norm.denominator(seen.inputs[name, layer], seen.outputs[name, layer]))

    layers = []
    for layer, block in zip(blocks, weights.blocks, strict=True):
        shared = "norm_mlp" if ("norm_mlp", layer) in seen.inputs else "norm_attention"
        layers.append(
            CapturedLayer(
                attention=block.attention,
                pattern=_pattern(seen, layer, anatomy.architecture),
                norm_attention=frozen("norm_attention", layer, block.norm_attention),
                norm_attention_after=frozen("norm_attention_after", layer, block.norm_attention_after),
                norm_mlp=frozen(shared, layer, block.norm_mlp),
                norm_mlp_after=frozen("norm_mlp_after", layer, block.norm_mlp_after),
                resid_pre=seen.inputs["block", layer],
                mlp_in=seen.inputs["mlp", layer],
                mlp_out=seen.outputs["mlp", layer],
            )
        )
    positions = seen.outputs.get(("positions", 0))
    start = layers[0].resid_pre
    result = CapturedPass(
        token=token,
        # whatever scales the embedding on its way into the stream belongs to it
        embedding=start if positions is None else start - positions,
        positions=positions,
        layers=layers,
        parallel=anatomy.parallel,
        norm_final=frozen("norm_final", 0, weights.unembedding.norm),
        unembedding=weights.unembedding,
        resid_final=seen.inputs["norm_final", 0],
        probabilities=probabilities,
    )
    _check_sum(result, seen, anatomy.architecture)
    return result


def _parts(model: LanguageModel) -> dict[tuple[str, int], nn.Module]:
    """The modules that a pass is watched at, by name and layer; 0 where there is but one."""
    parts = {
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
        if (module := _part(model, layer, name)) is not None
    }
    parts["norm_final", 0] = model.module.get_submodule(model.anatomy.norm_final)
    parts["embedding", 0] = model.module.get_submodule(model.anatomy.embedding)
    if model.anatomy.positions is not None:
        parts["positions", 0] = model.module.get_submodule(model.anatomy.positions)
    return parts


def _part(model: LanguageModel, layer: int, name: str) -> nn.Module | None:
    if name == "mlp":
        return model.mlp(layer)
    if name == "attention":
        return model.attention(layer)
    return model.norm(layer, getattr(model.anatomy, name))


class _Seen:
    """First input and output of modules in one pass, without the batch's dimension; and what else they return."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, int], Tensor] = {}
        self.outputs: dict[tuple[str, int], Tensor] = {}
        self.rest: dict[tuple[str, int], tuple] = {}

    def watching(self, modules: dict[tuple[str, int], nn.Module]):
        """A context in which passes through `modules` are seen."""
        stack = ExitStack()
        for key, module in modules.items():
            handle = module.register_forward_hook(self._hook(key), with_kwargs=True)
            stack.callback(handle.remove)
        return stack

    def _hook(self, key: tuple[str, int]):
        def see(_module, args, kwargs, output):
            given = args[0] if args else kwargs.get("hidden_states")
            first, rest = (output, ()) if isinstance(output, Tensor) else (output[0], output[1:])
            if given is not None:
                self.inputs[key] = given[0]
            # an embedding of positions may come without a batch
            self.outputs[key] = first[0] if first.dim() == 3 else first
            self.rest[key] = tuple(rest)

        return see


def _pattern(seen: _Seen, layer: int, architecture: str) -> Float[Tensor, "head target source"]:
    for value in seen.rest["attention", layer]:
        if isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]:
            return value[0]
    raise ValueError(f"{architecture}: its attention returns no pattern; choose another model")


def _check_sum(result: CapturedPass, seen: _Seen, architecture: str) -> None:
    """The stream at the end must be what the parts wrote: some architectures scale or gate what they add."""
    total = result.layers[0].resid_pre.clone()
    for layer in range(len(result.layers)):
        for part in ("attention", "mlp"):
            after = (f"norm_{part}_after", layer)
            total += seen.outputs.get(after, seen.outputs[part, layer])
    difference = (total - result.resid_final).norm() / result.resid_final.norm()
    if not difference < TOLERANCE:
        raise ValueError(
            f"{architecture}: its residual stream is not the sum of what its blocks write; choose another model"
        )
