import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.corpus.inputs import TEXTS, bpe, built, jsonl

from circuitloom.core.tables import read_table
from circuitloom.corpus.packing import Cursor, Packing, pack_documents
from circuitloom.corpus.source import Document, Place
from circuitloom.corpus.token_arrays import scored_positions
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.corpus.tokens import open_tokens

DOCUMENTS = [Document(Place(0, index), text) for index, text in enumerate(TEXTS)]


def stream(tokens):
    """Token ids and document numbers of the stream, without the BOS of each sequence."""
    first = 0 if tokens.bos_id is None else 1
    everything = slice(0, len(tokens))
    return tokens.take(everything)[:, first:].flatten(), tokens.take_document(everything)[:, first:].flatten()


def packed(packing, block, cursor=Cursor(), limit=None):  # noqa: B008
    return list(pack_documents(DOCUMENTS[cursor.place.row :], packing, cursor, block, limit))


@pytest.mark.parametrize(("bos", "eos"), [("<s>", None), ("<s>", "</s>"), (None, "</s>"), (None, None)])
def test_concatenated_sequences_are_the_documents_with_their_separators(tmp_path, bos, eos):
    folder = bpe(tmp_path / "tokenizer", bos, eos)
    packing = Packing(load_tokenizer(str(folder)), 16)
    before = [] if bos is None else [0]
    after = [] if bos or eos is None else [0]
    want = [[*before, *ids, *after] for ids in packing.tokenizer.encode(TEXTS)]
    blocks = packed(packing, 7)
    token = np.concatenate([block.token for block in blocks])
    assert token.shape[1] == 16 and (bos is None or (token[:, 0] == 0).all())
    flat = token[:, len(before) :].ravel()
    expected = np.concatenate(want)
    assert len(expected) - len(flat) < packing.stride
    assert np.array_equal(flat, expected[: len(flat)])
    numbers = np.repeat(np.arange(len(want)), [len(ids) for ids in want])
    document = np.concatenate([block.document for block in blocks])[:, len(before) :].ravel()
    assert np.array_equal(document, numbers[: len(flat)])
    documents = [each for block in blocks for each in block.documents]
    assert [each.document for each in documents] == list(range(document[-1] + 1))
    assert [each.text for each in documents] == TEXTS[: len(documents)]
    assert [each.n_tokens for each in documents] == [
        len(ids) - 1 * bool(before or after) for ids in want[: len(documents)]
    ]


@pytest.mark.parametrize("block", [3, 50])
def test_packing_resumes_from_any_block_with_the_same_result(tokenizer, block):
    packing = Packing(load_tokenizer(str(tokenizer)), 16)
    complete = packed(packing, block)
    for stop in range(0, len(complete), 5):
        rest = packed(packing, block, complete[stop].cursor)
        assert len(rest) == len(complete) - stop - 1
        for got, want in zip(rest, complete[stop + 1 :], strict=True):
            assert np.array_equal(got.token, want.token) and np.array_equal(got.document, want.document)
            assert got.documents == want.documents and got.cursor == want.cursor


def test_packing_stops_at_the_limit(tokenizer):
    packing = Packing(load_tokenizer(str(tokenizer)), 16)
    assert [len(block.token) for block in packed(packing, 7, limit=17)] == [7, 7, 3]


def test_what_does_not_fill_a_last_sequence_is_counted(tokenizer):
    packing = Packing(load_tokenizer(str(tokenizer)), 16)
    lengths = [1 + len(ids) for ids in packing.tokenizer.encode(TEXTS)]
    for documents in range(1, 8):
        packed = pack_documents(DOCUMENTS[:documents], packing, Cursor(), 7)
        sequences = 0
        while True:
            try:
                sequences += len(next(packed).token)
            except StopIteration as end:
                rest = end.value
                break
        assert rest.tokens == sum(lengths[:documents]) - 15 * sequences < 15
        starts = np.cumsum([0, *lengths[: documents - 1]])
        assert rest.documents == sum(starts >= 15 * sequences)
    assert len(packed_all := list(pack_documents(DOCUMENTS, packing, Cursor(), 7, limit=3))) == 1
    assert len(packed_all[0].token) == 3


def test_a_token_outside_the_models_vocabulary_is_refused(tokenizer):
    known = load_tokenizer(str(tokenizer))
    largest = max(int(ids.max()) for ids in known.encode(TEXTS))
    assert largest + 1 < known.vocabulary
    assert packed(Packing(known, 16, model_vocabulary=largest + 1), 7)
    with pytest.raises(ValueError, match=f"the model knows {largest} tokens; use the tokenizer"):
        packed(Packing(known, 16, model_vocabulary=largest), 7)


@pytest.mark.parametrize(("bos_id", "eos_id"), [(512, None), (None, 512)])
def test_a_separator_outside_the_models_vocabulary_is_refused_before_any_text_is_read(
    tokenizer, bos_id, eos_id
):
    known = replace(load_tokenizer(str(tokenizer)), bos_id=bos_id, eos_id=eos_id)
    assert Packing(known, 16, model_vocabulary=513)
    with pytest.raises(ValueError, match=r"corpus.tokenizer: gives token 512, .* knows 512 tokens; use the"):
        Packing(known, 16, model_vocabulary=512)


def test_truncation_and_padding_of_a_tokenizer_are_switched_off(tokenizer, tmp_path):
    from tokenizers import Tokenizer

    folder = Path(shutil.copytree(tokenizer, tmp_path / "cutting"))
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=30)
    backend.save(str(folder / "tokenizer.json"))
    texts = [TEXTS[0], TEXTS[100]]
    cutting, plain = (load_tokenizer(str(f)).encode(texts) for f in (folder, tokenizer))
    assert [ids.tolist() for ids in cutting] == [ids.tolist() for ids in plain]


def test_positions_of_a_bos_of_id_0_are_not_scored(tmp_path, tokenizer):
    source = jsonl(tmp_path / "train.jsonl", TEXTS)
    tokens = open_tokens(
        built(tmp_path / "corpus", tokenizer, source="files", train=str(source)) / "train.zarr"
    )
    assert tokens.bos_id == 0
    taken = tokens.take(slice(0, len(tokens)))
    scored = scored_positions(taken, tokens.separator_id)
    assert torch.equal(~scored, (taken == 0) | (torch.arange(16) == 0))
    documents = int(stream(tokens)[1].max()) + 1
    assert int((~scored).sum()) == len(tokens) + documents


def test_an_eos_between_documents_is_not_scored(tmp_path):
    source = jsonl(tmp_path / "train.jsonl", TEXTS)
    folder = bpe(tmp_path / "tokenizer", None, "</s>")
    tokens = open_tokens(built(tmp_path / "corpus", folder, source="files", train=str(source)) / "train.zarr")
    assert tokens.bos_id is None and tokens.separator_id == 0
    taken = tokens.take(slice(0, len(tokens)))
    scored = scored_positions(taken, tokens.separator_id)
    assert (taken == 0).any() and torch.equal(~scored, (taken == 0) | (torch.arange(16) == 0))


def test_without_bos_and_eos_only_position_0_is_not_scored(tmp_path):
    source = jsonl(tmp_path / "train.jsonl", TEXTS)
    folder = bpe(tmp_path / "tokenizer", None, None)
    tokens = open_tokens(built(tmp_path / "corpus", folder, source="files", train=str(source)) / "train.zarr")
    assert tokens.bos_id is tokens.separator_id is None
    scored = scored_positions(tokens.take(slice(0, 5)), tokens.separator_id)
    assert not scored[:, 0].any() and scored[:, 1:].all()


def test_tokens_are_returned_in_the_order_of_the_indices(chronicle):
    tokens = open_tokens(chronicle / "train.zarr")
    everything = tokens.take(slice(0, len(tokens)))
    indices = np.array([7, 2, 30, 2])
    assert everything.dtype == torch.int64 and everything.shape == (len(tokens), tokens.context)
    assert torch.equal(tokens.take(indices), everything[torch.from_numpy(indices)])


def test_the_token_table_holds_the_text_of_each_token(tmp_path, tokenizer):
    source = jsonl(tmp_path / "train.jsonl", TEXTS)
    folder = built(tmp_path / "corpus", tokenizer, source="files", train=str(source), validation_share=0.3)
    rows = read_table(folder / "token.parquet").to_pandas()
    tokens = open_tokens(folder / "validation.zarr")
    assert list(rows["token_id"]) == tokens.take(slice(0, len(tokens))).flatten().tolist()
    assert list(rows["document"]) == tokens.take_document(slice(0, len(tokens))).flatten().tolist()
    table = read_table(folder / "document.parquet").to_pandas()
    texts = table[table["split"] == "validation"].set_index("document")["text"]
    for number, part in rows[(rows["position"] > 0) & (rows["token_id"] != 0)].groupby("document"):
        assert texts[number].startswith("".join(part["token"]))
