"""Reads the feature tables of one run and layer in ranges of features, as parts of JSON texts.

Formats of others repeat every token of every example as JSON. Numbers and tokens are converted column by column, which
takes a third of the time of `json.dumps` on nested lists.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from ...core.atomic_io import fingerprint
from ...core.tables import read_table
from ...core.token_text import whole_text

FEATURES_PER_PART = 512
"""Number of features that are in memory at once. Each takes about 0.3 MB, with 45 examples of 25 tokens."""
TABLES = ("feature", "histogram", "example", "logit")


def json_numbers(values: pa.Array | pa.ChunkedArray) -> list[str]:
    """Returns each number as JSON, with the fewest digits that give the same number back. Null becomes null."""
    return ["null" if text is None else text for text in pc.cast(values, pa.string()).to_pylist()]


def json_list(parts: Sequence[str]) -> str:
    """Returns a JSON array of JSON texts."""
    return f"[{','.join(parts)}]"


@dataclass(frozen=True)
class ExampleTexts:
    """Examples of a range of features, ordered by feature, band and rank."""

    band: Sequence[int]
    rank: Sequence[int]
    place: Sequence[int]
    """Index of the example's token in its window."""
    low: Sequence[str]
    high: Sequence[str]
    share: Sequence[str]
    """Edges of the example's band, and the fraction of activations in the band, as JSON."""
    tokens: Sequence[str]
    activations: Sequence[str]
    """Tokens and activations of the window, as JSON arrays."""
    largest: Sequence[str]
    smallest: Sequence[str]
    """Largest and smallest activation of the window, as JSON."""
    largest_at: Sequence[int]
    """Index of the largest activation in the window. The first one, if there are several."""


@dataclass(frozen=True)
class FeatureTexts:
    """A range of features, with numbers and tokens as JSON."""

    features: range
    density: Sequence[str]
    max_activation: Sequence[str]
    """null if the feature never fires."""
    examples: ExampleTexts
    example_starts: Int[np.ndarray, " edge"]
    """Examples of the i-th feature are those from example_starts[i] to example_starts[i + 1]."""
    logit_tokens: Sequence[tuple[list[str], list[str]]]
    logit_effects: Sequence[tuple[list[str], list[str]]]
    """Tokens whose logits each feature raises and lowers most, strongest first, and the effects."""
    bins: Sequence[tuple[list[str], list[str]]]
    """Centers of the bins of each feature's histogram, and numbers of tokens. Empty bins up to the largest bin are
    included."""

    def of(self, i: int) -> range:
        """Returns the indices of the examples of the i-th feature of the range."""
        return range(int(self.example_starts[i]), int(self.example_starts[i + 1]))


@dataclass(frozen=True)
class FeatureSource:
    """The feature tables of one run and layer."""

    folder: Path
    """Folder of the tables."""
    run: str
    layer: int
    spacing: str
    """Text between two tokens: one space if tokens are words without spaces. It is written before every token."""
    per_part: int = FEATURES_PER_PART
    """Number of features that are read at once."""

    @cached_property
    def width(self) -> int:
        """Number of features."""
        return pq.read_metadata(self.file("feature")).num_rows

    def file(self, table: str) -> Path:
        """Returns the file of a table."""
        return self.folder / f"{table}.parquet"

    def digest(self, *tables: str, **settings: object) -> str:
        """Returns a hash of the sizes and times of the files of `tables`, and of `settings`.

        Raises ValueError if a table is missing.
        """
        for table in tables:
            if not self.file(table).is_file():
                raise ValueError(
                    f"{self.file(table)} is missing; make it with `snakemake --cores all features`"
                )
        status = {table: self.file(table).stat() for table in tables}
        files = {table: [each.st_size, each.st_mtime_ns] for table, each in status.items()}
        return fingerprint(
            files=files,
            run=self.run,
            layer=self.layer,
            spacing=self.spacing,
            per_part=self.per_part,
            **settings,
        )

    def parts(self) -> list[range]:
        """Returns the ranges of features that are read at once."""
        starts = range(0, self.width, self.per_part)
        return [range(start, min(start + self.per_part, self.width)) for start in starts]

    def read(self, features: range) -> FeatureTexts:
        """Returns a range of features. Raises ValueError if a table is damaged."""
        feature = self._rows("feature", features, "feature")
        if feature["feature"].to_pylist() != list(features):
            raise ValueError(f"{self.file('feature')}: lacks a feature; delete it and run again")
        example = self._rows("example", features, "feature", "band", "rank")
        edges = np.arange(features.start, features.stop + 1)
        return FeatureTexts(
            features,
            json_numbers(feature["density"]),
            json_numbers(feature["max_activation"]),
            self._examples(example),
            np.searchsorted(example["feature"].to_numpy(), edges),
            *self._logits(features, edges),
            self._bins(features, edges),
        )

    def _rows(self, table: str, features: range, *order: str) -> pa.Table:
        """Returns the rows of a range of features, sorted by the columns `order`."""
        chosen = (pc.field("feature") >= features.start) & (pc.field("feature") < features.stop)
        rows = read_table(self.file(table), chosen)
        columns = [rows[name].to_numpy() for name in order]
        indices = np.lexsort(columns[::-1])
        # the tables are written in this order
        return rows if (np.diff(indices) == 1).all() else rows.take(pa.array(indices))

    def _examples(self, rows: pa.Table) -> ExampleTexts:
        tokens, activations = (_flat(rows[name]) for name in ("tokens", "activations"))
        ends = np.append(0, _lengths(rows["tokens"]).cumsum()).astype(np.int64)
        windows = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
        token_texts, numbers = self._tokens(tokens), json_numbers(activations)
        value = activations.to_numpy(zero_copy_only=False)
        largest, smallest, largest_at = _extremes(value, ends)
        return ExampleTexts(
            band=rows["band"].to_pylist(),
            rank=rows["rank"].to_pylist(),
            place=(rows["position"].to_numpy() - rows["window_start"].to_numpy()).tolist(),
            low=json_numbers(rows["band_low"]),
            high=json_numbers(rows["band_high"]),
            share=json_numbers(rows["band_share"]),
            tokens=[json_list(token_texts[start:stop]) for start, stop in windows],
            activations=[json_list(numbers[start:stop]) for start, stop in windows],
            largest=json_numbers(pa.array(largest)),
            smallest=json_numbers(pa.array(smallest)),
            largest_at=largest_at.tolist(),
        )

    def _tokens(self, tokens: pa.Array) -> list[str]:
        """Returns each token as a JSON string. Names of tokens become their text."""
        encoded = tokens.dictionary_encode()
        texts = [json.dumps(self.spacing + whole_text(name or "")) for name in encoded.dictionary.to_pylist()]
        return [texts[i] for i in encoded.indices.to_pylist()]

    def _logits(self, features: range, edges: Int[np.ndarray, " edge"]) -> tuple[list, list]:
        rows = self._rows("logit", features, "feature", "sign", "rank")
        tokens, effects = self._tokens(_joined(rows["token"])), json_numbers(rows["effect"])
        feature, sign = rows["feature"].to_numpy(), rows["sign"].to_numpy()
        starts = np.searchsorted(feature, edges)
        # lowered logits come first, because their sign is -1
        middles = starts[:-1] + np.array(
            [np.searchsorted(sign[a:b], 0) for a, b in pairwise(starts)], np.int64
        )
        places = list(zip(starts[:-1].tolist(), middles.tolist(), starts[1:].tolist(), strict=True))
        return (
            [(tokens[middle:stop], tokens[start:middle]) for start, middle, stop in places],
            [(effects[middle:stop], effects[start:middle]) for start, middle, stop in places],
        )

    def _bins(self, features: range, edges: Int[np.ndarray, " edge"]) -> list[tuple[list[str], list[str]]]:
        rows = self._rows("histogram", features, "feature", "bin")
        number, high, n = (rows[name].to_numpy() for name in ("bin", "high", "n_tokens"))
        starts = np.searchsorted(rows["feature"].to_numpy(), edges)
        found: list[tuple[list[str], list[str]]] = []
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            if start == stop:
                found.append(([], []))
                continue
            # bins have equal width from 0, and only empty ones have no row
            width = high[stop - 1].item() / (int(number[stop - 1]) + 1)
            counts = np.zeros(int(number[stop - 1]) + 1, np.int64)
            counts[number[start:stop]] = n[start:stop]
            centers = pa.array((np.arange(len(counts)) + 0.5) * width, pa.float32())
            found.append((json_numbers(centers), [str(count) for count in counts.tolist()]))
        return found


def feature_sources(
    features: Path, run: str | None, layers: Sequence[int] | None, spacing: str, reserved: Sequence[str]
) -> list[FeatureSource]:
    """Returns the feature tables of a run, one item per layer.

    `features` is the folder of all feature tables of a study. `run` may be None if there is one run besides the
    `reserved` ones. `layers` are all layers by default. Raises ValueError if there is no such run or layer.
    """
    runs = sorted(folder.name for folder in features.glob("*") if any(folder.glob("layer*/feature.parquet")))
    trained = [name for name in runs if name not in reserved]
    if run is None and len(trained) != 1:
        raise ValueError(f"name a run with --run: {', '.join(runs) or f'{features} has no feature tables'}")
    run = run or trained[0]
    if run not in runs:
        raise ValueError(f"{run} has no feature tables; choose from {', '.join(runs)}")
    found = sorted(
        int(file.parent.name.removeprefix("layer")) for file in features.glob(f"{run}/layer*/feature.parquet")
    )
    missing = [layer for layer in layers or () if layer not in found]
    if missing:
        raise ValueError(f"{run} has no feature tables of layer {missing[0]}; choose from {found}")
    chosen = found if layers is None else layers
    return [FeatureSource(features / run / f"layer{layer}", run, layer, spacing) for layer in chosen]


def _joined(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else joined.chunk(0)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """Returns the elements of all lists of a column."""
    return _joined(column).flatten() if len(column) else pa.array([], column.type.value_type)


def _lengths(column: pa.ChunkedArray) -> Int[np.ndarray, " list"]:
    return np.concatenate([chunk.value_lengths().to_numpy() for chunk in column.chunks] or [np.zeros(0, int)])


def _extremes(
    value: Float[np.ndarray, " token"], ends: Int[np.ndarray, " edge"]
) -> tuple[Float[np.ndarray, " window"], Float[np.ndarray, " window"], Int[np.ndarray, " window"]]:
    """Returns the largest and the smallest value of each window, and the place of the first largest one.

    Window i has the values from ends[i] to ends[i + 1]. No window is empty, because it contains its example.
    """
    starts = ends[:-1]
    if not len(starts):
        return value, value, starts
    largest, smallest = np.maximum.reduceat(value, starts), np.minimum.reduceat(value, starts)
    window = np.repeat(np.arange(len(starts)), np.diff(ends))
    hits = np.flatnonzero(value == largest[window])
    _, first = np.unique(window[hits], return_index=True)
    return largest, smallest, hits[first] - starts
