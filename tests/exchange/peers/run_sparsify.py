"""sparsify's side of tests/exchange, in its own environment: `python run_sparsify.py FOLDER`. The folders are those of
run_saelens.py."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# compiling takes a minute, and computes the same
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from card import run_card
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D, WIDTH = 8, 20
MADE = {
    "sae": {},
    "transcoder": {"transcode": True},
    "skip_transcoder": {"transcode": True, "skip_connection": True},
}


def results(coder: SparseCoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations of all latents, and reconstructions."""
    with torch.no_grad():
        output = coder(x)
        z = torch.zeros(len(x), coder.num_latents).scatter_(1, output.latent_indices, output.latent_acts)
    return {"z": z, "y": output.sae_out.contiguous()}


def main() -> None:
    folder = Path(sys.argv[1])
    for case in sorted((folder / "ours").iterdir()):
        coder = run_card(case / "export")["coder"]
        x = load_file(case / "x.safetensors")["x"]
        save_file(results(coder, x), case / "theirs.safetensors")
    for name, keys in MADE.items():
        torch.manual_seed(0)
        coder = SparseCoder(D, SparseCoderConfig(num_latents=WIDTH, k=3, **keys), dtype=torch.float32)
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.copy_(torch.randn_like(parameter))
        coder.save_to_disk(folder / "made" / name / "layers.3.mlp")
        x = torch.randn(30, D)
        save_file({"x": x, **results(coder, x)}, folder / "made" / name / "expected.safetensors")


if __name__ == "__main__":
    main()
