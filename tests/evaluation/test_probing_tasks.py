"""Labels of tokens follow from their words, also where a word has several tokens."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from circuitloom.evaluation.held_out import HeldOut
from circuitloom.evaluation.probing_tasks import document_tasks, read_document_values, text_tasks


def labelled(
    sequences: list[list[str]], document: list[list[int]], separate: bool = False
) -> dict[str, list[str]]:
    """The texts of the tokens with each label. `|` is the separator, which is not scored."""
    strings = sorted({text for own in sequences for text in own})
    token = torch.tensor([[strings.index(text) for text in own] for own in sequences])
    scored = torch.tensor([[text != "|" for text in own] for own in sequences])
    held_out = HeldOut(token, torch.tensor(document), scored, ~scored)
    texts = [text for own in sequences for text in own if text != "|"]
    labels = text_tasks(held_out, strings, separate)
    return {
        name: [text for text, has in zip(texts, label.tolist(), strict=True) if has]
        for name, label in labels.items()
    }


def test_a_word_of_several_tokens_is_labelled_on_its_last() -> None:
    found = labelled([["|", "The", " wal", "king", " d", "og", " quick", "ly", " ran", "."]], [[0] * 10])
    assert found["determiner"] == ["The"] and found["capitalised"] == ["The"]
    assert found["ends_in_ing"] == ["king"] and found["ends_in_ly"] == ["ly"]
    assert found["punctuation"] == ["."] and found["before_punctuation"] == [" ran"]


def test_tokens_that_are_words_are_separated_by_blanks() -> None:
    # joined without blanks, these would be one word
    found = labelled(
        [["|", "in", "the", "year", "17", "43", ",", "something", "said"]], [[0] * 9], separate=True
    )
    assert found["preposition"] == ["in"] and found["number"] == ["17", "43"]
    # `something` is a pronoun, and no form in -ing
    assert found["pronoun"] == ["something"] and found["ends_in_ing"] == []
    assert found["before_punctuation"] == ["43"]


def test_suffixes_need_a_word_before_them_and_known_exceptions_are_left_out() -> None:
    words = ["singing", "king", "wanted", "red", "need", "happily", "family", "kindness", "city", "nation"]
    found = labelled([["|", *words]], [[0] * 11], separate=True)
    assert found["ends_in_ing"] == ["singing"] and found["ends_in_ed"] == ["wanted"]
    assert found["ends_in_ly"] == ["happily"] and found["ends_in_noun_suffix"] == ["kindness", "nation"]


def test_the_first_token_of_a_document_is_labelled_also_inside_a_sequence_and_not_where_one_is_continued() -> (
    None
):
    found = labelled(
        [["|", "a", "b", "|", "c"], ["|", "d", "e", "|", "f"]], [[0, 0, 0, 1, 1], [1, 1, 1, 2, 2]], True
    )
    assert found["first_of_document"] == ["a", "c", "f"]


def test_a_mark_behind_a_separator_or_in_the_next_sequence_is_not_the_next_token() -> None:
    found = labelled([["a", "|", "."], ["!", "b", "c"]], [[0, 1, 1], [1, 1, 1]], separate=True)
    assert found["punctuation"] == [".", "!"] and found["before_punctuation"] == []


@pytest.mark.parametrize("text", ["⟨C3⟩⟨A9⟩", "⟨E2⟩"])
def test_bytes_of_characters_are_neither_numbers_nor_punctuation(text: str) -> None:
    found = labelled([["|", "caf", text, " 7"]], [[0] * 4])
    assert found["number"] == [" 7"] and found["punctuation"] == []
    assert found["capitalised"] == []


def test_labels_of_documents_are_found_by_their_text(tmp_path: Path) -> None:
    rows = [{"text": "one", "kind": "law"}, {"text": "two", "kind": "news"}, {"text": "", "kind": "news"},
            {"text": "three", "kind": None}, {"text": "four", "kind": "law"}]  # fmt: skip
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    documents = {0: "two", 1: "three", 2: "five", 3: "four"}
    assert read_document_values([str(file)], "text", "kind", documents) == {0: "news", 3: "law"}
    with pytest.raises(ValueError, match=r"no held-out document is in .*rows\.jsonl\.gz"):
        read_document_values([str(file)], "text", "kind", {0: "six"})
    with pytest.raises(ValueError, match="has no column topic"):
        read_document_values([str(file)], "text", "topic", documents)


def test_all_scored_tokens_of_a_document_have_its_label() -> None:
    document = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 3]])
    scored = torch.tensor([[True, True, False, True], [True] * 4])
    labels = document_tasks(HeldOut(document, document, scored, ~scored), {0: "news", 1: "law", 3: "news"})
    assert {name: label.tolist() for name, label in labels.items()} == {
        "news": [True, True, False, False, False, False, True],
        "law": [False, False, True, True, False, False, False],
    }
