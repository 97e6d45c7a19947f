"""Describes the published dictionary of one layer by its settings and by the headers of its weights, for each format.

The sources of the formats are circuit-tracer 0.5 (`transcoder/single_layer_transcoder.py`, `utils/hf_utils.py`), Gemma
Scope 1 and 2 (their tutorials, and circuit-tracer's loaders), SAELens 6 (`saes/`), sparsify 1.3 (`sparse_coder.py`) and
dictionary_learning 0.1 (`dictionary.py`, `trainers/`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..core.tensor_headers import NPZ, ArrayHeader
from .activations import MLP_OUTPUTS
from .hooks import BARE_NORM, site_of_hook
from .published_files import FileReference

Act = Literal["relu", "topk", "batchtopk", "jumprelu"]
Headers = Mapping[str, ArrayHeader]
NORM_FACTOR = "norm_scaling_factor"
"""Key of the factor by which SAELens multiplies activations before the encoder."""


@dataclass(frozen=True)
class PublishedLayer:
    """A published dictionary of one layer."""

    layer: int
    weights: FileReference
    config: FileReference | None
    """File with the settings of this dictionary, or of the set."""
    format: str
    architecture: str
    """The format's own name of the architecture."""
    act: Act
    k: int | None
    """Number of active features per token that the files state: exact for topk, the mean for batchtopk."""
    l0: float | None
    """Mean number of active features per token that the files state for other activation functions."""
    width: int
    d_in: int
    d_out: int
    skip: bool
    hook_in: str | None
    """Hook that the dictionary reads, as the files name it. None if they do not say."""
    hook_out: str | None
    site_in: str | None
    site_out: str | None
    bare_norm: bool
    """Whether the dictionary reads the norm's output before the norm's gain and bias. An SAE then also writes it."""
    attention_output: bool
    """Whether the dictionary is one of the attention module's output, which a model may change before it is added."""
    settings: Mapping[str, Any]
    """Settings that the reader of the format needs."""
    model_name: str | None
    outputs: int | None = None
    """Number of layers that the features write to, the layer itself and those after it. None unless this is a layer of
    a cross-layer transcoder."""
    decoders: FileReference | None = None
    """File with the decoders, if `weights` does not have them."""

    @property
    def kind(self) -> str | None:
        """`transcoder`, `sae` or `clt`. None if the files do not say."""
        if self.outputs is not None:
            return "clt"
        if self.site_in is None:
            return None
        return "sae" if self.site_in == self.site_out else "transcoder"

    def local_files(self) -> list[Path]:
        """Returns the files of weights and settings that are in a local folder."""
        files = [file for file in (self.weights, self.decoders, self.config) if file is not None]
        return [file.local for file in files if file.local is not None]


@dataclass(frozen=True)
class DictionaryFiles:
    """The files of one dictionary, before they are described."""

    weights: FileReference
    config: FileReference | None
    place: str
    """Path that may name the layer and the hook: the path of the set, and below it the file's."""
    layer: int | None = None
    """Layer that the path of the set says with `{layer}`, or that a list of files implies."""
    hooks: tuple[str, str] | None = None
    """Hooks without layer that the settings of a set state for all its layers."""
    set_config: FileReference | None = None
    """File with the settings of a set."""
    set_settings: Mapping[str, Any] | None = None
    """Settings of the set."""
    is_cross_layer: bool = False
    """Whether this is a layer of a cross-layer transcoder."""
    decoders: FileReference | None = None
    """File with the decoders, if `weights` does not have them."""


Describer = Callable[[DictionaryFiles, Mapping[str, Any], Headers], dict[str, Any]]
"""Function (files, settings, headers of the weights) that returns fields of `PublishedLayer`, and `hooks`."""


def describe(
    files: DictionaryFiles, format: str, headers: Headers, describer: Describer | None = None
) -> PublishedLayer:
    """Returns the description of one dictionary. `headers` are those of its weights. By default, `describer` is that of
    the format's dictionaries of one layer.

    Raises ValueError if this project cannot represent the dictionary.
    """
    settings = files.config.settings() if files.config else {}
    source = files.weights
    try:
        parts = (describer or DESCRIBE[format])(files, settings, headers)
        source = files.config or files.set_config or files.weights
        found = _sites(parts.pop("hooks"), files, parts.pop("stated_layer", None))
        source = files.weights
        layer = PublishedLayer(
            weights=files.weights,
            config=files.config or files.set_config,
            decoders=files.decoders,
            format=format,
            **(_DEFAULTS | parts | found),
        )
        _check(layer)
        return layer
    # a missing setting or tensor is a KeyError
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{files.weights}: no {error} in its settings or weights; copy or download it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


_DEFAULTS: dict[str, Any] = {"k": None, "l0": None, "skip": False, "settings": {}, "model_name": None}


def _check(layer: PublishedLayer) -> None:
    if layer.k is not None and not 0 < layer.k <= layer.width:
        raise ValueError(f"it states k={layer.k} for {layer.width} features; copy or download it again")
    if layer.kind in ("transcoder", "clt") and (
        layer.site_in not in ("mlp_in", "resid_mid") or layer.site_out not in MLP_OUTPUTS
    ):
        raise ValueError(
            f"it maps {layer.hook_in} to {layer.hook_out}, and a transcoder here maps mlp_in or resid_mid to "
            f"{' or '.join(MLP_OUTPUTS)}"
        )
    if layer.kind == "clt" and layer.bare_norm:
        raise ValueError(
            f"it reads {layer.hook_in}, the norm's output without gain, which only dictionaries of one layer may; name "
            "another cross-layer transcoder"
        )
    if layer.kind == "sae" and layer.skip:
        raise ValueError(
            "it is an SAE with a skip connection, which reproduces its input; name another dictionary"
        )


def _sites(hooks: tuple[str, str] | None, files: DictionaryFiles, stated: int | None) -> dict[str, Any]:
    """Returns hooks, sites and layer of a dictionary. `stated` is the layer in its settings, if they have no hook."""
    hint = _layer_in(files.place) if files.layer is None else files.layer
    if hooks is not None and hooks[1].endswith(".post_attention_layernorm.output"):
        # in Llama it is the norm before the MLP, in Gemma the norm of what attention adds
        hooks, stated = None, _layer_in(hooks[1])
    if hooks is None:
        unknown = dict.fromkeys(("hook_in", "hook_out", "site_in", "site_out"))
        layer = _known(hint if stated is None else stated)
        return {"layer": layer, "bare_norm": False, "attention_output": False, **unknown}
    for hook in hooks:
        named = re.search(r"\.(\d+)\.", hook)
        if files.layer is not None and named and int(named[1]) != files.layer:
            raise ValueError(f"its hook is {hook}, but its path says layer {files.layer}; correct the path")
    read, written = (site_of_hook(hook, hint) for hook in hooks)
    if read.layer != written.layer:
        raise ValueError(f"it maps {hooks[0]} to {hooks[1]}, and only maps within one layer are supported")
    if written.bare_norm and not read.bare_norm:
        raise ValueError(f"it writes {BARE_NORM}, the norm's output without gain; name another dictionary")
    sites = {"site_in": read.site, "site_out": written.site, "bare_norm": read.bare_norm}
    sites |= {"attention_output": written.attention_output}
    return {"layer": _known(read.layer), "hook_in": hooks[0], "hook_out": hooks[1], **sites}


def _known(layer: int | None) -> int:
    if layer is None:
        raise ValueError(
            "neither its settings nor its path name the layer; write the hook into its settings (SAELens: hook_name in "
            "cfg.json), or name the layer in `files` with {layer}"
        )
    return layer


def _layer_in(place: str) -> int | None:
    """Returns the layer in a path such as layer_3/width_16k or layers.3.mlp, if it names one."""
    found = re.findall(r"(?:^|[/_.-])(?:layers?|blocks|h)[_.-]?(\d+)(?=$|[/_.-])", place)
    return int(found[-1]) if found else None


def tensor_shape(headers: Headers, name: str, dimensions: int = 2) -> tuple[int, ...]:
    """Returns the shape of a tensor. Raises ValueError if it is missing or has another number of dimensions."""
    if name not in headers:
        raise ValueError(f"has no {name}, but {', '.join(sorted(headers)) or 'no tensor'}")
    shape = headers[name].shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} has the shape {list(shape)}; {dimensions} dimensions are needed")
    return shape


def _sizes(headers: Headers, encoder: str, decoder: str, transposed: bool) -> dict[str, int]:
    """Returns width, d_in and d_out. The encoder is [d, F] if `transposed`, else [F, d]; the decoder is [F, d]."""
    read, written = tensor_shape(headers, encoder), tensor_shape(headers, decoder)
    width, d_in = (read[1], read[0]) if transposed else read
    if written[0] != width:
        raise ValueError(
            f"{encoder} has {width} features, but {decoder} {written[0]}; copy or download it again"
        )
    return {"width": width, "d_in": d_in, "d_out": written[1]}


def _agree(settings: Mapping[str, Any], found: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raise ValueError if sizes in the settings differ from those of the weights. `names` maps keys of the settings to
    keys of `found`."""
    for stated, name in names.items():
        if settings.get(stated) not in (None, 0, found[name]):
            raise ValueError(
                f"its settings state {stated}: {settings[stated]}, but its weights have {found[name]}; download both "
                "again"
            )


def _circuit_tracer(files: DictionaryFiles, settings: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """W_enc [F, d] and W_dec [F, d]. A tensor with thresholds means jumprelu. The set's config says topk."""
    shared = files.set_settings or {}
    activation = shared.get("activation", "relu")
    if activation not in ("relu", "topk", "jumprelu", "jump_relu"):
        raise ValueError(
            f"config.yaml states activation: {activation}; relu, topk and jumprelu are supported"
        )
    thresholds = "activation_function.threshold" in headers
    known = {"W_enc", "W_dec", "b_enc", "b_dec", "W_skip", "activation_function.threshold"}
    if other := sorted(set(headers) - known):
        raise ValueError(f"has a tensor {other[0]}, whose meaning is unknown; name a per-layer transcoder")
    topk = activation == "topk"
    if topk and thresholds:
        raise ValueError("config.yaml states topk, but the weights have thresholds; correct config.yaml")
    if activation.startswith("jump") and not thresholds:
        raise ValueError(
            "config.yaml states jumprelu, but the weights have no thresholds; correct config.yaml"
        )
    return {
        **_sizes(headers, "W_enc", "W_dec", transposed=False),
        "hooks": files.hooks,
        "architecture": "transcoder",
        "act": "topk" if topk else "jumprelu" if thresholds else "relu",
        "k": int(shared["k"]) if topk else None,
        "skip": "W_skip" in headers,
        "model_name": shared.get("model_name"),
    }


_HEADS = ("attn.hook_z",) * 2
_SCOPE_1 = {
    "att": _HEADS,
    "transcoders": (BARE_NORM, "hook_mlp_out"),
    "mlp": ("hook_mlp_out",) * 2,
    "res": ("hook_resid_post",) * 2,
}
"""Hooks by the part of the name of a repository of Gemma Scope 1. Its transcoders were trained with the norm's gain
folded into the MLP."""
_SCOPE_2 = {
    "attn_out": _HEADS, "transcoder": ("mlp.hook_in", "hook_mlp_out"), "mlp_out": ("hook_mlp_out",) * 2,
    "resid_post": ("hook_resid_post",) * 2,
}  # fmt: skip
"""Hooks by the name of a folder of Gemma Scope 2."""


def _gemma_scope(files: DictionaryFiles, settings: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """W_enc or w_enc [d, F]. z = pre if pre > max(threshold, 0)."""
    first = files.weights.name.endswith(NPZ)
    names = {name.lower() for name in headers}
    encoder, decoder = ("W_enc", "W_dec") if "W_enc" in headers else ("w_enc", "w_dec")
    if settings.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise ValueError(f"its architecture is {settings['architecture']}; Gemma Scope has jump_relu")
    if "threshold" not in names:
        raise ValueError("has no threshold, which Gemma Scope's dictionaries have; copy or download it again")
    hooks = files.hooks or _gemma_hooks(files.place, settings, first)
    found = _sizes(headers, encoder, decoder, transposed=True)
    _agree(settings, found, {"width": "width"})
    stated = re.search(r"average_l0_(\d+)", files.place)
    l0 = settings.get("l0") or (stated and stated[1])
    return {
        **found,
        "hooks": hooks,
        "architecture": "jump_relu" if not first else "jumprelu",
        "act": "jumprelu",
        "l0": float(l0) if l0 else None,
        "skip": "affine_skip_connection" in names,
        "model_name": settings.get("model_name") or (files.set_settings or {}).get("model_name"),
    }


def _gemma_hooks(place: str, settings: Mapping[str, Any], first: bool) -> tuple[str, str] | None:
    """Returns the hooks that the settings state or the path implies."""
    if hook := settings.get("hf_hook_point_in"):
        return hook, settings.get("hf_hook_point_out") or hook
    if first:
        part = re.search(r"gemma-scope-[^/]*-(transcoders|mlp|res|att)(?:-|/|$)", place)
        return _SCOPE_1[part[1]] if part else None
    part = re.search(r"(?:^|/)(transcoder|mlp_out|resid_post|attn_out)(?:_all)?/", place)
    return _SCOPE_2[part[1]] if part else None


_SAELENS = {
    "standard": "relu", "jumprelu": "jumprelu", "gated": "jumprelu", "topk": "topk", "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk", "transcoder": "relu", "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu",
}  # fmt: skip
"""Maps SAELens architectures to activation functions. Gated SAEs are represented by thresholds."""


def _saelens(files: DictionaryFiles, settings: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """W_enc [d_in, F] and W_dec [F, d_out]. Settings older than version 6 are flat."""
    architecture = settings.get("architecture", "standard")
    by_name = settings.get("activation_fn") or settings.get("activation_fn_str")
    if "architecture" not in settings and settings.get("k") and by_name != "topk":
        raise ValueError(
            f"its settings state k={settings['k']} and no architecture, which SAELens takes for standard, without k; "
            'write "architecture": "topk" or "batchtopk" into cfg.json'
        )
    if architecture not in _SAELENS:
        raise ValueError(f"its architecture is {architecture}; known are {', '.join(_SAELENS)}")
    about = settings.get("metadata") or settings.get("meta") or settings
    hook, hook_out = (_saelens_hook(about.get(key)) for key in ("hook_name", "hook_name_out"))
    hook = hook or _saelens_hook(about.get("hook_point"))
    act, k = _SAELENS[architecture], settings.get("k")
    function = by_name or "relu"
    arguments = settings.get("activation_fn_kwargs") or {}
    if act == "relu" and function == "topk":
        act, k = "topk", k or arguments.get("k")
    elif function not in ("relu", "topk"):
        raise ValueError(f"its activation function is {function}; relu and topk are supported")
    # batchtopk is saved with a threshold for inference, and k stays in the settings
    if act == "topk":
        k = k or arguments["k"]
    transcoder = "transcoder" in architecture
    if transcoder and settings.get("apply_b_dec_to_input"):
        raise ValueError("it states apply_b_dec_to_input, which SAELens does not support for transcoders")
    if settings.get("reshape_activations") not in (None, "none"):
        raise ValueError("it reads the outputs of the heads (hook_z), for which there is no site")
    found = _sizes(headers, "W_enc", "W_dec", transposed=True)
    _agree(
        settings,
        found,
        {"d_in": "d_in", "d_sae": "width", "d_out": "d_out"} if transcoder else {"d_sae": "width"},
    )
    return {
        **found,
        "hooks": None if hook is None else (hook, hook_out or hook if transcoder else hook),
        "architecture": architecture,
        "act": act,
        "k": round(k) if k and act in ("topk", "batchtopk") else None,
        "skip": "W_skip" in headers,
        "settings": {
            # both are true by default, in SAELens too
            "apply_b_dec_to_input": not transcoder and settings.get("apply_b_dec_to_input", True),
            "rescale_acts_by_decoder_norm": bool(settings.get("rescale_acts_by_decoder_norm")),
            "finetuning_scaling_factor": bool(settings.get("finetuning_scaling_factor")),
            NORM_FACTOR: _saelens_factor(settings),
            # HookedTransformer then subtracts the mean over d from the residual stream
            "centred": bool((about.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")),
        },
        "model_name": about.get("model_name"),
    }


def _saelens_hook(name: str | None) -> str | None:
    """Returns the hook of a name: one of TransformerLens, or a module of a Hugging Face model, whose output is read."""
    is_module = name is not None and re.search(r"(?:^|\.)(?:layers|h)\.\d+(?:\.|$)", name)
    return f"{name}.output" if is_module else name


def _saelens_factor(settings: Mapping[str, Any]) -> float:
    """Returns the factor of the encoder's input. Raises ValueError if the input is normalized in another way."""
    kind = settings.get("normalize_activations") or "none"
    if kind in ("none", False):
        return 1.0
    if kind not in ("expected_average_only_in", True):
        raise ValueError(
            f"it normalizes each input by itself (normalize_activations: {kind}), which weights cannot express; name "
            "another dictionary"
        )
    if NORM_FACTOR not in settings:
        raise ValueError(
            "its inputs were multiplied by a constant that the files do not contain (normalize_activations: "
            f"expected_average_only_in); write it into cfg.json as {NORM_FACTOR}"
        )
    return float(settings[NORM_FACTOR])


def _sparsify(files: DictionaryFiles, settings: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """encoder.weight [F, d] and W_dec [F, d]. The name of the folder is that of the module."""
    for key in ("signed", "embed_skip", "gram_lookup"):
        if settings.get(key):
            raise ValueError(f"it was trained with {key}, which is not supported; name another dictionary")
    if settings.get("activation", "topk") != "topk":
        raise ValueError(f"its activation function is {settings['activation']}; topk is supported")
    found = _sizes(headers, "encoder.weight", "W_dec", transposed=False)
    _agree(settings, found, {"d_in": "d_in", "num_latents": "width"})
    transcode, skip = bool(settings.get("transcode")), bool(settings.get("skip_connection"))
    if skip != ("W_skip" in headers):
        raise ValueError(
            f"its settings state skip_connection: {skip}, but its weights say otherwise; copy or download it again"
        )
    return {
        **found,
        "hooks": _sparsify_hooks(files.place, transcode),
        "architecture": "transcoder" if transcode else "sae",
        "act": "topk",
        "k": int(settings["k"]),
        "skip": skip,
        "settings": {"transcode": transcode},
    }


def _sparsify_hooks(place: str, transcode: bool) -> tuple[str, str] | None:
    """Returns the hooks of a module whose name is the last part of a path, such as layers.3.mlp.

    A transcoder maps the module's input to its output. An SAE reads its output.
    """
    module = place.rstrip("/").rpartition("/")[2]
    if not re.search(r"(?:^|\.)(?:layers|h|blocks)\.\d+", module):
        return None
    return (f"{module}.input" if transcode else f"{module}.output"), f"{module}.output"


_DICTIONARY_LEARNING = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "batchtopk", "JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "jumprelu",
}  # fmt: skip
"""Maps dictionary_learning's classes to activation functions. Gated SAEs are represented by thresholds."""
_SUBMODULES = {
    "resid_post": "blocks.{}.hook_resid_post", "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid", "mlp": "blocks.{}.mlp.hook_out", "mlp_out": "blocks.{}.mlp.hook_out",
    **dict.fromkeys(("attn_out", "attn", "attention", "self_attn"), "layers.{}.self_attn.output"),
}  # fmt: skip
"""Hooks by what dictionary_learning's names of submodules begin with. MLP and attention are outputs of modules."""


def _dictionary_learning(
    files: DictionaryFiles, settings: Mapping[str, Any], headers: Headers
) -> dict[str, Any]:
    """A state dict whose sizes are those of the settings: torch files have no header that is read without torch."""
    trainer = settings["trainer"]
    architecture = trainer["dict_class"]
    if architecture not in _DICTIONARY_LEARNING:
        raise ValueError(f"its dict_class is {architecture}; known are {', '.join(_DICTIONARY_LEARNING)}")
    act = _DICTIONARY_LEARNING[architecture]
    d, layer = int(trainer["activation_dim"]), trainer.get("layer")
    name = str(trainer.get("submodule_name") or "")
    stem, _, number = name.rpartition("_layer_")
    hook = None
    if number.isdigit():
        if stem not in _SUBMODULES:
            raise ValueError(f"its submodule is {name}; known are {', '.join(_SUBMODULES)} with _layer_N")
        hook = _SUBMODULES[stem].format(number)
    return {
        "width": int(trainer["dict_size"]),
        "d_in": d,
        "d_out": d,
        "hooks": None if hook is None else (hook, hook),
        "architecture": architecture,
        "act": act,
        "k": int(trainer["k"]) if act in ("topk", "batchtopk") else None,
        "model_name": trainer.get("lm_name"),
    } | ({} if hook or layer is None else {"stated_layer": int(layer)})


DESCRIBE: dict[str, Describer] = {
    "circuit_tracer": _circuit_tracer,
    "gemma_scope": _gemma_scope,
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary_learning": _dictionary_learning,
}
"""Maps each format to the function that describes its dictionaries."""
