"""Time and memory of importing published transcoders of many layers, one layer in memory at a time.

    python benchmarks/importing.py results/synthetic-import --layers 18 --width 16_384 --d 640

Makes up the files of a set of Gemma Scope 2; the defaults are its shape for Gemma 3 270M. All layers are the same
file. The test of the hooks, which needs the model, is not included.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from statistics import median

import torch
from peers.clock import peak_memory
from safetensors.torch import save_file

from circuitloom.config.published import recognise
from circuitloom.dictionaries.dictionary import save_dictionary
from circuitloom.dictionaries.formats.published import read_published


def make_set(folder: Path, layers: int, width: int, d: int) -> None:
    """Write the settings of each layer, and one file of random weights that all layers share."""
    shutil.rmtree(folder, ignore_errors=True)
    first = folder / "layer_0" / "params.safetensors"
    for layer in range(layers):
        place = folder / f"layer_{layer}"
        place.mkdir(parents=True)
        settings = {
            "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
            "width": width, "model_name": "google/gemma-3-270m", "architecture": "jump_relu", "l0": 10,
            "affine_connection": False, "type": "transcoder",
        }  # fmt: skip
        (place / "config.json").write_text(json.dumps(settings))
        file = place / first.name
        if layer:
            os.link(first, file)
            continue
        shapes = {"w_enc": (d, width), "w_dec": (width, d), "b_enc": (width,), "b_dec": (d,)}
        weights = {name: torch.randn(*shape) for name, shape in shapes.items()}
        save_file(weights | {"threshold": torch.rand(width)}, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--d", type=int, default=640)
    arguments = parser.parse_args()
    published = arguments.folder / "published"
    # random weights would count as memory of the import
    process = multiprocessing.get_context("spawn").Process(
        target=make_set, args=(published, arguments.layers, arguments.width, arguments.d)
    )
    process.start()
    process.join()
    before, started = peak_memory(), time.perf_counter()
    found = recognise(str(published), "", None, None, {})
    print(f"settings and headers of {len(found.layers)} layers: {time.perf_counter() - started:.3f} s")
    seconds, used = [], []
    for layer in found.layers:
        started, cpu = time.perf_counter(), time.process_time()
        dictionary = read_published(published, layer)
        save_dictionary(dictionary, arguments.folder / "imported", {"name": "imported"})
        del dictionary
        seconds.append(time.perf_counter() - started)
        used.append(time.process_time() - cpu)
    print(
        f"per layer: median {median(seconds):.2f} s, {median(used):.2f} CPU s; together {sum(seconds):.1f} s, "
        f"{sum(used):.1f} CPU s; peak {peak_memory() / 1e6:.0f} MB, {before / 1e6:.0f} MB of it before"
    )


if __name__ == "__main__":
    main()
