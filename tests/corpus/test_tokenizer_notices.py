"""What a tokenizer assumes, changes or loses is said."""

import json
from pathlib import Path

import pytest
from tests.corpus.inputs import BYTE_LEVEL, LLAMA, TEXTS, UNIGRAM, WORD_PIECE, bpe, built, jsonl, trained
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from circuitloom.core.tables import read_table
from circuitloom.corpus.build import TokenizerSource
from circuitloom.corpus.tokenizer import Tokenizer, load_tokenizer
from circuitloom.corpus.tokenizer_notices import tokenizer_notices
from circuitloom.corpus.tokens import open_tokens


def tokenizer_json(folder: Path, backend: Backend) -> Path:
    """Save only tokenizer.json in `folder`; returns `folder`."""
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    return folder


def backend(specials: list[str], template: str | None = None) -> Backend:
    """A backend of bytes with the special tokens `specials`, with ids from 600."""
    state = json.loads(trained(BYTE_LEVEL).backend.to_str())
    state["added_tokens"] = []
    made = Backend.from_str(json.dumps(state))
    made.add_special_tokens([AddedToken(token, special=True) for token in specials])
    if template:
        ids = [(token, made.token_to_id(token)) for token in specials if token in template]
        made.post_processor = processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing(single=template, special_tokens=ids)]
        )
    return made


@pytest.mark.parametrize(
    ("specials", "template", "bos", "eos", "kind"),
    [
        (["[CLS]", "[SEP]", "[PAD]"], "[CLS] $A [SEP]", "[CLS]", "[SEP]", "assumed_separator"),
        (["<|start|>", "<s>"], "<|start|> $A", "<|start|>", None, "assumed_separator"),
        (["<s>", "</s>", "<pad>"], None, "<s>", "</s>", "assumed_separator"),
        (["<|endoftext|>", "<|im_end|>"], None, None, "<|endoftext|>", "assumed_separator"),
        (["<|x|>"], "$A <|x|>", None, None, "no_separator"),
        (["[gMASK]", "<sop>"], "[gMASK] <sop> $A", None, None, "no_separator"),
        ([], None, None, None, "no_separator"),
    ],
)
def test_bos_and_eos_of_a_lone_tokenizer_json_are_found_or_said_to_be_missing(
    tmp_path, specials, template, bos, eos, kind
):
    made = backend(specials, template)
    tokenizer = TokenizerSource(str(tokenizer_json(tmp_path / "given", made))).load()
    assert tokenizer.bos_id == (None if bos is None else made.token_to_id(bos))
    assert tokenizer.eos_id == (None if eos is None else made.token_to_id(eos))
    (notice,) = tokenizer_notices(tokenizer)
    assert (notice.subject, notice.kind) == ("tokenizer", kind)
    assert (bos or eos or "nothing separates documents") in notice.message
    # transformers reads the same from the corpus's copy
    tokenizer.save(tmp_path / "saved")
    saved = load_tokenizer(str(tmp_path / "saved"))
    assert (saved.bos_id, saved.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (peer.bos_token_id, peer.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_named_special_tokens_are_not_searched(tmp_path):
    both = tokenizer_notices(TokenizerSource(str(bpe(tmp_path / "both", "<s>", "</s>"))).load())
    assert both == []
    tokenizer = TokenizerSource(str(bpe(tmp_path / "eos", None, "<s>"))).load()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 0)
    (notice,) = tokenizer_notices(tokenizer)
    assert notice.kind == "no_bos" and "<s> (id 0) ends each document" in notice.message


@pytest.mark.parametrize(
    ("kind", "changed"), [(BYTE_LEVEL, None), (LLAMA, None), (UNIGRAM, "fi"), (WORD_PIECE, "ea  bc")]
)
def test_a_tokenizer_that_changes_text_is_said(kind, changed):
    notices = [notice for notice in tokenizer_notices(trained(kind)) if notice.kind == "normalized"]
    assert len(notices) == (changed is not None)
    assert all(changed in notice.message for notice in notices)


def notices(folder: Path) -> dict[tuple[str, str], dict]:
    rows = read_table(folder / "notice.parquet").to_pylist()
    return {(row["subject"], row["kind"]): row for row in rows}


def test_unknown_and_lost_text_is_counted(tmp_path, capfd):
    text = jsonl(tmp_path / "train.jsonl", [*TEXTS, "中 is no word, and 国 is none."])
    held_out = jsonl(tmp_path / "held_out.jsonl", [text + "." for text in TEXTS])
    keys = {"source": "files", "train": str(text), "validation": str(held_out)}
    pieces = tokenizer_json(tmp_path / "pieces", trained(WORD_PIECE).backend)
    found = notices(built(tmp_path / "pieces corpus", pieces, **keys))
    tokens = open_tokens(tmp_path / "pieces corpus" / "train.zarr").take(slice(0, 10**6))
    row = found["train", "unknown"]
    assert row["count"] == int((tokens == 0).sum()) > 0 and ("validation", "unknown") not in found
    assert f"{row['count']:,} of {tokens.numel():,} tokens" in row["message"] and "<unk>" in row["message"]
    assert row["message"] in capfd.readouterr().err
    state = json.loads(trained(LLAMA).backend.to_str())
    state["model"] |= {"byte_fallback": False, "unk_token": None}
    state["model"]["vocab"] = {t: n for t, n in state["model"]["vocab"].items() if "国" not in t}
    letters = tokenizer_json(tmp_path / "letters", Backend.from_str(json.dumps(state)))
    row = notices(built(tmp_path / "letters corpus", letters, **keys))["train", "lost"]
    # no text that the tokenizer was trained on has a w
    assert row["count"] == 2 and "'w', '国'" in row["message"]


def test_special_tokens_in_text_stay_text_and_are_counted(tmp_path):
    texts = [text.replace(" is ", " <s>is ", 1) for text in TEXTS]
    folder = bpe(tmp_path / "tokenizer")
    source = jsonl(tmp_path / "train.jsonl", texts)
    corpus = built(tmp_path / "corpus", folder, source="files", train=str(source), validation_share=0.3)
    tokens = open_tokens(corpus / "train.zarr")
    documents = int(tokens.take_document(slice(0, 10**6)).max()) + 1
    # one BOS before each document, one before each sequence
    assert int((tokens.take(slice(0, 10**6)) == 0).sum()) == documents + len(tokens)
    row = notices(corpus)["train", "special <s>"]
    assert row["count"] == documents and "corpus.separator" in row["message"]


def test_a_tokenizer_object_tells_its_unknown_token():
    assert [trained(kind).unknown_id for kind in (BYTE_LEVEL, UNIGRAM, WORD_PIECE, LLAMA)] == [None, 0, 0, 0]
    assert [trained(kind).has_every_byte for kind in (BYTE_LEVEL, UNIGRAM, LLAMA)] == [True, False, True]
    assert Tokenizer(trained(UNIGRAM).backend, 1, 2).separator_id == 1
