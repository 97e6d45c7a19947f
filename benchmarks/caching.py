"""Rate of caching all layers to disk, compared with the forward pass alone (same sequences, no unembedding).

    python benchmarks/caching.py results/stories260k/model results/stories260k/corpus/train.zarr --tokens 1000000
    python benchmarks/caching.py ... --layer 4 --peer .peers/saelens/bin/python \\
        --hook model.layers.4.post_attention_layernorm

With `--peer` (python of an environment with sae-lens), one layer is cached, and SAELens' runner caches the output of
the same module.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import timed

from circuitloom.core.script import set_threads


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of the language model")
    parser.add_argument("train", type=Path, help="token array of the training split")
    parser.add_argument("--site", default="mlp_in")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "int8"])
    parser.add_argument("--model-dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="rows cached per round")
    parser.add_argument("--shard-rows", type=int, default=262_144)
    parser.add_argument("--batch", type=int, default=64, help="sequences per forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layer", type=int, help="cache only this layer")
    parser.add_argument("--peer", help="python of an environment with sae-lens; needs --layer and --hook")
    parser.add_argument("--hook", help="the peer's name of the cached module")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="where the cache is written; it is removed afterwards"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    set_threads(args.threads)
    import torch

    from circuitloom.activations.cache import cache_site
    from circuitloom.activations.row_order import row_order
    from circuitloom.config import Activations
    from circuitloom.corpus.tokens import open_tokens
    from circuitloom.language_model.model import load_model

    torch.set_num_threads(args.threads)
    model = load_model(args.model, args.model_dtype)
    layers = "all" if args.layer is None else [args.layer]
    config = Activations(dtype=args.dtype, shard_rows=args.shard_rows, batch=args.batch, layers=layers)
    order = row_order(open_tokens(args.train), 0, args.shard_rows, args.tokens)
    base = getattr(model.module, "base_model", model.module)

    @torch.inference_mode()
    def bare() -> None:
        for shard in range(order.shards):
            for batch in order.batches(shard, args.batch):
                base(torch.from_numpy(batch.tokens).to(model.device), use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    ratios, ours, theirs = [], [], []
    print(
        "round  bare tokens/s  caching tokens/s  caching/bare  by CPU time"
        + "  SAELens tokens/s" * bool(args.peer)
    )
    for i in range(args.rounds):
        wall, cpu = timed(bare)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            wall_cache, cpu_cache = timed(
                lambda folder=folder: cache_site(args.site, order, model, config, Path(folder))
            )
        ratios.append(wall / wall_cache)
        if args.peer:
            ours.append(order.rows / wall_cache)
            theirs.append(peer(args, order, int(model.module.config.hidden_size)))
        print(
            f"{i:5}  {order.rows / wall:13,.0f}  {order.rows / wall_cache:16,.0f}  "
            f"{wall / wall_cache:12.3f}  {cpu / cpu_cache:11.3f}"
            + (f"  {theirs[-1]:16,.0f}" if theirs else ""),
            flush=True,
        )
    print(f"median {statistics.median(ratios):.3f}")
    if theirs:
        print(
            f"SAELens: median ratio {statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.1f}"
        )


def peer(args: argparse.Namespace, order, d: int) -> float:
    """Tokens per second of SAELens' runner on the same sequences."""
    import numpy as np

    sequences = order.permutation[: int(np.searchsorted(order.first, order.rows))]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        tokens = Path(folder) / "tokens.npy"
        np.save(tokens, order.token[sequences].astype(np.int64))
        options = {
            "hook": args.hook,
            "d": d,
            "batch": args.batch,
            "threads": args.threads,
            "dtype": args.dtype,
        }
        command = [args.peer, str(Path(__file__).parent / "peers" / "saelens_caching.py"), str(args.model)]
        command += [str(tokens), f"{folder}/cache", *(f"--{name}={value}" for name, value in options.items())]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"saelens_caching.py failed:\n{result.stderr[-2000:]}")
    found = json.loads(result.stdout.splitlines()[-1])
    return found["tokens"] / found["seconds"]


if __name__ == "__main__":
    main()
