"""Rate of generating text while features are edited, compared with transformers' own `generate` on the same model.

    python benchmarks/generating.py results/quickstart "he was caught" --edits "set 2/887=30"
    python benchmarks/generating.py results/stories260k "Once upon a time" --edits "add 2/100=5"

All sides take the most likely token, with the key-value cache, and the same number of tokens. Rounds alternate: bare is
`generate` of transformers, untouched and steered are the two texts of `circuitloom generate`, and complete is the call
that makes both and measures KL. Ratios are medians over the rounds.
"""

import argparse
import statistics
from pathlib import Path

from timing import wall_seconds

from circuitloom.core.script import set_threads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of a study")
    parser.add_argument("prompt")
    parser.add_argument("--edits", required=True, help="edits, separated by semicolons")
    parser.add_argument("--run", help="run of edits that name none")
    for name, size in {"tokens": 100, "rounds": 5, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{size}")
    args = parser.parse_args()
    set_threads(args.threads)
    import torch

    from circuitloom.ablation.generation import Sampling, open_generator
    from circuitloom.config.circuits import parse_changes

    torch.set_num_threads(args.threads)
    generator = open_generator(args.results, args.run)
    # texts of the same length
    generator.ends = set()
    changes, sampling = parse_changes(args.edits), Sampling(args.tokens)
    module = generator.language_model.module
    prompt = generator.generate(args.prompt, changes, Sampling(2)).prompt.token
    token = torch.from_numpy(prompt)[None].to(generator.language_model.device)
    options = {
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(token),
    }
    length = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens}

    def bare() -> None:
        with torch.inference_mode():
            found = module.generate(token, **options, **length)
        assert found.shape[1] == token.shape[1] + args.tokens

    print("round  bare tokens/s  untouched  steered  complete")
    ratios = []
    bare()
    for i in range(args.rounds):
        seconds = wall_seconds(bare)
        results = []
        complete = wall_seconds(
            lambda found=results: found.append(generator.generate(args.prompt, changes, sampling))
        )
        untouched, steered = (each.seconds for each in (results[0].untouched, results[0].steered))
        ratios.append([seconds / each for each in (untouched, steered, complete)])
        rates = [args.tokens / each for each in (seconds, untouched, steered, complete)]
        print(
            f"{i:5}{rates[0]:15,.0f}{rates[1]:11,.0f}{rates[2]:9,.0f}{rates[3]:10,.0f}   "
            f"cached: {results[0].steered.cached}",
            flush=True,
        )
    medians = [statistics.median(column) for column in zip(*ratios, strict=True)]
    for name, ratio in zip(("untouched", "steered", "complete"), medians, strict=True):
        print(f"{name} / bare: median {ratio:.2f}")


if __name__ == "__main__":
    main()
