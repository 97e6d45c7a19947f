"""Attribution graphs compared with circuit-tracer: same transcoders, model and prompts, separate processes.

    python benchmarks/attribution.py results/STUDY/dictionaries/RUN MODEL TEXT.jsonl \\
        --peer /path/to/environment/bin/python     # an environment with circuit-tracer 0.5 and nnsight 0.6.3

RUN must have transcoders of every layer with act relu, batchtopk or jumprelu. Prompts are a BOS and the beginnings of
the first documents that are long enough. Prints seconds (median after a warm-up) and peak memory for all direct effects
and for a pruned graph at each length, then the differences between the two sides' graphs of the same prompt. Beyond
LONG tokens each side runs once, the peer with its smallest batch. With `--threads 1`, CPU seconds are meaningful even
on a machine that does other work.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers.clock import peak_memory

PEER = Path(__file__).parent / "peers" / "circuit_tracer.py"
WORKFLOW = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "GOMP_SPINCOUNT": "2000",
}
"""Environment variables of the workflow's jobs; the peer is timed with and without them."""
LONG = 64
"""Longer prompts are traced once."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer", help="python of an environment with circuit-tracer")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 39, 64, 256])
    parser.add_argument("--repeats", type=int, default=6, help="traces per process; the first is a warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[32, 128, 512],
        help="targets per batch of the peer, whose default is 512",
    )
    parser.add_argument("--rounds", type=int, default=1, help="processes per side")
    parser.add_argument("--side", choices=["adjacency", "graph"], help=argparse.SUPPRESS)
    parser.add_argument("--prompt", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_ours(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        for length in options.lengths:
            measure(options, folder, length)
        if options.peer:
            for length in options.lengths:
                print(f"{length} tokens, agreement: {compare(folder, length)}")


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Write prompts of all lengths, and the transcoders in the peer's format."""
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.dictionaries.formats.circuit_tracer import export_circuit_tracer

    tokenizer = load_tokenizer(str(options.model))
    texts = [json.loads(line)["text"] for line in options.text.read_text().splitlines()]
    stories = tokenizer.encode(texts)
    for length in options.lengths:
        story = next(story for story in stories if len(story) >= length - 1)
        (folder / f"{length}.json").write_text(json.dumps([tokenizer.bos_id, *story[: length - 1].tolist()]))
    if options.peer:
        loaded = dictionaries(options.run)
        if any(each.act == "topk" for each in loaded.values()):
            sys.exit("circuit-tracer 0.5 reads topk as relu; name a run of act relu, batchtopk or jumprelu")
        export_circuit_tracer(loaded, folder / "set", str(options.model))


def dictionaries(run: Path) -> dict[int, Any]:
    """The dictionaries of a run, by layer."""
    from circuitloom.dictionaries.cross_layer import load_layers

    return load_layers(sorted(run.glob("layer*")))


def sides(options: argparse.Namespace, folder: Path, length: int) -> dict[str, tuple]:
    """Name to python, script, arguments and environment of each side; the first side of each tool saves its graph."""
    common = [f"--repeats={options.repeats if length <= LONG else 1}", f"--threads={options.threads}"]
    prompt = str(folder / f"{length}.json")
    our_arguments = [str(options.run), str(options.model), str(options.text), f"--prompt={prompt}", *common]
    save = [f"--save={folder / f'{side}{length}.safetensors'}" for side in ("ours", "theirs")]
    us = sys.executable, Path(__file__)
    result = {
        "circuitloom, all effects": (*us, [*our_arguments, "--side=adjacency", save[0]], WORKFLOW),
        "circuitloom, pruned graph": (*us, [*our_arguments, "--side=graph"], WORKFLOW),
    }
    if options.peer:
        peer_arguments = [str(folder / "set"), str(options.model), prompt, *common]
        for batch in sorted(options.batches)[: None if length <= LONG else 1]:
            batched = [*peer_arguments, f"--batch={batch}"]
            extra = save[1:] if batch == min(options.batches) else []
            name = f"circuit-tracer, batch {batch}"
            result[name] = (options.peer, PEER, [*batched, *extra], {})
            result[f"{name}, as workflow"] = (options.peer, PEER, batched, WORKFLOW)
    return result


def measure(options: argparse.Namespace, folder: Path, length: int) -> None:
    """Run every side on one prompt; print its times and memory."""
    commands = sides(options, folder, length)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            results[name].append(run_in(*command))
    first = next(iter(results))
    print(f"{length} tokens, {results[first][0]['active']} active features")
    base: dict[str, float] = {}
    for name, rounds in results.items():
        times = {key: [median(each[key]) for each in rounds] for key in ("seconds", "cpu")}
        wall, cpu = (statistics.median(values) for values in times.values())
        base = base or {"seconds": wall, "cpu": cpu}
        peak, before = (max(each[key] for each in rounds) / 1e9 for key in ("peak", "before"))
        print(
            f"  {name:<38}{wall:>9.3f} s{wall / base['seconds']:>7.1f}x{cpu:>9.3f} s of CPU"
            f"{cpu / base['cpu']:>7.1f}x{peak:>8.2f} GB ({before:.2f} before)  rounds "
            f"{', '.join(f'{value:.3f}' for value in times['seconds'])}",
            flush=True,
        )


def median(repeats: list[float]) -> float:
    """Median of all but the first, which is a warm-up."""
    return statistics.median(repeats[1:] or repeats)


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of our side, without loading the model and the dictionaries."""
    import torch

    from circuitloom.attribution.capture import capture_pass, read_weights
    from circuitloom.attribution.graph import adjacency, trace_graph
    from circuitloom.attribution.linearized_model import LinearizedModel
    from circuitloom.attribution.targets import find_roots
    from circuitloom.config.circuits import parse_target
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.language_model.model import load_model

    torch.set_num_threads(options.threads)
    model = load_model(options.model, device="cpu")
    weights, loaded = read_weights(model), dictionaries(options.run)
    token = torch.tensor(json.loads(options.prompt.read_text()))
    tokenizer = load_tokenizer(str(options.model))
    strings = tokenizer.strings()
    before, seconds, cpu, result = peak_memory(), [], [], None
    for _ in range(options.repeats):
        # free the last graph before the next one
        result = model_of_prompt = None
        started, started_cpu = time.perf_counter(), time.process_time()
        model_of_prompt = LinearizedModel(capture_pass(model, weights, token), loaded, tokenizer.separator_id)
        roots, root_nodes = find_roots(model_of_prompt, parse_target("logits"), strings)
        result = (
            adjacency(model_of_prompt, roots)
            if options.side == "adjacency"
            else trace_graph(model_of_prompt, roots)
        )
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    measured = {
        "seconds": seconds,
        "cpu": cpu,
        "before": before,
        "peak": peak_memory(),
        "active": len(model_of_prompt.features),
    }
    if options.save:
        del result
        save(options.save, model_of_prompt, roots, root_nodes, strings)
    return measured


def save(file: Path, model, roots, root_nodes, strings) -> None:
    """Save the graph as the peer defines it: the MLPs' outputs at position 0 are no sources."""
    import torch
    from safetensors.torch import save_file

    from circuitloom.attribution.direct_effects import source_columns
    from circuitloom.attribution.export import GraphText, viewer_json
    from circuitloom.attribution.graph import adjacency, trace_graph

    model.errors[:, 0] = 0
    graph, columns, features = trace_graph(model, roots), source_columns(model), model.features
    text = GraphText("", [strings[i] for i in model.captured.token.tolist()], root_nodes)
    file.with_suffix(".json").write_text(json.dumps(viewer_json(graph, model, text, "graph", "set")))
    save_file(
        {
            "adjacency": adjacency(model, roots)[:, : columns.embeddings.stop].contiguous(),
            "feature": torch.stack([features.layer, features.position, features.feature], 1),
            "activation": features.activation,
            "logit": torch.tensor([root.token_id for root in root_nodes]),
            "probability": roots.weight,
            "scores": torch.tensor([graph.scores.replacement, graph.scores.completeness]),
        },
        file,
    )


def compare(folder: Path, length: int) -> str:
    """Differences between the two sides' graphs of one prompt, in words."""
    found = differences(folder, length)
    logits = "the same" if found["same_logits"] else "differ"
    return (
        f"{found['common']:.0f} features in both, {found['only']:.0f} in one; logits {logits}; "
        f"adjacency within {found['adjacency']:.1e} (largest {found['largest']:.2f}); replacement "
        f"{found['replacement']:.4f} within {found['replacement_difference']:.1e}, completeness "
        f"{found['completeness']:.4f} within {found['completeness_difference']:.1e}; {compare_viewers(folder, length)}"
    )


def differences(folder: Path, length: int) -> dict[str, float]:
    """Differences between the two sides' graphs of one prompt: features in both and in one side, largest difference of
    direct effects next to the largest effect, and scores."""
    import numpy
    import torch
    from safetensors.torch import load_file

    a, b = (load_file(folder / f"{side}{length}.safetensors") for side in ("ours", "theirs"))
    size = int(max(a["feature"].max(), b["feature"].max())) + 1
    keys = [(graph["feature"] @ torch.tensor([size * size, size, 1])).numpy() for graph in (a, b)]
    common, at_a, at_b = numpy.intersect1d(*keys, return_indices=True)
    only = len(keys[0]) + len(keys[1]) - 2 * len(common)

    def shared(graph: dict, at: numpy.ndarray, own: int) -> tuple[torch.Tensor, torch.Tensor]:
        # features in both graphs, then the rest: roots for rows, errors and embeddings for columns
        roots = torch.arange(len(graph["adjacency"]))[-len(graph["logit"]) :]
        rest = torch.arange(own, own + a["adjacency"].shape[1] - len(keys[0]))
        return torch.cat([torch.from_numpy(at), roots]), torch.cat([torch.from_numpy(at), rest])

    rows, columns = shared(a, at_a, len(keys[0]))
    their_rows, their_columns = shared(b, at_b, len(keys[1]))
    worst, largest = 0.0, 0.0
    for row, their_row in zip(rows.split(1024), their_rows.split(1024), strict=True):
        effect = b["adjacency"][their_row][:, their_columns]
        difference = a["adjacency"][row][:, columns] - effect
        worst, largest = max(worst, float(difference.abs().max())), max(largest, float(effect.abs().max()))
    scores = (a["scores"] - b["scores"]).abs().tolist()
    return {
        "common": len(common),
        "only": only,
        "same_logits": a["logit"].tolist() == b["logit"].tolist(),
        "adjacency": worst,
        "largest": largest,
        "replacement": float(b["scores"][0]),
        "replacement_difference": scores[0],
        "completeness": float(b["scores"][1]),
        "completeness_difference": scores[1],
    }


def compare_viewers(folder: Path, length: int) -> str:
    """Differences between the pruned graphs that the two sides write for the viewer."""
    written = [json.loads((folder / f"{side}{length}.json").read_text()) for side in ("ours", "theirs")]
    by_id: list[dict[str, list]] = [{}, {}]
    for names, graph in zip(by_id, written, strict=True):
        for node in graph["nodes"]:
            key = node["feature_type"], node["layer"], node["feature"], node["ctx_idx"]
            names.setdefault(node["node_id"], []).append((key, node["influence"]))
    # the peer gives some pairs of nodes one id: their links are ambiguous
    ambiguous = {
        key for names in by_id for several in names.values() if len(several) > 1 for key, _ in several
    }
    nodes, links = [], []
    for names, graph in zip(by_id, written, strict=True):
        nodes.append({key: share for ((key, share), *_) in names.values() if key not in ambiguous})
        ends = [(names[link["source"]][0][0], names[link["target"]][0][0]) for link in graph["links"]]
        links.append({each for each in ends if not ambiguous & set(each)})
    shares = [abs(nodes[0][key] - nodes[1][key]) for key in nodes[0].keys() & nodes[1] if nodes[0][key]]
    return (
        f"pruned: {len(nodes[0].keys() & nodes[1])} nodes in both, {len(nodes[0].keys() ^ nodes[1])} in one, "
        f"{len(links[0] & links[1])} links in both, {len(links[0] ^ links[1])} in one, cumulative shares within "
        f"{max(shares):.1e}; left out: {len(ambiguous)} nodes that share an id"
    )


def run_in(python: str, script: Path, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON that one side prints, run in its own process."""
    result = subprocess.run(
        [python, str(script), *arguments],
        # the peer's script has the name of the package that it imports
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        sys.exit(f"{script.name} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
