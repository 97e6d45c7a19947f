"""The peer's side of benchmarks/training.py: SAELens' TopK trainer on given data and initial weights."""

import argparse
import json

import torch
from clock import Clock, peak_gigabytes
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    for name in ("k", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    data = load_file(options.data, device=options.device)
    x = data["x"]
    config = TopKTrainingSAEConfig(
        d_in=x.shape[1],
        d_sae=len(data["b_enc"]),
        k=options.k,
        aux_loss_coefficient=0.0,
        apply_b_dec_to_input=False,
        device=options.device,
    )
    sae = TopKTrainingSAE(config)
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
    variance = float((x - x.mean(0)).square().sum(1).mean())
    clock, fvu = Clock(options.device), []
    for _ in range(options.steps):
        batch = next(trainer.data_provider)
        clock.mark()
        output = trainer._train_step(sae=sae, sae_in=batch)
        fvu.append((output.sae_out.detach() - batch).square().sum(1).mean() / variance)
    clock.mark()
    values = [float(each) for each in fvu]
    print(json.dumps({"seconds": clock.seconds(), "fvu": values, "peak": peak_gigabytes(options.device)}))


if __name__ == "__main__":
    main()
