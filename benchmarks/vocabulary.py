"""Scoring and logit effects of a model with a large vocabulary, compared with the products that they need.

    python benchmarks/vocabulary.py scores /folder/of/gemma-3-270m --batch 8 --context 512
    python benchmarks/vocabulary.py effects /folder/of/gemma-3-270m --features 2048
    python benchmarks/vocabulary.py formats /folder/of/gemma-3-270m

`scores` compares scoring `--runs` ablations of a batch of random tokens with bare passes and with the unembedding in
the same blocks. `effects` compares logit effects of random features with the same products. `formats` compares mean CE
and KL of an ablated model in several number formats of the unembedding with float64. `--complete` computes complete
rows of logits and effects instead, as before blocks. Each prints CPU seconds too, and the peak memory of its process.
"""

import argparse
from pathlib import Path

from peers.clock import peak_memory
from timing import timed

from circuitloom.core.script import set_threads


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["scores", "effects", "formats"])
    parser.add_argument("model", type=Path)
    sizes = {"batch": 8, "context": 512, "runs": 2, "layer": 9, "features": 2048, "rounds": 1, "threads": 2}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{size}")
    parser.add_argument("--complete", action="store_true", help="complete rows, as before blocks")
    return parser.parse_args()


def random_tokens(args: argparse.Namespace, vocabulary: int):
    import torch

    from circuitloom.evaluation.held_out import HeldOut

    generator = torch.Generator().manual_seed(0)
    token = torch.randint(0, vocabulary, (args.batch, args.context), generator=generator)
    scored = torch.ones_like(token, dtype=torch.bool)
    return HeldOut(token, torch.zeros_like(token), scored, ~scored)


def report(name: str, n: int, unit: str, seconds: tuple[float, float]) -> None:
    print(
        f"{name:<34}{n / seconds[0]:9,.0f} {unit}/s  {seconds[0]:7.2f} s, {seconds[1]:7.2f} CPU s", flush=True
    )


def scores(args: argparse.Namespace, model) -> None:
    """Print tokens per second of passes, of passes with logits, and of scores."""
    import torch

    from circuitloom.evaluation.replacement import constant_replacement
    from circuitloom.evaluation.scoring import _score
    from circuitloom.language_model.hooks import Site, capture
    from circuitloom.language_model.lm_head import find_lm_head

    held_out, head, final = random_tokens(args, model.vocabulary), find_lm_head(model), Site("unembedding_in")
    d = model.unembedding.weight.shape[1]
    replacements = {
        i: {Site("mlp_out", args.layer + i): constant_replacement(torch.zeros(d))} for i in range(args.runs)
    }
    tokens = held_out.token.numel()

    def bare() -> torch.Tensor:
        return capture(model, held_out.token, [final])[final].flatten(0, 1)

    @torch.inference_mode()
    def logits() -> None:
        hidden = bare()
        for rows in head.row_blocks(len(hidden), hidden.device):
            for part in head.token_blocks(rows.stop - rows.start, hidden.device):
                head.logits(hidden[rows], part)

    @torch.inference_mode()
    def complete() -> None:
        original = [model.logits(row[None])[0].float().log_softmax(-1) for row in held_out.token]
        for _ in range(args.runs):
            for log_p, row in zip(original, held_out.token, strict=True):
                log_q = model.logits(row[None])[0].float().log_softmax(-1)
                (log_p.exp() * (log_p - log_q)).sum()

    with torch.inference_mode():
        bare()
        for _ in range(args.rounds):
            report("bare pass", tokens, "tokens", timed(bare))
            report("bare pass and logits", tokens, "tokens", timed(logits))
            passes = tokens * (args.runs + 1)
            if args.complete:
                report("scores, complete rows", passes, "tokens", timed(complete))
                continue
            report(
                f"scores of {args.runs} and the original", passes, "tokens",
                timed(lambda: _score(model, replacements, held_out, args.batch, "benchmark")),
            )  # fmt: skip


def effects(args: argparse.Namespace, model) -> None:
    """Print features per second of products alone, and of logit effects."""
    import torch

    from circuitloom.language_model import strongest_tokens as search
    from circuitloom.language_model.residual import read_unembedding

    rows = read_unembedding(model).rows
    vectors = torch.randn(args.features, rows.shape[1], generator=torch.Generator().manual_seed(0))
    size = search.CACHE_ELEMENTS // search.VECTORS

    def products() -> None:
        for part in vectors.split(search.VECTORS):
            for low in range(0, len(rows), size):
                part @ rows[low : low + size].T

    def complete() -> None:
        for part in vectors.split(max(1, 2**25 // len(rows))):
            found = part @ rows.T
            found.topk(10, dim=1)
            found.topk(10, dim=1, largest=False)

    with torch.inference_mode():
        for _ in range(args.rounds):
            report("products alone", args.features, "features", timed(products))
            work = complete if args.complete else lambda: search.strongest_tokens(vectors, rows, 10)
            report("logit effects", args.features, "features", timed(work))


def formats(args: argparse.Namespace, model) -> None:
    """Print the time of the unembedding in several number formats, and how far CE and KL are from float64."""
    import torch
    from torch.nn.functional import linear

    from circuitloom.evaluation.metrics import compare_predictions, prediction_targets
    from circuitloom.language_model.hooks import Site, capture, edited
    from circuitloom.language_model.lm_head import LMHead

    held_out, final = random_tokens(args, model.vocabulary), Site("unembedding_in")
    targets = prediction_targets(held_out.token, held_out.scored)
    with torch.inference_mode():
        hidden = {0: capture(model, held_out.token, [final])[final].flatten(0, 1)[targets.source]}
        with edited(model, {Site("mlp_out", args.layer): lambda _x, y: torch.zeros_like(y)}):
            hidden[1] = capture(model, held_out.token, [final])[final].flatten(0, 1)[targets.source]
        reference = None
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            weight = model.unembedding.weight.to(dtype)
            rows = {key: value.to(dtype) for key, value in hidden.items()}
            head = LMHead(lambda x, tokens, weight=weight: linear(x, weight[tokens]), len(weight))
            found = []
            seconds = timed(
                lambda: found.append(compare_predictions(rows, head, targets.token, 0)[1])  # noqa: B023
            )
            [sums] = found
            reference = reference or sums
            report(str(dtype), 2 * len(targets.token), "tokens", seconds)
            print(
                f"    CE {sums.ce - reference.ce:+.2e} nats, KL {sums.kl - reference.kl:+.2e} nats",
                flush=True,
            )


def main() -> None:
    args = arguments()
    set_threads(args.threads)
    import torch

    from circuitloom.language_model.model import load_model

    torch.set_num_threads(args.threads)
    model = load_model(args.model, device="cpu")
    before = peak_memory()
    {"scores": scores, "effects": effects, "formats": formats}[args.what](args, model)
    peak = peak_memory()
    print(f"peak {peak / 1e9:.2f} GB (before: {before / 1e9:.2f} GB)")


if __name__ == "__main__":
    main()
