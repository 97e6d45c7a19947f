"""Rate of tabulating features, compared with model and encoder alone, and peak memory by number of tokens.

    python benchmarks/tabulating.py rate MODEL TOKENS.zarr [--dictionary FOLDER] --tokens 500_000
    python benchmarks/tabulating.py memory MODEL TOKENS.zarr [--dictionary FOLDER] --tokens 1_000_000 10_000_000

Without `--dictionary`, uses a random one of `--width` features, `--k` of which fire per token. Tokens are repeated if
there are too few. `memory` measures each number of tokens in its own process.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from peers.clock import peak_memory
from timing import wall_seconds

from circuitloom.core.script import set_threads
from circuitloom.language_model.hooks import capture


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["rate", "memory", "once"])
    parser.add_argument("model", type=Path)
    parser.add_argument("source", type=Path, help="token array")
    parser.add_argument("--dictionary", type=Path)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, nargs="+", default=[500_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def repeat_tokens(source: Path, wanted: int, folder: Path):
    """Write a token array of `wanted` tokens that repeats those of `source`."""
    import numpy as np

    from circuitloom.corpus.token_arrays import ATTRIBUTES, SEQUENCES_PER_SHARD, write_tokens
    from circuitloom.corpus.tokens import open_tokens

    tokens = open_tokens(source)
    sequences = wanted // tokens.context

    def blocks():
        for start in range(0, sequences, SEQUENCES_PER_SHARD):
            rows = np.arange(start, min(start + SEQUENCES_PER_SHARD, sequences)) % len(tokens)
            token = tokens.take(rows).numpy().astype(tokens.token.dtype)
            yield token, tokens.take_document(rows).numpy().astype(np.int32)

    attributes = {name: getattr(tokens, name) for name in ATTRIBUTES}
    write_tokens(folder / "tokens.zarr", blocks(), sequences, attributes)
    return open_tokens(folder / "tokens.zarr")


def make_basis(args: argparse.Namespace, model):
    import torch

    from circuitloom.dictionaries.dictionary import Dictionary, load_dictionary
    from circuitloom.features.basis import dictionary_basis
    from circuitloom.language_model.hooks import Site

    if args.dictionary:
        dictionary = load_dictionary(args.dictionary)
        return dictionary_basis(args.dictionary.parent.name, dictionary.layer, dictionary)
    site = Site("mlp_in", args.layer)
    d = capture(model, torch.tensor([[1]]), [site])[site].shape[-1]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(args.width, d, generator=generator)
    row = weight / weight.norm(dim=1, keepdim=True)
    zero = torch.zeros(args.width)
    dictionary = Dictionary(weight, zero, row, torch.zeros(d), "topk", args.k, layer=args.layer)
    return dictionary_basis("random", args.layer, dictionary)


def tables(basis, model, tokens, folder: Path) -> None:
    from circuitloom.config.features import Features
    from circuitloom.features.tabulation import tabulate

    names = ("activation", "code", "example", "feature", "histogram")
    strings = [f" {number}" for number in range(tokens.vocabulary)]
    tabulate([basis], model, tokens, strings, Features(), [{n: folder / "t" / f"{n}.parquet" for n in names}])


def rate(args: argparse.Namespace) -> None:
    """Print tokens per second of model and encoder alone, and the relative rates of first pass and all tables."""
    import torch

    from circuitloom.config.features import Features
    from circuitloom.evaluation.held_out import load_sequences
    from circuitloom.features.external_sort import ENCODE_BATCH, write_blocks
    from circuitloom.language_model.model import load_model

    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    basis = make_basis(args, model)

    @torch.inference_mode()
    def alone(tokens) -> None:
        for start in range(0, len(tokens), 512):
            for part in load_sequences(tokens, slice(start, start + 512)).batches(32):
                x = capture(model, part.token, [basis.site])[basis.site][part.scored].float()
                for begin in range(0, len(x), ENCODE_BATCH):
                    basis.encode(x[begin : begin + ENCODE_BATCH])

    pass_shares, total_shares = [], []
    print("round  alone tokens/s  pass/alone  all tables/alone")
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=Path()) as place:
            folder = Path(place)
            tokens = repeat_tokens(args.source, args.tokens[0], folder)
            (folder / "work").mkdir()
            a = wall_seconds(lambda tokens=tokens: alone(tokens))
            b = wall_seconds(
                lambda t=tokens, f=folder: write_blocks([basis], model, t, Features(), [f / "work"])
            )
            c = wall_seconds(lambda t=tokens, f=folder: tables(basis, model, t, f))
        pass_shares.append(a / b)
        total_shares.append(a / c)
        print(f"{number:5}  {args.tokens[0] / a:14,.0f}  {a / b:10.3f}  {a / c:16.3f}", flush=True)
    first, total = statistics.median(pass_shares), statistics.median(total_shares)
    print(f"median pass/alone {first:.3f}, all tables/alone {total:.3f}")


def once(args: argparse.Namespace) -> None:
    """Write all tables of the tokens; print seconds and peak memory."""
    import torch

    from circuitloom.language_model.model import load_model

    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    with tempfile.TemporaryDirectory(dir=Path()) as place:
        tokens = repeat_tokens(args.source, args.tokens[0], Path(place))
        before = peak_memory()
        seconds = wall_seconds(lambda: tables(make_basis(args, model), model, tokens, Path(place)))
    peak = peak_memory()
    print(
        f"{args.tokens[0]:,} tokens: {seconds:.0f} s, peak {peak / 1e9:.2f} GB (before: {before / 1e9:.2f} GB)"
    )


def main() -> None:
    args = arguments()
    set_threads(args.threads)
    if args.what == "memory":
        given = ["--layer", args.layer, "--width", args.width, "--k", args.k, "--threads", args.threads]
        given += ["--dictionary", args.dictionary] if args.dictionary else []
        for tokens in args.tokens:
            command = [sys.executable, __file__, "once", args.model, args.source, *given, "--tokens", tokens]
            subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)
    elif args.what == "once":
        once(args)
    else:
        rate(args)


if __name__ == "__main__":
    main()
