"""SAELens' side of benchmarks/caching.py: its CacheActivationsRunner on the same sequences, one layer."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.config import CacheActivationsRunnerConfig


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="folder of a model that transformers loads")
    parser.add_argument("tokens", type=Path, help=".npy, [sequence, position]")
    parser.add_argument("folder", help="where the cache is written")
    parser.add_argument("--hook", required=True, help="name of a module")
    for name in ("d", "batch", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokens = np.load(options.tokens)
    # the runner fills complete buffers, and starts over when sequences run out
    buffer = min(2.0, tokens.size * options.d * getattr(torch, options.dtype).itemsize / 1e9)
    settings = CacheActivationsRunnerConfig(
        dataset_path="given",
        model_name=options.model,
        model_class_name="AutoModelForCausalLM",
        model_batch_size=options.batch,
        hook_name=options.hook,
        d_in=options.d,
        training_tokens=tokens.size,
        context_size=tokens.shape[1],
        new_cached_activations_path=options.folder,
        buffer_size_gb=buffer,
        shuffle=False,
        dtype=options.dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
        prepend_bos=False,
        streaming=False,
    )
    runner = CacheActivationsRunner(settings, Dataset.from_dict({"tokens": tokens.tolist()}))
    started = time.perf_counter()
    cached = runner.run()
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "tokens": len(cached) * tokens.shape[1]}))


if __name__ == "__main__":
    main()
