"""A causal language model and its parts: blocks, MLPs, attention and norms.

Module `hooks` captures and edits the model's activations.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config.architectures import ADAPTER, IS_ADAPTER
from ..core.errors import first_line
from .anatomy import ANATOMY_FILE, Anatomy, find_anatomy, is_native, read_anatomy
from .model_files import weight_files

_REMEDIES = {
    "float16": "set language_model.dtype to bfloat16 or float32",
    "bfloat16": "set language_model.dtype to float32, or check the model's weights",
}
"""What to do if a value is not finite, by the model's number format. float16 overflows beyond 65,504."""
_CONSTANT = re.compile(
    r"(^|\.)((attn|attention|self_attn|self_attention)\.(bias|masked_bias|causal_mask)|rotary(_emb)?\.inv_freq|"
    r"embed_positions|rope_freqs\.weight|rope_factors_(long|short)\.weight)$"
)
"""Matches names of masks and position constants, which are no weights and which old checkpoints store."""


class _Multiply(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class LanguageModel:
    """A Hugging Face model with fused attention, and the names of its modules.

    TransformerLens' bridge gives the same activations (tests/activations/test_sites.py), but forces eager attention.
    """

    def __init__(self, module: nn.Module, anatomy: Anatomy) -> None:
        self.module = module.eval().requires_grad_(False)
        self.anatomy = anatomy
        self.device = next(module.parameters()).device
        # most passes generate no text, so that keys and values need not be cached; `decoding` asks for them
        config: Any = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False

    @property
    def dtype(self) -> str:
        """Name of the number format of the weights, such as `float32`."""
        return str(next(self.module.parameters()).dtype).removeprefix("torch.")

    def check_finite(self, values: Float[Tensor, "..."], what: str) -> None:
        """Raise ValueError if a value is not finite, with the number format and the remedy. `what` names the values."""
        finite = values.isfinite()
        if not finite.all():
            count = f" at {int((~finite).sum())} of {finite.numel()} places" if finite.numel() > 1 else ""
            remedy = _REMEDIES.get(self.dtype, "check the model's weights")
            raise ValueError(f"{what} is not finite in {self.dtype}{count}; {remedy}")

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.anatomy.layers

    def block(self, layer: int) -> nn.Module:
        """Returns the block of `layer`."""
        return self.module.get_submodule(f"{self.anatomy.blocks}.{layer}")

    def mlp(self, layer: int) -> nn.Module:
        """Returns the MLP of `layer`, a map from mlp_in to mlp_out."""
        return self.block(layer).get_submodule(self.anatomy.mlp)

    def norm_after_mlp(self, layer: int) -> nn.Module | None:
        """Returns the norm that is applied to the MLP's output before it is added to the residual stream, or None."""
        return self.norm(layer, self.anatomy.norm_mlp_after)

    def map_to(self, site: str, layer: int) -> nn.Module:
        """Returns a module that maps mlp_in to `site` of `layer`, which is mlp_out or mlp_added."""
        norm, factor = self.norm_after_mlp(layer), self.residual_multiplier
        if site == "mlp_out" or (norm is None and factor == 1):
            return self.mlp(layer)
        return nn.Sequential(self.mlp(layer), _Multiply(factor) if norm is None else norm)

    @property
    def changes_mlp_out(self) -> bool:
        """Whether mlp_added differs from mlp_out: a norm or a factor is applied to the MLP's output."""
        norms = (self.norm_after_mlp(layer) for layer in range(self.layers))
        return self.residual_multiplier != 1 or any(norm is not None for norm in norms)

    @property
    def changes_attention_out(self) -> bool:
        """Whether attn_added differs from the output of the attention module: a norm or a factor is applied to it."""
        norms = (self.norm(layer, self.anatomy.norm_attention_after) for layer in range(self.layers))
        return self.residual_multiplier != 1 or any(norm is not None for norm in norms)

    def attention(self, layer: int) -> nn.Module:
        """Returns the attention module of `layer`."""
        return self.block(layer).get_submodule(self.anatomy.attention)

    def norm(self, layer: int, name: str | None) -> nn.Module | None:
        """Returns the norm `name` of block `layer`. Returns None if `name` is None or if the norm is an identity."""
        module = None if name is None else self.block(layer).get_submodule(name)
        return None if isinstance(module, nn.Identity) else module

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Within the context, attention modules also return attention patterns, without fused attention."""
        config: Any = getattr(self.module, "config", None)
        fused = getattr(config, "_attn_implementation", None)
        if fused is None:
            yield
            return
        self._set_attention("eager")
        try:
            yield
        finally:
            self._set_attention(fused)

    def _set_attention(self, implementation: str) -> None:
        """Set the implementation of attention, such as `eager`."""
        module: Any = self.module
        module.set_attn_implementation(implementation)
        # Falcon refuses, although its attention reads the config in each pass
        if module.config._attn_implementation != implementation:
            module.config._attn_implementation = implementation

    @property
    def unembedding(self) -> nn.Module:
        """The module that maps hidden states to logits, a `Linear` in all architectures that run."""
        return self.module.get_submodule(self.anatomy.unembedding)

    @property
    def vocabulary(self) -> int:
        """Number of logits per position. At least the number of tokens, because some models pad their vocabulary."""
        return len(next(self.unembedding.parameters()))

    def unembed(
        self, hidden: Float[Tensor, "*row d"], tokens: slice | Int[Tensor, " token"] = slice(None)
    ) -> Float[Tensor, "*row token"]:
        """Returns the logits of `hidden`, the unembedding's input, for some `tokens` (by default for all).

        Includes the scale and the soft cap of the logits that some configs name. If the unembedding is a `Linear`, only
        the logits of `tokens` are computed.
        """
        module = self.unembedding
        if type(module) is nn.Linear:
            bias = None if module.bias is None else module.bias[tokens]
            logits = F.linear(hidden, module.weight[tokens], bias)
        else:
            logits = module(hidden)[..., tokens]
        logits = self.scale_logits(logits)
        # Gemma 2 bounds its logits
        if cap := getattr(getattr(self.module, "config", None), "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def scale_logits(self, output: Float[Tensor, "*row vocabulary"]) -> Float[Tensor, "*row vocabulary"]:
        """Returns the logits of the unembedding's `output`, before any soft cap."""
        config: Any = getattr(self.module, "config", None)
        # Cohere multiplies its logits, Granite divides them
        if scale := getattr(config, "logit_scale", None):
            output = output * scale
        if scaling := getattr(config, "logits_scaling", None):
            output = output / scaling
        return output

    @property
    def residual_multiplier(self) -> float:
        """Factor of what attention and MLP add to the residual stream, which is not 1 in Granite."""
        return float(getattr(getattr(self.module, "config", None), "residual_multiplier", None) or 1.0)

    def logits(self, tokens: Int[Tensor, "sequence position"]) -> Float[Tensor, "sequence _ vocabulary"]:
        """Returns the next-token logits of all positions, or of those that an edit of `unembedding_in` leaves."""
        output = self.module(tokens.to(self.device))
        return output if isinstance(output, Tensor) else output.logits


def load_model(
    folder: Path | str, dtype: str = "float32", device: str | torch.device | None = None
) -> LanguageModel:
    """Load the language model in `folder` (Hugging Face layout). The default device is a GPU if there is one.

    Raises ValueError if transformers cannot load a complete model from the folder.

    >>> model = load_model("results/quickstart/model")
    >>> logits = model.logits(tokens)
    """
    folder = Path(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if is_native(folder):
        from .legacy_format import load_native

        return load_native(folder, getattr(torch, dtype), device)
    module = load_causal_lm(folder, getattr(torch, dtype))
    if (folder / ANATOMY_FILE).is_file():
        anatomy = read_anatomy(folder)
    else:
        # config.json may name a class that transformers does not know
        module.config.architectures = [type(module).__name__]
        anatomy = find_anatomy(module.config)
    return LanguageModel(module.to(device), anatomy)


def load_causal_lm(folder: Path, dtype: torch.dtype, loader: Any = None, gguf_file: str | None = None) -> Any:
    """Returns the model that transformers loads from `folder`, or from a GGUF file in it.

    `loader` is a class of transformers, by default AutoModelForCausalLM. Raises ValueError if weights are missing or
    left over, if they have other shapes than the config says, or if they are integers.
    """
    import pickle

    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if gguf_file is None and (folder / ADAPTER).is_file():
        raise ValueError(f"{folder} {IS_ADAPTER}")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # downloaded code is never run, and the terminal is not asked whether it should be
        loaded: Any = (loader or AutoModelForCausalLM).from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, trust_remote_code=False,
            # the error for other sizes names none of them
            ignore_mismatched_sizes=True,
            **({"gguf_file": gguf_file} if gguf_file else {}),
        )  # fmt: skip
    # ImportError: a package is missing, such as that of a quantization
    except (
        OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, pickle.UnpicklingError,
    ) as error:  # fmt: skip
        raise ValueError(f"{folder}: not a model that transformers loads ({first_line(error)})") from error
    module, report = loaded
    _check_loaded(folder, report)
    if gguf_file is None:
        _check_number_formats(folder)
    return module


def _check_loaded(folder: Path, report: Mapping[str, Any]) -> None:
    """Raise ValueError if the weights in `folder` are not those of its config. `report` is transformers' report.

    transformers fills missing weights, and those of another shape, with random values, and drops the others.
    """
    remedy = "use the weights of its config"
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{folder}: its weights lack {missing[0]} ({len(missing)} missing in all); {remedy}")
    other = sorted((name, tuple(found), tuple(stated)) for name, found, stated in report["mismatched_keys"])
    if other:
        name, found, stated = other[0]
        raise ValueError(
            f"{folder}: its weight {name} has the shape {found}, but its config says {stated} ({len(other)} differ in "
            f"all); {remedy}"
        )
    unused = sorted(name for name in report["unexpected_keys"] if not _CONSTANT.search(name))
    if unused:
        raise ValueError(
            f"{folder}: its config does not use the weight {unused[0]} ({len(unused)} unused in all); {remedy}"
        )


def _check_number_formats(folder: Path) -> None:
    """Raise ValueError if matrices in `folder` are integers: quantized, but without the scales to undo it."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                number_format = tensors.get_slice(name).get_dtype()
                if name.endswith("weight") and number_format[0] in "IU":
                    raise ValueError(
                        f"{folder}: its weight {name} has integers ({number_format}), but its config names no "
                        "quantization; use the model's original weights"
                    )
