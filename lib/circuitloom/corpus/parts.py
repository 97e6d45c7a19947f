"""What of a split has been packed so far, on disk: killed at any moment, the next run goes on from it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..partial import flush, replace
from ..tables import DOCUMENT, read_table, write_table
from .packing import Block, Cursor
from .token_store import Block as Arrays


@dataclass(frozen=True)
class Parts:
    """The blocks of one split, a pair of files each; a block counts once its cursor is written."""

    folder: Path
    split: str

    def __len__(self) -> int:
        """Blocks that are whole."""
        return len(list(self.folder.glob("*.json")))

    def append(self, block: Block) -> None:
        """Write `block` behind those that are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{len(self):06d}"
        np.savez(self.folder / f"{name}.npz", token=block.token, document=block.document)
        rows = [{"split": self.split, **asdict(row)} for row in block.rows]
        write_table(DOCUMENT, rows, self.folder / f"{name}.parquet")
        flush(self.folder / f"{name}.npz")
        replace(self.folder / f"{name}.json", json.dumps(asdict(block.cursor)).encode())

    @property
    def cursor(self) -> Cursor:
        """Where the next block begins."""
        if not len(self):
            return Cursor()
        return Cursor(**json.loads((self.folder / f"{len(self) - 1:06d}.json").read_text()))

    def arrays(self) -> Iterator[Arrays]:
        """Token ids and document numbers of each block."""
        for number in range(len(self)):
            with np.load(self.folder / f"{number:06d}.npz") as part:
                yield part["token"], part["document"]

    def tables(self) -> Iterator[pa.Table]:
        """The documents that begin in each block."""
        for number in range(len(self)):
            yield read_table(self.folder / f"{number:06d}.parquet")

    def texts(self) -> Iterator[str]:
        """The text of every document, in order."""
        for table in self.tables():
            yield from table["text"].to_pylist()


def write_documents(path: Path, parts: list[Parts]) -> None:
    """The table DOCUMENT of some splits, a row group a block, so that it never is in memory whole."""
    # page checksums: DuckDB reads flipped bytes without a word, pyarrow finds them
    with pq.ParquetWriter(path, DOCUMENT.schema, compression="zstd", write_page_checksum=True) as writer:
        for part in parts:
            for table in part.tables():
                writer.write_table(table)
