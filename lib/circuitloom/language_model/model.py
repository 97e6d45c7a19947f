"""A causal language model and its parts: blocks, MLPs, attention and norms. `hooks` captures and edits activations."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.errors import first_line
from .anatomy import Anatomy, find_anatomy, is_native, read_anatomy


class LanguageModel:
    """The model's own code and weights with fused attention, its modules named by an `Anatomy`.

    TransformerLens' bridge would force eager attention and compute the unembedding; here neither is needed.
    The activations are the bridge's (tests/language_model/test_model.py).
    """

    def __init__(self, module: nn.Module, anatomy: Anatomy) -> None:
        self.module = module.eval().requires_grad_(False)
        self.anatomy = anatomy
        self.device = next(module.parameters()).device
        # keys and values are for generating; here no pass goes on from another
        config: Any = getattr(module, "config", None)
        if hasattr(config, "use_cache"):
            config.use_cache = False

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.anatomy.layers

    def block(self, layer: int) -> nn.Module:
        """Block `layer`."""
        return self.module.get_submodule(f"{self.anatomy.blocks}.{layer}")

    def mlp(self, layer: int) -> nn.Module:
        """MLP of `layer`: applied to mlp_in [..., d] it gives mlp_out [..., d]."""
        return self.block(layer).get_submodule(self.anatomy.mlp)

    def attention(self, layer: int) -> nn.Module:
        """Attention of `layer`."""
        return self.block(layer).get_submodule(self.anatomy.attention)

    def norm(self, layer: int, name: str | None) -> nn.Module | None:
        """The norm of block `layer` that the anatomy calls `name`; None where it has none, or one that does nothing."""
        module = None if name is None else self.block(layer).get_submodule(name)
        return None if isinstance(module, nn.Identity) else module

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Within the context, attention modules return their patterns; fused attention makes none."""
        config: Any = getattr(self.module, "config", None)
        fused = getattr(config, "_attn_implementation", None)
        module: Any = self.module
        if fused is None:
            yield
            return
        module.set_attn_implementation("eager")
        try:
            yield
        finally:
            module.set_attn_implementation(fused)

    def logits(
        self, tokens: Int[Tensor, "sequence position"]
    ) -> Float[Tensor, "sequence position vocabulary"]:
        """Next-token logits."""
        output = self.module(tokens.to(self.device))
        return output if isinstance(output, Tensor) else output.logits


def load_model(
    folder: Path | str, dtype: str = "float32", device: str | torch.device | None = None
) -> LanguageModel:
    """The language model in `folder` (Hugging Face layout), on a GPU where there is one.

    Raises ValueError where the folder holds no model that transformers can load.
    """
    folder = Path(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if is_native(folder):
        from .legacy_format import load_native

        return load_native(folder, getattr(torch, dtype), device)
    module = _from_pretrained(folder, getattr(torch, dtype))
    anatomy = read_anatomy(folder) if (folder / "anatomy.json").is_file() else find_anatomy(module.config)
    return LanguageModel(module.to(device), anatomy)


def _from_pretrained(folder: Path, dtype: torch.dtype) -> Any:
    """The model that transformers loads from `folder`, and that is whole."""
    import pickle

    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder}: not a model that transformers loads ({first_line(error)})") from error
    # transformers would go on with random weights in their place
    module, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder}: its weights lack {missing[0]} ({len(missing)} in all); is the file that of its config?"
        )
    return module
