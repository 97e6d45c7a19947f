"""Time and memory of tracing long prompts, and of tracing through dictionaries larger than memory.

    python benchmarks/large_traces.py make-model MODEL OUT --context 2048            # random weights, MODEL's sizes
    python benchmarks/large_traces.py make-dictionaries MODEL OUT --features 262144  # random transcoders in bfloat16
    python benchmarks/large_traces.py trace MODEL DICTIONARIES --tokens 64 256 --rows all 0.9

DICTIONARIES has folders layer0, layer1, ... MODEL has a tokenizer. The prompt is the first document of `--text` that is
long enough; without it, random tokens. Each trace runs in a process of its own and prints one row. `--part graph`
leaves out paths and ablations, and `--part pass` also the graph. The peak of all resident memory includes file pages of
mapped weights, which the kernel can drop; the peak of anonymous memory, sampled every 20 ms, does not.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from peers.clock import peak_memory

HEAD = (
    "| tokens | rows | active features | rows computed | not followed | replacement, completeness | nodes | edges "
    "| seconds | CPU seconds | peak RSS GB | anonymous GB |"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("make-model")
    model.add_argument("model", type=Path)
    model.add_argument("out", type=Path)
    model.add_argument("--context", type=int, default=2048)
    made = commands.add_parser("make-dictionaries")
    made.add_argument("model", type=Path)
    made.add_argument("out", type=Path)
    made.add_argument("--features", type=int, default=262_144)
    made.add_argument("-k", type=int, default=32)
    trace = commands.add_parser("trace")
    trace.add_argument("model", type=Path)
    trace.add_argument("dictionaries", type=Path)
    trace.add_argument("--tokens", type=int, nargs="+", default=[64])
    trace.add_argument("--rows", nargs="+", default=["all"])
    trace.add_argument("--text", type=Path)
    trace.add_argument("--part", choices=["pass", "graph", "all"], default="all")
    trace.add_argument("--ablated", type=int)
    trace.add_argument("--threads", type=int, default=1)
    trace.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.command == "make-model":
        make_model(options)
    elif options.command == "make-dictionaries":
        make_dictionaries(options)
    elif options.one:
        print(measure(options))
    else:
        print(f"{HEAD}\n{'|---' * HEAD.count(' | ')}|---|", flush=True)
        for tokens in options.tokens:
            for rows in options.rows:
                own = [f"--tokens={tokens}", f"--rows={rows}", f"--part={options.part}", "--one"]
                own += [f"--threads={options.threads}"]
                own += [f"--ablated={options.ablated}"] if options.ablated else []
                own += [f"--text={options.text}"] if options.text else []
                command = [sys.executable, __file__, "trace", str(options.model), str(options.dictionaries)]
                subprocess.run([*command, *own], check=True)


def make_model(options: argparse.Namespace) -> None:
    """Write a model with the sizes of another one, a longer context and random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(options.model, max_position_embeddings=options.context)
    AutoModelForCausalLM.from_config(config).save_pretrained(options.out)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.out)


def make_dictionaries(options: argparse.Namespace) -> None:
    """Write random transcoders of each layer in bfloat16. The magnitudes of weights lie between 1/32 and 1/8."""
    import numpy as np
    import torch

    from circuitloom.dictionaries.dictionary import Dictionary, save_dictionary

    config = json.loads((options.model / "config.json").read_text())
    d = config["hidden_size"]
    generator = np.random.default_rng(0)

    def weights() -> torch.Tensor:
        # random sign, mantissa and lowest bit of the exponent
        bits = generator.integers(0, 2**16, (options.features, d), np.uint16) & 0x80FF | 0x3D00
        return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)

    zeros = torch.zeros(options.features, dtype=torch.bfloat16)
    for layer in range(config["num_hidden_layers"]):
        made = Dictionary(
            weights(), zeros, weights(), zeros[:d].clone(), "topk", options.k, layer=layer, site_in="mlp_in"
        )
        save_dictionary(made, options.out / f"layer{layer}", {})
        print(f"layer {layer}", flush=True)


def measure(options: argparse.Namespace) -> str:
    """Trace one prompt. Returns a row of the table."""
    import torch

    torch.set_num_threads(options.threads)
    peak = PeakAnonymous()
    from circuitloom.attribution.graph import trace_graph
    from circuitloom.attribution.targets import find_roots
    from circuitloom.attribution.tracer import Tracer
    from circuitloom.config.circuits import Circuits, Prompt, parse_target
    from circuitloom.corpus.prompt_text import PromptText
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.dictionaries.cross_layer import load_layers
    from circuitloom.language_model.model import load_model

    [length], [rows] = options.tokens, options.rows
    tokenizer = load_tokenizer(str(options.model))
    folders = [
        each for each in options.dictionaries.glob("layer*") if (each / "weights.safetensors").is_file()
    ]
    tracer = Tracer(
        load_model(options.model, "float32", "cpu"),
        tokenizer,
        "run",
        load_layers(folders, mapped=True),
        length,
    )
    token = read_prompt(options, tokenizer, length)
    # the prompt as tokens, so that its length is exact
    tracer.read = lambda text, special=False: PromptText(tokenizer, "", False, token, ())
    config = Circuits(rows=rows if rows == "all" else float(rows), ablated=options.ablated)
    started, started_cpu = time.perf_counter(), time.process_time()

    def say(line: str) -> None:
        print(f"{time.process_time() - started_cpu:.1f} CPU s: {line}", file=sys.stderr, flush=True)

    with torch.inference_mode():
        graph = None
        if options.part == "all":
            trace = tracer.trace(Prompt(text="the prompt"), config, say)
            model, graph, checks = trace.model, trace.graph, trace.checks
            say(f"identity within {checks.identity_error:.1e}, frozen ablations {checks.frozen_error:.1e}")
        else:
            model = tracer.linearize(tracer.read(""))
        say(f"{len(model.features)} active features")
        if options.part == "graph":
            roots, _ = find_roots(model, parse_target("logits"), tracer.strings)
            graph = trace_graph(model, roots, config.node_share, config.edge_share, config.row_share)
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    computed, left, nodes, edges, replacement = "", "", "", "", ""
    if graph is not None:
        computed, left = graph.coverage.rows, f"{graph.coverage.unfollowed:.4f}"
        nodes, edges = len(graph.node), len(graph.effect)
        replacement = f"{graph.scores.replacement:.4f}, {graph.scores.completeness:.4f}"
    cells = (
        length,
        rows,
        len(model.features),
        computed,
        left,
        replacement,
        nodes,
        edges,
        f"{seconds:.1f}",
        f"{cpu:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} | {peak_memory() / 1e9:.2f} | {peak.stop() / 1e6:.2f} |"


def read_prompt(options: argparse.Namespace, tokenizer, length: int):
    """Returns a BOS and the beginning of the first document that is long enough, as token ids."""
    import numpy as np

    if options.text is None:
        token = np.random.default_rng(0).integers(10, min(50_000, len(tokenizer.strings())), length)
        return np.concatenate([[tokenizer.bos_id], token[1:]]).astype(np.int64)
    for line in options.text.read_text().splitlines():
        token = tokenizer.encode([json.loads(line)["text"]])[0]
        if len(token) >= length - 1:
            return np.concatenate([[tokenizer.bos_id], token[: length - 1]]).astype(np.int64)
    sys.exit(f"{options.text} has no document of {length} tokens; name another")


class PeakAnonymous:
    """Samples the anonymous resident memory of this process."""

    def __init__(self) -> None:
        self._peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self._peak = max(self._peak, int(line.split()[1]))

    def stop(self) -> int:
        """Returns the peak in kB."""
        self._ended.set()
        self._thread.join()
        return self._peak


if __name__ == "__main__":
    main()
