"""Tokenizers that the corpus job has saved: read without transformers, equal to what transformers reads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.corpus.inputs import BYTE_LEVEL, KINDS, TEXTS, bpe, trained
from tokenizers import Tokenizer as Backend

from circuitloom.corpus.build import TokenizerSource
from circuitloom.corpus.chronicle.grammar import vocabulary, write_episode
from circuitloom.corpus.tokenizer import (
    BOS,
    IDS_FILE,
    Tokenizer,
    load_hugging_face_tokenizer,
    load_tokenizer,
    word_tokenizer,
)


def assert_equal(got: Tokenizer, want: Tokenizer, texts: list[str]) -> None:
    assert (got.bos_id, got.eos_id, got.vocabulary) == (want.bos_id, want.eos_id, want.vocabulary)
    assert got.fingerprint == want.fingerprint
    assert got.strings() == want.strings()
    assert all(map(np.array_equal, got.encode(texts), want.encode(texts)))
    assert all(np.array_equal(got.offsets(text), want.offsets(text)) for text in texts)


@pytest.mark.parametrize(("bos", "eos"), [("<s>", None), ("<s>", "</s>"), (None, "</s>"), (None, None)])
def test_a_saved_tokenizer_is_read_without_transformers_and_stays_the_same(tmp_path, bos, eos) -> None:
    given = TokenizerSource(str(bpe(tmp_path / "given", bos, eos))).load()
    assert given.hugging_face is not None
    given.save(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert saved.hugging_face is None
    assert_equal(saved, given, TEXTS)
    saved.save(tmp_path / "again")
    assert_equal(load_tokenizer(str(tmp_path / "again")), given, TEXTS)
    assert_equal(load_hugging_face_tokenizer(str(tmp_path / "again")), given, TEXTS)


def test_chronicle_s_tokenizer_is_what_transformers_makes_and_writes(tmp_path) -> None:
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    made = word_tokenizer(vocabulary())
    backend = Backend(WordLevel({word: number for number, word in enumerate([BOS, *vocabulary()])}))
    backend.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    peer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS)
    texts = [write_episode(0, "train", number).text for number in range(5)]
    assert_equal(made, Tokenizer(peer.backend_tokenizer, 0, None), texts)
    made.save(tmp_path / "made")
    peer.save_pretrained(tmp_path / "peer")
    for file in (tmp_path / "peer").iterdir():
        assert file.read_bytes() == (tmp_path / "made" / file.name).read_bytes(), file.name
    assert_equal(load_hugging_face_tokenizer(str(tmp_path / "made")), made, texts)


def test_a_folder_without_ids_is_read_through_transformers(tmp_path) -> None:
    # earlier versions wrote no ids
    made = word_tokenizer(vocabulary())
    made.save(tmp_path)
    (tmp_path / IDS_FILE).unlink()
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.hugging_face is not None
    assert_equal(loaded, made, [write_episode(0, "train", 0).text])


def test_ids_of_another_tokenizer_are_not_used(tmp_path) -> None:
    saved = tmp_path / "saved"
    TokenizerSource(str(bpe(tmp_path / "given", "<s>", "</s>"))).load().save(saved)
    config = json.loads((saved / "tokenizer_config.json").read_text())
    (saved / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "</s>"}))
    assert (load_tokenizer(str(saved)).bos_id, load_tokenizer(str(saved)).eos_id) == (1, 1)
    shutil.copytree(bpe(tmp_path / "other", None, "</s>"), saved, dirs_exist_ok=True)
    assert load_tokenizer(str(saved)).bos_id is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": 0}'])
def test_damaged_ids_are_not_used(tmp_path: Path, text: str) -> None:
    word_tokenizer(["a"]).save(tmp_path)
    (tmp_path / IDS_FILE).write_text(text)
    assert load_tokenizer(str(tmp_path)).bos_id == 0


@pytest.mark.parametrize("kind", KINDS)
def test_strings_of_special_tokens_are_ordinary_text(kind) -> None:
    tokenizer = trained(kind)
    text = "Price <s>30 euro</s> <s> <unk> over. </s>"
    (ids,) = tokenizer.encode([text])
    assert not {1, 2} & set(ids.tolist())
    ((again, _),) = tokenizer.encode_with_offsets([text])
    assert np.array_equal(ids, again)
    (parsed,) = tokenizer.encode([text], special=True)
    assert parsed.tolist().count(1) == parsed.tolist().count(2) == 2
    # the order of calls does not matter
    assert np.array_equal(tokenizer.encode([text])[0], ids)


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_special_tokens_has_the_tokens_of_the_tokenizer_itself(kind) -> None:
    texts = [*TEXTS, "Maß für Größe 中文"]
    tokenizer = trained(kind)
    own = Backend.from_str(tokenizer.backend.to_str()).encode_batch(texts, add_special_tokens=False)
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == [encoding.ids for encoding in own]


def test_a_bos_that_tokenizer_json_does_not_mark_as_special_is_ordinary_text_too(tmp_path) -> None:
    state = json.loads(trained(BYTE_LEVEL).backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = False
    tokenizer = Tokenizer(Backend.from_str(json.dumps(state)), bos_id=1, eos_id=2)
    (ids,) = tokenizer.encode(["<s> is a tag"])
    assert ids.tolist() == trained(BYTE_LEVEL).encode(["<s> is a tag"])[0].tolist()


def test_dropout_of_a_tokenizer_is_switched_off(tmp_path) -> None:
    folder = bpe(tmp_path / "given")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(state))
    plain, dropping = load_tokenizer(str(bpe(tmp_path / "plain"))), load_tokenizer(str(folder))
    assert all(map(np.array_equal, plain.encode(TEXTS), dropping.encode(TEXTS)))
