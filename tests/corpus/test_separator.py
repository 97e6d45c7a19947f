"""Text that is split into documents at a separator."""

import json

import pytest
from pydantic import ValidationError
from tests.corpus.inputs import TEXTS, assert_same_tokens, built, jsonl, section, write_parquet

from circuitloom.core.tables import read_table
from circuitloom.corpus.separator import split_at
from circuitloom.corpus.source import open_source

SEPARATOR = "\n<s>\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("separator", ["<s>", "aa", "\n", "aba"])
def test_a_separator_may_span_parts(size, separator):
    text = "a<s>b<<s>s>aaa\n\nabababa<s"
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(split_at(parts, separator)) == text.split(separator)
    assert list(split_at([], separator)) == [""]


def formats(folder) -> dict[str, dict]:
    """Config keys of the same documents: separated in files and in rows, and on their own."""
    half = SEPARATOR.join(TEXTS[:70]), SEPARATOR.join(TEXTS[70:])
    for number, text in enumerate(half):
        (folder / f"{number}.txt").write_text(text)
    hub = folder / "hub" / "data"
    hub.mkdir(parents=True)
    write_parquet(hub / "train-00000-of-00001.parquet", list(half))
    return {
        "documents": {"source": "files", "train": str(jsonl(folder / "documents.jsonl", TEXTS))},
        "text": {"source": "files", "train": [str(folder / "0.txt"), str(folder / "1.txt")], "separator": SEPARATOR},
        "rows": {"source": "files", "train": str(jsonl(folder / "rows.jsonl", [*half, ""])), "separator": SEPARATOR},
        "hub": {"source": "hub", "dataset": str(folder / "hub"), "separator": SEPARATOR, "train_tokens": 10**6},
    }  # fmt: skip


def test_separated_documents_are_those_of_separate_rows(tmp_path, tokenizer):
    assert_same_tokens(formats(tmp_path), tmp_path / "corpus", tokenizer)


def test_a_separated_source_can_be_read_from_any_index(tmp_path):
    for keys in formats(tmp_path).values():
        source = open_source(section(**keys), 0, tmp_path / "scratch")
        everything = list(source.read("train"))
        for index in (30, len(everything) - 1):
            middle = everything[index]
            assert list(source.read("train", middle.place, middle.before)) == everything[index:]


def test_nothing_follows_a_separator_at_the_end_and_problems_name_their_row(tmp_path):
    (tmp_path / "a.txt").write_text(f"a{SEPARATOR}b\r\nc{SEPARATOR}")
    lines = [f'{{"text": {json.dumps(text)}}}\n' for text in (f"a{SEPARATOR}b", 7, f"c{SEPARATOR}")]
    (tmp_path / "b.jsonl").write_text("".join(lines))
    keys = {"source": "files", "separator": SEPARATOR, "validation_share": 1e-9}
    for name, want in (("a.txt", ["a", "b\nc"]), ("b.jsonl", ["a", "b", "c"])):
        source = open_source(section(train=str(tmp_path / name), not_text="skip", **keys), 0, tmp_path)
        assert [document.text for document in source.read("train")] == want
    with pytest.raises(ValueError, match=r"b.jsonl, document 3: line 2: text is an integer; correct it"):
        list(open_source(section(train=str(tmp_path / "b.jsonl"), **keys), 0, tmp_path).read("train"))


def test_a_separator_that_does_not_occur_is_said(tmp_path, tokenizer):
    (tmp_path / "train.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "held_out.txt").write_text("\n<s>\n".join(TEXTS[:20]))
    keys = {
        "train": str(tmp_path / "train.txt"),
        "validation": str(tmp_path / "held_out.txt"),
        "separator": SEPARATOR,
    }
    folder = built(tmp_path / "corpus", tokenizer, source="files", **keys)
    notices = {(row["subject"], row["kind"]) for row in read_table(folder / "notice.parquet").to_pylist()}
    assert ("train", "one_document") in notices and ("validation", "one_document") not in notices


def test_an_empty_separator_is_refused():
    with pytest.raises(ValidationError, match="separator"):
        section(source="files", train="a.txt", separator="")
