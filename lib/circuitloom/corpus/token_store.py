"""Token arrays on disk: Zarr 3, sharded, every byte under a checksum."""

from collections.abc import Iterable
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Integer
from zarr.codecs import Crc32cCodec, ZstdCodec

SEQUENCES_A_SHARD = 8192
SEQUENCES_A_CHUNK = 256

Block = tuple[Integer[np.ndarray, "sequence position"], Integer[np.ndarray, "sequence position"]]
"""Token ids and document numbers of some sequences."""


def write_tokens(path: Path, blocks: Iterable[Block], sequences: int, attributes: dict[str, Any]) -> None:
    """Write the group `path` with arrays `token` and `document`, each [sequences, context].

    The blocks follow one another in the arrays; each holds whole shards (`SEQUENCES_A_SHARD`) but the last.
    """
    group = zarr.create_group(path, overwrite=True, attributes=attributes)
    blocks = iter(blocks)
    first = next(blocks)
    context = first[0].shape[1]
    token, document = (
        _create(group, name, (sequences, context), part.dtype)
        for name, part in zip(NAMES, first, strict=True)
    )
    start = 0
    for tokens, documents in chain([first], blocks):
        stop = start + len(tokens)
        token[start:stop], document[start:stop] = tokens, documents
        start = stop
    assert start == sequences


NAMES = ("token", "document")


def _create(group: zarr.Group, name: str, shape: tuple[int, int], dtype: np.dtype) -> zarr.Array:
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        shards=(SEQUENCES_A_SHARD, shape[1]),
        chunks=(SEQUENCES_A_CHUNK, shape[1]),
        # the checksum comes last, so that it covers what is on disk: zstd's own leaves its header out
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=("sequence", "position"),
        # a shard left out because it is all zeros could not be told from a lost one
        config={"write_empty_chunks": True},
    )


def check_shards(path: Path, array: zarr.Array) -> None:
    """Raise ValueError where a shard of `array`, of the group in `path`, is missing: Zarr reads it as zeros."""
    shards = array.shards
    assert shards is not None
    expected = ceil(array.shape[0] / shards[0])
    folder = path / array.basename / "c"
    missing = [i for i in range(expected) if not (folder / str(i) / "0").is_file()]
    if missing:
        raise ValueError(
            f"{folder / str(missing[0]) / '0'}: missing ({len(missing)} of {expected} shards are); "
            f"delete {path} and run again"
        )
