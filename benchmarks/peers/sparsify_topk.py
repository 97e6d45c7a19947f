"""eai-sparsify's side of benchmarks/training.py: its SAE on the same data and initial weights, with fused Adam."""

import argparse
import json

import torch
from clock import Clock
from safetensors.torch import load_file
from sparsify import SparseCoder, SparseCoderConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    for name in ("k", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--act", choices=["topk"], required=True)
    parser.add_argument("--sparsity", type=float, help="unused")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", help="its forward pass is in bfloat16 on a GPU")
    options = parser.parse_args()
    data = load_file(options.data, device=options.device)
    x = data["x"]
    config = SparseCoderConfig(num_latents=len(data["b_enc"]), k=options.k, normalize_decoder=False)
    sae = SparseCoder(x.shape[1], config, device=options.device, dtype=torch.float32)
    with torch.no_grad():
        sae.encoder.weight.copy_(data["W_enc"])
        # it encodes x - b_dec
        sae.encoder.bias.copy_(data["b_enc"] + data["W_enc"] @ data["b_dec"])
        sae.W_dec.copy_(data["W_dec"])
        sae.b_dec.copy_(data["b_dec"])
    optimizer = torch.optim.Adam(sae.parameters(), lr=options.learning_rate, fused=True)
    clock, fvu = Clock(options.device), []
    for i in range(options.steps):
        batch = x[i * options.batch % len(x) :][: options.batch]
        clock.mark()
        output = sae(batch)
        output.fvu.backward()
        optimizer.step()
        optimizer.zero_grad()
        fvu.append(output.fvu.detach())
    clock.mark()
    print(json.dumps(clock.results(fvu, (output.latent_acts > 0).sum() / len(batch))))


if __name__ == "__main__":
    main()
