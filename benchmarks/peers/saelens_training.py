"""SAELens' side of benchmarks/training.py: its trainer on the same data and initial weights."""

import argparse
import json

import torch
from clock import Clock
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

KINDS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "relu": (StandardTrainingSAE, StandardTrainingSAEConfig),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    for name in ("k", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--act", choices=KINDS, required=True)
    for name in ("sparsity", "learning-rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    data = load_file(options.data, device=options.device)
    x = data["x"]
    variance = float((x - x.mean(0)).square().sum(1).mean())
    kind, config = KINDS[options.act]
    # its reconstruction error is not divided by the variance
    keys = {"l1_coefficient": options.sparsity * variance**0.5} if options.act == "relu" else {
        "k": options.k, "aux_loss_coefficient": 0.0
    }  # fmt: skip
    shape = {"d_in": x.shape[1], "d_sae": len(data["b_enc"])}
    sae = kind(config(**shape, **keys, apply_b_dec_to_input=False, device=options.device))
    with torch.no_grad():
        sae.W_enc.copy_(data["W_enc"].T)
        sae.b_enc.copy_(data["b_enc"])
        sae.W_dec.copy_(data["W_dec"])
        sae.b_dec.copy_(data["b_dec"])

    def batches():
        step = 0
        while True:
            yield x[step * options.batch % len(x) :][: options.batch]
            step += 1

    settings = SAETrainerConfig(
        total_training_samples=options.batch * options.steps,
        train_batch_size_samples=options.batch,
        lr=options.learning_rate,
        lr_end=options.learning_rate,
        device=options.device,
        autocast=options.precision == "bfloat16",
    )
    trainer = SAETrainer(settings, sae, batches())
    clock, fvu = Clock(options.device), []
    for _ in range(options.steps):
        batch = next(trainer.data_provider)
        clock.mark()
        output = trainer._train_step(sae=sae, sae_in=batch)
        fvu.append((output.sae_out.detach() - batch).square().sum(1).mean() / variance)
    clock.mark()
    acts = output.feature_acts.detach()
    # a sparse layout stores only its entries
    active = acts.values() if acts.layout != torch.strided else acts
    print(json.dumps(clock.results(fvu, (active > 0).sum() / len(batch))))


if __name__ == "__main__":
    main()
