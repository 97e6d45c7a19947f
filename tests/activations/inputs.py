"""Token arrays and caches for the tests of this stage."""

from pathlib import Path

import numpy as np
import zarr
from tests.models import CONTEXT, VOCABULARY

from circuitloom.activations.cache import cache_site
from circuitloom.activations.row_order import RowOrder, row_order
from circuitloom.config import Activations
from circuitloom.corpus.tokens import Tokens
from circuitloom.language_model.model import LanguageModel

SHARD_ROWS = 1024
"""Rows per shard: one chunk, the smallest possible."""


def make_tokens(sequences: int, bos_id: int | None = 1, seed: int = 0) -> Tokens:
    """Random documents of 5 to 40 tokens, packed as by the corpus stage."""
    random = np.random.default_rng(seed)
    stream, document = [], []
    while len(stream) < sequences * CONTEXT:
        words = random.integers(4, VOCABULARY, random.integers(5, 40)).tolist()
        document += [document[-1] + 1 if document else 0] * (len(words) + (bos_id is not None))
        stream += words if bos_id is None else [bos_id, *words]
    inside = CONTEXT - (bos_id is not None)
    token, owner = (np.array(x[: sequences * inside]).reshape(sequences, inside) for x in (stream, document))
    if bos_id is not None:
        token = np.concatenate([np.full((sequences, 1), bos_id), token], axis=1)
        owner = np.concatenate([owner[:, :1], owner], axis=1)
    return Tokens(
        Path("train.zarr"),
        zarr.array(token.astype(np.uint16)),
        zarr.array(owner.astype(np.int32)),
        bos_id,
        bos_id,
        VOCABULARY,
    )


def make_order(
    sequences: int = 120, bos_id: int | None = 1, seed: int = 0, limit: int | None = None
) -> RowOrder:
    """Row order of `make_tokens`, in shards of `SHARD_ROWS`."""
    return row_order(make_tokens(sequences, bos_id), seed, SHARD_ROWS, limit)


def make_cache(folder: Path, model: LanguageModel, order: RowOrder, site: str = "mlp_in", **keys) -> Path:
    """Cache all layers of `site` in `folder` with config `keys`; returns `folder`."""
    cache_site(site, order, model, Activations(**keys), folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of each file under `folder`, by relative path; without locks."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
