"""A causal language model whose MLPs can be read, applied and replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.errors import first_line
from .anatomy import Anatomy, find_anatomy, is_native, read_anatomy


class Site(NamedTuple):
    """A place in the model: `mlp_in`, `mlp_out`, `resid_mid` or `resid_pre`, or `neurons`, of one layer."""

    name: str
    layer: int


Replacement = Callable[[Tensor, Tensor], Tensor]
"""(MLP input, MLP output), each [sequence, position, d], to what stands in for the output."""


class _Captured(Exception):
    """Ends a forward pass once everything asked for has been seen."""


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
    def exposing_patterns(self) -> Iterator[None]:
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

    def capture(
        self, tokens: Int[Tensor, "sequence position"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "sequence position d"]]:
        """Activations at `sites`; the pass ends at the last of them, before later layers and the unembedding."""
        captured: dict[Site, Tensor] = {}
        self.visit(tokens, sites, captured.__setitem__)
        return captured

    def visit(
        self,
        tokens: Int[Tensor, "sequence position"],
        sites: Sequence[Site],
        see: Callable[[Site, Tensor], None],
    ) -> None:
        """Call `see` with each of `sites` and its activations, as the pass comes by; it ends at the last of them."""
        waiting = set(sites)

        def keep(site: Site, value: Tensor) -> None:
            see(site, value)
            waiting.discard(site)
            if not waiting:
                raise _Captured

        with self.watching(sites, keep), suppress(_Captured):
            self.module(tokens.to(self.device))

    @contextmanager
    def watching(self, sites: Sequence[Site], see: Callable[[Site, Tensor], None]) -> Iterator[None]:
        """Within the context, `see` is called with each of `sites` and its activations whenever a pass comes by."""
        handles = [self._watch(site, see) for site in set(sites)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replacing(self, replacements: dict[int, Replacement]) -> Iterator[None]:
        """Within the context, the MLP output of each layer named is what its replacement makes of input and output."""

        def splice(replacement: Replacement):
            return lambda _module, args, output: replacement(args[0], output)

        handles = [self.mlp(layer).register_forward_hook(splice(r)) for layer, r in replacements.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def substituting(self, site: Site, substitute: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within the context, all that follows from `site` follows from what `substitute` makes of its value.

        A residual stream goes past the MLP as well as into it: a substitute of resid_mid is read by the MLP's
        norm, and its difference from the original is added to the block's output.
        """
        module = self._reader(site)
        difference: dict[str, Tensor] = {}

        def enter(_module, args, kwargs):
            value = args[0] if args else kwargs["hidden_states"]
            new = substitute(value)
            difference["value"] = new - value
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        def leave(_module, _args, output):
            change = difference.pop("value")
            return output + change if isinstance(output, Tensor) else (output[0] + change, *output[1:])

        handles = [module.register_forward_pre_hook(enter, with_kwargs=True)]
        if site.name == "resid_mid":
            handles.append(self.block(site.layer).register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, site: Site, keep: Callable[[Site, Tensor], None]):
        def output_of(_module, _args, output):
            keep(site, output)

        if site.name == "mlp_out":
            return self.mlp(site.layer).register_forward_hook(output_of)

        # with_kwargs: some blocks receive their hidden states by name
        def first_input(_module, args, kwargs):
            keep(site, args[0] if args else kwargs["hidden_states"])

        return self._reader(site).register_forward_pre_hook(first_input, with_kwargs=True)

    def _reader(self, site: Site) -> nn.Module:
        """The module whose input is the value at `site`."""
        match site.name:
            case "mlp_in":
                return self.mlp(site.layer)
            case "neurons":
                return self.mlp(site.layer).get_submodule(self.anatomy.mlp_projection)
            case "resid_mid" if self.anatomy.parallel or self.anatomy.norm_mlp is None:
                raise ValueError(
                    f"{self.anatomy.architecture} runs attention and MLP in parallel: no resid_mid; use resid_pre"
                )
            case "resid_mid":
                assert self.anatomy.norm_mlp is not None
                return self.block(site.layer).get_submodule(self.anatomy.norm_mlp)
            case "resid_pre":
                return self.block(site.layer)
            case _:
                raise ValueError(
                    f"no site is called {site.name}; choose mlp_in, mlp_out, resid_mid, resid_pre or neurons"
                )


def load(
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
