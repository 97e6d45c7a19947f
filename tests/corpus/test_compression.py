"""Compressed files: read completely by their suffix or first bytes, or refused."""

import bz2
import gzip
import json
import lzma
import zipfile
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from tests.corpus.inputs import rows, write


def zipped(content: bytes, *names: str) -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        for name in names:
            archive.writestr(f"folder/{name}", content)
    return target.getvalue()


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    ".zstd": lambda content: pa.compress(content, "zstd", asbytes=True),
    ".lz4": lambda content: pa.compress(content, "lz4", asbytes=True),
    ".zip": lambda content: zipped(content, "a"),
}
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
"""A frame without content, as pzstd writes them."""


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_compressed_files_are_read_by_suffix_and_by_first_bytes(
    tmp_path: Path, suffix: str, name: str
) -> None:
    lines = [f"line {number} é" for number in range(3000)]
    content = "\n".join(lines if name == "a.txt" else (json.dumps({"text": line}) for line in lines)).encode()
    compressed = COMPRESS[suffix](content)
    file = write(tmp_path / f"{name}{suffix}", compressed)
    assert rows(file) == lines
    assert rows(file, 2990) == lines[2990:]
    assert rows(write(tmp_path / f"{name.upper()}{suffix.upper()}", compressed)) == lines
    if suffix != ".lzma":
        # as a downloader that forgets the suffix writes it
        assert rows(write(tmp_path / name, compressed)) == lines


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst", ".lz4"])
def test_all_parts_of_a_compressed_file_are_read(tmp_path: Path, suffix: str) -> None:
    parts = [f"line {number}\n" * 1000 for number in range(3)]
    content = b"".join(COMPRESS[suffix](part.encode()) for part in parts)
    want = "".join(parts).splitlines()
    assert rows(write(tmp_path / f"a.txt{suffix}", content)) == want
    if suffix in (".zst", ".lz4"):
        assert rows(write(tmp_path / f"b.txt{suffix}", SKIPPABLE + content + SKIPPABLE)) == want


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    content = COMPRESS[suffix]("".join(f"line {number}\n" for number in range(5000)).encode())
    for length in (len(content) // 2, len(content) - 1, 20):
        with pytest.raises(ValueError, match=r"a.txt\S*: cannot be read \(.*\); repair or replace it"):
            rows(write(tmp_path / f"a.txt{suffix}", content[:length]))


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_zeros_between_and_after_the_parts_of_a_compressed_file_are_padding(
    tmp_path: Path, suffix: str
) -> None:
    first, second = (COMPRESS[suffix](text) for text in (b"a\n", b"b\n"))
    for padding in (4, 8, 4096, 300_000):
        file = write(tmp_path / f"a.txt{suffix}", first + bytes(padding) + second + bytes(padding))
        assert rows(file) == ["a", "b"]


def damaged(compressed: bytes) -> bytes:
    return bytes([compressed[0] ^ 1]) + compressed[1:]


@pytest.mark.parametrize("junk", [b"j", b"junk", b"junk" * 1000, b"\n", None])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4"])
def test_what_follows_the_last_part_of_a_compressed_file_is_never_ignored(
    tmp_path: Path, suffix: str, junk: bytes | None
) -> None:
    compressed = COMPRESS[suffix](b"a line\n" * 1000)
    file = write(tmp_path / f"a.txt{suffix}", compressed + (damaged(compressed) if junk is None else junk))
    with pytest.raises(ValueError, match=r"a.txt\S*: cannot be read \(.*\); repair or replace it"):
        rows(file)


@pytest.mark.parametrize(
    ("suffix", "padding"), [(".xz", 3), (".bz2", 4), (".zst", 4), (".lz4", 4), (".zst", 1)]
)
def test_zeros_that_are_no_padding_are_refused(tmp_path: Path, suffix: str, padding: int) -> None:
    with pytest.raises(ValueError, match=r"a.txt\S*: cannot be read \(.*\); repair or replace it"):
        rows(write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](b"a\n") + bytes(padding)))


@pytest.mark.parametrize("suffix", [each for each in COMPRESS if each != ".lzma"])
def test_a_suffix_that_contradicts_the_content_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(
        ValueError, match=r"a.txt\S+: not compressed by \w+; replace it, or correct its suffix"
    ):
        rows(write(tmp_path / f"a.txt{suffix}", "plain text"))


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an archive of one file; unpack it and name the files"):
        rows(write(tmp_path / "a.txt.zip", zipped(b"a", "a.txt", "b.txt")))


@pytest.mark.parametrize(("name", "member"), [
    ("a.txt.zip", "c.csv"), ("a.txt.zip", "c.jsonl"), ("a.jsonl.zip", "c.txt"), ("a.json.zip", "c.parquet"),
    ("a.txt.zip", "c.txt.gz"), ("a.txt", "c.csv"),
])  # fmt: skip
def test_an_archive_with_a_file_of_another_format_is_refused(tmp_path: Path, name: str, member: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: contains folder/{member}, of another format; unpack it"):
        rows(write(tmp_path / name, zipped(b'{"text": "a"}', member)))


@pytest.mark.parametrize(("name", "member"), [
    ("a.txt.zip", "C.TXT"), ("a.txt.zip", "part.2024"), ("a.json.zip", "c.jsonl"), ("a.jsonl.zip", "c.ndjson"),
])  # fmt: skip
def test_an_archive_with_a_file_of_its_format_is_read(tmp_path: Path, name: str, member: str) -> None:
    assert rows(write(tmp_path / name, zipped(b'"a"', member))) == ['"a"' if ".txt" in name else "a"]
