"""Models from folders, the hub's cache and pickled weights are installed as Hugging Face folders."""

import json
from pathlib import Path

import pytest
import torch
from tests.architectures import tiny_config
from tests.language_model.inputs import make_hub_repository, make_legacy, make_tokenizer
from tests.models import CONTEXT, D_MODEL, LAYERS, VOCABULARY, _save, tiny_gpt2, tiny_llama

from circuitloom.config import language_model as sections
from circuitloom.config.architectures import MULTIMODAL
from circuitloom.config.model_shape import read_shape
from circuitloom.corpus.tokenizer import load_hugging_face_tokenizer
from circuitloom.language_model.installation import install
from circuitloom.language_model.model import load_model
from circuitloom.language_model.model_files import describe_source, source_files

TOKENS = torch.arange(4, 4 + CONTEXT)[None]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return make_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, the hub out of reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def from_path(path: Path) -> sections.ModelFolder:
    return sections.ModelFolder(source="path", path=str(path))


def from_hub(name: str, revision: str = "main") -> sections.HubModel:
    return sections.HubModel(source="hub", name=name, revision=revision)


def test_a_folder_is_copied_and_stays_valid_without_the_original(tokenizer, tmp_path):
    folder, output = tiny_llama(tmp_path / "given"), tmp_path / "results" / "model"
    logits = load_model(folder, device="cpu").logits(TOKENS)
    for file in folder.iterdir():
        file.chmod(0o444)
    install(from_path(folder), tokenizer, output)
    (folder / "model.safetensors").unlink()
    output = output.rename(tmp_path / "moved")
    assert torch.equal(load_model(output, device="cpu").logits(TOKENS), logits)
    assert not any(file.is_symlink() for file in output.iterdir())
    assert json.loads((output / "anatomy.json").read_text())["architecture"] == "LlamaForCausalLM"
    assert json.loads((output / "source.json").read_text())["path"] == str(folder.resolve())
    (output / "config.json").write_text("ours to write to")


def shard(folder: Path) -> list[str]:
    """Split the weights of a model into two shards with an index; returns their names."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = {name: files[i % 2] for i, name in enumerate(weights)}
    for file in files:
        own = {name: weights[name] for name in weights if names[name] == file}
        save_file(own, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return files


def test_of_the_weights_only_those_that_the_index_names_are_copied(tokenizer, tmp_path):
    folder = tiny_llama(tmp_path / "given")
    logits = load_model(folder, device="cpu").logits(TOKENS)
    files = shard(folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same weights under other names")
    (folder / "model.fp16-00001-of-00001.safetensors").write_bytes(b"a variant")
    assert {file.name for file in source_files(folder) if file.suffix == ".safetensors"} == set(files)
    install(from_path(folder), tokenizer, tmp_path / "model")
    assert sorted(file.name for file in (tmp_path / "model").glob("*.safetensors")) == files
    assert torch.equal(load_model(tmp_path / "model", device="cpu").logits(TOKENS), logits)


def test_of_a_hub_repository_only_the_weights_that_the_index_names_are_downloaded(
    tokenizer, cache, tmp_path, monkeypatch
):
    import huggingface_hub

    folder = tiny_llama(tmp_path / "given")
    files = shard(folder)
    make_hub_repository(cache, "org/tiny", folder)
    asked = []
    download = huggingface_hub.snapshot_download

    def record(*arguments, allow_patterns, **keys):
        asked.append(allow_patterns)
        return download(*arguments, allow_patterns=allow_patterns, **keys)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    install(from_hub("org/tiny"), tokenizer, tmp_path / "model")
    assert {name for patterns in asked for name in patterns if "safetensors" in name} == set(files)


def test_one_file_of_weights_goes_before_an_index_as_in_transformers(tokenizer, tmp_path):
    folder = tiny_llama(tmp_path / "given")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    install(from_path(folder), tokenizer, tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "model-1.safetensors"}}, "model-1.safetensors does not exist, but .* names it"),
        (
            {"weight_map": {"a": "../model-1.safetensors"}},
            "is not an index of weights in its folder; put them there",
        ),
        ({"weight_map": []}, "is not an index of weights; put them there"),
        ([], "is not an index of weights; put them there"),
    ],
)
def test_a_broken_index_of_weights_is_refused(index, message, tokenizer, tmp_path):
    folder = tiny_llama(tmp_path / "given")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message) as error:
        install(from_path(folder), tokenizer, tmp_path / "model")
    assert "\n" not in str(error.value)


def test_a_refused_model_is_refused_before_anything_is_copied(tokenizer, tmp_path):
    from tests.attribution.test_architectures import save_tiny

    folder = save_tiny("Bloom", tmp_path)
    with pytest.raises(ValueError, match="bloom models do not run: its MLP adds the residual stream"):
        install(from_path(folder), tokenizer, tmp_path / "model")
    assert not list(tmp_path.glob("model*"))


def test_code_in_a_repository_is_not_run_and_the_terminal_is_not_asked(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _prompt: pytest.fail("asked on the terminal"))
    folder = tiny_llama(tmp_path / "given")
    (folder / "code.py").write_text("raise SystemExit")
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    # transformers has own code for this model
    install(from_path(folder), tokenizer, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code, "model_type": "mine"}))
    with pytest.raises(ValueError, match=r"mine models do not run: .* downloaded code is never run") as error:
        install(from_path(folder), tokenizer, tmp_path / "again")
    assert "\n" not in str(error.value)


def test_which_model_is_taken_is_printed_and_recorded(tokenizer, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commit = make_hub_repository(cache, "gpt2", tiny_gpt2(tmp_path / "hub", seed=1))
    # a folder of the hub's name is not taken
    tiny_gpt2(tmp_path / "gpt2", seed=2)
    install(from_hub("gpt2"), tokenizer, tmp_path / "model")
    line = f"circuitloom: language_model: gpt2 from the hub, revision main, commit {commit}\n"
    assert line in capsys.readouterr().err
    assert torch.equal(
        load_model(tmp_path / "model", device="cpu").logits(TOKENS),
        load_model(tmp_path / "hub", device="cpu").logits(TOKENS),
    )
    install(from_path(Path("gpt2")), tokenizer, tmp_path / "other")
    assert f"circuitloom: language_model: {tmp_path / 'gpt2'}\n" in capsys.readouterr().err


VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
TEXT_MODELS = {
    "gemma3": "gemma3_text", "idefics3": "llama", "llava": "llama", "llava_next": "mistral", "llava_onevision": "qwen2",
    "mistral3": "mistral",
}  # fmt: skip
"""Multimodal architectures, and the text model that each is tested with."""


def tiny_multimodal(kind: str, folder: Path) -> Path:
    from transformers import AutoConfig, AutoModelForImageTextToText

    vision = dict(VISION)
    known = AutoConfig.for_model(kind)
    if known.vision_config.model_type == "pixtral":
        vision["head_dim"] = 8
    if known.vision_config.model_type == "clip_vision_model":
        vision["projection_dim"] = 16
    text = tiny_config(TEXT_MODELS[kind])
    config = AutoConfig.for_model(
        kind, text_config=text.to_dict() | {"model_type": text.model_type},
        vision_config={**vision, "model_type": known.vision_config.model_type},
        tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip
    return _save(AutoModelForImageTextToText.from_config, config, folder, 0)


def test_every_multimodal_architecture_is_tested():
    assert set(TEXT_MODELS) == set(MULTIMODAL)


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_of_a_multimodal_model_the_text_model_is_copied(kind, tokenizer, tmp_path):
    from transformers import AutoModelForImageTextToText

    folder = tiny_multimodal(kind, tmp_path / "given")
    full = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    config = from_path(folder)
    install(config, tokenizer, tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    torch.testing.assert_close(model.logits(TOKENS), full(TOKENS).logits)
    assert not any("vision" in name for name, _ in model.module.named_parameters())
    source = json.loads((tmp_path / "model" / "source.json").read_text())
    assert source["part"] == f"the text model of a {kind} model"
    shape = read_shape(config, 8)
    assert shape == read_shape(from_path(tmp_path / "model"), 8)
    assert (shape.layers, shape.d_model, shape.vocabulary) == (LAYERS, D_MODEL, VOCABULARY)


def test_pickled_weights_become_safetensors(tokenizer, tmp_path):
    from safetensors.torch import load_file

    folder = tiny_gpt2(tmp_path / "given")
    logits = load_model(folder, device="cpu").logits(TOKENS)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    install(from_path(folder), tokenizer, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model", device="cpu").logits(TOKENS), logits)
    assert sorted(f.suffix for f in (tmp_path / "model").iterdir() if f.suffix != ".json") == [".safetensors"]


def test_the_requested_revision_and_its_commit_come_from_the_hub_cache(cache, tmp_path):
    make_hub_repository(cache, "org/tiny", tiny_gpt2(tmp_path / "new", seed=1))
    old = tiny_gpt2(tmp_path / "old", seed=2)
    (old / "onnx").mkdir()
    (old / "onnx" / "model.json").write_text("{}")
    commit = make_hub_repository(cache, "org/tiny", old, revision="v1")
    install(from_hub("org/tiny", "v1"), old, tmp_path / "model")
    assert torch.equal(
        load_model(tmp_path / "model", device="cpu").logits(TOKENS),
        load_model(old, device="cpu").logits(TOKENS),
    )
    source = json.loads((tmp_path / "model" / "source.json").read_text())
    assert source == {"source": "hub", "name": "org/tiny", "revision": "v1", "commit": commit}
    assert not (tmp_path / "model" / "model.json").exists()


def test_a_legacy_repository_gets_the_tokenizer_of_the_corpus(tokenizer, cache, tmp_path):
    name = "NeelNanda/GELU_2L16W_test"
    make_hub_repository(cache, name, make_legacy(tmp_path / "given"))
    install(from_hub(name), tokenizer, tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    assert model.anatomy.architecture == "TransformerLensNative"
    assert model.logits(TOKENS).shape == (1, CONTEXT, VOCABULARY)
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    again = tmp_path / "again"
    install(from_path(tmp_path / "model"), tokenizer, again)
    assert torch.equal(load_model(again, device="cpu").logits(TOKENS), model.logits(TOKENS))


def test_a_repository_missing_from_the_cache_is_refused_with_a_remedy(tokenizer, cache, tmp_path):
    message = r"language_model.name: org/tiny .* not in the hub's cache .* set HF_HUB_OFFLINE=0"
    with pytest.raises(ValueError, match=message):
        install(from_hub("org/tiny"), tokenizer, tmp_path / "model")


def test_weights_missing_from_the_cache_are_refused_with_a_remedy(tokenizer, cache, tmp_path):
    folder = tiny_gpt2(tmp_path / "given")
    (folder / "model.safetensors").unlink()
    make_hub_repository(cache, "org/tiny", folder)
    with pytest.raises(ValueError, match=r"language_model.name: .* has no weights .* set HF_HUB_OFFLINE=0"):
        install(from_hub("org/tiny"), tokenizer, tmp_path / "model")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "config.json does not exist; name a folder"), ("model.safetensors", "has no weights")],
)
def test_a_folder_without_config_or_weights_is_refused(missing, message, tokenizer, tmp_path):
    folder = tiny_gpt2(tmp_path / "given")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"language_model.path: .*{message}"):
        install(from_path(folder), tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_another_tokenizer_than_the_model_s_own_is_named_on_the_terminal_and_in_the_report(
    tokenizer, tmp_path, capsys
):
    folder = tiny_llama(tmp_path / "given")
    install(from_path(folder), tokenizer, tmp_path / "model")
    fact = "the corpus' tokenizer is not the model's own: 64 of its 64 tokens have another id there, or none"
    assert f"circuitloom: language_model: {fact}\n" in capsys.readouterr().err
    origin = json.loads((tmp_path / "model" / "source.json").read_text())
    assert describe_source(origin) == f"{folder}; {fact}"


def test_a_tokenizer_of_the_same_words_that_splits_differently_is_named(tmp_path):
    from tokenizers.pre_tokenizers import Whitespace

    folder = tiny_llama(tmp_path / "given")
    own = load_hugging_face_tokenizer(str(folder))
    own.save(tmp_path / "same")
    own.backend.pre_tokenizer = Whitespace()
    own.save(tmp_path / "other")
    for name in ("same", "other"):
        install(from_path(folder), tmp_path / name, tmp_path / "results" / name)
    origins = [json.loads((tmp_path / "results" / n / "source.json").read_text()) for n in ("same", "other")]
    assert "tokenizer" not in origins[0]
    assert origins[1]["tokenizer"].endswith("own: it splits text into other tokens")


def test_an_adapter_is_refused_with_a_remedy(tokenizer, cache, tmp_path):
    folder = tiny_llama(tmp_path / "given")
    (folder / "adapter_config.json").write_text("{}")
    make_hub_repository(cache, "org/adapted", folder)
    for config, key in ((from_path(folder), "path"), (from_hub("org/adapted"), "name")):
        with pytest.raises(ValueError, match=rf"^language_model.{key}: .* has an adapter .*merge it"):
            install(config, tokenizer, tmp_path / "model")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="has an adapter"):
        read_shape(from_path(folder), 8)


def test_the_message_on_unused_weights_names_the_user_s_folder(tokenizer, tmp_path):
    folder = tiny_llama(tmp_path / "given")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(
        ValueError, match=r"given: its config does not use the weight model.layers.2."
    ) as error:
        install(from_path(folder), tokenizer, tmp_path / "model")
    assert "\n" not in str(error.value)
