"""Made-up dictionaries in the exact layouts of other projects, each with its forward pass by that project's formula."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

D, WIDTH, K = 16, 24, 5
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps x to (z, y_hat), in float64."""
CrossForward = Callable[[dict[int, Tensor]], tuple[dict[int, Tensor], dict[int, Tensor]]]
"""Maps x of each layer to z and y_hat of each layer, in float64."""


def numbers(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Random float32 tensors by name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / 2 for name, shape in shapes.items()}


def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in tensors.items()}


def topk(pre: Tensor, k: int) -> Tensor:
    values, indices = pre.relu().topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values)


# circuit-tracer: transcoder/single_layer_transcoder.py


def circuit_tracer(
    folder: Path,
    layers: int = 3,
    act: str = "relu",
    skip: bool = False,
    hooks: tuple[str, str] = ("mlp.hook_in", "hook_mlp_out"),
    d: int = D,
    **config: Any,
) -> dict[int, Forward]:
    """A set: config.yaml and layer_N.safetensors. `act` is relu, jumprelu or topk."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "model_name": "tiny", "model_kind": "transcoder_set", "feature_input_hook": hooks[0],
        "feature_output_hook": hooks[1], **({"activation": "topk", "k": K} if act == "topk" else {}), **config,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return {layer: circuit_tracer_layer(folder, layer, act, skip, d) for layer in range(layers)}


def circuit_tracer_layer(folder: Path, layer: int, act: str, skip: bool, d: int = D) -> Forward:
    tensors = numbers(layer, W_enc=(WIDTH, d), W_dec=(WIDTH, d), b_enc=(WIDTH,), b_dec=(d,))
    tensors |= numbers(layer + 50, W_skip=(d, d)) if skip else {}
    # thresholds may be negative, and are applied without ReLU
    name = "activation_function.threshold"
    tensors |= {name: numbers(layer + 60, t=(WIDTH,))["t"]} if act == "jumprelu" else {}
    save_file(tensors, folder / f"layer_{layer}.safetensors")
    w = doubled(tensors)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = torch.nn.functional.linear(x, w["W_enc"], w["b_enc"])
        z = pre * (pre > w[name]) if act == "jumprelu" else topk(pre, K) if act == "topk" else pre.relu()
        return z, z @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if skip else 0)

    return forward


# circuit-tracer: transcoder/cross_layer_transcoder.py


def circuit_tracer_clt(
    folder: Path,
    layers: int = 3,
    act: str = "relu",
    hooks: tuple[str, str] | None = ("mlp.hook_in", "hook_mlp_out"),
    d: int = D,
    **config: Any,
) -> CrossForward:
    """A cross-layer transcoder: W_enc_N.safetensors and W_dec_N.safetensors, and config.yaml if `hooks` is not None."""
    folder.mkdir(parents=True, exist_ok=True)
    if hooks is not None:
        settings = {"model_name": "tiny", "model_kind": "cross_layer_transcoder", **config}
        settings |= {"feature_input_hook": hooks[0], "feature_output_hook": hooks[1]}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    weights = {}
    for layer in range(layers):
        tensors = numbers(
            layer, W_enc=(WIDTH, d), b_enc=(WIDTH,), b_dec=(d,), W_dec=(WIDTH, layers - layer, d)
        )
        tensors |= {"threshold": numbers(layer + 60, t=(WIDTH,))["t"]} if act == "jumprelu" else {}
        save_file({f"W_dec_{layer}": tensors["W_dec"]}, folder / f"W_dec_{layer}.safetensors")
        others = {f"{name}_{layer}": value for name, value in tensors.items() if name != "W_dec"}
        save_file(others, folder / f"W_enc_{layer}.safetensors")
        weights[layer] = doubled(tensors)

    def forward(xs: dict[int, Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        z = {}
        for layer, w in weights.items():
            pre = torch.nn.functional.linear(xs[layer], w["W_enc"], w["b_enc"])
            # thresholds may be negative, and are applied without ReLU
            z[layer] = pre * (pre > w["threshold"]) if act == "jumprelu" else pre.relu()
        y_hat = {
            m: weights[m]["b_dec"]
            + sum(z[layer] @ weights[layer]["W_dec"][:, m - layer] for layer in range(m + 1))
            for m in weights
        }
        return z, y_hat

    return forward


# Gemma Scope 2: the JumpReLUMultiLayerSAE of its tutorials


def gemma_scope_clt(
    folder: Path, layers: int = 3, affine: bool = False, earlier: float = 0.0
) -> CrossForward:
    """params_layer_N.safetensors, with decoders to every layer. Those to earlier ones are `earlier` everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for layer in range(layers):
        tensors = numbers(
            layer, w_enc=(D, WIDTH), b_enc=(WIDTH,), b_dec=(D,), w_dec=(WIDTH, layers, D), threshold=(WIDTH,)
        )
        tensors["w_dec"][:, :layer] = earlier
        tensors |= numbers(layer + 50, affine_skip_connection=(D, D)) if affine else {}
        save_file(tensors, folder / f"params_layer_{layer}.safetensors")
        weights[layer] = doubled(tensors)

    def forward(xs: dict[int, Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        z = {}
        for layer, w in weights.items():
            pre = xs[layer] @ w["w_enc"] + w["b_enc"]
            z[layer] = (pre > w["threshold"]) * pre.relu()
        y_hat = {}
        for m, w in weights.items():
            written = sum(z[layer] @ weights[layer]["w_dec"][:, m] for layer in range(m + 1))
            skip = xs[m] @ w["affine_skip_connection"] if affine else 0
            y_hat[m] = written + w["b_dec"] + skip
        return z, y_hat

    return forward


# Gemma Scope: the JumpReLUSAE of its tutorials


def gemma_scope(
    folder: Path,
    layer: int,
    second: bool = True,
    affine: bool = False,
    config: dict | None = None,
    width: int = WIDTH,
) -> Forward:
    """params.npz, or params.safetensors with config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("w_enc", "w_dec") if second else ("W_enc", "W_dec")
    shapes = {
        names[0]: (D, width),
        names[1]: (width, D),
        "b_enc": (width,),
        "b_dec": (D,),
        "threshold": (width,),
    }
    tensors = numbers(layer, **shapes)
    tensors |= numbers(layer + 50, affine_skip_connection=(D, D)) if affine else {}
    if second:
        save_file(tensors, folder / "params.safetensors")
    else:
        np.savez(folder / "params.npz", **{name: value.numpy() for name, value in tensors.items()})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    w = doubled(tensors)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ w[names[0]] + w["b_enc"]
        z = (pre > w["threshold"]) * pre.relu()
        return z, z @ w[names[1]] + w["b_dec"] + (x @ w["affine_skip_connection"] if affine else 0)

    return forward


def scope_2_config(layer: int, **keys: Any) -> dict[str, Any]:
    """config.json of a transcoder of Gemma Scope 2."""
    return {
        "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
        "width": WIDTH, "model_name": "google/gemma-3-tiny", "architecture": "jump_relu", "l0": 10,
        "affine_connection": False, "type": "transcoder", **keys,
    }  # fmt: skip


# SAELens: saes/*.py

SAELENS = (
    "standard", "jumprelu", "gated", "topk", "batchtopk", "matryoshka_batchtopk", "transcoder", "skip_transcoder",
    "jumprelu_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip


def saelens(
    folder: Path,
    layer: int,
    architecture: str,
    /,
    b_dec_from_input: bool = False,
    rescaled: bool = False,
    hooks: tuple[str, str] = ("mlp.hook_in", "mlp.hook_out"),
    **config: Any,
) -> Forward:
    """cfg.json and sae_weights.safetensors of version 6. SAEs read and write hooks[1]."""
    folder.mkdir(parents=True, exist_ok=True)
    transcoder = "transcoder" in architecture
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (D, WIDTH), "W_dec": (WIDTH, D), "b_dec": (D,)}
    shapes |= dict.fromkeys(("b_gate", "r_mag", "b_mag") if architecture == "gated" else ("b_enc",), (WIDTH,))
    shapes |= {"threshold": (WIDTH,)} if "jumprelu" in architecture else {}
    shapes |= {"topk_threshold": ()} if "batchtopk" in architecture else {}
    shapes |= {"W_skip": (D, D)} if "skip" in architecture else {}
    tensors = numbers(layer, **shapes)
    if "topk_threshold" in tensors:
        tensors["topk_threshold"] = tensors["topk_threshold"].double().abs()
    save_file(tensors, folder / "sae_weights.safetensors")
    names = {"hook_name": f"blocks.{layer}.{hooks[0 if transcoder else 1]}"}
    names |= {"hook_name_out": f"blocks.{layer}.{hooks[1]}"} if transcoder else {}
    settings = {
        "architecture": architecture, "d_in": D, "d_sae": WIDTH, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": b_dec_from_input, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"model_name": "tiny", "sae_lens_version": "6.54.0", **names},
    } | ({"d_out": D} if transcoder else {})  # fmt: skip
    settings |= {"k": K, "rescale_acts_by_decoder_norm": rescaled} if "topk" in architecture else {}
    (folder / "cfg.json").write_text(json.dumps(settings | config))
    w = doubled(tensors)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        read = x - w["b_dec"] * b_dec_from_input
        if architecture == "gated":
            gate = (read @ w["W_enc"] + w["b_gate"] > 0).double()
            z = gate * (read @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        else:
            pre = read @ w["W_enc"] + w["b_enc"]
            pre = pre * w["W_dec"].norm(dim=-1) if rescaled else pre
            if architecture == "topk":
                z = topk(pre, K)
            elif "batchtopk" in architecture:
                z = pre.relu() * (pre > w["topk_threshold"])
            else:
                z = pre.relu() * (pre > w["threshold"]) if "jumprelu" in architecture else pre.relu()
        written = z * (1 / w["W_dec"].norm(dim=-1)) if rescaled else z
        y_hat = written @ w["W_dec"] + w["b_dec"]
        return z, y_hat + (x @ w["W_skip"].T if "skip" in architecture else 0)

    return forward


# sparsify: sparse_coder.py and fused_encoder.py


def sparsify(
    folder: Path, layer: int, transcode: bool = True, skip: bool = False, module: str = "mlp", **config: Any
) -> Forward:
    """A folder named after the module, with cfg.json and sae.safetensors."""
    place = folder / f"layers.{layer}.{module}"
    place.mkdir(parents=True)
    shapes = {"encoder.weight": (WIDTH, D), "encoder.bias": (WIDTH,), "W_dec": (WIDTH, D), "b_dec": (D,)}
    tensors = numbers(layer, **shapes) | (numbers(layer + 50, W_skip=(D, D)) if skip else {})
    save_file(tensors, place / "sae.safetensors")
    settings = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": WIDTH, "k": K,
        "multi_topk": False, "skip_connection": skip, "transcode": transcode, "d_in": D, **config,
    }  # fmt: skip
    (place / "cfg.json").write_text(json.dumps(settings))
    w = doubled(tensors)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        read = x if transcode else x - w["b_dec"]
        z = topk(torch.nn.functional.linear(read, w["encoder.weight"], w["encoder.bias"]).relu(), K)
        return z, z @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].mT if skip else 0)

    return forward


# dictionary_learning: dictionary.py and trainers/*.py

DICTIONARY_LEARNING = (
    "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder",
    "GatedAutoEncoder",
)  # fmt: skip
_LINEAR = {"encoder.weight": (WIDTH, D), "encoder.bias": (WIDTH,), "decoder.weight": (D, WIDTH)}
_DIRECT = {"W_enc": (D, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, D), "b_dec": (D,)}
_GATED = {
    "encoder.weight": (WIDTH, D), "decoder.weight": (D, WIDTH), "decoder_bias": (D,), "r_mag": (WIDTH,),
    "gate_bias": (WIDTH,), "mag_bias": (WIDTH,),
}  # fmt: skip
_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": {**_LINEAR, "bias": (D,)},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": (D,)},
    "AutoEncoderTopK": {**_LINEAR, "b_dec": (D,)},
    "BatchTopKSAE": {**_LINEAR, "b_dec": (D,)},
    "MatryoshkaBatchTopKSAE": _DIRECT,
    "JumpReluAutoEncoder": {**_DIRECT, "threshold": (WIDTH,)},
    "GatedAutoEncoder": _GATED,
}


def dictionary_learning(folder: Path, layer: int, name: str, prefix: str = "", **trainer: Any) -> Forward:
    """ae.pt (a state dict) and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = numbers(layer, **_SHAPES[name])
    if "TopK" in name:
        state |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.3)}
    if name == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([8, 16])
    torch.save({prefix + key: value for key, value in state.items()}, folder / "ae.pt")
    settings = {
        "dict_class": name, "activation_dim": D, "dict_size": WIDTH, "layer": layer, "lm_name": "tiny",
        "submodule_name": f"resid_post_layer_{layer}", **({"k": K} if "TopK" in name else {}), **trainer,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {"io": "out"}}))
    w = doubled(state)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        linear = torch.nn.functional.linear
        if name == "AutoEncoder":
            z = linear(x - w["bias"], w["encoder.weight"], w["encoder.bias"]).relu()
            return z, linear(z, w["decoder.weight"]) + w["bias"]
        if name == "AutoEncoderNew":
            z = linear(x, w["encoder.weight"], w["encoder.bias"]).relu()
            return z, linear(z, w["decoder.weight"], w["decoder.bias"])
        if name in ("AutoEncoderTopK", "BatchTopKSAE"):
            post = linear(x - w["b_dec"], w["encoder.weight"], w["encoder.bias"]).relu()
            z = topk(post, K) if name == "AutoEncoderTopK" else post * (post > w["threshold"])
            return z, linear(z, w["decoder.weight"]) + w["b_dec"]
        if name == "MatryoshkaBatchTopKSAE":
            post = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
            z = post * (post > w["threshold"])
            return z, z @ w["W_dec"] + w["b_dec"]
        if name == "JumpReluAutoEncoder":
            pre = x @ w["W_enc"] + w["b_enc"]
            z = (pre * (pre > w["threshold"])).relu()
            return z, z @ w["W_dec"] + w["b_dec"]
        read = linear(x - w["decoder_bias"], w["encoder.weight"])
        gate = (read + w["gate_bias"] > 0).double()
        z = gate * (w["r_mag"].exp() * read + w["mag_bias"]).relu()
        return z, linear(z, w["decoder.weight"]) + w["decoder_bias"]

    return forward
