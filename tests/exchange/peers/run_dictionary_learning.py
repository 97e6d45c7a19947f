"""dictionary_learning's side of tests/exchange, in its own environment: `python run_dictionary_learning.py FOLDER`. It
writes dictionaries of its own, in the folders of run_saelens.py."""

import json
import sys
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoder, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from safetensors.torch import save_file

D, WIDTH, K = 8, 20, 3
MADE = {
    "AutoEncoder": lambda: AutoEncoder(D, WIDTH),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(D, WIDTH),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(D, WIDTH),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, WIDTH, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, WIDTH, K),
}


def main() -> None:
    for name, make in MADE.items():
        torch.manual_seed(0)
        folder = Path(sys.argv[1]) / "made" / name
        folder.mkdir(parents=True)
        dictionary = make()
        with torch.no_grad():
            for key, value in dictionary.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.randn_like(value))
                if key == "threshold":
                    value.abs_()
            x = torch.randn(30, D)
            # BatchTopK uses its threshold where no batch is selected
            z = dictionary.encode(x, use_threshold=True) if name == "BatchTopKSAE" else dictionary.encode(x)
            y = dictionary.decode(z)
        torch.save(dictionary.state_dict(), folder / "ae.pt")
        trainer = {
            "dict_class": name, "activation_dim": D, "dict_size": WIDTH, "k": K, "layer": 3,
            "lm_name": "tiny", "submodule_name": "mlp_out_layer_3",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        save_file({"x": x, "z": z.contiguous(), "y": y.contiguous()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
