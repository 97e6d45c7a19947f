"""Long documents: tokenized in windows, with the tokens of the whole text, and only as far as wanted."""

import json
import random
from dataclasses import dataclass, field
from string import ascii_letters, digits

import numpy as np
import pytest
from tests.corpus.inputs import BYTE_LEVEL, KINDS, TEXTS, bpe, built, jsonl, trained

from circuitloom.core.tables import read_table
from circuitloom.corpus import packing as packing_module
from circuitloom.corpus import pieces
from circuitloom.corpus.packing import Cursor, Packing, pack_documents
from circuitloom.corpus.pieces import encode_pieces
from circuitloom.corpus.source import Document, Place
from circuitloom.corpus.tokenizer import Tokenizer, load_tokenizer

LENGTH = 9_000


def random_text(units: list[str], seed: int = 0) -> str:
    source = random.Random(seed)
    return "".join(source.choices(units, k=LENGTH))[:LENGTH]


PROSE = random_text([f" {word}" for text in TEXTS for word in text.split()])
LONG_TEXTS = {
    "prose": PROSE,
    "Chinese": random_text(list("中文的文本在这里没有空格一二三四五六七八九十")),
    "letters and digits without a blank": random_text(list(f"{ascii_letters}{digits}+/")),
    "digits": random_text(list("0123456789")),
    "one letter": "a" * LENGTH,
    "a repetition": "abcabcabd" * (LENGTH // 9),
    "prose around one letter": PROSE[:3_000] + "a" * 3_500 + PROSE[:3_000],
    "blanks and lines": random_text([" ", "  ", "\n", "\t", "\n\n", "\r\n", "over", " 12", ".", " " * 40]),
    "one blank": " " * LENGTH,
    "characters of several code points": random_text(
        ["👩‍👩‍👧", "e\u0301", "ﬁ", "İ", "ß", "한", "\u0000", " ", "A", "½", "\u200b", "שלום", "x\u0302\u0323"]
    ),
    "special tokens": random_text(["<s>", " a", "</s>", "<unk>", "\n", "<", "s>"]),
    "long words": random_text([f" {'over' * n}" for n in range(60)]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Windows of 2,000 characters."""
    monkeypatch.setattr(pieces, "LONG", 2_000)
    monkeypatch.setattr(pieces, "_OVERLAP", 400)
    monkeypatch.setattr(packing_module, "LONG", 2_000)


def joined(parts: list[pieces.Piece]) -> list[int]:
    return [token for part in parts for token in part.tokens.tolist()]


@pytest.mark.parametrize("name", LONG_TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_tokens_of_the_whole_text(kind, name):
    tokenizer, text = trained(kind), LONG_TEXTS[name]
    whole = tokenizer.encode([text])[0].tolist()
    parts = list(encode_pieces(tokenizer, text))
    assert joined(parts) == whole
    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    for part in parts:
        rest = joined(list(encode_pieces(tokenizer, text, part.character, part.skip)))
        assert rest == whole[len(whole) - len(rest) :]
    assert kind != BYTE_LEVEL or name not in ("prose", "Chinese", "digits") or len(parts) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_random_texts_have_the_tokens_of_the_whole_text(kind):
    units = [" ", "\n", "the ", "12", "Ä", "中", "🙂", "over", "number", "a", "  ", "-", "é", "<s>"]
    for seed in range(20):
        source = random.Random(seed)
        text = random_text(source.sample(units, 8), seed)
        assert joined(list(encode_pieces(trained(kind), text))) == trained(kind).encode([text])[0].tolist()


@pytest.mark.parametrize("length", [1_999, 2_000, 2_001, 2_400, 2_401, 4_000, 4_399, 4_400, 4_401])
def test_texts_that_end_near_the_end_of_a_window_have_all_their_tokens(length):
    tokenizer, text = trained(BYTE_LEVEL), PROSE[:length]
    assert joined(list(encode_pieces(tokenizer, text))) == tokenizer.encode([text])[0].tolist()


def test_stories260k_s_tokenizer_gives_the_tokens_of_the_whole_text(real_input):
    tokenizer = load_tokenizer(str(real_input / "models" / "stories260K"))
    with (real_input / "data" / "tinystories" / "validation.jsonl").open() as file:
        text = "\n".join(json.loads(line)["text"] for line, _ in zip(file, range(60), strict=False))
    parts = list(encode_pieces(tokenizer, text))
    assert len(parts) > 10 and joined(parts) == tokenizer.encode([text])[0].tolist()


@dataclass(frozen=True)
class Counting(Tokenizer):
    """Records the number of characters of each text that is encoded with offsets."""

    encoded: list[int] = field(default_factory=list)

    def encode_with_offsets(self, texts, special=False):
        self.encoded.extend(map(len, texts))
        return super().encode_with_offsets(texts, special)


def counting(kind: str = BYTE_LEVEL) -> Counting:
    return Counting(trained(kind).backend, bos_id=1, eos_id=2)


def test_only_the_beginning_of_a_long_document_is_encoded():
    tokenizer = counting()
    document = Document(Place(), PROSE * 100)
    (block,) = pack_documents([document], Packing(tokenizer, 16), Cursor(), block=1000, limit=10)
    assert block.token[:, 1:].ravel()[1:].tolist() == trained(BYTE_LEVEL).encode([PROSE])[0][:149].tolist()
    assert sum(tokenizer.encoded) <= 3 * 2_400
    assert [row.text for row in block.documents] == [document.text]


@pytest.mark.parametrize(("bos", "eos"), [(1, 2), (None, 2), (None, None)])
@pytest.mark.parametrize("context", [16, 2 * 16])
def test_packing_resumes_within_a_long_document_with_the_same_tokens(bos, eos, context):
    tokenizer = Counting(trained(BYTE_LEVEL).backend, bos, eos)
    packing = Packing(tokenizer, context)
    texts = [TEXTS[0], PROSE, TEXTS[1], PROSE[:5_000], PROSE[:2_400], TEXTS[2]]
    documents = [Document(Place(0, index), text) for index, text in enumerate(texts)]
    complete = list(pack_documents(documents, packing, Cursor(), block=7))
    stream = np.concatenate([block.token for block in complete])[:, len(packing.prefix) :].ravel().tolist()
    whole = [[*packing.prefix, *ids.tolist(), *packing.suffix] for ids in trained(BYTE_LEVEL).encode(texts)]
    assert stream == [token for ids in whole for token in ids][: len(stream)]
    number = np.concatenate([block.document for block in complete])[:, len(packing.prefix) :].ravel()
    assert number.tolist() == np.repeat(range(6), [len(ids) for ids in whole])[: len(number)].tolist()
    assert [row.text for block in complete for row in block.documents] == texts
    for stop, block in enumerate(complete[:-1]):
        tokenizer.encoded.clear()
        begin = documents[block.cursor.place.row :]
        rest = list(pack_documents(begin, packing, block.cursor, block=7))
        # the windows before the cursor are not encoded again
        assert sum(tokenizer.encoded) <= 1.5 * sum(map(len, texts)) * (1 - stop / len(complete)) + 3 * 2_400
        for got, want in zip(rest, complete[stop + 1 :], strict=True):
            assert np.array_equal(got.token, want.token) and np.array_equal(got.document, want.document)
            assert got.documents == want.documents


def test_the_table_has_the_number_of_tokens_of_long_documents(tmp_path):
    texts = [PROSE, TEXTS[0], PROSE[100:], TEXTS[1], PROSE[50:]]
    source = jsonl(tmp_path / "train.jsonl", texts)
    held_out = jsonl(tmp_path / "held_out.jsonl", TEXTS[60:])
    for bos, eos in (("<s>", None), (None, "</s>"), (None, None)):
        tokenizer = bpe(tmp_path / f"tokenizer-{bos}-{eos}", bos, eos)
        keys = {"source": "files", "train": str(source), "validation": str(held_out)}
        folder = built(tmp_path / f"corpus-{bos}-{eos}", tokenizer, **keys)
        rows = read_table(folder / "document.parquet").to_pylist()
        counts = [row["n_tokens"] for row in rows if row["split"] == "train"]
        whole = [len(ids) for ids in load_tokenizer(str(tokenizer)).encode(texts)]
        assert counts[:4] == whole[:4]
        # the incomplete last sequence is not packed
        assert whole[4] - 16 <= counts[4] <= whole[4]


def test_a_token_of_a_long_document_outside_the_models_vocabulary_is_refused():
    packing = Packing(trained(BYTE_LEVEL), 16, model_vocabulary=5)
    with pytest.raises(ValueError, match="the model knows 5 tokens; use the tokenizer"):
        list(pack_documents([Document(Place(), PROSE)], packing, Cursor(), block=7))
