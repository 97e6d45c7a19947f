"""Models from folders, the hub's cache and pickled weights are installed as Hugging Face folders."""

import json
from pathlib import Path

import pytest
import torch
from tests.language_model.inputs import make_hub_repository, make_legacy, make_tokenizer
from tests.models import CONTEXT, VOCABULARY, tiny_gpt2, tiny_llama

from circuitloom.config import language_model as sections
from circuitloom.language_model.installation import install
from circuitloom.language_model.model import load_model

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


def test_pickled_weights_become_safetensors(tokenizer, tmp_path):
    from safetensors.torch import load_file

    folder = tiny_gpt2(tmp_path / "given")
    logits = load_model(folder, device="cpu").logits(TOKENS)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    install(from_path(folder), tokenizer, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model", device="cpu").logits(TOKENS), logits)
    assert sorted(f.suffix for f in (tmp_path / "model").iterdir() if f.suffix != ".json") == [".safetensors"]


def test_the_requested_revision_and_its_commit_come_from_the_hub_cache(tokenizer, cache, tmp_path):
    make_hub_repository(cache, "org/tiny", tiny_gpt2(tmp_path / "new", seed=1))
    old = tiny_gpt2(tmp_path / "old", seed=2)
    (old / "onnx").mkdir()
    (old / "onnx" / "model.json").write_text("{}")
    commit = make_hub_repository(cache, "org/tiny", old, revision="v1")
    install(from_hub("org/tiny", "v1"), tokenizer, tmp_path / "model")
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
