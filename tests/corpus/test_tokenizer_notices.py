"""What a tokenizer assumes, changes or loses is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.corpus.inputs import (
    BYTE_LEVEL,
    LLAMA,
    TEXTS,
    UNIGRAM,
    WORD_PIECE,
    WORDS,
    bpe,
    built,
    jsonl,
    trained,
)
from tests.corpus.test_token_names import with_byte_fallback
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from circuitloom.core.notices import Notice
from circuitloom.core.tables import read_table
from circuitloom.corpus.build import TokenizerSource
from circuitloom.corpus.chronicle.grammar import vocabulary, write_episode
from circuitloom.corpus.packing import Cursor, PackedBlocks, PackedDocument, Packing, SequenceBlock
from circuitloom.corpus.tokenizer import Tokenizer, load_tokenizer, word_tokenizer
from circuitloom.corpus.tokenizer_notices import text_notices, tokenizer_notices
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


STORY = 'Once upon a time, there was a girl. "Hi!"\tOk?\nNew line — a dash… 😀 caffè ② 1984.'


def changes(folder: Path, tokenizer: Tokenizer, texts: list[str], special: bool = False) -> list[Notice]:
    """Notices on changed characters of a split with the documents `texts`."""
    blocks = PackedBlocks(folder / "blocks", "train")
    documents = [PackedDocument(number, text, None, None) for number, text in enumerate(texts)]
    nothing = np.zeros((0, 16), np.int32)
    blocks.append(SequenceBlock(nothing, nothing, documents, Cursor(document=len(texts))))
    packing = Packing(tokenizer, 16, special=special)
    return [notice for notice in text_notices(packing, blocks) if notice.kind == "changed"]


def byte_level(normalizer=None, before=None) -> Tokenizer:
    """A byte-level tokenizer with a normalizer, and with a pre-tokenizer before its own."""
    made = Backend.from_str(trained(BYTE_LEVEL).backend.to_str())
    if normalizer:
        made.normalizer = normalizer
    if before:
        own = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([before, own])  # type: ignore[assignment]
    return Tokenizer(made, 1, 2)


CHANGING = {
    "punctuation": (None, pre_tokenizers.Punctuation("removed"), ',."!?—…'),
    "line breaks": (normalizers.Replace("\n", " "), None, "\n"),
    "emoji": (normalizers.Replace(Regex("[\U0001f300-\U0001faff]"), ""), None, "😀"),
    "digits": (normalizers.Replace(Regex("[0-9]"), "0"), None, "1984"),
    "dashes": (normalizers.Replace(Regex("[—…]"), "-"), None, "—…"),
    "blanks": (None, pre_tokenizers.WhitespaceSplit(), " \t\n"),
    "capitals": (normalizers.Lowercase(), None, "OHN"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGING)
def test_characters_that_a_byte_level_tokenizer_changes_are_counted(tmp_path, change) -> None:
    normalizer, before, lost = CHANGING[change]
    (notice,) = changes(tmp_path, byte_level(normalizer, before), [STORY, "plain", STORY])
    counts = {character: 2 * STORY.count(character) for character in lost}
    assert notice.count == sum(counts.values())
    total = 2 * len(STORY) + len("plain")
    assert f"{notice.count} of {total} characters of a sample are changed or left out" in notice.message
    listed = [f"{character!r} ({count})" for character, count in counts.items()]
    assert sum(each in notice.message for each in listed) == min(5, len(lost))
    first = min(STORY.index(character) for character in lost)
    assert notice.message.endswith(f"the first in {STORY[max(0, first - 10) : first + 10]!r}")
    # a prompt may have such characters, even if the corpus has none
    assert [each.kind for each in tokenizer_notices(byte_level(normalizer, before))] == ["normalized"]


def ordinary(kind: str) -> Tokenizer:
    if kind == "pieces with bytes":
        return Tokenizer(with_byte_fallback("a", "▁the"), 1, 2)
    if kind == "without a decoder":
        made = Backend.from_str(trained(BYTE_LEVEL).backend.to_str())
        made.decoder = None  # type: ignore[assignment]
        return Tokenizer(made, 1, 2)
    if kind == "blank in front":
        made = Backend.from_str(trained(BYTE_LEVEL).backend.to_str())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
        return Tokenizer(made, 1, 2)
    return trained(kind)


@pytest.mark.parametrize(
    "kind", [BYTE_LEVEL, LLAMA, "pieces with bytes", "without a decoder", "blank in front"]
)
def test_ordinary_tokenizers_give_all_text_back(tmp_path, kind) -> None:
    texts = [*TEXTS, STORY, "  two blanks  ", "⟨E4⟩ \x00 e\u0301 👩\u200d💻", "<s>a</s>", "x " * 150_000]
    assert changes(tmp_path, ordinary(kind), texts) == []
    assert changes(tmp_path / "chat", ordinary(kind), ["<s> a b</s>"], special=True) == []
    assert [each for each in tokenizer_notices(ordinary(kind)) if each.kind == "normalized"] == []


def test_words_without_blanks_are_no_change_but_line_breaks_are(tmp_path) -> None:
    episodes = [write_episode(0, "train", number).text for number in range(20)]
    assert changes(tmp_path / "chronicle", word_tokenizer(vocabulary()), episodes) == []
    assert changes(tmp_path / "words", trained(WORDS), [*TEXTS, "unknown words  are no change"]) == []
    (notice,) = changes(tmp_path / "lines", trained(WORDS), ["Story 1\nis about\nanything"])
    assert notice.count == 2 and r"'\n' (2)" in notice.message


def test_other_notices_are_not_repeated(tmp_path) -> None:
    # 国 is unknown; NFKC writes ② as 2
    (notice,) = changes(tmp_path, trained(UNIGRAM), ["Story 中国 ② says", *TEXTS])
    assert notice.count == 1 and "'②' (1)" in notice.message


def test_published_tokenizers_give_all_text_back(tmp_path, real_input: Path) -> None:
    tokenizer = load_tokenizer(str(real_input / "models" / "stories260K"))
    assert changes(tmp_path, tokenizer, [STORY, *TEXTS]) == []
