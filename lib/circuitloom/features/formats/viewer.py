"""Exports feature tables to the feature files of circuit-tracer's viewer.

The folder `features` has one file per layer, layer_{i}.bin, and index.json.gz. A layer's file has one record per
feature: its length in bytes (uint32, little-endian), and compressed JSON. The index gives the file of each layer and
the offsets of its records, so that the viewer requests the bytes of one feature.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core.atomic_io import (
    atomic_path,
    partial_folder,
    remove_lock,
    remove_partial_folder,
    write_atomically,
)
from ...core.progress import announce
from .feature_texts import TABLES, FeatureSource, FeatureTexts, json_list
from .parts import join_files, write_missing

FOLDER, INDEX = "features", "index.json.gz"
LENGTH = struct.Struct("<I")
"""Format of the length at the start of a record."""
TOP = "Top activations"
"""Name of the quantile with the largest activations."""


def export_viewer_features(sources: Iterable[FeatureSource], output: Path) -> None:
    """Write the feature files of all layers of a run to `output`/features.

    A layer that is complete is not written again. After an interruption, the next call continues with the first missing
    part of a layer. Raises ValueError if a table is missing or damaged.
    """
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        file = folder / f"layer_{source.layer}.bin"
        index, digest = _read_index(folder), source.digest(*TABLES, format="viewer")
        entry = index.get(str(source.layer), {})
        if (
            entry.get("fingerprint") == digest
            and file.is_file()
            and file.stat().st_size == entry["offsets"][-1]
        ):
            announce("export", f"{file} is complete")
            continue
        with partial_folder(file, digest) as work:
            offsets = _write_layer(source, work, file)
            index[str(source.layer)] = {"filename": file.name, "offsets": offsets, "fingerprint": digest}
            write_atomically(folder / INDEX, gzip.compress(json.dumps(index).encode(), mtime=0))
            remove_partial_folder(work)
        remove_lock(file)


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    return json.loads(gzip.decompress(file.read_bytes())) if file.is_file() else {}


def _write_layer(source: FeatureSource, work: Path, file: Path) -> list[int]:
    """Write the file of a layer. Returns the offsets of its records, and the size of the file."""
    parts = source.parts()
    files = [work / f"part{i:06d}" for i in range(len(parts))]

    def write(i: int, features: range) -> None:
        texts = source.read(features)
        records = [zlib.compress(feature_json(source, texts, j).encode()) for j in range(len(features))]
        write_atomically(files[i], b"".join(LENGTH.pack(len(record)) + record for record in records))

    write_missing(f"viewer: {source.run} layer {source.layer}", parts, files.__getitem__, write)
    offsets = [0]
    for part in files:
        content, start, place = part.read_bytes(), offsets[-1], 0
        while place < len(content):
            place += LENGTH.size + LENGTH.unpack_from(content, place)[0]
            offsets.append(start + place)
    with atomic_path(file) as temporary:
        join_files(files, temporary)
    return offsets


def feature_json(source: FeatureSource, texts: FeatureTexts, i: int) -> str:
    """Returns the record of the i-th feature of a range, as JSON."""
    examples, mine = texts.examples, texts.of(i)
    by_band: dict[int, list[int]] = {}
    for example in mine:
        by_band.setdefault(examples.band[example], []).append(example)
    quantiles = []
    # the largest activations have band 0; then the bands from the largest to the smallest
    for band in sorted(by_band, key=lambda band: -band if band else -1_000_000):
        first = by_band[band][0]
        name = (
            TOP
            if band == 0
            else f"Activations {float(examples.low[first]):.4g} to {float(examples.high[first]):.4g}"
        )
        shown = [
            f'{{"tokens_acts_list":{examples.activations[example]},"train_token_ind":{examples.place[example]},'
            f'"is_repeated_datapoint":false,"tokens":{examples.tokens[example]}}}'
            for example in by_band[band]
        ]
        quantiles.append(f'{{"quantile_name":{json.dumps(name)},"examples":{json_list(shown)}}}')
    raised, lowered = texts.logit_tokens[i]
    centers, counts = texts.bins[i]
    largest = texts.max_activation[i]
    fields = {
        "transcoder_id": json.dumps(f"{source.run}/layer{source.layer}"),
        "index": str(texts.features[i]),
        "examples_quantiles": json_list(quantiles),
        "top_logits": json_list(raised),
        "bottom_logits": json_list(lowered),
        "act_min": "0",
        "act_max": "0" if largest == "null" else largest,
        "quantile_values": json_list(centers),
        "histogram": json_list(counts),
        "activation_frequency": texts.density[i],
    }
    return f"{{{','.join(f'{json.dumps(key)}:{value}' for key, value in fields.items())}}}"
