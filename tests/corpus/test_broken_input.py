import random
import shutil
from pathlib import Path

import pytest
from tests.corpus.inputs import TEXTS, built, jsonl, write_parquet
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from circuitloom.corpus.tokens import open_tokens


def damaged(chronicle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chronicle / "train.zarr", tmp_path / "train.zarr"))


def test_a_flipped_byte_is_detected_and_the_message_names_the_array(chronicle, tmp_path):
    path = damaged(chronicle, tmp_path)
    shard = path / "token" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    for i in random.Random(0).sample(range(len(content)), 20):
        shard.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        tokens = open_tokens(path)
        with pytest.raises(ValueError, match=r"train.zarr/token: damaged .*; delete .* and run again"):
            tokens.take(slice(0, len(tokens)))


def test_a_missing_shard_is_detected_on_opening(chronicle, tmp_path):
    path = damaged(chronicle, tmp_path)
    (path / "document" / "c" / "0" / "0").unlink()
    with pytest.raises(ValueError, match=r"document/c/0/0: 1 of 1 shards are missing; delete"):
        open_tokens(path)


BROKEN = {
    "a missing file": ({"train": "{folder}/none.jsonl"}, r"corpus.train: .*none.jsonl does not exist"),
    "an empty file": ({"train": "{folder}/empty.jsonl"}, r"empty.jsonl is empty; give a file with text"),
    "blank text": ({"train": "{folder}/blank.txt"}, r"not fill one sequence of 16 tokens; .* \(blank .*: 3\)"),
    "too little text": ({"train": "{folder}/short.jsonl"}, r"do not fill one sequence of 16 tokens"),
    "a folder": ({"train": "{folder}/nothing"}, r"nothing is a folder; name its files, or set corpus.glob"),
    "a pattern without files": (
        {"train": "{folder}/x*.jsonl", "glob": True}, r"corpus.train: no file matches .*x\*.jsonl; correct the pattern",
    ),
    "an unknown format": ({"train": "{folder}/text.doc"}, r"text.doc has an unknown format; convert it to one of .txt"),
    "a missing column": (
        {"train": "{folder}/text.jsonl", "text": "body"}, r"corpus.text: .* has no column body; set it to one of text",
    ),
    "not JSON": ({"train": "{folder}/broken.jsonl"}, r"broken.jsonl, line 2: not JSON \(.*\); repair or replace it"),
    "not Parquet": ({"train": "{folder}/broken.parquet"}, r"broken.parquet: cannot be read \(.*\); repair or replace"),
    "a missing tokenizer": ({"tokenizer": "/none/such"}, r"corpus.tokenizer: /none/such is not a folder"),
    "a folder without tokenizer": ({"tokenizer": "{folder}/nothing"}, r"corpus.tokenizer: .* no tokenizer that loads"),
    "another model's tokenizer": ({"vocabulary": 90}, r"the model knows 90 tokens; use the tokenizer"),
    "an unknown data set": (
        {"source": "hub", "dataset": "nobody/nothing"}, r"corpus.dataset: nobody/nothing .*check the name and the net",
    ),
    "an unknown split": (
        {"source": "hub", "dataset": "{folder}/hub", "train_split": "trian"}, r"corpus.dataset: .* not load .*trian",
    ),
    "a loading script": (
        {"source": "hub", "dataset": "{folder}/scripted"}, r"scripted does not load .*set corpus.revision to refs/conv",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_input_gives_a_message_of_one_line(tmp_path, tokenizer, keys, message):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.txt").write_text("\n \n\n")
    jsonl(tmp_path / "short.jsonl", ["Too short."])
    jsonl(tmp_path / "text.jsonl", TEXTS)
    (tmp_path / "text.doc").write_text("text")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "broken.parquet").write_text("PAR1")
    (tmp_path / "nothing").mkdir()
    write_parquet(Path(shutil.copytree(tmp_path / "nothing", tmp_path / "hub")) / "train.parquet", TEXTS)
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").touch()
    keys = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in keys.items()}
    folder = Path(keys.pop("tokenizer", tokenizer))
    if keys.get("source") != "hub":
        keys = {"source": "files", "train": str(tmp_path / "text.jsonl"), **keys}
    with pytest.raises(ValueError, match=message) as error:
        built(tmp_path / "corpus", folder, **keys)
    assert len(str(error.value).splitlines()) == 1


KNOWN = {"the": 0, "war": 1, ".": 2}
UNKNOWING = {
    "words": (models.WordLevel(KNOWN), pre_tokenizers.WhitespaceSplit(), "zebra."),
    "words and punctuation": (models.WordLevel(KNOWN), pre_tokenizers.Whitespace(), "zebra"),
    "WordPiece": (models.WordPiece(KNOWN), pre_tokenizers.WhitespaceSplit(), "zebra."),
    "Unigram": (models.Unigram([(piece, -1.0) for piece in " thewar."]), None, "zebra."),
}


@pytest.mark.parametrize("length", [1, 14_000], ids=["short", "long"])
@pytest.mark.parametrize("kind", UNKNOWING)
def test_a_word_without_a_token_is_named_with_its_place(tmp_path, kind, length):
    model, before, word = UNKNOWING[kind]
    backend = Backend(model)
    backend.pre_tokenizer = before
    (tmp_path / "tokenizer").mkdir()
    backend.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    known = jsonl(tmp_path / "known.jsonl", ["the war the war"] * 9)
    train = jsonl(tmp_path / "train.jsonl", ["the war"] * 20 + ["the war " * length + "the zebra. war gnu"])
    keys = {"source": "files", "train": str(train), "validation": str(known)}
    with pytest.raises(
        ValueError, match=rf"train.jsonl, line 21: .* not know '{word}' .* unk_token"
    ) as error:
        built(tmp_path / "corpus", tmp_path / "tokenizer", **keys)
    assert len(str(error.value).splitlines()) == 1
