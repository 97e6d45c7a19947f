"""What reading leaves out is counted, the counts survive kills, and paths are literal."""

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tests.corpus.inputs import TEXTS, built, jsonl, section, write_parquet

from circuitloom.core.tables import read_table
from circuitloom.corpus import build
from circuitloom.corpus.packing import PackedBlocks
from circuitloom.corpus.source import Document, Place, open_source, text_hash


def documents(folder: Path, split: str = "train", **keys) -> list[Document]:
    return list(open_source(section(**keys), 0, folder / "scratch").read(split))


def texts(folder: Path, **keys) -> list[str]:
    return [document.text for document in documents(folder, **keys)]


def notices(folder: Path) -> dict[tuple[str, str], tuple[int, str]]:
    rows = read_table(folder / "notice.parquet").to_pylist()
    return {(row["subject"], row["kind"]): (row["count"], row["message"]) for row in rows}


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def messy(folder: Path) -> dict[str, Any]:
    """Config keys of files that have every kind of row that is left out."""
    rows = [{"text": text} for text in TEXTS]
    many = [{"text": 7}, {"text": None}, {"text": " \n"}, "\n", {"other": 1}]
    first = lines(folder / "a.jsonl", [*rows[:20], *many, *rows[20:60]])
    second = lines(folder / "b.jsonl", ["\ufeff", *rows[60:90], {"text": ["x"]}, *rows[90:], {"text": ""}])
    held_out = lines(folder / "held_out.jsonl", [*rows[5:70:3], {"text": None}])
    return {
        "source": "files", "train": [str(first), str(second)], "validation": str(held_out), "not_text": "skip",
    }  # fmt: skip


def test_everything_that_is_left_out_is_counted_with_its_first_row(tmp_path: Path, tokenizer, capsys) -> None:
    folder = built(tmp_path / "corpus", tokenizer, **messy(tmp_path))
    found = notices(folder)
    rest = [found.pop((split, "rest")) for split in ("train", "validation") if (split, "rest") in found]
    assert all(0 < count < 16 for count, _ in rest)
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    null = "rows without text (null, or without the key), left out"
    equal = "documents that equal a held-out document but for white space, left out"
    skipped = "rows that are not text, left out as corpus.not_text says"
    assert found == {
        # the last held-out document may begin after the last sequence, and is then not held out
        ("train", "held_out"): (found["train", "held_out"][0], found["train", "held_out"][1]),
        ("train", "not_text"): (2, f"{skipped}: 2 (the first: {a}, line 21: text is an integer)"),
        ("train", "null"): (2, f"{null}: 2 (the first: {a}, line 22)"),
        ("train", "blank"): (3, f"blank lines and documents, left out: 3 (the first: {a}, line 23)"),
        ("train", "bom"): (
            1, f"files that begin with a byte order mark, which is left out: 1 (the first: {b}, line 1)"
        ),
        ("validation", "null"): (
            1,
            f"{null}: 1 (the first: {tmp_path}/held_out.jsonl, line 23)",
        ),
    }  # fmt: skip
    count, message = found["train", "held_out"]
    assert 20 <= count <= 22 and message == f"{equal}: {count} (the first: {a}, line 6)"
    printed = capsys.readouterr().err
    assert all(
        f"circuitloom: corpus: {subject}: {text}" in printed for (subject, _), (_, text) in found.items()
    )


@pytest.mark.parametrize("limited", [False, True])
def test_a_build_killed_after_each_block_has_the_counts_of_one_that_was_not(
    tmp_path: Path, tokenizer, monkeypatch, limited: bool
) -> None:
    monkeypatch.setattr(build, "SEQUENCES_PER_SHARD", 16)
    keys = messy(tmp_path) | ({"train_tokens": 800} if limited else {})
    want = notices(built(tmp_path / "whole", tokenizer, **keys))
    append, kills = PackedBlocks.append, 0

    def append_once(blocks: PackedBlocks, block: Any) -> None:
        append(blocks, block)
        raise KeyboardInterrupt

    folder = tmp_path / "killed"
    monkeypatch.setattr(PackedBlocks, "append", append_once)
    while not (folder / "notice.parquet").exists():
        try:
            built(folder, tokenizer, **keys)
        except KeyboardInterrupt:
            kills += 1
    assert kills > 3
    assert notices(folder) == want
    assert read_table(folder / "document.parquet") == read_table(tmp_path / "whole" / "document.parquet")
    if limited:
        # the second file is not read
        assert ("train", "bom") not in want


def test_reading_from_any_document_gives_the_same_documents_and_counts(tmp_path: Path) -> None:
    source = open_source(section(**messy(tmp_path)), 0, tmp_path)
    everything = list(source.read("train"))
    for middle in everything[::7]:
        assert (
            list(source.read("train", middle.place, middle.before)) == everything[everything.index(middle) :]
        )


def test_rows_that_both_splits_read_are_counted_once(tmp_path: Path, tokenizer) -> None:
    rows = [{"text": text} for text in TEXTS]
    file = lines(tmp_path / "a.jsonl", [*rows[:50], {"text": None}, "\n", *rows[50:], {"text": None}])
    folder = built(tmp_path / "corpus", tokenizer, source="files", train=str(file), validation_share=0.3)
    found = notices(folder)
    assert {key: count for key, (count, _) in found.items() if key[1] != "rest"} == {
        ("text", "null"): 2,
        ("text", "blank"): 1,
    }
    assert {subject for subject, kind in found if kind == "rest"} <= {"train", "validation"}


def test_a_corpus_without_anything_left_out_has_no_notice(tmp_path: Path, tokenizer) -> None:
    train, held_out = jsonl(tmp_path / "a.jsonl", TEXTS[:60]), jsonl(tmp_path / "b.jsonl", TEXTS[60:])
    keys = {"source": "files", "train": str(train), "validation": str(held_out)}
    folder = built(tmp_path / "corpus", tokenizer, train_tokens=160, validation_tokens=160, **keys)
    assert notices(folder) == {}


NUMBER = {
    "jsonl": (lambda path: lines(path, [{"text": 'a "b"'}, {"text": 7}]), "line 2: text is an integer"),
    "array": (lambda path: lines(path, ['[{"text": "a"}, {"text": [1]}]']), "row 2: text is a list"),
    "parquet": (
        lambda path: pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"], pa.binary())}), path),
        r"row 2: text is not UTF-8 \(byte 0xff at position 0\)",
    ),
}


@pytest.mark.parametrize("kind", NUMBER)
def test_a_row_that_is_not_text_is_refused_with_file_row_and_type(tmp_path: Path, kind: str) -> None:
    write, problem = NUMBER[kind]
    good = jsonl(tmp_path / "good.jsonl", ['a "b"'])
    bad = tmp_path / f"bad.{'json' if kind == 'array' else kind}"
    write(bad)
    keys = {"source": "files", "train": [str(good), str(bad)]}
    with pytest.raises(ValueError, match=rf"{bad}, {problem}; correct it, or set corpus.not_text to skip"):
        documents(tmp_path, validation_share=0.001, **keys)
    assert texts(tmp_path, validation_share=1e-9, not_text="skip", **keys)[0] == 'a "b"'


def test_files_of_several_formats_with_other_columns_are_one_corpus(tmp_path: Path) -> None:
    files = [
        lines(tmp_path / "a.jsonl", [{"text": "a", "url": None}]),
        lines(tmp_path / "b.json", ['[{"text": "b", "title": 7}]']),
        write_parquet(tmp_path / "c.parquet", ["c"]),
        tmp_path / "d.txt.gz",
    ]
    files[3].write_bytes(gzip.compress(b"d\n"))
    assert texts(tmp_path, source="files", train=list(map(str, files)), validation_share=1e-9) == list("abcd")


NAMES = (
    "part[12]",
    "s*",
    "s?",
    "{x}",
    "{a,b}",
    "a b",
    "a%20b",
    "a#b",
    "a::b",
    "ü",
    "'",
    '"',
    "$x",
    "-a",
    "a=b",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_literally(tmp_path: Path, name: str) -> None:
    # files that the path would match as a pattern
    for other in ("part1", "part2", "s1", "story", "a", "b"):
        jsonl(tmp_path / f"{other}.jsonl", [f"not {name}"])
    file = jsonl(tmp_path / f"{name}.jsonl", [name])
    assert texts(tmp_path, source="files", train=str(file), validation_share=1e-9) == [name]
    folder = tmp_path / f"folder {name}"
    folder.mkdir()
    inside = write_parquet(folder / "a.parquet", [name])
    assert texts(tmp_path, source="files", train=str(inside), validation_share=1e-9) == [name]


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    one, two = jsonl(tmp_path / "one.jsonl", ["a"]), jsonl(tmp_path / "two.jsonl", ["b"])
    (tmp_path / "link.jsonl").symlink_to(one)
    (tmp_path / "hard.jsonl").hardlink_to(one)
    (tmp_path / "folder").mkdir()
    for other in (
        one,
        tmp_path / "folder" / ".." / "one.jsonl",
        tmp_path / "link.jsonl",
        tmp_path / "hard.jsonl",
    ):
        message = rf"{other} is the same file as {one} of corpus.train; name it once"
        with pytest.raises(ValueError, match=f"corpus.train: {message}"):
            documents(tmp_path, source="files", train=[str(one), str(two), str(other)])
        with pytest.raises(ValueError, match=f"corpus.validation: {message}"):
            documents(tmp_path, source="files", train=[str(two), str(one)], validation=str(other))
    with pytest.raises(ValueError, match=r"corpus.train: .*link.jsonl is the same file as .*hard.jsonl of"):
        documents(tmp_path, source="files", train=str(tmp_path / "*.jsonl"), glob=True)


def test_a_split_that_is_named_twice_is_refused() -> None:
    for keys in ({"train_split": "a+a"}, {"train_split": "a+b", "validation_split": "c + a"}):
        with pytest.raises(
            ValidationError, match="train_split and validation_split name a twice; name it once"
        ):
            section(source="hub", dataset="x", **keys)


def test_a_pattern_needs_a_key_that_says_so_and_its_files_are_listed(tmp_path: Path, tokenizer) -> None:
    for number in (2, 10, 1):
        jsonl(tmp_path / f"part{number}.jsonl", TEXTS[number * 10 :][:10])
    (tmp_path / "deep" / "er").mkdir(parents=True)
    jsonl(tmp_path / "deep" / "er" / "part3.jsonl", TEXTS[30:40])
    keys = {"source": "files", "train": str(tmp_path / "**" / "part*.jsonl")}
    with pytest.raises(ValueError, match=r"part\*.jsonl does not exist; correct the path"):
        documents(tmp_path, **keys)
    folder = built(tmp_path / "corpus", tokenizer, glob=True, validation_share=0.3, **keys)
    names = ["deep/er/part3", "part1", "part10", "part2"]
    listed = ", ".join(f"{tmp_path}/{name}.jsonl" for name in names)
    message = f"files that match corpus.train, read in this order: {listed}"
    assert notices(folder)["train", "glob"] == (4, message)
    # a file that matches two patterns is read once, and folders are no files
    both = {**keys, "train": [keys["train"], str(tmp_path / "*")], "glob": True, "validation_share": 1e-9}
    assert len(texts(tmp_path, **both)) == 40


def hub(folder: Path) -> Path:
    """A data set in the hub's layout, of three files in several forms."""
    data = folder / "hub" / "data"
    data.mkdir(parents=True)
    for number in range(3):
        content = "".join(
            json.dumps({"text": t, f"key{number}": number}) + "\n" for t in TEXTS[number * 40 :][:40]
        )
        (data / f"train-{number}.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    return data.parent


def test_whole_files_before_the_place_are_not_opened(tmp_path: Path) -> None:
    folder = hub(tmp_path)
    keys = {"source": "hub", "dataset": str(folder), "validation_share": 1e-9}
    source = open_source(section(**keys), 0, tmp_path / "scratch")
    everything = list(source.read("train"))
    assert [document.text for document in everything] == TEXTS
    for number in range(2):
        (folder / "data" / f"train-{number}.jsonl.gz").write_bytes(b"damaged")
    place = everything[90].place
    assert place == Place(2, 10)
    assert [document.text for document in source.read("train", place)] == TEXTS[90:]
    with pytest.raises(ValueError, match=r"train-1.jsonl.gz: not compressed by gzip"):
        list(source.read("train", Place(1, 39)))


def arrow(columns: dict) -> bytes:
    """Contents of an Arrow file. The library `datasets` reads it."""
    table, target = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(target, table.schema) as writer:
        writer.write_table(table)
    return target.getvalue().to_pybytes()


HUB = {
    ".jsonl.zst": lambda text: pa.compress(json.dumps({"text": text}).encode(), "zstd", asbytes=True),
    ".json.gz": lambda text: gzip.compress(json.dumps([{"text": text}]).encode()),
    ".txt.gz": lambda text: gzip.compress(text.encode()),
    ".txt": lambda text: text.encode(),
    ".json": lambda text: json.dumps({"text": text}, indent=2).encode(),
    ".arrow": lambda text: arrow({"number": [1], "text": [text]}),
}


@pytest.mark.parametrize("suffix", HUB)
def test_the_files_of_a_hub_data_set_are_read_in_every_form(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "hub").mkdir()
    for split in ("train", "test"):
        (tmp_path / "hub" / f"{split}{suffix}").write_bytes(HUB[suffix](f"é {split}"))
    keys = {"source": "hub", "dataset": str(tmp_path / "hub"), "validation_split": "test"}
    splits = ("train", "validation")
    assert [[d.text for d in documents(tmp_path, split, **keys)] for split in splits] == [
        ["é train"],
        ["é test"],
    ]
    both = {**keys, "train_split": "train+test", "validation_split": None, "validation_share": 1e-9}
    assert texts(tmp_path, **both) == ["é train", "é test"]


def test_files_of_a_hub_folder_that_no_split_uses_are_counted(tmp_path: Path) -> None:
    folder = hub(tmp_path)
    (folder / ".cache").mkdir()
    for name in ("data/train-9.txt", "more.csv", "README.md", "dataset_infos.json", ".cache/a.json"):
        (folder / name).write_text("{}")
    source = open_source(section(source="hub", dataset=str(folder)), 0, tmp_path / "scratch")
    message = f"files of {folder} that belong to no split, not read: 2 (the first: {folder}/data/train-9.txt)"
    assert [notice.message for notice in source.notices] == [message]
    # a split that the config does not name is no surprise
    for name in ("data/train-9.txt", "more.csv"):
        (folder / name).unlink()
    (folder / "data" / "test-0.jsonl").write_text('{"text": "a"}')
    assert open_source(section(source="hub", dataset=str(folder)), 0, tmp_path / "scratch").notices == ()


def test_rows_that_the_library_datasets_streams_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    columns = {"body": ["some text", None, "more"], "number": [1, 2, 3], "data": [{"text": "a"}, None, None]}
    (tmp_path / "hub" / "train.arrow").write_bytes(arrow(columns))
    keys = {"source": "hub", "dataset": str(tmp_path / "hub"), "validation_share": 1e-9}
    found = documents(tmp_path, text="body", **keys)
    assert [document.text for document in found] == ["some text", "more"]
    assert {kind: count for kind, (count, _) in found[-1].after.items()} == {"null": 1}
    source = open_source(section(text="body", **keys), 0, tmp_path / "scratch")
    assert [document.text for document in islice(source.read("train", Place(0, 2)), 1)] == ["more"]
    with pytest.raises(
        ValueError, match=r"\(train\), row 1: number is an integer; correct it, or set corpus.not_text"
    ):
        documents(tmp_path, text="number", **keys)
    with pytest.raises(
        ValueError, match=r"corpus.text: .* has no column text; set it to one of body, number"
    ):
        documents(tmp_path, **keys)
    assert texts(tmp_path, text="data.text", **keys) == ["a"]


def test_a_folder_whose_name_is_a_pattern_is_refused_as_a_hub_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "hub[1]"
    folder.mkdir()
    write_parquet(folder / "train.parquet", TEXTS)
    with pytest.raises(
        ValueError, match=r"corpus.dataset: the path .*hub\[1\] contains .*; rename the folder"
    ):
        documents(tmp_path, source="hub", dataset=str(folder))


def test_a_parquet_column_of_a_hub_data_set_may_change_its_type(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for number, columns in enumerate(
        (
            {"text": ["a"], "x": pa.nulls(1)},
            {"x": ["b"], "text": pa.array([b"b"])},
            {"text": pa.array(["c"]).dictionary_encode()},
        )
    ):
        pq.write_table(pa.table(columns), tmp_path / "hub" / f"train-{number}.parquet")
    keys = {"source": "hub", "dataset": str(tmp_path / "hub"), "validation_share": 1e-9}
    assert texts(tmp_path, **keys) == ["a", "b", "c"]


@pytest.mark.parametrize("copy", [" a  b c", "a b c\n", "a\tb\r\nc", "a\u00a0b c"])
def test_a_document_that_equals_a_held_out_one_but_for_white_space_is_left_out(
    tmp_path: Path, copy: str
) -> None:
    train = lines(tmp_path / "train.jsonl", [{"text": copy}, {"text": "ab c"}])
    held_out = lines(tmp_path / "held_out.jsonl", [{"text": "a b c"}])
    source = open_source(section(source="files", train=[str(train)], validation=str(held_out)), 0, tmp_path)
    excluded = {text_hash(document.text) for document in source.read("validation")}
    assert [document.text for document in source.read("train", excluded=excluded)] == ["ab c"]
