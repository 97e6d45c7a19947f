"""Attribution graphs beside circuit-tracer: the same transcoders, model and prompts, each side in processes of its own.

    python benchmarks/attribution.py results/STUDY/dictionaries/RUN MODEL TEXT.jsonl \\
        --peer /path/to/environment/bin/python     # an environment with circuit-tracer 0.5 and nnsight 0.6.3

RUN must be transcoders of every layer, of act relu, batchtopk or jumprelu. Prompts are the beginnings of the first
documents that are long enough, BOS in front. Prints seconds (the median after one to warm up) and peak memory of all
direct effects, and of a pruned graph, at each length; then what the two sides' graphs of the same prompt differ by.
Beyond LONG tokens each side runs once, the peer with its smallest batch. With `--threads 1` seconds of CPU say
something even on a machine that does other work.
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

PEER = Path(__file__).parent / "peers" / "circuit_tracer.py"
WORKFLOW = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "GOMP_SPINCOUNT": "2000",
}
"""What the workflow sets for its jobs; the peer is timed with and without."""
LONG = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer", help="python of an environment with circuit-tracer")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 39, 64, 256])
    parser.add_argument("--repeats", type=int, default=6, help="the first of them warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[32, 128, 512],
        help="the peer's targets at once; it takes 512",
    )
    parser.add_argument("--rounds", type=int, default=1, help="processes of each side")
    parser.add_argument("--side", choices=["adjacency", "graph"], help=argparse.SUPPRESS)
    parser.add_argument("--prompt", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(ours(options)))
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
    """Prompts of all lengths, and the transcoders as the peer reads them."""
    from circuitloom.corpus.tokenizer import load_tokenizer
    from circuitloom.dictionaries.formats.circuit_tracer import export_circuit_tracer

    tokenizer = load_tokenizer(str(options.model))
    texts = [json.loads(line)["text"] for line in options.text.read_text().splitlines()]
    stories = tokenizer.encode(texts)
    for length in options.lengths:
        story = next(story for story in stories if len(story) >= length - 1)
        (folder / f"{length}.json").write_text(json.dumps([tokenizer.bos_id, *story[: length - 1].tolist()]))
    if options.peer:
        export_circuit_tracer(dictionaries(options.run), folder / "set", str(options.model))


def dictionaries(run: Path) -> dict[int, Any]:
    """The dictionaries of a run, by layer."""
    from circuitloom.dictionaries.dictionary import load_dictionary

    return {int(folder.name[5:]): load_dictionary(folder) for folder in sorted(run.glob("layer*"))}


def sides(options: argparse.Namespace, folder: Path, length: int) -> dict[str, tuple]:
    """Command and settings of every side on one prompt; the first of each tool saves its graph."""
    common = [f"--repeats={options.repeats if length <= LONG else 1}", f"--threads={options.threads}"]
    prompt = str(folder / f"{length}.json")
    mine = [str(options.run), str(options.model), str(options.text), f"--prompt={prompt}", *common]
    save = [f"--save={folder / f'{side}{length}.safetensors'}" for side in ("ours", "theirs")]
    me = sys.executable, Path(__file__)
    result = {
        "circuitloom, all effects": (*me, [*mine, "--side=adjacency", save[0]], WORKFLOW),
        "circuitloom, pruned graph": (*me, [*mine, "--side=graph"], WORKFLOW),
    }
    if options.peer:
        theirs = [str(folder / "set"), str(options.model), prompt, *common]
        for batch in sorted(options.batches)[: None if length <= LONG else 1]:
            batched = [*theirs, f"--batch={batch}"]
            extra = save[1:] if batch == min(options.batches) else []
            name = f"circuit-tracer, batch {batch}"
            result[name] = (options.peer, PEER, [*batched, *extra], {})
            result[f"{name}, as workflow"] = (options.peer, PEER, batched, WORKFLOW)
    return result


def measure(options: argparse.Namespace, folder: Path, length: int) -> None:
    """Run every side on one prompt and print what it took."""
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
    """Of all but the first, which warms up."""
    return statistics.median(repeats[1:] or repeats)


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of our side; the model, its weights and the dictionaries are loaded before."""
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
    weights, read = read_weights(model), dictionaries(options.run)
    token = torch.tensor(json.loads(options.prompt.read_text()))
    tokenizer = load_tokenizer(str(options.model))
    strings = tokenizer.strings()
    before, seconds, cpu, result = peak(), [], [], None
    for _ in range(options.repeats):
        # the square of the last graph is not part of the next one's memory
        result = local = None
        began, worked = time.perf_counter(), time.process_time()
        local = LinearizedModel(capture_pass(model, weights, token), read, tokenizer.bos_id)
        roots, named = find_roots(local, parse_target("logits"), strings)
        result = adjacency(local, roots) if options.side == "adjacency" else trace_graph(local, roots)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - worked)
    measured = {
        "seconds": seconds,
        "cpu": cpu,
        "before": before,
        "peak": peak(),
        "active": len(local.features),
    }
    if options.save:
        del result
        save(options.save, local, roots, named, strings)
    return measured


def peak() -> int:
    """Most bytes that the process ever held in memory."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def save(file: Path, local, roots, named, strings) -> None:
    """The graph as the peer defines it: what MLPs give at position 0 is no source."""
    import torch
    from safetensors.torch import save_file

    from circuitloom.attribution.direct_effects import source_columns
    from circuitloom.attribution.export import GraphText, viewer_json
    from circuitloom.attribution.graph import adjacency, trace_graph

    local.errors[:, 0] = 0
    graph, columns, features = trace_graph(local, roots), source_columns(local), local.features
    labels = GraphText("", [strings[i] for i in local.captured.token.tolist()], named)
    file.with_suffix(".json").write_text(json.dumps(viewer_json(graph, local, labels, "graph", "set")))
    save_file(
        {
            "adjacency": adjacency(local, roots)[:, : columns.embeddings.stop].contiguous(),
            "feature": torch.stack([features.layer, features.position, features.feature], 1),
            "activation": features.activation,
            "logit": torch.tensor([root.token_id for root in named]),
            "probability": roots.weight,
            "scores": torch.tensor([graph.scores.replacement, graph.scores.completeness]),
        },
        file,
    )


def compare(folder: Path, length: int) -> str:
    """What the two sides' graphs of one prompt differ by."""
    import numpy
    import torch
    from safetensors.torch import load_file

    a, b = (load_file(folder / f"{side}{length}.safetensors") for side in ("ours", "theirs"))
    size = int(max(a["feature"].max(), b["feature"].max())) + 1
    keys = [(held["feature"] @ torch.tensor([size * size, size, 1])).numpy() for held in (a, b)]
    common, at_a, at_b = numpy.intersect1d(*keys, return_indices=True)
    only = len(keys[0]) + len(keys[1]) - 2 * len(common)

    def shared(held: dict, at: numpy.ndarray, own: int) -> tuple[torch.Tensor, torch.Tensor]:
        # features in both, then what is behind the features: roots for rows, errors and embeddings for columns
        roots = torch.arange(len(held["adjacency"]))[-len(held["logit"]) :]
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
    same_logits = a["logit"].tolist() == b["logit"].tolist()
    return (
        f"{len(common)} features in both, {only} in one; logits {'the same' if same_logits else 'differ'}; "
        f"adjacency within {worst:.1e} (largest {largest:.2f}); replacement {b['scores'][0]:.4f} within "
        f"{scores[0]:.1e}, completeness {b['scores'][1]:.4f} within {scores[1]:.1e}; "
        f"{compare_viewers(folder, length)}"
    )


def compare_viewers(folder: Path, length: int) -> str:
    """What the pruned graphs differ by, as the two sides write them for the viewer."""
    written = [json.loads((folder / f"{side}{length}.json").read_text()) for side in ("ours", "theirs")]
    named: list[dict[str, list]] = [{}, {}]
    for names, held in zip(named, written, strict=True):
        for node in held["nodes"]:
            key = node["feature_type"], node["layer"], node["feature"], node["ctx_idx"]
            names.setdefault(node["node_id"], []).append((key, node["influence"]))
    # where the peer gives two nodes one name, its links do not say whose they are
    twice = {key for names in named for several in names.values() if len(several) > 1 for key, _ in several}
    nodes, links = [], []
    for names, held in zip(named, written, strict=True):
        nodes.append({key: share for ((key, share), *_) in names.values() if key not in twice})
        ends = [(names[link["source"]][0][0], names[link["target"]][0][0]) for link in held["links"]]
        links.append({each for each in ends if not twice & set(each)})
    shares = [abs(nodes[0][key] - nodes[1][key]) for key in nodes[0].keys() & nodes[1] if nodes[0][key]]
    return (
        f"pruned: {len(nodes[0].keys() & nodes[1])} nodes in both, {len(nodes[0].keys() ^ nodes[1])} in one, "
        f"{len(links[0] & links[1])} links in both, {len(links[0] ^ links[1])} in one, cumulative shares within "
        f"{max(shares):.1e}; left out: {len(twice)} nodes that share a name in one"
    )


def run_in(python: str, script: Path, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """One side, in a process of its own."""
    result = subprocess.run(
        [python, str(script), *arguments],
        # the peer's script bears the name of what it imports
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
