"""Captures and edits activations of a language model with forward hooks. No other file registers hooks.

The example replaces the output of head 0 of layer 3 with the output of the same head on other tokens:

donor = capture(model, other_tokens, [Site("heads", 3)])[Site("heads", 3)]

def patch_head_0(x, y):  # y: [sequence, position, heads x d_head], the heads' outputs of layer 3
    return torch.cat([donor[..., :d_head], y[..., d_head:]], -1)

with edited(model, {Site("heads", 3): patch_head_0}):
    logits = model.logits(tokens)
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..config.activations import MLP_INPUTS, MLP_OUTPUTS
from .model import LanguageModel

Key = TypeVar("Key", bound=Hashable)


class Site(NamedTuple):
    """An activation of the model, [sequence, position, d].

    Sites of a layer are:

    - `resid_pre`: the residual stream before the block
    - `attention_in`: the attention's input, after its norm
    - `heads`: the concatenated outputs of all heads, which are the input of W_O
    - `attn_added`: what attention adds to the residual stream, after a norm that follows attention or the residual
      multiplier
    - `resid_mid`: the residual stream before the norm of the MLP, or before the MLP if it has no such norm (OLMo 2)
    - `mlp_in`: the MLP's input, after its norm
    - `neurons`: the activations of the neurons, which are the input of W_out
    - `mlp_out`: the MLP's output, before the output norm that some models have
    - `mlp_added`: what the MLP adds to the residual stream, after that norm or the residual multiplier (Granite). In
      other models, it is equal to `mlp_out`

    Sites of the model are `embedding` (the token embedding), `final_norm` (the output of the final norm) and
    `unembedding_in` (the input of the unembedding).
    """

    name: str
    layer: int = 0


Edit = Callable[[Tensor, Tensor], Tensor]
"""Function (x, y) that returns the new value of a site. y is the current value.

At `mlp_out` and `mlp_added`, x is the MLP's input, or the value of the site that a `ReadingEdit` names. At other sites,
x is equal to y. All values are [sequence, position, d].
"""


@dataclass(frozen=True)
class ReadingEdit:
    """An edit of a site whose x is the value of another site. Edits from dictionaries are made with this class."""

    reads: str
    """Name of the site whose value is x, in the layer of the edited site: `mlp_in`, `resid_mid`, or the edited site.

    At the edited site itself, x is equal to y. x is the value in the running pass, after earlier edits."""
    edit: Edit

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the new value of the edited site."""
        return self.edit(x, y)


OUTPUT_SITES = (*MLP_OUTPUTS, "attn_added", "embedding", "final_norm")
"""Sites whose value is the output of a module. The value of every other site is the first input of a module."""


def capture(
    model: LanguageModel, tokens: Int[Tensor, "sequence position"], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "sequence position d"]]:
    """Returns the activations at `sites`. The forward pass ends at the last of these sites."""
    captured: dict[Site, Tensor] = {}
    capture_each(model, tokens, sites, captured.__setitem__)
    return captured


def capture_each(
    model: LanguageModel,
    tokens: Int[Tensor, "sequence position"],
    sites: Sequence[Site],
    callback: Callable[[Site, Tensor], None],
) -> None:
    """Call `callback(site, value)` at each of `sites`. The forward pass ends at the last of these sites."""
    waiting = set(sites)

    def keep(site: Site, value: Tensor) -> None:
        callback(site, value)
        waiting.discard(site)
        if not waiting:
            raise _PassComplete

    with observed(model, sites, keep), suppress(_PassComplete):
        model.module(tokens.to(model.device))


class _PassComplete(Exception):
    """Ends a forward pass at the last requested site."""


@contextmanager
def observed(
    model: LanguageModel, sites: Sequence[Site], callback: Callable[[Site, Tensor], None]
) -> Iterator[None]:
    """Within the context, each forward pass calls `callback(site, value)` at each of `sites`."""

    def register(site: Site):
        module = find_module(model, site)

        # hooks return None, because anything else would replace the value
        def leave(_module, _args, output) -> None:
            callback(site, _value(model, site, output))

        def enter(_module, args, kwargs) -> None:
            callback(site, _first_input(args, kwargs))

        if site.name in OUTPUT_SITES:
            return module.register_forward_hook(leave)
        return module.register_forward_pre_hook(enter, with_kwargs=True)

    with ExitStack() as stack:
        for site in dict.fromkeys(sites):
            stack.callback(register(site).remove)
        yield


@contextmanager
def edited(model: LanguageModel, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Within the context, replace the value at each site by the result of the site's edit.

    Later modules and later edits see the effect of earlier edits. If nested contexts edit the same site, the outermost
    edit runs first.
    """
    with ExitStack() as stack:
        for site, edit in edits.items():
            register = _edit_output if site.name in OUTPUT_SITES else _edit_input
            for handle in register(model, site, edit):
                stack.callback(handle.remove)
        yield


def _edit_output(model: LanguageModel, site: Site, edit: Edit):
    factor = _factor(model, site)
    reads = edit.reads if isinstance(edit, ReadingEdit) else "mlp_in"
    assert reads in (*MLP_INPUTS, site.name), f"an edit of {site.name} cannot read {reads}"
    read: dict[str, Tensor] = {}

    def keep_input(_module, args, kwargs, _output) -> None:
        read["x"] = _first_input(args, kwargs)

    def leave(_module, _args, output):
        returned = _returned(output)
        value = _value(model, site, output)
        new = edit(read.pop("x", value), value)
        if factor == 1:
            new = _own(model, site, new)
        else:
            # the model multiplies by the factor again; unchanged values keep their bits, although the division rounds
            new = torch.where(new == value, returned + (new - value) / factor, new / factor)
        return new if returned is output else (new, *output[1:])

    handles = []
    if site.name in MLP_OUTPUTS and reads != site.name:
        # hooks of one module run in the order of their registration, and forward hooks see inputs after their edits
        module = find_module(model, Site(reads, site.layer))
        handles.append(module.register_forward_hook(keep_input, with_kwargs=True))
    return [*handles, find_module(model, site).register_forward_hook(leave)]


def _edit_input(model: LanguageModel, site: Site, edit: Edit):
    assert not isinstance(edit, ReadingEdit) or edit.reads == site.name
    changes: list[Tensor] = []

    def enter(_module, args, kwargs):
        value = _first_input(args, kwargs)
        new = edit(value, value)
        if site.name == "resid_mid":
            changes.append(new - value)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def leave(_module, _args, output):
        change = changes.pop()
        return output + change if isinstance(output, Tensor) else (output[0] + change, *output[1:])

    handles = [find_module(model, site).register_forward_pre_hook(enter, with_kwargs=True)]
    if site.name == "resid_mid":
        # the stream also bypasses the MLP, so the change of the stream is added to the block's output
        handles.append(model.block(site.layer).register_forward_hook(leave))
    return handles


def _returned(output: Any) -> Tensor:
    """Returns the hidden states that a module returns. Attention can return a tuple that starts with them."""
    return output if isinstance(output, Tensor) else output[0]


def _value(model: LanguageModel, site: Site, output: Any) -> Tensor:
    """Returns the value of a site, given the output of the site's module."""
    factor, returned = _factor(model, site), _returned(output)
    return _own(model, site, returned) if factor == 1 else factor * returned


def _factor(model: LanguageModel, site: Site) -> float:
    """Returns the factor between the output of the site's module and the site's value."""
    after = {"mlp_added": model.anatomy.norm_mlp_after, "attn_added": model.anatomy.norm_attention_after}
    added = site.name in after and model.norm(site.layer, after[site.name]) is None
    return model.residual_multiplier if added else 1.0


def _own(model: LanguageModel, site: Site, value: Tensor) -> Tensor:
    """Returns a value that the model does not change later."""
    # Falcon adds attention's output to the MLP's output in place
    return value.clone() if site.name in MLP_OUTPUTS and model.anatomy.parallel else value


@contextmanager
def observed_modules(
    modules: Mapping[Key, nn.Module], callback: Callable[[Key, tuple, dict[str, Any], Any], None]
) -> Iterator[None]:
    """Within the context, each call of one of the modules calls `callback(key, args, kwargs, output)`."""

    def register(key: Key, module: nn.Module):
        def leave(_module, args, kwargs, output) -> None:
            callback(key, args, kwargs, output)

        return module.register_forward_hook(leave, with_kwargs=True)

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.callback(register(key, module).remove)
        yield


@contextmanager
def edited_modules(
    modules: Mapping[Key, nn.Module], edit: Callable[[Key, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Within the context, the output y of each of the modules becomes edit(key, x, y). x is the module's input."""

    def register(key: Key, module: nn.Module):
        def leave(_module, args, output):
            return edit(key, args[0], output)

        return module.register_forward_hook(leave)

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.callback(register(key, module).remove)
        yield


class ScoreInputs(NamedTuple):
    """What an attention module multiplies to attention scores. Rotary positions and norms are included."""

    query: Float[Tensor, "sequence head position d_head"]
    key: Float[Tensor, "sequence head position d_head"]
    """Heads that share keys have equal ones."""


ScoreEdit = Callable[[int, ScoreInputs], ScoreInputs]
"""Function (layer, inputs) that returns new queries and keys of a layer."""
ScoreObserver = Callable[[int, ScoreInputs, Float[Tensor, "sequence head target source"]], None]
"""Function (layer, inputs, scores). The scores are the softmax's input: scaled, capped and masked."""


@contextmanager
def observed_scores(
    model: LanguageModel, layers: Iterable[int], callback: ScoreObserver, edit: ScoreEdit | None = None
) -> Iterator[None]:
    """Within the context, each forward pass calls `callback(layer, inputs, scores)` for each of `layers`, before the
    softmax. With `edit`, queries and keys are replaced before they are multiplied.

    Attention must be eager (`LanguageModel.eager_attention`), since fused attention has no scores. In all
    architectures, the scores are the attention module's first product of two arrays with a dimension for heads, and
    the next softmax reads them. So neither names of weights nor the module's code have to be known. Modules that
    compute scores in another way make no call.
    """
    with ExitStack() as stack:
        mode = _ScoreMode(model.anatomy.heads, callback, edit)
        for layer in layers:
            module = model.attention(layer)
            stack.callback(module.register_forward_pre_hook(mode.enter_layer(layer)).remove)
            # called even if the pass ends within the module
            stack.callback(module.register_forward_hook(mode.leave_layer, always_call=True).remove)
        stack.enter_context(mode)
        yield


class _ScoreMode(TorchFunctionMode):
    """Reads the operands of the product that computes attention scores, and the input of the softmax."""

    def __init__(self, heads: int, callback: ScoreObserver, edit: ScoreEdit | None) -> None:
        super().__init__()
        self.heads, self.callback, self.edit = heads, callback, edit
        self.layer: int | None = None
        self.inputs: ScoreInputs | None = None

    def enter_layer(self, layer: int) -> Callable[..., None]:
        def enter(_module, _args) -> None:
            self.layer, self.inputs = layer, None

        return enter

    def leave_layer(self, _module, _args, _output) -> None:
        self.layer = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.layer is not None:
            name = getattr(func, "__name__", "")
            if name in ("matmul", "__matmul__") and self.inputs is None and _are_heads(args):
                query, key = args[0], args[1].transpose(-1, -2)
                shape = (query.shape[0], self.heads)
                # heads that share keys can have them once
                self.inputs = ScoreInputs(query, key.expand(*shape, *key.shape[2:]))
                if self.edit is not None:
                    self.inputs = self.edit(self.layer, self.inputs)
                    args = (self.inputs.query, self.inputs.key.transpose(-1, -2))
            elif name == "softmax" and self.inputs is not None:
                layer, self.layer = self.layer, None
                self.callback(layer, self.inputs, args[0])
        return func(*args, **(kwargs or {}))


def capture_score_inputs(
    model: LanguageModel, layers: Sequence[int], run: Callable[[], object]
) -> dict[int, ScoreInputs]:
    """Returns the queries and keys of `layers` in the forward pass that `run` makes. The pass ends at the last of them.

    A layer whose attention module computes no scores that `observed_scores` can read is missing in the result.
    """
    captured: dict[int, ScoreInputs] = {}

    def keep(layer: int, inputs: ScoreInputs) -> ScoreInputs:
        captured[layer] = inputs
        if len(captured) == len(layers):
            raise _PassComplete
        return inputs

    with (
        model.eager_attention(),
        observed_scores(model, layers, lambda *_: None, keep),
        suppress(_PassComplete),
    ):
        run()
    return captured


def _are_heads(args: tuple) -> bool:
    """Returns whether the operands of a product have dimensions [sequence, head, _, _]."""
    return all(isinstance(value, Tensor) and value.dim() == 4 for value in args[:2])


@contextmanager
def recorded_outputs(model: LanguageModel, layers: Iterable[int], outputs: dict[int, Any]) -> Iterator[None]:
    """Within the context, each forward pass stores what the blocks of `layers` return in `outputs`."""
    blocks = {layer: model.block(layer) for layer in layers}
    with observed_modules(blocks, lambda layer, _args, _kwargs, output: outputs.update({layer: output})):
        yield


@contextmanager
def resumed(model: LanguageModel, layer: int, output: Any) -> Iterator[None]:
    """Within the context, forward passes skip the blocks before `layer`.

    `output` is what block `layer` - 1 returned in an earlier pass over the same tokens, from `recorded_outputs`. Block
    `layer` receives it. Edits of blocks before `layer` have no effect.
    """

    def skip(*_args: Any, **_kwargs: Any) -> Any:
        return output

    # hooks cannot keep a module from running, so the forward method of the instance is shadowed
    blocks = [model.block(skipped) for skipped in range(layer)]
    for block in blocks:
        block.forward = skip
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def find_module(model: LanguageModel, site: Site) -> nn.Module:
    """Returns the module of a site. The site's value is the module's output at `OUTPUT_SITES`, and otherwise the
    module's first input. At mlp_added and attn_added, the output may still have to be multiplied by the residual
    multiplier.

    Raises ValueError if the site is unknown, or if the model has no `resid_mid`.
    """
    anatomy, layer = model.anatomy, site.layer
    if site.name == "resid_mid" and anatomy.parallel:
        raise ValueError(
            f"{anatomy.architecture} runs attention and MLP in parallel: no resid_mid; use resid_pre"
        )
    paths = {
        "resid_pre": "",
        "attention_in": anatomy.attention,
        "heads": f"{anatomy.attention}.{anatomy.attention_projection}",
        "resid_mid": anatomy.norm_mlp or anatomy.mlp,
        "mlp_in": anatomy.mlp,
        "neurons": f"{anatomy.mlp}.{anatomy.mlp_projection}",
        "mlp_out": anatomy.mlp,
        "mlp_added": anatomy.norm_mlp_after or anatomy.mlp,
        "attn_added": anatomy.norm_attention_after or anatomy.attention,
    }
    outside = {
        "embedding": anatomy.embedding,
        "final_norm": anatomy.norm_final,
        "unembedding_in": anatomy.unembedding,
    }
    if site.name in paths:
        return model.block(layer).get_submodule(paths[site.name] or "")
    if site.name in outside:
        return model.module.get_submodule(outside[site.name])
    raise ValueError(f"no site is called {site.name}; choose one of {', '.join(paths | outside)}")


def _first_input(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    # some blocks receive their hidden states as a keyword argument
    return args[0] if args else kwargs["hidden_states"]
