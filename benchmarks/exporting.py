"""Time and memory of exporting the features of one layer, each format in a process of its own.

    python benchmarks/exporting.py results/synthetic --width 100_000 --activations 20_000_000

Makes the tables with `synthetic_features` if they are missing. Their logit effects are made up.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from peers.clock import peak_memory

from circuitloom.config.model_shape import ModelShape
from circuitloom.core.tables import LOGIT, table_writer
from circuitloom.corpus.token_arrays import open_token_arrays
from circuitloom.features.formats.delphi import export_delphi
from circuitloom.features.formats.feature_texts import FeatureSource
from circuitloom.features.formats.neuronpedia import NeuronpediaNames, export_neuronpedia
from circuitloom.features.formats.viewer import export_viewer_features

LOGITS = 10
NAMES = NeuronpediaNames("a-model", "a-set", "someone", "a-release")
SHAPE = ModelShape(1, 768, 3072, 12, 128, 50_257)


def make_logits(file: Path, run: str, width: int) -> None:
    """Write random tokens as the logit effects of each feature."""
    random = np.random.default_rng(0)
    with table_writer(LOGIT, file) as writer:
        for low in range(0, width, 4096):
            feature, side, rank = np.indices((min(4096, width - low), 2, LOGITS)).reshape(3, -1)
            token = random.integers(0, 50_257, len(rank))
            columns = [pa.repeat(run, len(rank)), np.zeros(len(rank)), feature + low, 1 - 2 * side, rank, token,
                       [f" word{number}" for number in token.tolist()], (1 - 2 * side) / (1.0 + rank)]  # fmt: skip
            table = pa.table(dict(zip(LOGIT.columns, columns, strict=True))).cast(LOGIT.schema)
            writer.write_table(table, row_group_size=2**14)


def export(name: str, tables: Path, tokens: Path, output: Path) -> None:
    """Export one format, and print seconds, peak memory and bytes as JSON."""
    source = FeatureSource(tables, tables.parent.name, 0, "")
    before, started, used = peak_memory(), time.perf_counter(), time.process_time()
    if name == "viewer-features":
        export_viewer_features([source], output)
    elif name == "neuronpedia":
        export_neuronpedia([source], output, NAMES, SHAPE)
    else:
        export_delphi([source], output, open_token_arrays(tokens), {0: "layers.0.mlp"}, "a/model")
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    found = {"format": name, "seconds": round(seconds, 1), "CPU seconds": round(cpu, 1)}
    found |= {
        "MB before": round(before / 1e6),
        "MB peak": round(peak_memory() / 1e6),
        "MB written": round(size / 1e6),
    }
    print(json.dumps(found), flush=True)


def main() -> None:
    # torch, which makes the tables, would count as memory of the exports
    from synthetic_features import CONTEXT, K, make_layer, make_tokens, run_name

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--activations", type=int, default=20_000_000)
    parser.add_argument("--width", type=int, default=100_000)
    parser.add_argument("--formats", nargs="+", default=["delphi", "viewer-features", "neuronpedia"])
    arguments = parser.parse_args()
    folder, width = arguments.folder, arguments.width
    layer = folder / "features" / run_name(width) / "layer0"
    if not (layer / "logit.parquet").is_file():
        tokens = make_tokens(folder / "corpus", round(arguments.activations / K / (CONTEXT - 1)))
        make_layer(folder, tokens, 0, width)
        make_logits(layer / "logit.parquet", run_name(width), width)
    for name in arguments.formats:
        process = multiprocessing.get_context("spawn").Process(
            target=export, args=(name, layer, folder / "corpus" / "validation.zarr", folder / "out" / name)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
