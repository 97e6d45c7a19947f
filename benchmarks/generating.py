"""Rate of generating text while features are edited, compared with transformers' own `generate` on the same model.

    python benchmarks/generating.py results/quickstart "he was caught" --edits "set 2/887=30"
    python benchmarks/generating.py results/stories260k "Once upon a time" --edits "add 2/100=5"

All sides take the most likely token, with the key-value cache, and the same number of tokens. Rounds alternate: bare is
`generate` of transformers, untouched and steered are the two texts of `circuitloom generate`, and complete is the call
that makes both and measures KL. Ratios are medians over the rounds, by wall-clock time and by CPU time.
"""

import argparse
import statistics
from pathlib import Path

from timing import timed

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
    from circuitloom.corpus.prompt_text import read_prompt

    torch.set_num_threads(args.threads)
    generator = open_generator(args.results, args.run)
    # texts of the same length
    generator.ends = set()
    changes, sampling = parse_changes(args.edits), Sampling(args.tokens)
    model = generator.language_model
    read = read_prompt(args.prompt, generator.tokenizer, generator.context)
    hooks = generator.make_hooks(read, changes, len(read.token) + args.tokens)
    token = torch.from_numpy(read.token)[None].to(model.device)
    options = {
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(token),
    }
    length = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens}

    def bare() -> None:
        with torch.inference_mode():
            found = model.module.generate(token, **options, **length)
        assert found.shape[1] == token.shape[1] + args.tokens

    sides = {
        "bare": bare,
        "untouched": lambda: generator.continue_text(read, sampling),
        "steered": lambda: generator.continue_text(read, sampling, hooks),
        "complete": lambda: generator.generate(args.prompt, changes, sampling),
    }
    for work in sides.values():
        work()
    assert generator.continue_text(read, sampling, hooks).cached, "the model's cache is not used"
    print("tokens per second\nround" + "".join(f"{name:>12}" for name in sides))
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for i in range(args.rounds):
        seconds = {name: timed(work) for name, work in sides.items()}
        for name, (wall, processor) in seconds.items():
            ratios[name].append((seconds["bare"][0] / wall, seconds["bare"][1] / processor))
        print(f"{i:5}" + "".join(f"{args.tokens / wall:12,.0f}" for wall, _ in seconds.values()), flush=True)
    for name in list(sides)[1:]:
        wall, processor = (statistics.median(column) for column in zip(*ratios[name], strict=True))
        print(f"{name} / bare: median {wall:.2f}, by CPU time {processor:.2f}")


if __name__ == "__main__":
    main()
