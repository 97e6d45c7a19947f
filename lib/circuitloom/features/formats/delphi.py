"""Exports activations to the cache of delphi (EleutherAI), which explains and scores features with language models.

A module's folder has files START_END.safetensors, where END is the last feature: `locations` [activation, (sequence,
position, feature - START)], `activations` and `tokens` [sequence, position]. delphi stores activations in float16; this
export stores float32, because float16 has no numbers above 65,504.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int, Integer
from safetensors.numpy import save

from ...core.atomic_io import write_atomically
from ...core.tables import read_table
from ...corpus.token_arrays import TokenArrays
from .feature_texts import FeatureSource
from .parts import export_folder, write_missing

LATENTS = "latents"
"""Folder of the modules."""
ACTIVATIONS_PER_SPLIT = 2_000_000
"""Number of activations per file, unless one feature has more. Memory holds one file."""


def export_delphi(
    sources: Iterable[FeatureSource],
    output: Path,
    tokens: TokenArrays,
    modules: Mapping[int, str],
    model_name: str,
    per_split: int = ACTIVATIONS_PER_SPLIT,
) -> None:
    """Write all activations of a run to `output`/latents/MODULE, one folder per layer.

    `modules` maps each layer to the name of its module. `model_name` is the folder or hub name from which delphi loads
    the tokenizer. A module that is complete is not written again. After an interruption, the next call continues with
    the first missing file. Raises ValueError if no feature of a layer fires, or if a table is missing or damaged.
    """
    for source in sources:
        name, width = modules[source.layer], source.width
        digest = source.digest(
            "activation", "feature", format="delphi", model=model_name, per_split=per_split
        )
        with export_folder(output / LATENTS / name, output / name, digest) as work:
            if work is None:
                continue
            # delphi's reader stops at a file without activations, so each range has one
            counts = read_table(source.file("feature"), columns=["n_tokens"])["n_tokens"].to_numpy()
            if not counts.any():
                raise ValueError(
                    f"{source.run}: no feature of layer {source.layer} fires; export other layers"
                )
            parts = split_features(counts, per_split)
            assert parts[-1].stop == width
            token = tokens.read(tokens.token, slice(_sequences(source))).astype(tokens.token.dtype)
            files = [work / f"{part.start}_{part.stop - 1}.safetensors" for part in parts]

            def write(i: int, features: range, source=source, files=files, token=token) -> None:
                write_atomically(files[i], _split(source, features, token))

            write_missing(f"delphi: {source.run} layer {source.layer}", parts, files.__getitem__, write)
            config = {
                "dataset_repo": str(tokens.path),
                "dataset_split": tokens.path.stem,
                "dataset_name": "",
                "dataset_column": "text",
                "batch_size": 1,
                "cache_ctx_len": tokens.context,
                "n_tokens": token.size,
                "n_splits": len(parts),
                "model_name": model_name,
            }
            write_atomically(work / "config.json", f"{json.dumps(config, indent=2)}\n".encode())


def split_features(counts: Int[np.ndarray, " feature"], per_split: int) -> list[range]:
    """Returns ranges of features that together are all features.

    `counts` are the numbers of activations of the features. Each range has at least one activation. It has at most
    `per_split`, unless its activations are those of one feature.
    """
    parts, start, total = [], 0, 0
    for feature, count in enumerate(counts.tolist()):
        if total and count and total + count > per_split:
            parts.append(range(start, feature))
            start, total = feature, 0
        total += count
    return [*parts, range(start, len(counts))]


def _sequences(source: FeatureSource) -> int:
    """Returns the number of sequences up to the last activation, from the statistics of the file."""
    metadata = pq.read_metadata(source.file("activation"))
    column = metadata.schema.names.index("sequence")
    groups = (metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups))
    return 1 + max(group.max for group in groups)


def _split(source: FeatureSource, features: range, token: Integer[np.ndarray, "sequence position"]) -> bytes:
    """Returns the file of a range of features."""
    chosen = (pc.field("feature") >= features.start) & (pc.field("feature") < features.stop)
    rows = read_table(source.file("activation"), chosen, ["feature", "sequence", "position", "activation"])
    columns = [rows[name].to_numpy() for name in ("sequence", "position", "feature")]
    columns[2] = columns[2] - features.start
    small = all(column.max() < 2**16 for column in columns)
    locations = np.stack([column.astype(np.uint16 if small else np.uint32) for column in columns], axis=1)
    return save({"locations": locations, "activations": rows["activation"].to_numpy(), "tokens": token})
