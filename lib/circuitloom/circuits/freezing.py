"""The pass of a prompt through the model, watched, and put together as a frozen one."""

from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..language_model.model import LanguageModel
from ..language_model.residual import Norm
from .frozen import FrozenLayer, FrozenNorm, FrozenPass, Weights

TOLERANCE = 1e-3
"""Share of the residual stream's norm by which it may differ from the sum of what was written to it."""


@torch.inference_mode()
def freeze(model: LanguageModel, weights: Weights, token: Int[Tensor, " position"]) -> FrozenPass:
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
            FrozenLayer(
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
    result = FrozenPass(
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


def _check_sum(result: FrozenPass, seen: _Seen, architecture: str) -> None:
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
