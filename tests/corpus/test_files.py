"""Rows of single files: text is never changed, and what is not text says what it is."""

import gzip
import json
import tarfile
from io import BytesIO
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.corpus.inputs import jsonl, rows, write

from circuitloom.corpus.files import DataFile, file_format
from circuitloom.corpus.rows import BLANK_ROW, BYTE_ORDER_MARK, DOCUMENT_LINE_ENDS, LINE_ENDS, NULL_ROW, Row

TEXTS = ['a "b"', "é 日本 🜁", "two\nlines", " x ", "null", "7", "{}", "\u2028", "\x00"]


def parquet(path: Path, columns: dict, **options) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def text(column) -> str:
    return "".join(each for each in column if isinstance(each, str))


def test_every_text_is_unchanged_in_json_and_parquet(tmp_path: Path) -> None:
    assert rows(jsonl(tmp_path / "a.jsonl", TEXTS)) == TEXTS
    assert (
        rows(
            write(
                tmp_path / "b.jsonl",
                "".join(f"{json.dumps({'text': t}, ensure_ascii=False)}\n" for t in TEXTS),
            )
        )
        == TEXTS
    )
    assert rows(write(tmp_path / "a.json", json.dumps([{"text": t} for t in TEXTS]))) == TEXTS
    assert rows(parquet(tmp_path / "a.parquet", {"text": TEXTS})) == TEXTS


NOT_TEXT = {
    '{"text": 7}': "text is an integer",
    '{"text": 1.5}': "text is a number",
    '{"text": NaN}': "text is a number",
    '{"text": true}': "text is a truth value",
    '{"text": ["a", "b"]}': "text is a list",
    '{"text": {"a": "b"}}': "text is an object",
    '{"text": [{"role": "user", "content": "a"}]}': "text is a list of chat messages, which corpus.messages reads",
    '{"text": "a", "text": "b"}': "text is given twice",
    '{"text": "\\ud800"}': "text has half of a surrogate pair (\\ud800 at character 0)",
    '{"text": "é\\udc80"}': "text has half of a surrogate pair (\\udc80 at character 1)",
    "7": "the row is an integer, not an object",
    "null": "the row is null, not an object",
}


@pytest.mark.parametrize(("line", "problem"), NOT_TEXT.items())
def test_a_json_row_that_is_not_text_says_what_it_is(tmp_path: Path, line: str, problem: str) -> None:
    # also in the first row, and also if texts are before and after it
    for before in ("", '{"text": "a \\"b\\""}\n'):
        found = rows(write(tmp_path / "a.jsonl", f'{before}{line}\n{{"text": "a \\"b\\""}}\n'))
        assert [row.problem for row in found if isinstance(row, Row)] == [problem]
        assert text(found) == 'a "b"' * (1 + bool(before))
    (row,) = rows(write(tmp_path / "a.json", f"[{line}]"))
    assert isinstance(row, Row) and row.problem == problem


def test_other_keys_may_have_any_values(tmp_path: Path) -> None:
    lines = ['{"text": "a", "x": NaN}', '{"x": 7, "text": "b", "x": 8}', '{"x": {"text": 7}, "text": "c"}']
    assert rows(write(tmp_path / "a.jsonl", "\n".join(lines))) == ["a", "b", "c"]
    assert rows(write(tmp_path / "b.jsonl", '{"text": "\\"text\\": \\"text\\""}')) == ['"text": "text"']


def test_rows_without_text_are_null_rows(tmp_path: Path) -> None:
    lines = '{"other": 1}\n{"text": null}\n{"text": "a"}\n{}\n'
    assert rows(write(tmp_path / "a.jsonl", lines)) == [NULL_ROW, NULL_ROW, "a", NULL_ROW]
    assert rows(parquet(tmp_path / "a.parquet", {"text": [None, "a"]})) == [NULL_ROW, "a"]
    assert rows(parquet(tmp_path / "b.parquet", {"text": pa.nulls(2)})) == [NULL_ROW, NULL_ROW]


def test_blank_lines_between_rows_are_counted_and_line_numbers_stay(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '\n{"text": "a"}\r\n \n{"text": "b"}\n\n')
    assert rows(file) == [BLANK_ROW, "a", BLANK_ROW, "b", BLANK_ROW]
    assert rows(write(tmp_path / "b.jsonl", "\n\n")) == [BLANK_ROW] * 2
    with pytest.raises(ValueError, match=r"c.jsonl, line 3: not JSON \(.*\); repair or replace it"):
        rows(write(tmp_path / "c.jsonl", '\n{"text": "a"}\n{"text": \n'))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_without_the_column_is_refused_with_the_columns_it_has(tmp_path: Path, name: str) -> None:
    lines = '{"body": "a", "data": {"x": 1}}\n' * 3000
    with pytest.raises(
        ValueError, match=f"corpus.text: .*{name} has no column text; set it to one of body, data.x"
    ):
        rows(write(tmp_path / name, lines))
    with pytest.raises(ValueError, match=r"has no column data\.y; set it to one of body"):
        rows(write(tmp_path / name, lines.splitlines()[0]), column="data.y")


def test_nested_text_is_read_by_a_name_with_dots(tmp_path: Path) -> None:
    values = [{"data": {"text": "a"}}, {"data": {"text": "b"}}, {"data": None}]
    want = ["a", "b", NULL_ROW]
    lines = write(tmp_path / "a.jsonl", "".join(json.dumps(value) + "\n" for value in values))
    assert rows(lines, column="data.text") == want
    table = parquet(tmp_path / "a.parquet", {"data": [value["data"] for value in values]})
    assert rows(table, column="data.text") == want
    # a key with dots goes first
    both = write(tmp_path / "b.jsonl", '{"data.text": "literal", "data": {"text": "nested"}}')
    assert rows(both, column="data.text") == ["literal"]
    literal = parquet(tmp_path / "b.parquet", {"data.text": ["literal"], "data": [{"text": "nested"}]})
    assert rows(literal, column="data.text") == ["literal"]
    (row,) = rows(write(tmp_path / "c.jsonl", '{"data": [{"text": "a"}]}'), column="data.text")
    assert isinstance(row, Row) and row.problem == "data.text would be inside a list"


BINARY = [value.encode() for value in TEXTS]
TYPES = {
    "string": pa.array(TEXTS),
    "large string": pa.array(TEXTS, pa.large_string()),
    "string view": pa.array(TEXTS, pa.string_view()),
    "binary": pa.array(BINARY, pa.binary()),
    "large binary": pa.array(BINARY, pa.large_binary()),
    "binary view": pa.array(BINARY, pa.binary_view()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "dictionary of bytes": pa.array(BINARY, pa.binary()).dictionary_encode(),
}


@pytest.mark.parametrize("column", TYPES.values(), ids=TYPES.keys())
def test_every_parquet_type_of_text_is_read(tmp_path: Path, column: pa.Array) -> None:
    assert rows(parquet(tmp_path / "a.parquet", {"number": range(len(column)), "text": column})) == TEXTS


def test_bytes_of_fixed_size_are_text(tmp_path: Path) -> None:
    assert rows(parquet(tmp_path / "a.parquet", {"text": pa.array([b"ab", b"cd"], pa.binary(2))})) == [
        "ab",
        "cd",
    ]


REFUSED = {
    "list": ([["a", "b"]], r"column text is list<.*string>, not text; set it to one of title"),
    "integers": ([7], r"column text is int64, not text; set it to one of title"),
    "structs": ([{"a": "b"}], r"column text is struct<a: string>, not text; set it to one of title, text.a"),
    "chat": (
        [[{"role": "user", "content": "a"}]],
        r"column text is list<.*>, not text; name chat messages in corpus.messages instead",
    ),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_parquet_column_that_is_not_text_is_refused_with_its_type(
    tmp_path: Path, values, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"corpus.text: .*a.parquet: {message}") as error:
        rows(parquet(tmp_path / "a.parquet", {"title": ["x"], "text": values}))
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf_8_are_named_with_their_position(tmp_path: Path) -> None:
    _, row = rows(parquet(tmp_path / "a.parquet", {"text": pa.array([b"a", b"ab\xff"], pa.binary())}))
    assert isinstance(row, Row) and row.problem == "text is not UTF-8 (byte 0xff at position 2)"


def test_other_columns_are_not_read(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", '{"text": "a", "url": null}\n{"text": "b", "url": "x"}\n')
    second = write(tmp_path / "b.jsonl", '{"text": "a", "url": {"x": 1}}\n{"text": "b", "title": 7}\n')
    third = parquet(tmp_path / "c.parquet", {"text": ["a", "b"], "url": pa.nulls(2)})
    fourth = parquet(tmp_path / "d.parquet", {"title": [1, 2], "text": ["a", "b"]})
    for file in (first, second, third, fourth):
        assert rows(file) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.tar.gz", "a.csv", "a", "a.gz"])
def test_other_formats_are_unknown(name: str) -> None:
    assert file_format(name) is None


WHOLE = {
    "an array": '[{"text": "a"}, {"text": "b"}]',
    "an array over lines": '\n[\n  {"text": "a"},\n  {"text":\n "b"}\n]\n',
    "an array of strings": '["a", "b"]',
    "objects over lines": '{\n "text": "a"\n}\n{\n "text": "b"\n}',
    "objects on one line": '{"text": "a"} {"text": "b"}',
    "arrays after each other": '[{"text": "a"}]\n[]\n[{"text": "b"}]',
    "lines": '{"text": "a"}\n{"text": "b"}',
    "strings": '"a"\n"b"',
}


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE.keys())
def test_json_may_be_lines_or_arrays_or_objects_over_lines(tmp_path: Path, content: str) -> None:
    file = write(tmp_path / "a.json", content)
    assert [rows(file, start) for start in range(3)] == [["a", "b"], ["b"], []]


LISTS = ('["The", "cat"]\n["A", "dog"]\n', '\n["The", "cat"]\n\n["A"]\n', "[]\n[1]", '[["a"]]\n["b"]')


@pytest.mark.parametrize("content", LISTS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_line_that_is_a_list_is_no_text(tmp_path: Path, name: str, content: str) -> None:
    found = rows(write(tmp_path / name, content))
    assert text(found) == ""
    assert {row.problem for row in found if isinstance(row, Row)} - {""} <= {
        "the row is a list, not an object",
        "the row is an integer, not an object",
    }
    assert [rows(tmp_path / name, start) for start in range(3)] == [found[start:] for start in range(3)]


def test_words_are_no_documents_in_one_line_of_json_lines_or_in_a_second_array(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path / "a.jsonl", '["The", "cat"]\n'))
    assert isinstance(row, Row) and row.problem == "the row is a list, not an object"
    first, row = rows(write(tmp_path / "a.json", '["a"] ["The"]'))
    assert first == "a" and isinstance(row, Row) and row.problem == "the row is a list, not an object"
    # an array of objects cannot be words
    assert rows(write(tmp_path / "b.jsonl", '[{"text": "a"}, {"text": "b"}]\n')) == ["a", "b"]


def test_one_object_over_lines_is_one_row(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.json", '{\n "text": "a",\n "x": [1]\n}\n')) == ["a"]
    assert rows(write(tmp_path / "b.json", "[]")) == []


BROKEN = {
    '[{"text": "a"}, {"text": "b"}': 1, '[{"text": "a"},\n{"text": "b"}\n{"text": "c"}]': 3, '{\n"text": "a"\n': 3,
    '{\n"text": "a"\n}\n]': 4, "[" * 100_000: 1, '[{"text": "a"},]': 1,
}  # fmt: skip


@pytest.mark.parametrize(("content", "line"), BROKEN.items(), ids=map(str, range(len(BROKEN))))
def test_broken_json_is_refused_with_its_line(tmp_path: Path, content: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"a.json, line {line}: not JSON \(.*\); repair or replace it"):
        rows(write(tmp_path / "a.json", content))


def test_lines_of_text_end_in_lf_crlf_or_cr(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.txt", "a\n\nb\x0b\x1c\u2028c\n d")) == ["a", "", "b\x0b\x1c\u2028c", " d"]
    marked = rows(write(tmp_path / "b.txt", "a\r\nb\rc\r\r\nd\ne\r"))
    assert [row if isinstance(row, str) else row.text for row in marked] == ["a", "b", "c", "", "d", "e"]
    assert [isinstance(row, Row) and row.remarks == (LINE_ENDS,) for row in marked] == [1, 1, 1, 1, 0, 1]


def test_a_whole_file_is_one_document_with_lf_as_line_end(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.txt", "a\n\nb\n"), whole=True) == ["a\n\nb\n"]
    assert rows(write(tmp_path / "b.txt", "a\r\nb\rc\n"), whole=True) == [
        Row("a\nb\nc\n", remarks=(DOCUMENT_LINE_ENDS,))
    ]
    parts = rows(write(tmp_path / "c.txt", "a\r\n|b\n|c"), separator="|")
    assert parts == [Row("a\n", remarks=(DOCUMENT_LINE_ENDS,)), "b\n", "c"]
    assert [DataFile("a.txt", "text", whole=whole).unit for whole in (True, False)] == ["document", "line"]
    assert DataFile("a.jsonl", "jsonl", whole=True).unit == "line"


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", b"a\nb"), ("a.jsonl", b'{"text": "a"}\n{"text": "b"}'), ("a.json", b'[{"text": "a"},\n{"text": "b"}]'),
])  # fmt: skip
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, name: str, content: bytes) -> None:
    for suffix in ("", ".gz"):
        content = MARK + content if not suffix else gzip.compress(content)
        file = write(tmp_path / f"{name}{suffix}", content)
        assert rows(file) == [Row("a", remarks=(BYTE_ORDER_MARK,)), "b"]
        assert rows(file, 1) == ["b"]


@pytest.mark.parametrize(
    ("name", "before"), [("a.txt", "é\n"), ("a.jsonl", '{"text": "é"}\n'), ("a.json", '["é",\n')]
)
def test_a_file_that_is_not_utf_8_is_refused_with_the_position(
    tmp_path: Path, name: str, before: str
) -> None:
    content = before.encode() + b'"caf\xe9"'
    position = len(content) - 2
    for file in (write(tmp_path / name, content), write(tmp_path / f"{name}.gz", gzip.compress(content))):
        message = (
            rf"{name}\S*, line 2: not UTF-8 \(byte 0xe9 at position {position} of the file\); convert it"
        )
        with pytest.raises(ValueError, match=message):
            rows(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_utf_16_and_utf_32_are_refused(tmp_path: Path, encoding: str) -> None:
    for name, content in (("a.txt", "some text"), ("a.jsonl", '{"text": "a"}')):
        with pytest.raises(ValueError, match=r"not UTF-8, but UTF-16, UTF-32 or binary; convert it to UTF-8"):
            rows(write(tmp_path / name, content.encode(encoding)))


def archive(content: bytes) -> bytes:
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        entry = tarfile.TarInfo("story.txt")
        entry.size = len(content)
        tar.addfile(entry, BytesIO(content))
    return target.getvalue()


NUL = {
    "UTF-16 without ASCII at the start": ("Она любила".encode("utf-16-le"), 1, 7),
    "a tar archive": (archive(b"a\n"), 1, 9),
    "a later line": (b"a\nb\nc\0", 3, 5),
}


@pytest.mark.parametrize(("content", "line", "position"), NUL.values(), ids=NUL.keys())
def test_text_with_a_nul_byte_is_refused_with_its_position(
    tmp_path: Path, content: bytes, line: int, position: int
) -> None:
    message = (
        rf"line {line}: not text in UTF-8, .* \(NUL at position {position} of the file\); convert it to UTF-8"
    )
    for file in (write(tmp_path / "a.txt", content), write(tmp_path / "a.txt.gz", gzip.compress(content))):
        for keys in ({}, {"whole": True}, {"separator": "|"}):
            with pytest.raises(ValueError, match=message):
                rows(file, **keys)


def test_bytes_of_fixed_size_that_are_filled_up_are_no_text(tmp_path: Path) -> None:
    values = pa.array([b"abc", b"a\0\0", None], pa.binary(3))
    first, row, last = rows(parquet(tmp_path / "a.parquet", {"text": values}))
    assert (first, last) == ("abc", NULL_ROW)
    assert (
        isinstance(row, Row) and row.problem == "text is filled up with NUL to a fixed size (from position 1)"
    )


def test_plain_text_has_only_the_column_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.txt has no column body; set it to one of text"):
        rows(write(tmp_path / "a.txt", "a"), column="body")


def test_row_groups_before_the_start_are_not_read(tmp_path: Path) -> None:
    texts = [f"text {number} of many" for number in range(40)]
    file = parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=10)
    assert [rows(file, start) for start in range(42)] == [texts[start:] for start in range(42)]
    chunk = pq.read_metadata(file).row_group(0).column(0)
    content = bytearray(file.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    content[begin : begin + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    write(file, bytes(content))
    assert rows(file, 10) == texts[10:]
    with pytest.raises(ValueError, match=r"a.parquet: cannot be read \(.*\); repair or replace it"):
        rows(file, 9)


def test_files_of_other_file_systems_are_read_by_their_url(tmp_path: Path) -> None:
    # as files of the hub are, by hf:// URLs
    files = {
        "a.jsonl": jsonl(tmp_path / "a.jsonl", TEXTS),
        "a.jsonl.gz": write(tmp_path / "a.jsonl.gz", gzip.compress((tmp_path / "a.jsonl").read_bytes())),
        "a[1].parquet": parquet(tmp_path / "a.parquet", {"text": TEXTS}),
    }
    memory = fsspec.filesystem("memory")
    for name, file in files.items():
        memory.pipe_file(f"/{tmp_path.name}/{name}", file.read_bytes())
        found = DataFile(f"memory://{tmp_path.name}/{name}", str(file_format(name)))
        assert list(found.rows()) == TEXTS and list(found.rows(4)) == TEXTS[4:]
    with pytest.raises(
        ValueError, match=r"memory://none.jsonl: cannot be read \(.*\); check the network, and run again"
    ):
        list(DataFile("memory://none.jsonl", "jsonl").rows())


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has several columns text; rename one of them"):
        rows(tmp_path / "a.parquet")
