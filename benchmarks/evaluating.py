"""Scoring several dictionaries, compared with the forward passes and encoder products that it needs at least.

    python benchmarks/evaluating.py results/stories260k/model results/stories260k/corpus/validation.zarr

The lower limit, per batch: one pass of the unmodified model and one per run, each with the cross-entropy of its
predictions, and one encoder product per run. Dictionaries are random; `k` of their features fire. Rounds alternate.
"""

import argparse
import statistics
from pathlib import Path

from timing import wall_seconds

from circuitloom.core.script import set_threads
from circuitloom.language_model.hooks import capture


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path, help="token array of held-out text")
    sizes = {
        "layer": 2,
        "width": 2048,
        "k": 16,
        "runs": 2,
        "n-tokens": 100_000,
        "batch": 16,
        "rounds": 5,
        "threads": 2,
    }
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{size}")
    args = parser.parse_args()
    set_threads(args.threads)
    import torch

    from circuitloom.config.evaluation import Evaluation
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.evaluation.held_out import load_held_out
    from circuitloom.evaluation.metrics import log_probabilities, prediction_targets
    from circuitloom.evaluation.scoring import score_runs
    from circuitloom.language_model.hooks import Site
    from circuitloom.language_model.model import load_model

    torch.set_num_threads(args.threads)
    model, site = load_model(args.model), Site("mlp_in", args.layer)
    held_out = load_held_out(open_tokens(args.tokens), Evaluation(tokens=args.n_tokens))
    d = capture(model, held_out.token[:1], [site])[site].shape[-1]
    runs = {str(i): {args.layer: random_dictionary(i, args, d).to(model.device)} for i in range(args.runs)}

    @torch.inference_mode()
    def minimum() -> None:
        for part in held_out.batches(args.batch):
            which = prediction_targets(part.token, part.scored)
            x = torch.randn(part.token.numel(), d, device=model.device)
            for run in (None, *runs.values()):
                log_probabilities(model.logits(part.token), which)
                if run is not None:
                    x @ run[args.layer].W_enc.T
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    print("round  scored tokens/s    limit, tokens/s  share")
    shares = []
    for i in range(args.rounds):
        limit, seconds = (
            wall_seconds(minimum),
            wall_seconds(lambda: score_runs(model, runs, held_out, args.batch)),
        )
        tokens = held_out.token.numel() * len(runs)
        shares.append(limit / seconds)
        print(f"{i:5}{tokens / seconds:17,.0f}{tokens / limit:19,.0f}{shares[-1]:7.2f}", flush=True)
    print(f"median {statistics.median(shares):.2f}")


def random_dictionary(seed: int, args: argparse.Namespace, d: int):
    import torch

    from circuitloom.dictionaries.dictionary import Dictionary

    torch.manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(args.width, d), dim=1)
    zeros = torch.zeros(args.width), torch.zeros(d)
    return Dictionary(rows, zeros[0], rows, zeros[1], "topk", k=args.k, layer=args.layer)


if __name__ == "__main__":
    main()
