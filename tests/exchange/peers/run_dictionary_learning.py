"""dictionary_learning's side of tests/exchange, in its own environment: `python run_dictionary_learning.py FOLDER`.

Its trainers train for a few steps and save, each in a folder FOLDER/made/CLASS. Writes `expected.safetensors` there:
inputs, activations and reconstructions.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from safetensors.torch import save_file

D, WIDTH, STEPS = 8, 20, 4
SPARSITY = {"sparsity_warmup_steps": 1}
TOPK = {"k": 3, "threshold_start_step": 0}
TRAINERS = {
    "AutoEncoder": (StandardTrainer, SPARSITY),
    "GatedAutoEncoder": (GatedSAETrainer, SPARSITY),
    "JumpReluAutoEncoder": (JumpReluTrainer, SPARSITY),
    "AutoEncoderTopK": (TopKTrainer, TOPK),
    "BatchTopKSAE": (BatchTopKTrainer, TOPK),
    "MatryoshkaBatchTopKSAE": (MatryoshkaBatchTopKTrainer, TOPK | {"group_fractions": [0.25, 0.75]}),
}
"""Trainers and their keys, by the class of the dictionary."""
SITE = {"layer": 3, "lm_name": "tiny", "submodule_name": "mlp_out_layer_3"}


def main() -> None:
    made = Path(sys.argv[1]) / "made"
    for name, (trainer, keys) in TRAINERS.items():
        torch.manual_seed(0)
        trainers: list = []
        settings = {
            "trainer": starting_at_random(trainer, trainers), "steps": STEPS, "activation_dim": D, "dict_size": WIDTH,
            "warmup_steps": 1, "device": "cpu", **keys, **SITE,
        }  # fmt: skip
        batches = iter([torch.randn(64, D) for _ in range(STEPS + 1)])
        trainSAE(batches, [settings], STEPS, save_dir=str(made / name), device="cpu")
        write_expected(trainers[0].ae, made / name)
    # no trainer of this version makes the class
    torch.manual_seed(0)
    dictionary, name = AutoEncoderNew(D, WIDTH), "AutoEncoderNew"
    shift(dictionary)
    (made / name).mkdir()
    torch.save(dictionary.state_dict(), made / name / "ae.pt")
    config = {"trainer": {"dict_class": name, "activation_dim": D, "dict_size": WIDTH, **SITE}}
    (made / name / "config.json").write_text(json.dumps(config))
    write_expected(dictionary, made / name)


def starting_at_random(trainer: type, trainers: list) -> Callable:
    """A function that makes a trainer whose dictionary has no zeros and no equal norms, and adds it to `trainers`."""

    def make(**keys):
        trainers.append(trainer(**keys))
        shift(trainers[-1].ae)
        return trainers[-1]

    return make


def shift(dictionary: torch.nn.Module) -> None:
    """Add random numbers to all parameters. Thresholds stay positive."""
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
            if name == "threshold":
                parameter.abs_()


def write_expected(dictionary: torch.nn.Module, folder: Path) -> None:
    """Write what the dictionary computes by default on random inputs."""
    x = torch.randn(30, D)
    with torch.no_grad():
        z = dictionary.encode(x)
        y = dictionary(x)
    save_file({"x": x, "z": z.contiguous(), "y": y.contiguous()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
