"""Generate feature tables of any size, written by the library's own code.

    python benchmarks/synthetic_features.py results/synthetic --activations 100_000_000 --layers 1

Densities are log-normal, as in trained dictionaries. The features of a token are drawn independently, which is the
worst case for storage that groups a feature's tokens.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from circuitloom.config.features import Features
from circuitloom.core.tables import TOKEN, table_writer
from circuitloom.corpus.token_arrays import SEQUENCES_PER_SHARD, write_tokens
from circuitloom.corpus.tokens import Tokens, open_tokens
from circuitloom.features.basis import FeatureBasis
from circuitloom.features.external_sort import BLOCK_POSITIONS, sort_block
from circuitloom.features.tabulation import FeatureTables
from circuitloom.language_model.hooks import Site

CONTEXT, VOCABULARY, K = 128, 50_257, 32

TABLES = ("activation", "code", "example", "feature", "histogram")


def run_name(width: int) -> str:
    """Name of the generated run."""
    return f"tc-topk{K}-{width}"


def make_tokens(folder: Path, sequences: int) -> Tokens:
    """Write random tokens in documents of random lengths, and their table; returns the tokens."""
    strings = pa.array([f" word{number}" for number in range(VOCABULARY)])

    def blocks():
        random = np.random.default_rng(0)
        for start in range(0, sequences, SEQUENCES_PER_SHARD):
            n = min(SEQUENCES_PER_SHARD, sequences - start)
            token = random.integers(1, VOCABULARY, (n, CONTEXT)).astype(np.uint16)
            ends = random.random(n * CONTEXT) < 1 / 200
            document = (start * 1000 + ends.cumsum()).astype(np.int32).reshape(n, CONTEXT)
            token[:, 0] = 0
            yield token, document

    with table_writer(TOKEN, folder / "token.parquet") as writer:
        done = 0
        for token, document in blocks():
            sequence, position = np.indices(token.shape)
            columns = [sequence.ravel() + done, position.ravel(), document.ravel(), token.ravel()]
            arrays = [pa.array(c) for c in columns] + [strings.take(pa.array(token.ravel()))]
            writer.write_table(pa.Table.from_arrays(arrays, TOKEN.schema.names).cast(TOKEN.schema))
            done += len(token)
    write_tokens(
        folder / "validation.zarr",
        blocks(),
        sequences,
        {"bos_id": 0, "separator_id": 0, "vocabulary": VOCABULARY},
    )
    return open_tokens(folder / "validation.zarr")


def make_blocks(work: Path, sequences: int, width: int, seed: int) -> None:
    """Write blocks of activations in the format of the first pass: `K` features per token, none at position 0."""
    random = np.random.default_rng(seed)
    share = random.lognormal(0, 1.2, width).cumsum()
    share /= share[-1]
    size = BLOCK_POSITIONS // CONTEXT
    number = np.uint16 if width <= 2**16 else np.uint32
    for block, start in enumerate(range(0, sequences, size)):
        n = min(size, sequences - start) * CONTEXT
        place = np.flatnonzero(np.arange(n) % CONTEXT)
        feature = np.sort(np.searchsorted(share, random.random((len(place), K + 4))), axis=1)
        # a feature that is drawn twice counts once
        kept = np.diff(feature, axis=1, prepend=-1) > 0
        kept &= kept.cumsum(1) <= K
        value = random.exponential(1, kept.sum()).astype(np.float32)
        places = np.repeat(place, kept.sum(1)).astype(np.uint16)
        sort_block(places, feature[kept].astype(number), value, width).write(work / f"block{block:06d}")


def make_layer(folder: Path, tokens: Tokens, layer: int, width: int) -> dict[str, Path]:
    """Write the feature tables of a layer under `folder`; returns their files."""
    run = run_name(width)
    target = folder / "features" / run / f"layer{layer}"
    work = target.with_name(f"layer{layer}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    make_blocks(work, len(tokens), width, layer)
    site, decoders, norm = Site("mlp_in", layer), {layer: torch.zeros(width, 8)}, torch.zeros(width)
    basis = FeatureBasis(
        run, layer, site, width, lambda x: (x, x, x), decoders, norm, "mlp_out", None, None, ""
    )
    strings = pa.array([f" word{number}" for number in range(VOCABULARY)])
    tables = FeatureTables(basis, tokens, strings, Features(), work, len(tokens) * (CONTEXT - 1))
    files = {name: target / f"{name}.parquet" for name in TABLES}
    tables.write(files)
    shutil.rmtree(work)
    return files


def main() -> None:
    """Write tokens and the tables of each layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--activations", type=int, default=100_000_000, help="activations per layer")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--width", type=int, default=24_576)
    arguments = parser.parse_args()
    tokens = make_tokens(arguments.folder / "corpus", round(arguments.activations / K / (CONTEXT - 1)))
    for layer in range(arguments.layers):
        started = time.perf_counter()
        files = make_layer(arguments.folder, tokens, layer, arguments.width)
        sizes = {name: f"{file.stat().st_size / 1e6:.0f} MB" for name, file in files.items()}
        print(f"layer {layer}: {time.perf_counter() - started:.1f} s", sizes)


if __name__ == "__main__":
    main()
