"""Imported transcoders of Dunefsky et al. 2024 match TransformerLens' compatibility mode; reading runs no code."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.models import CONTEXT, D_MODEL, LAYERS, VOCABULARY, tiny_gpt2, tiny_llama, tiny_neox

from circuitloom.config import Run
from circuitloom.dictionaries.dictionary import load_dictionary
from circuitloom.dictionaries.formats.transcoder_circuits import (
    import_run,
    import_transcoder,
    read_transcoder,
)
from circuitloom.language_model.hooks import Site, capture, edited
from circuitloom.language_model.model import LanguageModel, load_model

WIDTH = 64
TOKENS = torch.randint(4, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
MODELS = {"gpt2": tiny_gpt2, "neox": tiny_neox}


def weights(layer: int, width: int = WIDTH, d: int = D_MODEL) -> dict[str, torch.Tensor]:
    """Weights as in a file, with decoder rows that do not have unit norm."""
    generator = torch.Generator().manual_seed(layer)
    shapes = {"W_enc": (d, width), "b_enc": (width,), "W_dec": (width, d), "b_dec": (d,), "b_dec_out": (d,)}
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def settings(layer: int) -> dict[str, Any]:
    return {
        "model_name": "gpt2-small", "hook_point": f"blocks.{layer}.ln2.hook_normalized", "hook_point_layer": layer,
        "out_hook_point": f"blocks.{layer}.hook_mlp_out", "is_transcoder": True, "dtype": torch.float32,
        "device": torch.device("cpu"), "use_ghost_grads": (False,), "d_in": D_MODEL, "d_sae": WIDTH,
    }  # fmt: skip


@pytest.fixture
def config_class(monkeypatch):
    """The config class of the authors' files, in a module that exists only while a file is written."""

    @dataclass
    class LanguageModelSAERunnerConfig:
        d_in: int = 0
        seed: int = field(default=42)

        def __setstate__(self, _state: Any) -> None:
            raise AssertionError("the authors' class must not be used")

    module = ModuleType("sae_training.config")
    LanguageModelSAERunnerConfig.__module__ = "sae_training.config"
    LanguageModelSAERunnerConfig.__qualname__ = "LanguageModelSAERunnerConfig"
    module.LanguageModelSAERunnerConfig = LanguageModelSAERunnerConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sae_training", ModuleType("sae_training"))
    monkeypatch.setitem(sys.modules, "sae_training.config", module)
    return LanguageModelSAERunnerConfig


def write_object(file: Path, layer: int, config_class) -> None:
    config = config_class()
    config.__dict__.update(settings(layer))
    torch.save({"cfg": config, "state_dict": weights(layer)}, file)


def run_of(folder: Path, width: int = WIDTH, **keys: Any) -> Run:
    return Run(files=f"{folder}/tc.{{layer}}.pt", name="published", act="relu", width=width, **keys)


@pytest.fixture
def files(tmp_path, config_class) -> Run:
    """A run with a file for every layer, each with a config object."""
    for layer in range(LAYERS):
        write_object(tmp_path / f"tc.{layer}.pt", layer, config_class)
    del sys.modules["sae_training.config"], sys.modules["sae_training"]
    return run_of(tmp_path)


def original(tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The authors' forward pass on `ln2.hook_normalized`."""
    z = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu()
    return z @ tensors["W_dec"] + tensors["b_dec_out"]


def bridge(folder: Path):
    from transformer_lens.model_bridge import TransformerBridge

    made = TransformerBridge.boot_transformers(str(folder), device="cpu")
    made.enable_compatibility_mode()
    return made


def centred(value: torch.Tensor) -> torch.Tensor:
    return value - value.mean(-1, keepdim=True)


@pytest.mark.parametrize("architecture", MODELS)
def test_features_and_centred_outputs_are_those_of_compatibility_mode(
    architecture: str, files: Run, tmp_path
) -> None:
    folder = MODELS[architecture](tmp_path / "model")
    _, cache = bridge(folder).run_with_cache(TOKENS)
    model = load_model(folder, device="cpu")
    raw = capture(model, TOKENS, [Site(site, i) for site in ("mlp_in", "mlp_out") for i in range(LAYERS)])
    for layer in range(LAYERS):
        x, tensors = cache[f"blocks.{layer}.ln2.hook_normalized"], weights(layer)
        dictionary = import_transcoder(files, layer, model)
        z = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu() * tensors["W_dec"].norm(
            dim=1
        )
        mine = raw[Site("mlp_in", layer)]
        torch.testing.assert_close(dictionary.encode(mine), z, rtol=1e-4, atol=1e-4)
        y_hat = dictionary(mine)
        torch.testing.assert_close(centred(y_hat), centred(original(tensors, x)), rtol=1e-4, atol=1e-4)
        # the replaced MLP outputs agree as well
        y = cache[f"blocks.{layer}.hook_mlp_out"]
        torch.testing.assert_close(centred(raw[Site("mlp_out", layer)]), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_spliced_predictions_are_those_of_compatibility_mode(
    architecture: str, layers: list[int], files: Run, tmp_path
) -> None:
    folder = MODELS[architecture](tmp_path / "model")
    reference, read = bridge(folder), {}
    hooks = []
    for layer in layers:

        def keep(value, hook, layer):
            read[layer] = value

        def splice(_value, hook, layer):
            return original(weights(layer), read[layer])

        hooks.append((f"blocks.{layer}.ln2.hook_normalized", partial(keep, layer=layer)))
        hooks.append((f"blocks.{layer}.hook_mlp_out", partial(splice, layer=layer)))
    untouched = reference(TOKENS).log_softmax(-1)
    expected = reference.run_with_hooks(TOKENS, fwd_hooks=hooks).log_softmax(-1)
    model = load_model(folder, device="cpu")
    found = {layer: import_transcoder(files, layer, model) for layer in layers}
    with edited(model, {Site("mlp_out", layer): lambda x, _y, d=d: d(x) for layer, d in found.items()}):
        spliced = model.logits(TOKENS).log_softmax(-1)
    assert (expected - untouched).abs().max() > 0.1
    torch.testing.assert_close(spliced, expected, rtol=1e-3, atol=1e-3)


def test_the_constant_part_of_the_removed_mean_is_added_to_b_dec(files: Run, tmp_path) -> None:
    model = load_model(tiny_gpt2(tmp_path / "model"), device="cpu")
    b_out = model.mlp(0).get_submodule("c_proj").bias
    x = capture(model, TOKENS, [Site("mlp_in", 0)])[Site("mlp_in", 0)]
    y_hat = import_transcoder(files, 0, model)(x)
    norm = model.norm(0, "ln_2")
    expected = original(weights(0), (x - norm.bias) / norm.weight) + b_out.mean()
    torch.testing.assert_close(y_hat, expected, rtol=1e-4, atol=1e-4)


def test_the_saved_dictionary_equals_the_imported_one_with_unit_decoder_rows(files: Run, tmp_path) -> None:
    model = load_model(tiny_gpt2(tmp_path / "model"), device="cpu")
    import_run(files, 2, model, tmp_path / "layer2")
    saved = load_dictionary(tmp_path / "layer2")
    assert (saved.layer, saved.act, saved.site_in, saved.site_out) == (2, "relu", "mlp_in", "mlp_out")
    torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(WIDTH))
    x = torch.randn(5, D_MODEL)
    assert torch.equal(saved(x), import_transcoder(files, 2, model)(x))
    # no history: there was no training
    assert {file.name for file in (tmp_path / "layer2").iterdir()} == {"config.json", "weights.safetensors"}


def test_a_model_that_adds_its_mlps_output_as_it_is_has_both_sites(files: Run, tmp_path) -> None:
    model = load_model(tiny_gpt2(tmp_path / "model"), device="cpu")
    added = import_transcoder(files.model_copy(update={"site": "mlp_added"}), 0, model)
    assert added.is_transcoder and added.site_out == "mlp_added"
    assert torch.equal(added.W_dec, import_transcoder(files, 0, model).W_dec)


def test_a_model_that_changes_its_mlps_output_is_refused(files: Run, tmp_path) -> None:
    model = load_model(tiny_gpt2(tmp_path / "model"), device="cpu")
    model.module.config.residual_multiplier = 0.5
    message = "GPT2LMHeadModel changes its MLPs' output first: train transcoders instead"
    with pytest.raises(ValueError, match=message):
        import_transcoder(files, 0, model)


def test_files_with_a_plain_config_or_none_are_read_alike(files: Run, tmp_path) -> None:
    expected = read_transcoder(Path(files.file(1)), 1, D_MODEL, WIDTH)
    contents = [{"cfg": settings(1), "state_dict": weights(1)}, {"state_dict": weights(1)}, weights(1)]
    for content in contents:
        torch.save(content, tmp_path / "other.pt")
        found = read_transcoder(tmp_path / "other.pt", 1, D_MODEL, WIDTH)
        assert all(torch.equal(getattr(found, name), value) for name, value in expected.named())


class Hostile:
    """Creates a file when unpickled."""

    def __init__(self, mark: Path, function: Any) -> None:
        self.mark, self.function = mark, function

    def __reduce__(self):
        return self.function, (str(self.mark),)


def make_file(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("place", ["cfg", "state_dict", "other"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(place: str, tmp_path) -> None:
    import os

    mark, file = tmp_path / "mark", tmp_path / "hostile.pt"
    for function, name in ((os.mkdir, "posix.mkdir"), (make_file, "make_file")):
        torch.save({"state_dict": weights(0), place: Hostile(mark, function)}, file)
        with pytest.raises(ValueError, match=rf"hostile\.pt: reading it would run .*{name}, which") as error:
            read_transcoder(file, 0, D_MODEL, WIDTH)
        assert "\n" not in str(error.value) and not mark.exists()
    # without the check it runs
    torch.load(file, weights_only=False)
    assert mark.exists()


def test_a_function_named_like_the_config_class_is_not_run(tmp_path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "hostile.pt"

    def LanguageModelSAERunnerConfig(path: str) -> None:
        Path(path).touch()

    module = ModuleType("disguise")
    LanguageModelSAERunnerConfig.__module__ = "disguise"
    LanguageModelSAERunnerConfig.__qualname__ = "LanguageModelSAERunnerConfig"
    module.LanguageModelSAERunnerConfig = LanguageModelSAERunnerConfig  # type: ignore[attr-defined]
    sys.modules["disguise"] = module
    try:
        torch.save({"state_dict": weights(0), "cfg": Hostile(mark, LanguageModelSAERunnerConfig)}, file)
        with pytest.raises(ValueError, match=r"hostile\.pt: cannot be read safely"):
            read_transcoder(file, 0, D_MODEL, WIDTH)
    finally:
        del sys.modules["disguise"]
    assert not mark.exists()


BROKEN = {
    "no transcoder": ({"b_dec_out": None}, {}, "has no b_dec_out; name a file"),
    "another model's": ({}, {"d": 2 * D_MODEL}, r"W_enc is \[16, 64\], not \[32, 64\]"),
    "another width": ({}, {"width": 32}, r"W_enc is \[16, 64\], not \[16, 32\] .* set the run's width"),
    "one wrong shape": ({"b_dec": torch.zeros(3)}, {}, r"b_dec is \[3\], not \[16\]"),
    "a missing value": ({"b_enc": torch.full((WIDTH,), torch.nan)}, {}, "b_enc has non-finite values"),
    "another layer": ({}, {"layer": 1}, r"its hook_point is blocks\.0\.ln2\.hook_normalized, not blocks\.1"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_does_not_fit_is_refused_in_one_line(fault: str, tmp_path) -> None:
    change, arguments, words = BROKEN[fault]
    file = tmp_path / "tc.0.pt"
    tensors = {name: value for name, value in {**weights(0), **change}.items() if value is not None}
    torch.save({"cfg": settings(0), "state_dict": tensors}, file)
    with pytest.raises(ValueError, match=rf"tc\.0\.pt: {words}") as error:
        read_transcoder(file, **({"layer": 0, "d": D_MODEL, "width": WIDTH} | arguments))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no archive", [1, 2], {"state_dict": 3}])
def test_a_file_without_weights_is_refused_in_one_line(content: Any, tmp_path) -> None:
    file = tmp_path / "tc.0.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(
        ValueError, match=r"tc\.0\.pt: (cannot be read safely|contains no named weights)"
    ) as error:
        read_transcoder(file, 0, D_MODEL, WIDTH)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_the_remedy(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"missing\.pt: file not found; download it with `hf download`"):
        read_transcoder(tmp_path / "missing.pt", 0, D_MODEL, WIDTH)


def test_a_model_without_layer_norm_is_refused(files: Run, tmp_path) -> None:
    model: LanguageModel = load_model(tiny_llama(tmp_path / "model"), device="cpu")
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has none before its MLP"):
        import_transcoder(files, 0, model)
