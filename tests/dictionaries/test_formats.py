"""Exported files give the same results in circuit-tracer and SAELens; what they cannot load is refused."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.architectures import tiny_architecture

from circuitloom.config.activations import MLP_OUTPUTS
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.dictionaries.formats.circuit_tracer import export_circuit_tracer
from circuitloom.dictionaries.formats.saelens import export_saelens
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import load_model

D, WIDTH = 8, 20
SAE = {"site_in": "mlp_out", "site_out": "mlp_out"}


def make(
    layer: int = 0, act: str = "threshold", skip: bool = False, width: int = WIDTH, **changes
) -> Dictionary:
    generator = torch.Generator().manual_seed(layer)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    own = {"threshold": {"threshold": random(width).abs() / 2}, "topk": {"k": 3}}.get(act, {})
    extra = {"W_skip": random(D, D)} if skip else {}
    return Dictionary(
        W_enc=random(width, D), b_enc=random(width), W_dec=random(width, D), b_dec=random(D),
        act=act, layer=layer, **(own | extra | changes),
    )  # fmt: skip


def activate(pre: torch.Tensor, threshold: torch.Tensor | None) -> torch.Tensor:
    """The activation function of both tools."""
    return pre.relu() if threshold is None else pre.relu() * (pre > threshold)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("act", ["relu", "threshold"])
def test_an_exported_set_computes_the_same_in_circuit_tracer(act: str, skip: bool, tmp_path) -> None:
    made = {layer: make(layer, act, skip) for layer in (1, 0)}
    export_circuit_tracer(made, tmp_path, 'a "model"')
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {
        "model_name": 'a "model"',
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
    }
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.yaml", "layer_0.safetensors", "layer_1.safetensors"
    }  # fmt: skip
    x = torch.randn(30, D)
    for layer, dictionary in made.items():
        tensors = load_file(tmp_path / f"layer_{layer}.safetensors")
        pre = torch.nn.functional.linear(x, tensors["W_enc"], tensors["b_enc"])
        y_hat = activate(pre, tensors.pop("activation_function.threshold", None)) @ tensors["W_dec"]
        y_hat = y_hat + tensors["b_dec"] + (x @ tensors["W_skip"].T if skip else 0)
        torch.testing.assert_close(y_hat, dictionary(x))
        assert tensors.keys() == {"W_enc", "W_dec", "b_enc", "b_dec"} | ({"W_skip"} if skip else set())


def test_a_set_that_writes_to_the_stream_names_the_hook_behind_the_norm(tmp_path) -> None:
    export_circuit_tracer({0: make(site_out="mlp_added")}, tmp_path / "default", "model")
    export_circuit_tracer({0: make(site_out="mlp_added")}, tmp_path / "named", "model", output_hook="mine")
    for name, hook in (("default", "hook_mlp_out"), ("named", "mine")):
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert config["feature_output_hook"] == hook


def test_a_set_of_topk_states_the_activation_and_k(tmp_path) -> None:
    # the keys that circuit-tracer reads since pull request 94
    made = {layer: make(layer, "topk") for layer in (0, 1)}
    export_circuit_tracer(made, tmp_path, "model")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["activation"], config["k"]) == ("topk", 3)
    tensors = load_file(tmp_path / "layer_1.safetensors")
    x = torch.randn(30, D)
    pre = x @ tensors["W_enc"].T + tensors["b_enc"]
    kept = pre >= pre.topk(3).values[:, -1:]
    torch.testing.assert_close((pre * kept).relu() @ tensors["W_dec"] + tensors["b_dec"], made[1](x))


def test_a_second_export_replaces_the_first(tmp_path) -> None:
    for act in ("relu", "threshold"):
        export_circuit_tracer({0: make(act=act)}, tmp_path, "model")
    assert "activation_function.threshold" in load_file(tmp_path / "layer_0.safetensors")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({}, "layer 0 is missing"),
        ({0: make(0), 2: make(2)}, "layer 1 is missing"),
        ({0: make(0), 1: make(1, width=10)}, "layer 1 has 10 features"),
        ({0: make(0), 1: make(1, "topk")}, "layer 1 is topk with k=3, layer 0 threshold"),
        ({0: make(0, "topk"), 1: make(1, "topk", k=4)}, "layer 1 is topk with k=4, layer 0 topk with k=3"),
        ({0: make(0, **SAE)}, "name a run of transcoders"),
        ({0: make(0), 1: make(1, skip=True)}, "only one of layers 1 and 0 has W_skip"),
        ({0: make(0), 1: make(1, site_out="mlp_added")}, "layer 1 writes mlp_added, layer 0 mlp_out"),
    ],
)
def test_sets_that_circuit_tracer_cannot_load_are_refused(made, words: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        export_circuit_tracer(made, tmp_path / "set", "model")
    assert not (tmp_path / "set").exists()


def test_a_folder_with_layers_of_another_set_is_refused(tmp_path) -> None:
    export_circuit_tracer({0: make(0), 1: make(1)}, tmp_path, "model")
    with pytest.raises(ValueError, match=r"layer_1.safetensors of another set"):
        export_circuit_tracer({0: make(0)}, tmp_path, "model")


ARCHITECTURES = {
    "transcoder": make(3, "relu"),
    "skip_transcoder": make(3, "relu", skip=True),
    "jumprelu_transcoder": make(3),
    "jumprelu_skip_transcoder": make(3, skip=True),
    "standard": make(3, "relu", **SAE),
    "jumprelu": make(3, **SAE),
    "topk": make(3, "topk", **SAE),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exported_dictionary_computes_the_same_in_saelens(architecture: str, tmp_path) -> None:
    dictionary = ARCHITECTURES[architecture]
    export_saelens(dictionary, tmp_path, "model")
    config = json.loads((tmp_path / "cfg.json").read_text())
    metadata = config.pop("metadata")
    sae = dictionary.site_in == "mlp_out"
    assert config == {
        "architecture": architecture, "d_in": D, "d_sae": WIDTH, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
    } | ({} if sae else {"d_out": D}) | ({"k": 3} if architecture == "topk" else {})  # fmt: skip
    names = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.mlp.hook_out"}
    expected = {"hook_name": "blocks.3.mlp.hook_out"} if sae else names
    assert metadata == {"model_name": "model", **expected, "sae_lens_version": "6.0.0"}
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    x = torch.randn(30, D)
    pre = x @ tensors["W_enc"] + tensors["b_enc"]
    if architecture == "topk":
        z = torch.zeros_like(pre).scatter(-1, pre.topk(3).indices, pre.topk(3).values.relu())
    else:
        z = activate(pre, tensors.get("threshold"))
    y_hat = z @ tensors["W_dec"] + tensors["b_dec"] + (x @ tensors["W_skip"].T if "W_skip" in tensors else 0)
    torch.testing.assert_close(y_hat, dictionary(x))


@pytest.mark.parametrize("name", ["gpt_neox", "gemma3_text", "granite"])
def test_the_hook_that_is_named_has_the_site_s_values(name: str, tmp_path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    folder = tiny_architecture(name, tmp_path / name)
    model, tokens = load_model(folder, device="cpu"), torch.tensor([[1, 9, 20, 31]])
    values = capture(model, tokens, [Site(site, 1) for site in MLP_OUTPUTS])
    _, cache = TransformerBridge.boot_transformers(str(folder), device="cpu").run_with_cache(tokens)
    # the name that HookedTransformer has too, where it means the same
    plain = "blocks.1.hook_mlp_out" if name == "gpt_neox" else "blocks.1.mlp.hook_out"
    hooks = {
        ("mlp_out", False): "blocks.1.mlp.hook_out", ("mlp_out", True): plain,
        ("mlp_added", False): "blocks.1.hook_mlp_out", ("mlp_added", True): "blocks.1.hook_mlp_out",
    }  # fmt: skip
    for (site, given), hook in hooks.items():
        for key, site_in in (("hook_name", site), ("hook_name_out", "mlp_in")):
            dictionary = make(1, site_in=site_in, site_out=site)
            export_saelens(dictionary, tmp_path / "sae", "model", model=model if given else None)
            assert json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"][key] == hook
        torch.testing.assert_close(cache[hook], values[Site(site, 1)], atol=1e-5, rtol=1e-5)


def test_hooks_can_be_named(tmp_path) -> None:
    export_saelens(make(), tmp_path, "model", "here", "there")
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["hook_name_out"]) == ("here", "there")


@pytest.mark.parametrize(
    ("dictionary", "words"),
    [
        (make(act="topk"), "no transcoder of act topk; export a run of act batchtopk"),
        (make(skip=True, **SAE), "no SAE of act threshold with W_skip; train without skip"),
        (replace(make(), threshold=torch.linspace(-1, 1, WIDTH)), "below 0"),
    ],
)
def test_dictionaries_without_a_saelens_architecture_are_refused(
    dictionary: Dictionary, words: str, tmp_path
) -> None:
    with pytest.raises(ValueError, match=words):
        export_saelens(dictionary, tmp_path / "sae", "model")
    assert not (tmp_path / "sae").exists()
