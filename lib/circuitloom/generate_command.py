"""`circuitloom generate`: text generated while features are edited, next to the untouched continuation."""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from .ablation.generation import SteeredText
    from .config.circuits import RunChange

EDITS = {
    "set": ("=VALUE", "set the activation of a feature"),
    "ablate": ("", "set the activation of a feature to 0"),
    "scale": ("=FACTOR", "multiply the activation of a feature"),
    "add": ("=VALUE", "add to the activation of a feature"),
}
"""Options that edit features, each with the value that it takes and its help."""
STRONG = 1.0
"""KL in nats from which a token on the terminal has the strongest shade."""
SHADES = ("", "on grey23", "on dark_red", "on red3")
"""Styles of tokens on the terminal, in steps of equal KL up to `STRONG`."""


class _Edit(argparse.Action):
    """Collects edits of all kinds in one list, because they apply in the order in which they are given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        namespace.edits = [*(namespace.edits or []), (option.removeprefix("--"), values)]


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "generate",
        help="generate text while features are edited, next to the untouched continuation",
        description="Generates text while features of transcoders, cross-layer transcoders or SAEs are edited, next to "
        "the untouched continuation of the same prompt and seed. For each token of the steered text, it states "
        "KL(steered || untouched) in nats: of the two next-token distributions from which this token was chosen, both "
        "given the prompt and the steered text so far (teacher forcing), before temperature and top-k.",
        epilog="A feature is LAYER/NUMBER, with RUN: in front for a run other than --run, and @POSITION behind for "
        "one position. Edits apply in the order given. The first position and separators are never edited.",
    )
    parser.add_argument("prompt", help="the text")
    parser.add_argument(
        "--special-tokens", action="store_true", help="special tokens that the text spells out are not text"
    )
    for kind, (value, text) in EDITS.items():
        parser.add_argument(
            f"--{kind}",
            dest="edits",
            action=_Edit,
            metavar=f"[RUN:]LAYER/NUMBER[@POSITION]{value}",
            help=f"{text}; may be repeated",
        )
    parser.add_argument(
        "--positions",
        default="all",
        help="where features without @POSITION are edited: all, prompt, generated (generated tokens; the first of them "
        "is predicted at the last position of the prompt), or numbers such as 3,4; negative ones, such as "
        "--positions=-1, count from the end of the prompt (all)",
    )
    parser.add_argument(
        "--study",
        default="quickstart",
        metavar="NAME",
        help="use results/NAME, or the folder of its results (quickstart)",
    )
    parser.add_argument(
        "--run", metavar="NAME", help="run of features without RUN: (that of the study's own prompts)"
    )
    parser.add_argument(
        "--tokens", type=int, default=40, metavar="N", help="largest number of generated tokens (40)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token, and 1 samples from the model's distribution (0)",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="sample from the K most likely tokens (all tokens)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling, of both texts (0)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format of the language model (float32)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run_command=_generate)


def _generate(arguments: argparse.Namespace) -> None:
    """Print both continuations, and the KL of each token of the steered one."""
    from rich.console import Console

    from .config.circuits import parse_change
    from .core.layout import Layout
    from .corpus.prompt_text import print_notes

    if not arguments.edits:
        raise ValueError("no feature is edited; give --set, --ablate, --scale or --add")
    changes = [parse_change(kind, text) for kind, text in arguments.edits]

    from .ablation.generation import Sampling, open_generator

    sampling = Sampling(arguments.tokens, arguments.temperature, arguments.top_k, arguments.seed)
    generator = open_generator(Layout.find(arguments.study).root, arguments.run, arguments.dtype)
    result = generator.generate(
        arguments.prompt, changes, sampling, arguments.positions, arguments.special_tokens
    )
    if arguments.json:
        edited = [(run or generator.default_run, change) for run, change in changes]
        print(json.dumps(describe(result, edited), ensure_ascii=False, indent=2))
    else:
        print_notes("generate", result.notes)
        Console(soft_wrap=True, highlight=False).print(terminal_text(result))


def describe(
    result: "SteeredText", changes: "list[tuple[str | None, Any]] | list[RunChange]"
) -> dict[str, Any]:
    """Returns a generated text as JSON values. Each of `changes` has the name of its run."""
    return {
        "prompt": result.names(result.prompt.token.tolist()),
        "edits": [
            {"run": run, "kind": change.kind, "features": change.features, "strength": change.strength}
            for run, change in changes
        ],
        "kl": "KL(steered || untouched) in nats, per token of the steered text, with the same context",
        "steered": {
            "text": result.steered.text,
            "ended": result.steered.ended,
            "tokens": [
                {"token": name, "id": number, "kl": kl}
                for name, number, kl in zip(
                    result.names(result.steered.token), result.steered.token, result.kl.tolist(), strict=True
                )
            ],
        },
        "untouched": {
            "text": result.untouched.text,
            "ended": result.untouched.ended,
            "tokens": [
                {"token": name, "id": number}
                for name, number in zip(
                    result.names(result.untouched.token), result.untouched.token, strict=True
                )
            ],
        },
        "notes": result.notes,
    }


def terminal_text(result: "SteeredText") -> "Text":
    """Returns both texts and a line of tokens with their KL, shaded by it."""
    from rich.text import Text

    kl = result.kl.tolist()
    names = result.names(result.steered.token)
    line = Text()
    for name, value in zip(names, kl, strict=True):
        shade = SHADES[min(int(value / STRONG * len(SHADES)), len(SHADES) - 1)]
        line.append(f"{name!r}", shade).append(f" {value:.3g}  ")
    largest = max(range(len(kl)), key=kl.__getitem__)
    speed = len(names) / result.steered.seconds
    return Text("\n").join(
        [
            Text.assemble(("untouched  ", "bold"), result.prompt.text, (result.untouched.text, "green")),
            Text.assemble(("steered    ", "bold"), result.prompt.text, (result.steered.text, "cyan")),
            Text(),
            Text(
                f"KL(steered || untouched) per token, same context: mean {sum(kl) / len(kl):.3g} nats, largest "
                f"{kl[largest]:.3g} at {names[largest]!r}"
            ),
            line,
            Text(f"{len(names)} tokens, {speed:.0f} per second"),
        ]
    )
