"""circuit-tracer's side of tests/exchange, in its own environment: `python run_circuit_tracer.py FOLDER`. The folders
are those of run_saelens.py. It saves no sets of its own: version 0.5.0 only reads them."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from card import run_card
from safetensors.torch import load_file, save_file


def main() -> None:
    for case in sorted((Path(sys.argv[1]) / "ours").iterdir()):
        transcoders = run_card(case / "export", before="language_model")["transcoders"]
        # the last layer: a set begins with layer 0
        transcoder = transcoders[len(transcoders) - 1]
        x = load_file(case / "x.safetensors")["x"]
        with torch.no_grad():
            z = transcoder.encode(x)
            # with a skip connection, decode needs the input
            y = transcoder.decode(z, x)
        save_file({"z": z.contiguous(), "y": y.contiguous()}, case / "theirs.safetensors")


if __name__ == "__main__":
    main()
