"""Published dictionaries are recognised by their files, and give a run its keys."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import published_folders as folders
from tests.language_model.inputs import make_hub_repository
from tests.published_folders import WIDTH, D, K

from circuitloom.config import Study, load_study
from circuitloom.config.published import recognise

MODEL = {
    "model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": D, "intermediate_size": 40,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128,
    "vocab_size": 64,
}  # fmt: skip


def study_of(folder: Path, sweep: dict[str, Any], layers: Any = "all", **training: Any) -> Study:
    """A study of a model in `folder` with one imported sweep."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(MODEL))
    return load_study(
        {
            "name": "x",
            "corpus": {"source": "chronicle", "tokenizer": str(model)},
            "language_model": {"source": "path", "path": str(model)},
            "activations": {"layers": layers},
            "training": {"width": 999, "act": "topk", "k": 7, **training},
            "dictionaries": {"a": {"name": "theirs", **sweep}},
        }
    )


def keys_of(study: Study) -> dict[str, Any]:
    run = study.runs["theirs"]
    names = ("format", "kind", "reads", "site", "act", "width", "skip")
    return {name: getattr(run, name) for name in names} | (
        {"k": run.k} if run.act in ("topk", "batchtopk") else {}
    )


def test_a_set_of_circuit_tracer_gives_a_run_its_keys(tmp_path) -> None:
    folders.circuit_tracer(tmp_path / "set", act="topk", skip=True, hooks=("hook_resid_mid", "mlp.hook_out"))
    study = study_of(tmp_path, {"files": str(tmp_path / "set")})
    assert keys_of(study) == {
        "format": "circuit_tracer", "kind": "transcoder", "reads": "resid_mid", "site": "mlp_out", "act": "topk",
        "width": WIDTH, "skip": True, "k": K,
    }  # fmt: skip
    run = study.runs["theirs"]
    assert (run.site_in, run.site_out, run.imported) == ("resid_mid", "mlp_out", True)
    assert study.transcoders == ["theirs"] and set(study.published["theirs"].layers) == {0, 1, 2}


def test_a_set_that_lists_files_of_gemma_scope_2_gives_a_run_its_keys(tmp_path) -> None:
    paths = [f"files/layer_{layer}_width_16k/params.safetensors" for layer in range(3)]
    for layer, path in enumerate(paths):
        folders.gemma_scope((tmp_path / path).parent, layer, affine=True)
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    settings = {"model_name": "tiny", "model_kind": "transcoder_set", **hooks, "transcoders": paths}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    study = study_of(tmp_path, {"files": str(tmp_path)})
    assert keys_of(study) == {
        "format": "gemma_scope", "kind": "transcoder", "reads": "mlp_in", "site": "mlp_added", "act": "jumprelu",
        "width": WIDTH, "skip": True,
    }  # fmt: skip
    first = study.published["theirs"].first
    assert [file.name for file in first.local_files()] == ["params.safetensors", "config.yaml"]


@pytest.mark.parametrize(
    ("act", "architecture"), [("relu", "standard"), ("jumprelu", "gated"), ("batchtopk", "batchtopk")]
)
def test_saes_of_saelens_give_a_run_its_keys(act: str, architecture: str, tmp_path) -> None:
    for layer in range(3):
        folders.saelens(tmp_path / f"blocks.{layer}", layer, architecture, hooks=("", "hook_resid_pre"))
    found = keys_of(study_of(tmp_path, {"files": str(tmp_path)}))
    assert found | {"k": 0} == {
        "format": "saelens", "kind": "sae", "reads": "mlp_in", "site": "resid_pre", "act": act, "width": WIDTH,
        "skip": False, "k": 0,
    }  # fmt: skip
    assert found.get("k") == (K if act == "batchtopk" else None)


def test_transcoders_of_sparsify_are_found_by_the_names_of_modules(tmp_path) -> None:
    for layer in range(3):
        folders.sparsify(tmp_path / "set", layer, skip=True)
    found = keys_of(study_of(tmp_path, {"files": str(tmp_path / "set")}))
    assert (found["kind"], found["site"], found["k"], found["skip"]) == ("transcoder", "mlp_out", K, True)


def test_the_stream_after_a_block_is_the_stream_before_the_next(tmp_path) -> None:
    for layer in range(3):
        folders.dictionary_learning(
            tmp_path / f"resid_post_layer_{layer}" / "trainer_0", layer, "AutoEncoderTopK"
        )
    study = study_of(tmp_path, {"files": str(tmp_path)}, layers=[1, 2])
    assert keys_of(study)["site"] == "resid_pre" and sorted(study.published["theirs"].layers) == [1, 2, 3]
    # there is no block after the last, and none before the first
    with pytest.raises(ValueError, match=r"no dictionary of layer 0; .*set activations\.layers to \[1, 2\]"):
        study_of(tmp_path, {"files": str(tmp_path)})


def test_layers_in_a_path_are_those_of_the_files(tmp_path) -> None:
    for layer in range(3):
        for width, l0 in ((16, 10 + layer), (32, 5)):
            place = tmp_path / f"layer_{layer}_width_{width}k_l0_{l0}"
            folders.gemma_scope(place, layer, config=scope_2(layer, width), width=width)
    study = study_of(tmp_path, {"files": str(tmp_path), "subfolder": "layer_{layer}_width_32k_l0_5"})
    assert keys_of(study)["width"] == 32
    # a stated width chooses too
    assert keys_of(study_of(tmp_path, {"files": str(tmp_path), "width": 16}))["width"] == 16
    with pytest.raises(
        ValueError, match=r"2 dictionaries of layer 0 \(.*\); name one with `subfolder`.* or `k`"
    ):
        study_of(tmp_path, {"files": str(tmp_path)})


def scope_2(layer: int, width: int) -> dict[str, Any]:
    return folders.scope_2_config(layer, width=width)


def test_one_dictionary_can_be_named_by_its_file(tmp_path) -> None:
    folders.gemma_scope(tmp_path / "place", 1, config=folders.scope_2_config(1))
    study = study_of(tmp_path, {"files": str(tmp_path / "place" / "params.safetensors")}, layers=[1])
    assert list(study.published["theirs"].layers) == [1]


@pytest.mark.parametrize(
    ("key", "stated", "found"),
    [
        ("width", 48, WIDTH), ("act", "jumprelu", "relu"), ("skip", True, False), ("kind", "sae", "transcoder"),
        ("site", "mlp_out", "mlp_added"), ("reads", "resid_mid", "mlp_in"), ("format", "saelens", None),
    ],
)  # fmt: skip
def test_a_stated_key_that_differs_is_refused_with_both_values(key: str, stated, found, tmp_path) -> None:
    folders.circuit_tracer(tmp_path / "set")
    words = (
        f"a\\.{key}: {stated}, but the files say {found}"
        if found is not None
        else "needed is one of config.yaml"
    )
    with pytest.raises(ValueError, match=words) as error:
        study_of(tmp_path, {"files": str(tmp_path / "set"), key: stated})
    assert "\n" not in str(error.value)


def test_a_stated_key_that_agrees_is_accepted(tmp_path) -> None:
    folders.circuit_tracer(tmp_path / "set", act="topk")
    sweep = {"files": str(tmp_path / "set"), "act": "topk", "k": K, "width": WIDTH, "site": "mlp_added"}
    assert keys_of(study_of(tmp_path, sweep))["k"] == K


def write_missing_layer(folder: Path) -> None:
    folders.circuit_tracer(folder, layers=4)
    (folder / "layer_1.safetensors").unlink()


def write_cut_off(folder: Path) -> None:
    folders.circuit_tracer(folder)
    file = folder / "layer_2.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def write_another_hook(folder: Path) -> None:
    folders.circuit_tracer(folder, hooks=("attn.hook_z", "hook_mlp_out"))


def write_unequal(folder: Path) -> None:
    folders.circuit_tracer(folder)
    folders.circuit_tracer_layer(folder, 1, "relu", True)


def write_saelens(**config: Any):
    return lambda folder: [folders.saelens(folder / str(i), i, "standard", **config) for i in range(3)]


def write_without_architecture(folder: Path) -> None:
    folders.saelens(folder, 0, "topk")
    settings = json.loads((folder / "cfg.json").read_text())
    del settings["architecture"]
    (folder / "cfg.json").write_text(json.dumps(settings))


FAULTS = {
    "an unknown kind of set": (
        lambda f: folders.circuit_tracer(f, model_kind="crosscoder"),
        "model_kind: crosscoder; transcoder_set and cross_layer_transcoder are supported",
    ),
    "a missing layer": (
        write_missing_layer, r"no dictionary of layer 1; there are layers 0, 2: set activations\.layers to \[0, 2\]",
    ),
    "a file that is cut off": (write_cut_off, r"no dictionary of layer 2 \(.*layer_2\.safetensors is damaged or cut"),
    "a hook without site": (write_another_hook, r"no site for the hook attn\.hook_z, the outputs of the heads"),
    "layers that differ": (write_unequal, "layer 0 has skip False, layer 1 True; all layers of a run are alike"),
    "another model": (lambda f: folders.circuit_tracer(f, d=8), "d=8, made for tiny; the study's model has d=16"),
    "input-dependent scale": (
        write_saelens(normalize_activations="layer_norm"), r"normalizes each input by itself .*layer_norm",
    ),
    "constant norm": (write_saelens(normalize_activations="constant_norm_rescale"), "normalizes each input by itself"),
    "an unknown factor": (
        write_saelens(normalize_activations="expected_average_only_in"), "write it into cfg.json as norm_scaling",
    ),
    "an unknown architecture": (write_saelens(architecture="temporal"), "architecture is temporal; known are standard"),
    "k without an architecture": (write_without_architecture, "state k=5 and no architecture, .*cfg.json"),
    "no hook": (lambda f: folders.saelens(f, 0, "standard", metadata={}), "hook_name in cfg.json"),
    "an unknown activation": (write_saelens(activation_fn="tanh-relu"), "activation function is tanh-relu; relu and"),
    "groupmax": (lambda f: folders.sparsify(f, 0, activation="groupmax"), "activation function is groupmax; topk"),
    "other sizes": (write_saelens(d_sae=48), "settings state d_sae: 48, but its weights have 24"),
    "an unknown class": (
        lambda f: folders.dictionary_learning(f, 0, "AutoEncoder", dict_class="CrossCoder"),
        "dict_class is CrossCoder; known are AutoEncoder",
    ),
    "a transcoder of attention": (
        lambda f: folders.sparsify(f, 0, module="self_attn"), r"no site for the hook layers\.0\.self_attn\.input",
    ),
    "outputs of heads, Gemma Scope 1": (
        lambda f: folders.gemma_scope(f / "gemma-scope-2b-pt-att" / "layer_0" / "average_l0_9", 0, second=False),
        "no site for the hook attn.hook_z, the outputs of the heads before W_O",
    ),
    "outputs of heads, Gemma Scope 2": (
        lambda f: folders.gemma_scope(f / "attn_out_all" / "layer_0_width_16k_l0_small", 0),
        "no site for the hook attn.hook_z, the outputs of the heads before W_O",
    ),
    "outputs of heads, by the settings of Gemma Scope 2": (
        lambda f: folders.gemma_scope(
            f / "attn_out_all" / "layer_0_width_16k_l0_small", 0,
            config={"hf_hook_point_in": "model.layers.0.self_attn.o_proj.input"},
        ),
        r"no site for the hook model\.layers\.0\.self_attn\.o_proj\.input, the outputs of the heads before W_O",
    ),
    "an empty folder": (lambda f: f.mkdir(), "has no file; needed is one of config.yaml with"),
    "no folder": (lambda f: None, "set does not exist; download the files with `hf download"),
    "settings that are no JSON": (
        lambda f: folders.saelens(f, 0, "standard") and (f / "cfg.json").write_text("{"), r"cfg\.json: cannot be read",
    ),
    "unknown sites": (
        lambda f: [folders.dictionary_learning(f / str(i), i, "AutoEncoder", submodule_name=None) for i in range(3)],
        r"does not say what its dictionaries read; set kind and site",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_do_not_fit_are_refused_in_one_line(fault: str, tmp_path) -> None:
    write, words = FAULTS[fault]
    write(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"^dictionaries\.a\..*{words}") as error:
        study_of(tmp_path, {"files": str(tmp_path / "set")})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["attn_out", "self_attn"])
def test_saes_of_attention_are_found_by_the_names_of_modules(name: str, tmp_path) -> None:
    for layer in range(3):
        folders.sparsify(tmp_path / "sparsify", layer, transcode=False, module="self_attn")
        submodule = f"{name}_layer_{layer}"
        folders.dictionary_learning(
            tmp_path / "learned" / str(layer), layer, "AutoEncoder", submodule_name=submodule
        )
    for folder in ("sparsify", "learned"):
        found = recognise(str(tmp_path / folder))
        assert found.keys() | {"kind": "sae", "site": "attn_added"} == found.keys()
        assert all(layer.attention_output for layer in found.layers.values())
    folders.saelens(tmp_path / "saelens", 0, "standard", hooks=("", "hook_attn_out"))
    (added,) = recognise(str(tmp_path / "saelens")).layers.values()
    assert (added.kind, added.site_out, added.attention_output) == ("sae", "attn_added", False)


@pytest.mark.parametrize(
    ("module", "site", "layer"),
    [
        ("model.layers.1", "resid_pre", 2),
        ("transformer.h.1.mlp", "mlp_out", 1),
        ("gpt_neox.layers.1.attention", "attn_added", 1),
        ("model.layers.1.post_feedforward_layernorm", "mlp_added", 1),
    ],
)
def test_saelens_may_name_a_module_whose_output_it_reads(
    module: str, site: str, layer: int, tmp_path
) -> None:
    # as it does with model_class_name: AutoModelForCausalLM
    folders.saelens(tmp_path, 1, "standard", metadata={"hook_name": module})
    (found,) = recognise(str(tmp_path)).layers.values()
    assert (found.kind, found.site_out, found.layer) == ("sae", site, layer)
    assert found.attention_output == (site == "attn_added")


def test_a_norm_that_stands_before_the_mlp_or_after_attention_is_no_site(tmp_path) -> None:
    for layer in range(3):
        folders.sparsify(tmp_path, layer, transcode=False, module="post_attention_layernorm")
    with pytest.raises(ValueError, match="does not say what its dictionaries read; set kind and site"):
        study_of(tmp_path, {"files": str(tmp_path)})
    study = study_of(tmp_path, {"files": str(tmp_path), "kind": "sae", "site": "attn_added"})
    assert study.runs["theirs"].site_in == "attn_added"


def test_a_site_that_the_files_do_not_say_can_be_stated(tmp_path) -> None:
    for layer in range(3):
        folders.dictionary_learning(tmp_path / str(layer), layer, "AutoEncoder", submodule_name=None)
    study = study_of(tmp_path, {"files": str(tmp_path), "kind": "sae", "site": "mlp_out"})
    assert study.runs["theirs"].site_in == "mlp_out"


def test_a_repository_of_the_hub_is_read_from_the_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folders.circuit_tracer(tmp_path / "repository" / "sub" / "set")
    commit = make_hub_repository(tmp_path / "cache", "owner/name", tmp_path / "repository")
    study = study_of(tmp_path, {"files": "owner/name", "subfolder": "sub/set"})
    assert keys_of(study)["width"] == WIDTH and study.uses_hub
    from circuitloom.config.published import commit_of

    assert commit_of("owner/name", None, "files") == commit
    with pytest.raises(ValueError, match=r"^dictionaries\.a\.files: owner/other .*not in the hub's cache"):
        study_of(tmp_path, {"files": "owner/other"})


def test_recognition_loads_neither_torch_nor_numpy(tmp_path) -> None:
    folders.circuit_tracer(tmp_path)
    code = f"""
import sys
from circuitloom.config.published import recognise
print(sorted(recognise({str(tmp_path)!r}).layers), [name for name in ("torch", "numpy") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[0, 1, 2] []"


def test_a_listed_uri_names_a_file_of_another_repository(tmp_path) -> None:
    from circuitloom.config.published_files import parse_uri

    file = parse_uri("hf://google/gemma-scope-2b-pt-transcoders/layer_0/params.npz?revision=abc", "files")
    assert (file.name, str(file.files)) == (
        "layer_0/params.npz",
        "google/gemma-scope-2b-pt-transcoders (revision abc)",
    )
    with pytest.raises(ValueError, match="not of the form hf://owner/repository/file"):
        parse_uri("hf://google", "files")


def test_a_refused_file_leaves_the_others(tmp_path) -> None:
    for layer in range(2):
        folders.saelens(tmp_path / str(layer), layer, "standard")
    folders.saelens(tmp_path / "attention", 0, "standard", hooks=("", "attn.hook_z"))
    found = recognise(str(tmp_path))
    assert sorted(found.layers) == [0, 1]
    (reason,) = found.refused.values()
    assert "no site for the hook blocks.0.attn.hook_z" in reason
