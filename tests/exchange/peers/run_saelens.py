"""SAELens' side of tests/exchange, in its own environment: `python run_saelens.py FOLDER`.

For each folder FOLDER/ours/NAME, loads what we exported to `export`, by the code on its card, and writes
`theirs.safetensors`: activations and reconstructions of the inputs in `x.safetensors`. Writes dictionaries of its own
to FOLDER/made/NAME, with `expected.safetensors`.
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from card import run_card
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file, save_file

D, WIDTH = 8, 20
MADE = {
    "standard": {},
    "topk": {"k": 3},
    "jumprelu": {},
    "gated": {},
    "transcoder": {"d_out": D},
    "skip_transcoder": {"d_out": D},
    "jumprelu_transcoder": {"d_out": D},
    "jumprelu_skip_transcoder": {"d_out": D},
}
"""Architectures that SAELens makes, with the keys that each needs."""


def main() -> None:
    folder = Path(sys.argv[1])
    for case in sorted((folder / "ours").iterdir()):
        sae = run_card(case / "export")["sae"]
        x = load_file(case / "x.safetensors")["x"]
        with torch.no_grad():
            save_file(
                {"z": sae.encode(x).contiguous(), "y": sae(x).contiguous()}, case / "theirs.safetensors"
            )
    for architecture, keys in MADE.items():
        make(architecture, keys, folder / "made" / architecture / "layer_3")


def make(architecture: str, keys: dict, folder: Path) -> None:
    """Save a random dictionary of SAELens, and its results."""
    torch.manual_seed(0)
    cls, config_cls = get_sae_class(architecture)
    # a transcoder has two hooks; an SAE's default is to subtract b_dec
    sae_keys = {} if "d_out" in keys else {"apply_b_dec_to_input": True}
    config = config_cls(d_in=D, d_sae=WIDTH, device="cpu", dtype="float32", **keys, **{
        "apply_b_dec_to_input": False, **sae_keys
    })  # fmt: skip
    names = {"hook_name": "blocks.3.hook_mlp_out"}
    if "d_out" in keys:
        names = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    for name, value in {"model_name": "tiny", **names}.items():
        setattr(config.metadata, name, value)
    sae = cls(config)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter))
            # SAELens learns thresholds as logarithms, so they are positive
            if name == "threshold":
                parameter.abs_()
        sae.save_model(folder)
        x = torch.randn(30, D)
        expected = {"x": x, "z": sae.encode(x).contiguous(), "y": sae(x).contiguous()}
    save_file(expected, folder.parent / "expected.safetensors")


if __name__ == "__main__":
    main()
