"""Writes the feature tables of runs and layers. `external_sort` first sorts the activations by feature."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from ..config.features import Features
from ..core.atomic_io import fingerprint, partial_folder
from ..core.progress import progress
from ..core.tables import ACTIVATION, CODE, EXAMPLE, FEATURE, HISTOGRAM, Table, table_writer
from ..corpus.tokens import Tokens
from ..language_model.model import LanguageModel
from ..language_model.model_files import weights_digest
from .basis import FeatureBasis
from .examples import choose_examples, windows
from .external_sort import (
    FeatureRange,
    block_folders,
    block_sequences,
    block_slices,
    feature_ranges,
    read_block,
    stable_order,
    write_blocks,
)
from .statistics import FeatureTotals, bin_counts, feature_totals

ROW_GROUP = {"activation": 2**17, "code": 2**16, "example": 2**12, "feature": 2**15, "histogram": 2**16}
"""Number of rows per row group of each table. Queries read whole row groups."""
COLUMN_OPTIONS: dict[str, dict[str, Sequence[str]]] = {
    "activation": {"plain": ["activation"]},
    "code": {"plain": ["packed"], "uncompressed": ["packed"]},
}
"""Keyword arguments of `table_writer` for each table."""


def tabulate(
    bases: Sequence[FeatureBasis],
    model: LanguageModel,
    tokens: Tokens,
    strings: Sequence[str],
    config: Features,
    paths: Sequence[dict[str, Path]],
    version: str = "",
) -> None:
    """Write the tables activation, code, example, feature and histogram of each basis. All bases share one pass.

    `paths[i]` maps each table name to a file of `bases[i]`. `strings[i]` is the text of token id i. Tables are written
    atomically. After an interruption, the next call continues with the first missing block. The call starts again if
    the weights, the tokens, the config or `version` changed. `version` is a hash of the code. Raises ValueError if the
    stored tokens are damaged.
    """
    shared = {"model": weights_digest(model.module.state_dict()), "tokens": _digest(tokens, config.tokens)}
    with ExitStack() as stack:
        works = []
        for basis, files in zip(bases, paths, strict=True):
            digest = fingerprint(**shared, basis=basis.digest, batch=config.batch, version=version)
            works.append(stack.enter_context(partial_folder(files["activation"].parent, digest)))
        scored = write_blocks(bases, model, tokens, config, works)
        texts = pa.array(strings)
        for basis, files, work in zip(bases, paths, works, strict=True):
            FeatureTables(basis, tokens, texts, config, work, scored).write(files)
        # the blocks of every basis are kept until the tables of the last one are written
        for work in works:
            shutil.rmtree(work)


def _digest(tokens: Tokens, wanted: int | None) -> str:
    digests = {
        str(rows.start): weights_digest({"token": tokens.take(rows), "document": tokens.take_document(rows)})
        for rows in block_slices(tokens, wanted)
    }
    return fingerprint(**digests)


@dataclass(frozen=True)
class FeatureTables:
    """Writes the feature tables from the sorted blocks in `work`."""

    basis: FeatureBasis
    tokens: Tokens
    strings: pa.StringArray
    config: Features
    work: Path
    scored: int
    """Number of scored tokens."""

    def write(self, paths: dict[str, Path]) -> None:
        """Write all tables."""
        with ExitStack() as stack:
            writers = {
                table.name: stack.enter_context(
                    table_writer(table, paths[table.name], **COLUMN_OPTIONS.get(table.name, {}))
                )
                for table in (ACTIVATION, CODE, EXAMPLE, FEATURE, HISTOGRAM)
            }
            with progress(
                f"tables: {self.basis.run} layer {self.basis.layer}", self.basis.width, "features"
            ) as bar:
                self._write_code(writers["code"])
                blocks = block_folders(self.work)
                for features in feature_ranges(blocks, self._block_positions, self.basis.width):
                    self._write_range(features, writers)
                    bar.update(features.width)

    @property
    def _block_positions(self) -> int:
        return block_sequences(self.tokens.context) * self.tokens.context

    def _write_range(self, features: FeatureRange, writers: dict[str, pq.ParquetWriter]) -> None:
        totals = feature_totals(features)
        histogram = bin_counts(features.batches(), totals.largest, self.config.bins)
        self._write_rows(writers, FEATURE, self._feature(features, totals))
        self._write_rows(writers, HISTOGRAM, self._histogram(features, totals, histogram))
        self._write_rows(writers, EXAMPLE, self._example(features, totals, histogram))
        for batch in features.batches():
            sequence, position = np.divmod(batch.token, self.tokens.context)
            feature = batch.feature + features.low
            columns = {
                "feature": feature,
                "sequence": sequence,
                "position": position,
                "activation": batch.value,
            }
            self._write_rows(writers, ACTIVATION, columns)

    def _write_rows(
        self, writers: dict[str, pq.ParquetWriter], table: Table, columns: dict[str, Any]
    ) -> None:
        n = len(next(iter(columns.values())))
        key = {
            "run": pa.repeat(self.basis.run, n),
            "layer": pa.repeat(pa.scalar(self.basis.layer, pa.int16()), n),
        }
        arrays = [
            pa.array(value, from_pandas=True).cast(table.schema.field(name).type)
            if not isinstance(value, pa.Array)
            else value
            for name, value in {**key, **columns}.items()
        ]
        writers[table.name].write_table(
            pa.Table.from_arrays(arrays, schema=table.schema), row_group_size=ROW_GROUP[table.name]
        )

    def _feature(self, features: FeatureRange, totals: FeatureTotals) -> dict[str, Any]:
        mine = slice(features.low, features.high)
        basis, fires = self.basis, totals.n > 0
        columns = {
            "feature": np.arange(features.low, features.high),
            "density": totals.n / self.scored,
            "n_tokens": totals.n,
            "max_activation": np.where(fires, totals.largest, np.nan),
            "mean_activation": totals.mean,
            "rms_activation": totals.rms,
            "decoder_norm": basis.decoder_norm[mine].cpu().numpy(),
        }
        for name, value in (("encoder_norm", basis.encoder_norm), ("bias", basis.bias)):
            columns[name] = (
                pa.nulls(features.width, pa.float32()) if value is None else value[mine].cpu().numpy()
            )
        return columns | {"alive": fires}

    def _histogram(
        self, features: FeatureRange, totals: FeatureTotals, histogram: Int[np.ndarray, "feature bin"]
    ) -> dict[str, Any]:
        feature, number = histogram.nonzero()
        step = totals.largest[feature] / histogram.shape[1]
        return {
            "feature": feature + features.low,
            "bin": number,
            "low": number * step,
            "high": (number + 1) * step,
            "n_tokens": histogram[feature, number],
        }

    def _example(
        self, features: FeatureRange, totals: FeatureTotals, histogram: Int[np.ndarray, "feature bin"]
    ) -> dict[str, Any]:
        examples, band_counts = choose_examples(features, totals.largest, histogram, self.config)
        around = windows(self.tokens, examples.token, self.config.before, self.config.after)
        offsets = pa.array(np.append(0, around.inside.sum(1).cumsum()), pa.int32())
        sequence, position = np.divmod(examples.token, self.tokens.context)
        low, high, share = _bands(examples.band, examples.feature, examples.value, totals, band_counts)
        return {
            "feature": examples.feature + features.low,
            "band": examples.band,
            "rank": examples.rank,
            "sequence": sequence,
            "position": position,
            "activation": examples.value,
            "tokens": pa.ListArray.from_arrays(offsets, self.strings.take(pa.array(around.token))),
            "activations": pa.ListArray.from_arrays(offsets, pa.array(examples.around[around.inside])),
            "window_start": around.start,
            "band_low": low,
            "band_high": high,
            "band_share": share,
        }

    def _write_code(self, writer: pq.ParquetWriter) -> None:
        size = 2 if self.basis.width <= 2**16 else 4
        for number, folder in enumerate(block_folders(self.work)):
            block = read_block(folder)
            order = stable_order(block.offset, self._block_positions)
            feature = np.repeat(np.arange(self.basis.width, dtype=f">u{size}"), np.diff(block.start))[order]
            n = np.bincount(block.offset, minlength=self._block_positions)
            token = np.flatnonzero(n)
            sequence, position = np.divmod(token + number * self._block_positions, self.tokens.context)
            ends = np.append(0, n[token].cumsum() * size).astype(np.int32)
            buffers = [None, pa.py_buffer(ends), pa.py_buffer(feature)]
            columns = {
                "sequence": sequence,
                "position": position,
                "n_features": n[token],
                "packed": pa.Array.from_buffers(pa.binary(), len(token), buffers),
            }
            self._write_rows({"code": writer}, CODE, columns)


def _bands(
    band: Int[np.ndarray, " example"],
    feature: Int[np.ndarray, " example"],
    value: Float32[np.ndarray, " example"],
    totals: FeatureTotals,
    band_counts: Int[np.ndarray, "feature band"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the arrays low, high and share of each example's band.

    `low` and `high` are the band's edges. `share` is the fraction of the feature's activations that are in the band.
    """
    bands = max(1, band_counts.shape[1])
    largest, n = totals.largest[feature], totals.n[feature]
    top = band == 0
    smallest = np.full(len(totals.n), np.inf, np.float32)
    np.minimum.at(smallest, feature[top], value[top])
    kept = np.bincount(feature[top], minlength=len(totals.n))[feature]
    inside = band_counts[feature, np.maximum(band, 1) - 1] if band_counts.size else kept
    low = np.where(top, smallest[feature], (band - 1) / bands * largest)
    high = np.where(top, largest, band / bands * largest)
    return low, high, np.where(top, kept, inside) / n
