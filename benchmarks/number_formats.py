"""Loss from storing activations in fewer bits: train a transcoder on each format, score it on exact activations.

    python benchmarks/number_formats.py MODEL TRAIN.zarr VALIDATION.zarr --layers 1 3

Prints, for each layer and format, the ratio of the largest number to the root mean square, the held-out FVU and the
share of cross-entropy recovered.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from circuitloom.activations.number_format import pack, unpack
from circuitloom.activations.statistics import RowSums, moments
from circuitloom.config import Run
from circuitloom.corpus.token_arrays import scored_positions
from circuitloom.corpus.tokens import Tokens, open_tokens
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.dictionaries.training.trainer import Trainer
from circuitloom.language_model.hooks import Site, capture, edited
from circuitloom.language_model.model import LanguageModel, load_model

BATCH = 64
FORMATS = ("float32", "float16", "bfloat16", "int8")


@torch.no_grad()
def inputs(model: LanguageModel, tokens: Tokens, layer: int, sequences: int) -> Tensor:
    """mlp_in at the scored positions of the first sequences, shuffled."""
    site, rows = Site("mlp_in", layer), []
    for start in range(0, min(sequences, len(tokens)), BATCH):
        batch = tokens.take(slice(start, start + BATCH))
        rows.append(capture(model, batch, [site])[site][scored_positions(batch, tokens.separator_id)])
    x = torch.cat(rows)
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


def train(x: Tensor, y: Tensor, run: Run, layer: int) -> Dictionary:
    """Train a transcoder from x to y, repeating the rows until the run's tokens are used."""
    sums = RowSums.zeros(2, x.shape[1])
    sums.add(0, x)
    sums.add(1, y)
    trainer = Trainer(run, layer, moments(sums, 0, len(x)), moments(sums, 1, len(x)), (x[:4096], y[:4096]))
    per_epoch = len(x) // run.batch
    for step in range(trainer.steps):
        rows = slice(step % per_epoch * run.batch, (step % per_epoch + 1) * run.batch)
        trainer.step(step, x[rows], y[rows])
    return trainer.dictionary()


@torch.no_grad()
def cross_entropy(model: LanguageModel, tokens: Tokens, layer: int, output) -> float:
    """Mean cross-entropy of the predictions at scored positions, with `output(x, y)` instead of the MLP's output."""
    total, count = 0.0, 0
    for start in range(0, len(tokens), BATCH):
        batch = tokens.take(slice(start, start + BATCH))
        scored = scored_positions(batch, tokens.separator_id)

        def splice(x: Tensor, y: Tensor, scored: Tensor = scored) -> Tensor:
            return torch.where(scored[..., None], output(x, y), y)

        with edited(model, {Site("mlp_out", layer): splice}):
            log_p = model.logits(batch)[:, :-1].log_softmax(-1).gather(2, batch[:, 1:, None])[..., 0]
        total -= float(log_p[scored[:, :-1]].double().sum())
        count += int(scored[:, :-1].sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "train", "validation"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--sequences", type=int, default=6_000)
    options = parser.parse_args()
    model, train_tokens, held_out = (
        load_model(options.model),
        open_tokens(options.train),
        open_tokens(options.validation),
    )
    run = Run(width=options.width, k=options.k, tokens=options.tokens, learning_rate=6e-3, name="r")
    print(f"{'layer':>5} {'format':<9} {'largest / rms':>13} {'FVU':>9} {'CE recovered':>12}")
    for layer in options.layers:
        x, x_held = (
            inputs(model, train_tokens, layer, options.sequences),
            inputs(model, held_out, layer, 10**9),
        )
        mlp = model.mlp(layer)
        y_held = mlp(x_held)
        spread = float((x.abs().amax(1) / x.square().mean(1).sqrt()).max())
        original = cross_entropy(model, held_out, layer, lambda _x, y: y)
        zero = cross_entropy(model, held_out, layer, lambda _x, y: torch.zeros_like(y))
        for number_format in FORMATS:
            stored = x if number_format == "float32" else unpack(pack(x, number_format))
            dictionary = train(stored, mlp(stored), run, layer)
            error = (dictionary(x_held) - y_held).square().sum()
            fvu = float(error / (y_held - y_held.mean(0)).square().sum())
            ce = cross_entropy(model, held_out, layer, lambda x, _y, d=dictionary: d(x))
            recovered = (zero - ce) / (zero - original)
            print(f"{layer:>5} {number_format:<9} {spread:>13.1f} {fvu:>9.5f} {recovered:>12.5f}", flush=True)


if __name__ == "__main__":
    main()
