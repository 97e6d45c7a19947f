"""circuit-tracer's side of benchmarks/attribution.py: its nnsight backend on a transcoder set, model and prompt."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.utils.create_graph_files import create_graph_files
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from clock import peak_memory
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("set", type=Path, help="folder of the transcoder set")
    parser.add_argument("model", help="folder of the language model")
    parser.add_argument("prompt", type=Path, help="JSON list of tokens")
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--save", type=Path, help="file for the graph")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    transcoders, _ = load_transcoder_from_hub(
        options.set.name, device=device, cache_dir=str(options.set.parent), lazy_decoder=False
    )
    model = ReplacementModel.from_pretrained_and_transcoders(
        options.model, transcoders, device=device, dtype=torch.float32, backend="nnsight"
    )
    token = torch.tensor(json.loads(options.prompt.read_text()))
    before = peak_memory()
    seconds, cpu, graph = [], [], None
    for _ in range(options.repeats):
        # free the last graph before the next one
        graph = None
        started, started_cpu = time.perf_counter(), time.process_time()
        graph = attribute(token, model, batch_size=options.batch)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    assert graph is not None
    measured = {"seconds": seconds, "cpu": cpu, "before": before, "peak": peak_memory()}
    if options.save:
        save(graph, options.save)
    print(json.dumps(measured))


def save(graph, file: Path) -> None:
    """Save the graph, its scores, and its JSON for the viewer."""
    save_file(
        {
            "adjacency": graph.adjacency_matrix.contiguous(),
            "feature": graph.active_features.contiguous(),
            "activation": graph.activation_values.detach().contiguous(),
            "logit": graph.logit_token_ids,
            "probability": graph.logit_probabilities.detach().contiguous(),
            "scores": torch.tensor(compute_graph_scores(graph)),
        },
        file,
    )
    with tempfile.TemporaryDirectory() as folder:
        create_graph_files(graph, "graph", folder, scan="set")
        file.with_suffix(".json").write_text((Path(folder) / "graph.json").read_text())


if __name__ == "__main__":
    main()
