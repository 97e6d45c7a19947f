"""Other tools read exported graphs and features, each in its own environment."""

import json
import subprocess

import numpy as np
import pytest
from tests.activations.inputs import make_tokens
from tests.attribution.test_export import make_graph, make_viewer
from tests.exchange.environments import peer_python
from tests.features.test_formats import WIDTH, make_source, write_tables
from tests.models import LAYERS, VOCABULARY

from circuitloom.attribution.graph_json import complete_graph, output_token
from circuitloom.attribution.graph_pt import graph_tensors, read_graph_pt, write_graph_pt
from circuitloom.config.model_shape import ModelShape
from circuitloom.features.formats.delphi import export_delphi
from circuitloom.features.formats.viewer import export_viewer_features

pytestmark = pytest.mark.exchange
MODEL = ModelShape(LAYERS, 16, 40, 4, 32, VOCABULARY, key_value_heads=2)


def run_peer(name: str, code: str, *arguments: object) -> dict:
    """The last line that `code` prints in the environment of a peer, as JSON. Skips without the environment."""
    command = [peer_python(name), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


READ_GRAPH = """
import json, sys
from circuit_tracer.graph import Graph, compute_graph_scores, prune_graph
graph = Graph.from_pt(sys.argv[1])
names = [target.token_str for target in graph.logit_targets]
pruned = prune_graph(graph, 0.8, 0.98)
graph.to_pt(sys.argv[2])
print(json.dumps({
    "nodes": int(pruned.node_mask.sum()), "edges": int(pruned.edge_mask.sum()), "layers": graph.cfg.n_layers,
    "scores": compute_graph_scores(graph), "cumulative": pruned.cumulative_scores.tolist(),
    "kept": pruned.node_mask.nonzero()[:, 0].tolist(),
    "targets": list(zip(names, graph.logit_token_ids.tolist())),
}))
"""


def test_circuit_tracer_reads_our_graph_and_we_read_what_it_saves(tmp_path) -> None:
    graph, model, text, _ = make_graph("llama", tmp_path, node_share=0.95)
    content = complete_graph(make_viewer(graph, model, text), "me/transcoders")
    ours, theirs = tmp_path / "ours.pt", tmp_path / "theirs.pt"
    tensors = graph_tensors(content, MODEL, str(tmp_path / "llama"), "LlamaForCausalLM")
    write_graph_pt(tensors, ours)
    found = run_peer("circuit_tracer", READ_GRAPH, ours, theirs)
    assert found["layers"] == LAYERS
    roots = [node for node in content["nodes"] if node["feature_type"] == "logit"]
    assert found["targets"] == [[output_token(node), node["feature"]] for node in roots]
    assert 0 < found["scores"][0] <= 1 and 0 < found["scores"][1] <= 1
    for file in (ours, theirs):
        read = read_graph_pt(file)
        # both prune the same graph by the same rules
        assert (len(read["nodes"]), len(read["links"])) == (found["nodes"], found["edges"])
        shares = sorted(node["influence"] for node in read["nodes"] if node["feature_type"] != "logit")
        logits = len(tensors["logit_targets"])
        expected = sorted(
            found["cumulative"][i] for i in found["kept"] if i < len(found["cumulative"]) - logits
        )
        assert shares == pytest.approx(expected, abs=1e-4)
        assert read["metadata"]["scan"] == "me/transcoders"


READ_DELPHI = """
import json, sys
from delphi.latents.loader import LatentDataset, TensorBuffer
from pathlib import Path
found, tokens = {}, None
folder = Path(sys.argv[1])
for module in sorted(folder.iterdir()):
    for file in sorted(module.glob("*.safetensors")):
        buffer = TensorBuffer(str(file), module.name)
        tokens = buffer.tokens
        for data in buffer:
            activations = data.activation_data
            found[data.latent.latent_index] = [
                [*place[:2], value]
                for place, value in zip(activations.locations.tolist(), activations.activations.tolist())
            ]
print(json.dumps({"activations": found, "tokens": tokens.tolist()}))
"""


def test_delphis_loader_yields_our_activations(tmp_path) -> None:
    source, tokens = make_source(write_tables(tmp_path / "features")), make_tokens(5)
    export_delphi([source], tmp_path / "out", tokens, {1: "layers.1.mlp"}, "a/model", per_split=10)
    found = run_peer("delphi", READ_DELPHI, tmp_path / "out" / "latents")
    rows = np.array(found["tokens"])
    assert (rows == tokens.token[: len(rows)]).all()
    from circuitloom.core.tables import read_table

    table = read_table(source.file("activation"))
    expected: dict[str, list[list[float]]] = {}
    for row in table.to_pylist():
        place = [row["sequence"], row["position"], row["activation"]]
        expected.setdefault(str(row["feature"]), []).append(place)
    assert found["activations"] == expected


READ_FEATURES = """
import json, sys, threading, urllib.request
from circuit_tracer.frontend.feature_models import Model
print(json.dumps(Model(**json.loads(sys.argv[1])).model_dump()))
"""


def test_circuit_tracers_model_of_a_feature_accepts_our_records(tmp_path) -> None:
    from tests.features.test_formats import read_viewer

    export_viewer_features([make_source(write_tables(tmp_path / "features"))], tmp_path / "out")
    for feature in range(WIDTH):
        record = read_viewer(tmp_path / "out", 1, feature)
        assert run_peer("circuit_tracer", READ_FEATURES, json.dumps(record)) == pytest.approx(record)
