"""Published cross-layer transcoders are recognised by their files, and give a run its keys."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests import published_folders as folders
from tests.config.test_published import keys_of, study_of
from tests.published_folders import WIDTH

from circuitloom.config.published import recognise


@pytest.mark.parametrize("act", ["relu", "jumprelu"])
def test_a_set_of_circuit_tracer_gives_a_run_its_keys(act: str, tmp_path: Path) -> None:
    folders.circuit_tracer_clt(tmp_path / "set", act=act, hooks=("hook_resid_mid", "mlp.hook_out"))
    study = study_of(tmp_path, {"files": str(tmp_path / "set")})
    assert keys_of(study) == {
        "format": "circuit_tracer", "kind": "clt", "reads": "resid_mid", "site": "mlp_out", "act": act, "width": WIDTH,
        "skip": False,
    }  # fmt: skip
    run, found = study.runs["theirs"], study.published["theirs"]
    assert run.is_cross_layer and run.imported and study.traceable == ["theirs"]
    assert {layer: each.outputs for layer, each in found.layers.items()} == {0: 3, 1: 2, 2: 1}
    names = [file.name for file in found.first.local_files()]
    assert names == ["W_enc_0.safetensors", "W_dec_0.safetensors", "config.yaml"]


def test_files_without_config_have_the_default_hooks_of_circuit_tracer(tmp_path: Path) -> None:
    folders.circuit_tracer_clt(tmp_path / "set", hooks=None)
    keys = keys_of(study_of(tmp_path, {"files": str(tmp_path / "set")}))
    assert (keys["reads"], keys["site"]) == ("resid_mid", "mlp_added")


@pytest.mark.parametrize("affine", [False, True])
def test_files_of_gemma_scope_2_give_a_run_its_keys(affine: bool, tmp_path: Path) -> None:
    folders.gemma_scope_clt(tmp_path / "set" / "clt" / "width_262k_l0_big", affine=affine)
    study = study_of(tmp_path, {"files": str(tmp_path / "set"), "subfolder": "clt/width_262k_l0_big"})
    assert keys_of(study) == {
        "format": "gemma_scope", "kind": "clt", "reads": "mlp_in", "site": "mlp_added", "act": "jumprelu",
        "width": WIDTH, "skip": affine,
    }  # fmt: skip
    assert {layer: each.outputs for layer, each in study.published["theirs"].layers.items()} == {
        0: 3,
        1: 2,
        2: 1,
    }


@pytest.mark.parametrize("layer", ["2", "{layer}"])
def test_settings_of_all_layers_name_the_hooks_of_each(layer: str, tmp_path: Path) -> None:
    folders.gemma_scope_clt(tmp_path)
    config = {
        "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
        "hf_hook_point_out": f"model.layers.{layer}.mlp.output",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = recognise(str(tmp_path))
    assert {each.hook_in for each in found.layers.values()} == {
        f"model.layers.{number}.pre_feedforward_layernorm.output" for number in range(3)
    }
    assert (found.first.site_in, found.first.site_out) == ("mlp_in", "mlp_out")


def test_a_config_of_circuit_tracer_lists_files_of_gemma_scope_2(tmp_path: Path) -> None:
    folders.gemma_scope_clt(tmp_path / "files")
    settings = {
        "model_name": "tiny", "model_kind": "cross_layer_transcoder", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "transcoders": [f"files/params_layer_{layer}.safetensors" for layer in range(3)],
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    found = recognise(str(tmp_path))
    assert found.keys() == {
        "format": "gemma_scope", "act": "jumprelu", "width": WIDTH, "skip": False, "kind": "clt", "site": "mlp_added",
        "reads": "mlp_in",
    }  # fmt: skip


def without(name: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        folders.circuit_tracer_clt(folder)
        (folder / name).unlink()

    return write


def write_another_number_of_outputs(folder: Path) -> None:
    folders.circuit_tracer_clt(folder)
    file = folder / "W_dec_1.safetensors"
    save_file({"W_dec_1": load_file(file)["W_dec_1"][:, :1].contiguous()}, file)


def write_skip(folder: Path) -> None:
    folders.circuit_tracer_clt(folder)
    file = folder / "W_enc_1.safetensors"
    save_file(load_file(file) | {"W_skip_1": load_file(file)["W_enc_1"]}, file)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no decoders": (without("W_dec_1.safetensors"), r"W_enc_1\.safetensors has no W_dec_1\.safetensors next to it"),
    "a missing layer": (
        lambda folder: [without("W_enc_1.safetensors")(folder), (folder / "W_dec_1.safetensors").unlink()],
        "no file of layer 1, and a cross-layer transcoder needs all layers from 0; download it too",
    ),
    "another number of outputs": (
        write_another_number_of_outputs, "has decoders to 1 layers, but 2 layers follow from layer 1",
    ),
    "topk": (lambda f: folders.circuit_tracer_clt(f, activation="topk"), "have relu or thresholds; correct"),
    "a skip connection": (write_skip, r"has a tensor W_skip_1, whose meaning is unknown"),
    "bare norm": (
        lambda f: folders.circuit_tracer_clt(f, hooks=("ln2.hook_normalized", "hook_mlp_out")),
        "which only dictionaries of one layer may",
    ),
    "more layers than the model": (
        lambda f: folders.circuit_tracer_clt(f, layers=4),
        r"of layers 0 to 3, .* and the model has 3; set activations\.layers to \[0, 1, 2, 3\], or name the files",
    ),
    "a crosscoder": (lambda f: folders.gemma_scope_clt(f / "crosscoder"), "it is a crosscoder, which reads several"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_do_not_fit_are_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    write, words = FAULTS[fault]
    write(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"^dictionaries\.a\..*{words}") as error:
        study_of(tmp_path, {"files": str(tmp_path / "set")})
    assert "\n" not in str(error.value)


def test_some_layers_alone_are_refused(tmp_path: Path) -> None:
    folders.circuit_tracer_clt(tmp_path / "set")
    with pytest.raises(ValueError, match=r"set activations\.layers to \[0, 1, 2\]"):
        study_of(tmp_path, {"files": str(tmp_path / "set")}, layers=[0, 1])
