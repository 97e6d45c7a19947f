"""A record finds every change of an output: sizes, contents, missing and added files, and damage to the record."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from circuitloom.activations.arrays import create_array, shard_file, write_shard
from circuitloom.core.checksums import (
    check_inputs,
    output_damage,
    read_record,
    record_path,
    remove_record,
    write_record,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with a file, a folder and a Zarr array, all recorded."""
    folder = tmp_path / "results" / "some"
    (folder / "model" / "parts").mkdir(parents=True)
    (folder / "table.parquet").write_bytes(bytes(range(100)))
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "parts" / "weights").write_bytes(b"w" * 50)
    (folder / "model" / ".snakemake_timestamp").write_text("now")
    zarr.create_array(folder / "x.zarr", data=np.arange(64), chunks=(32,), compressors=Crc32cCodec())
    for output in OUTPUTS:
        write_record(folder, folder / output)
    return folder


OUTPUTS = ("table.parquet", "model", "x.zarr")
FILES = ("table.parquet", "model/config.json", "model/parts/weights", "x.zarr/zarr.json", "x.zarr/c/0")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lines(folder: Path) -> list[str]:
    return [line for output in OUTPUTS for line in output_damage(folder, folder / output)]


def test_unchanged_outputs_have_no_damage(folder: Path) -> None:
    assert lines(folder) == []
    check_inputs(folder, [folder / output for output in OUTPUTS])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "message"), [(flip, "checksum differs"), (cut, "bytes instead of"), (Path.unlink, "missing")]
)
def test_each_damaged_file_is_named_with_its_remedy(folder: Path, name: str, spoil, message: str) -> None:
    spoil(folder / name)
    (line,) = lines(folder)
    assert line.startswith(f"{folder / name}: ") or name == "table.parquet"
    assert message in line
    assert "run again" in line


def test_the_remedy_deletes_the_complete_output(folder: Path) -> None:
    flip(folder / "model" / "parts" / "weights")
    flip(folder / "table.parquet")
    assert [line.partition("; ")[2] for line in lines(folder)] == [
        "delete it and run again",
        f"delete {folder / 'model'} and run again",
    ]


def test_a_file_that_was_added_is_named(folder: Path) -> None:
    (folder / "model" / "added_tokens.json").write_text("{}")
    (line,) = lines(folder)
    assert line == f"{folder / 'model' / 'added_tokens.json'}: not made by the workflow; remove it"


def test_a_job_refuses_the_first_damaged_input(folder: Path) -> None:
    flip(folder / "x.zarr" / "zarr.json")
    with pytest.raises(
        ValueError, match=r"x\.zarr/zarr\.json: .*checksum differs.*; delete \S+x\.zarr and run"
    ):
        check_inputs(folder, [folder / "table.parquet", folder / "x.zarr"])


def test_a_job_compares_the_sizes_of_chunks_but_does_not_read_them(folder: Path) -> None:
    flip(folder / "x.zarr" / "c" / "0")
    check_inputs(folder, [folder / "x.zarr"])
    assert len(lines(folder)) == 1
    cut(folder / "x.zarr" / "c" / "1")
    with pytest.raises(ValueError, match=r"x\.zarr/c/1: \d+ bytes instead of"):
        check_inputs(folder, [folder / "x.zarr"])


def test_without_contents_only_sizes_are_compared(folder: Path) -> None:
    for name in FILES:
        flip(folder / name)
    check_inputs(folder, [folder / output for output in OUTPUTS], contents=False)
    cut(folder / "model" / "config.json")
    with pytest.raises(ValueError, match=r"config\.json: \d+ bytes instead of"):
        check_inputs(folder, [folder / output for output in OUTPUTS], contents=False)


def test_any_damage_to_a_sharded_array_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "some"
    array = create_array(folder / "x.zarr", "values", (9000, 4), "float16", 4096)
    for shard in range(3):
        write_shard(array, shard, np.ones((min(4096, 9000 - 4096 * shard), 4), np.float16))
    write_record(folder, folder / "x.zarr")
    assert list(output_damage(folder, folder / "x.zarr")) == []
    random = np.random.default_rng(0)
    for shard in range(3):
        file = shard_file(array, shard)
        content = file.read_bytes()
        for place in [*random.integers(len(content), size=20), len(content) - 1]:
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            (line,) = output_damage(folder, folder / "x.zarr")
            assert line.startswith(f"{file}: not what was written")
        file.write_bytes(content)


def test_an_input_without_a_record_passes(folder: Path, tmp_path: Path) -> None:
    flip(folder / "table.parquet")
    remove_record(folder, folder / "table.parquet")
    remove_record(folder, folder / "table.parquet")
    text = tmp_path / "text.jsonl"
    text.write_text("{}")
    check_inputs(folder, [folder / "table.parquet", text, tmp_path / "not there"])


def test_writing_a_record_replaces_the_earlier_one(folder: Path) -> None:
    (folder / "table.parquet").write_bytes(b"another")
    write_record(folder, folder / "table.parquet")
    assert lines(folder) == []
    assert read_record(record_path(folder, folder / "table.parquet")).keys() == {""}


def test_every_changed_byte_of_a_record_is_found(folder: Path) -> None:
    output = folder / "model"
    record = record_path(folder, output)
    content = record.read_bytes()
    assert len(json.loads(content)["files"]) == 2
    for place in range(len(content)):
        for bit in (1, 16, 128):
            record.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            (line,) = output_damage(folder, output)
            assert line.startswith(f"{record}: a damaged record; delete it and {output}, and run again")
    record.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged record"):
        check_inputs(folder, [output])


def test_a_file_that_the_disk_cannot_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_a, **_k):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("circuitloom.core.checksums._checksum", broken)
    (line,) = output_damage(folder, folder / "table.parquet")
    assert "cannot be read (Input/output error)" in line
