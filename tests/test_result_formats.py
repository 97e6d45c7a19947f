"""`circuitloom export FORMAT RESULTS OUT`, on the tables of a made-up study."""

import argparse
import csv
import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from tests.activations.inputs import make_tokens
from tests.explorer.made_up import HOSTILE, RUN, WIDTH, labels, make_study

from circuitloom.attribution.graph_json import (
    embedding_node,
    error_node,
    feature_node,
    graph_content,
    logit_node,
)
from circuitloom.attribution.node_names import node_name
from circuitloom.catalog.build import build_catalog
from circuitloom.config.export_formats import EXPORT_FORMATS
from circuitloom.core.formatting import escape_invisible
from circuitloom.core.tables import LABEL, NODE, TRACE, write_table
from circuitloom.corpus.token_arrays import write_tokens
from circuitloom.export_command import add_commands

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "max_position_embeddings": 32,
    "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study of two layers with one trace, whose graph has the first feature and error of the made-up tables."""
    folder = make_study(tmp_path_factory.mktemp("results") / "made-up")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    nodes = [
        feature_node(0, 7, 1, 1.0, 0.5),
        error_node(0, 3, 0.6),
        *(embedding_node(i, i, 0.9) for i in range(len(HOSTILE))),
        logit_node(5, "a", 0.4, 11, 2, True),
        logit_node(64, "b", 1.0, 11, 2, False),
    ]
    links = [{"source": "0_7_1", "target": "3_5_11", "weight": 0.25}]
    content = graph_content("hostile", RUN, "a prompt", HOSTILE, nodes, links, 0.8)
    (folder / "circuits" / "hostile" / "graph.json").write_text(json.dumps(content))
    tokens = make_tokens(8)
    write_tokens(
        folder / "corpus" / "validation.zarr",
        [(tokens.token[:], tokens.document[:])],
        8,
        {"bos_id": 1, "separator_id": 1, "vocabulary": 64},
    )
    return folder


def export(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    parsed = parser.parse_args(["export", *map(str, arguments)])
    parsed.run_command(parsed)


def test_a_graph_is_exported_for_circuit_tracer_with_its_supernodes(study, tmp_path) -> None:
    export(
        "circuit-tracer-graph",
        study,
        tmp_path,
        "--trace",
        "hostile",
        "--supernodes",
        "a:0,10;b:11",
        "--scan",
        "me/x",
    )
    content = json.loads((tmp_path / "hostile.json").read_text())
    assert content["metadata"]["scan"] == "me/x"
    # nodes 0 to 9 of the table are features, 10 the error, 11 and later the embeddings
    assert content["qParams"]["supernodes"] == [["a", "0_7_1", "0_-1_3"], ["b", "E_0_0"]]
    assert json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"] == [content["metadata"]]
    saved = torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert saved["active_features"].tolist() == [[0, 1, 7]]
    # 1 feature, 2 layers of errors, tokens, 2 logits
    assert len(saved["adjacency_matrix"]) == 1 + 3 * len(HOSTILE) + 2
    assert saved["adjacency_matrix"][-2, 0] == 0.25
    assert saved["cfg"].to_dict()["tokenizer_name"] == str((study / "model").resolve())
    assert saved["scan"] == "me/x"


def test_a_graph_is_exported_for_neuronpedia(study, tmp_path) -> None:
    export("neuronpedia-graph", study, tmp_path / "a", "--model", "a-model")
    metadata = json.loads((tmp_path / "a" / "hostile.json").read_text())["metadata"]
    assert (metadata["scan"], metadata["feature_details"]) == ("a-model", {"neuronpedia_source_set": RUN})
    export("neuronpedia-graph", study, tmp_path / "b", "--features-url", "https://me.org/f")
    metadata = json.loads((tmp_path / "b" / "hostile.json").read_text())["metadata"]
    assert (metadata["scan"], metadata["feature_details"]) == (
        "made-up",
        {"feature_json_base_url": "https://me.org/f"},
    )


def test_a_graph_has_every_field_that_neuronpedia_requires(study, tmp_path) -> None:
    export("neuronpedia-graph", study, tmp_path, "--model", "a-model")
    content = json.loads((tmp_path / "hostile.json").read_text())
    required = {
        "metadata": {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str, "schema_version": int},
        "qParams": {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str},
        "nodes": {
            "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "jsNodeId": str,
            "clerp": str,
        },
        "links": {"source": str, "target": str, "weight": float},
    }  # fmt: skip
    for part, fields in required.items():
        for entry in content[part] if isinstance(content[part], list) else [content[part]]:
            assert {name: type(entry[name]) for name in fields} == fields, (part, entry)
    # the page finds layer and feature by undoing Cantor's pairing, which the schema's version 1 has
    assert content["metadata"]["schema_version"] == 1
    (feature,) = [node for node in content["nodes"] if node["feature_type"] == "cross layer transcoder"]
    diagonal = int(((8 * feature["feature"] + 1) ** 0.5 - 1) / 2)
    index = feature["feature"] - diagonal * (diagonal + 1) // 2
    assert (diagonal - index, index, feature["layer"]) == (0, 7, "0")


LABELS = f"""run,layer,feature,label
{RUN},0,7,"says ""a"", then b"
{RUN},1,3,three
neurons,0,7,of another run
"""


def write_labels(file: Path, text: str = LABELS) -> Path:
    """A file of labels, from the text of a CSV file."""
    file.with_suffix(".csv").write_text(text)
    if file.suffix == ".parquet":
        rows = csv.DictReader(text.splitlines())
        typed = [{**row, "layer": int(row["layer"]), "feature": int(row["feature"])} for row in rows]
        pq.write_table(pa.Table.from_pylist(typed), file)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labels_of_a_file_become_those_of_a_graph_and_of_features(suffix: str, study, tmp_path) -> None:
    labels = write_labels(tmp_path / f"labels{suffix}")
    for name in ("circuit-tracer-graph", "neuronpedia-graph"):
        export(name, study, tmp_path / name, "--labels", labels)
        nodes = json.loads((tmp_path / name / "hostile.json").read_text())["nodes"]
        assert {node["node_id"]: node["clerp"] for node in nodes if node["clerp"] and "_5_" not in node["node_id"]} == {
            "0_7_1": 'says "a", then b', "3_64_11": 'Output "b" (p=1.000)'
        }  # fmt: skip
    export("neuronpedia", study, tmp_path, "--run", RUN, "--model", "a-model", "--labels", labels)
    for layer, expected in ((0, {"7": 'says "a", then b'}), (1, {"3": "three"})):
        folder = tmp_path / "v1" / "a-model" / f"{layer}-{RUN}" / "explanations"
        lines = [
            line for file in folder.iterdir() for line in gzip.decompress(file.read_bytes()).splitlines()
        ]
        assert {row["index"]: row["description"] for row in map(json.loads, lines)} == expected


def test_without_a_file_the_labels_of_the_study_are_exported(study, tmp_path) -> None:
    expected = {
        row["feature"]: row["label"] for row in labels() if (row["source"], row["kind"]) == ("rule", "token")
    }
    export("neuronpedia-graph", study, tmp_path, "--model", "a-model")
    nodes = json.loads((tmp_path / "hostile.json").read_text())["nodes"]
    assert {node["node_id"]: node["clerp"] for node in nodes}["0_7_1"] == expected[7]
    export("neuronpedia", study, tmp_path, "--run", RUN, "--model", "a-model", "--layers", 0)
    (file,) = (tmp_path / "v1" / "a-model" / f"0-{RUN}" / "explanations").iterdir()
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert {int(row["index"]): escape_invisible(row["description"]) for row in rows} == {
        feature: escape_invisible(label) for feature, label in expected.items()
    }


def supernodes(study: Path, output: Path, *arguments: object) -> list[list[str]]:
    export("neuronpedia-graph", study, output, "--model", "a-model", *arguments)
    return json.loads((output / "hostile.json").read_text())["qParams"]["supernodes"]


def test_saved_supernodes_are_exported_unless_others_are_named(study, tmp_path, capsys) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(study, copy)
    rows = pq.read_table(copy / "circuits" / "hostile" / "node.parquet").to_pylist()
    names = {
        "years": [node_name(rows[0]), node_name(rows[10])],
        "rest": [node_name(rows[11]), "0/99 'gone'@7"],
    }
    (copy / "circuits" / "hostile" / "supernodes.json").write_text(json.dumps(names))
    assert supernodes(copy, out) == [["years", "0_7_1", "0_-1_3"], ["rest", "E_0_0"]]
    assert "not in the graph any more, left out: 0/99 'gone'@7" in capsys.readouterr().out
    assert supernodes(copy, out, "--supernodes", "none") == []
    assert supernodes(copy, out, "--supernodes", "a:10") == [["a", "0_-1_3"]]


def test_supernodes_by_the_rule_are_exported(study, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    # features 7 and 9 of layer 0 at one position, with one label
    folder = copy / "circuits" / "hostile"
    for table in ("trace", "node"):
        rows = [row | {"trace": "hostile"} for row in pq.read_table(folder / f"{table}.parquet").to_pylist()]
        for row in rows[:3] if table == "node" else []:
            row["position"] = 1
        write_table({"trace": TRACE, "node": NODE}[table], rows, folder / f"{table}.parquet")
    own = [row | {"label": "the same"} for row in labels() if row["feature"] in (7, 9)]
    write_table(LABEL, own, copy / "labels" / "rules" / RUN / "layer0" / "label.parquet")
    graph = json.loads((folder / "graph.json").read_text())
    graph["nodes"].insert(1, feature_node(0, 9, 1, 1.0, 0.5))
    (folder / "graph.json").write_text(json.dumps(graph))
    build_catalog(copy)
    assert supernodes(copy, tmp_path / "out", "--supernodes", "rule") == [["the same @1", "0_7_1", "0_9_1"]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("run,layer,label\na,0,x\n", "has no column feature; the columns are run, layer, feature, label"),
        (f"{LABELS}{RUN},1,3,again\n", "row 4: feature 1/3 of tc-topk8-300 has a label already; remove one"),
        (
            f"{LABELS}{RUN},1,300,x\n",
            "row 4: tc-topk8-300 has features 0 to 299 in layer 1, not 300; correct",
        ),
        (f"{LABELS}{RUN},1,-1,x\n", "row 4: tc-topk8-300 has features 0 to 299 in layer 1, not -1; correct"),
        (f"{LABELS}{RUN},2,0,x\n", "row 4: run tc-topk8-300 has no layer 2; correct or remove the row"),
        (
            f"{LABELS}tc,1,0,x\n",
            "row 4: the study has no run tc; choose from neurons, sae-topk8-300, tc-topk8",
        ),
        (f"{LABELS}{RUN},1,,x\n", "row 4 has no feature; add it, or remove the row"),
        (f"{LABELS}{RUN},1,4,\n", "row 4 has no label; add it, or remove the row"),
        (f"{LABELS}{RUN},1,x,x\n", "no table of labels .*; write Parquet or .csv with text in run"),
        ("run,run,layer,feature,label\na,a,0,1,x\n", "no table of labels"),
        (
            f"run,layer,feature,label\n{RUN},0,8,x\n",
            "has no label of a feature in the graphs; remove --labels",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(text: str, problem: str, study, tmp_path) -> None:
    labels = write_labels(tmp_path / "labels.csv", text)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(labels))}: {problem}") as caught:
        export("neuronpedia-graph", study, tmp_path / "out", "--labels", labels)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_labels_of_no_exported_feature_and_missing_files_are_refused(study, tmp_path) -> None:
    labels = write_labels(tmp_path / "labels.csv", f"run,layer,feature,label\n{RUN},1,3,x\n")
    arguments = ("neuronpedia", study, tmp_path / "out", "--run", RUN, "--layers", 0, "--labels")
    with pytest.raises(ValueError, match=r"has no label of tc-topk8-300 in the exported layers; remove"):
        export(*arguments, labels)
    with pytest.raises(
        ValueError, match=r"other\.csv: file not found; name a Parquet or CSV file with --labels"
    ):
        export(*arguments, tmp_path / "other.csv")
    (tmp_path / "damaged.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"damaged\.parquet: no table of labels") as caught:
        export(*arguments, tmp_path / "damaged.parquet")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_features_are_exported_by_run_and_layer(study, tmp_path) -> None:
    export("viewer-features", study, tmp_path, "--run", RUN, "--layers", "1")
    index = json.loads(gzip.decompress((tmp_path / "features" / "index.json.gz").read_bytes()))
    assert list(index) == ["1"] and len(index["1"]["offsets"]) == WIDTH + 1
    export("neuronpedia", study, tmp_path, "--run", RUN, "--model", "a-model")
    assert sorted(file.name for file in (tmp_path / "v1" / "a-model").iterdir()) == [f"0-{RUN}", f"1-{RUN}"]
    batch = tmp_path / "v1" / "a-model" / f"1-{RUN}" / "features" / "batch-0.jsonl.gz"
    assert len(gzip.decompress(batch.read_bytes()).splitlines()) == WIDTH


def test_activations_are_exported_for_delphi(study, tmp_path) -> None:
    export("delphi", study, tmp_path, "--run", RUN, "--layers", "0")
    # the made-up study has no dictionaries, whose configs name their site
    (module,) = (tmp_path / "latents").iterdir()
    assert module.name == f"layers.0.{RUN}"
    config = {"outputs": [{"site": "mlp_out", "layer": 1}]}
    folder = study / "dictionaries" / RUN / "layer1"
    (folder / "config.json").write_text(json.dumps(config))
    export("delphi", study, tmp_path, "--run", RUN, "--layers", "1")
    (file,) = (tmp_path / "latents" / "layers.1.mlp").glob("*.safetensors")
    split = load_file(file)
    assert file.name == f"0_{WIDTH - 1}.safetensors"
    firing = [feature for feature in range(WIDTH) if feature * 37 % 200]
    assert split["locations"].astype(int).tolist() == [[f % 8, 1 + f % 31, f] for f in firing]
    assert np.array_equal(split["tokens"], make_tokens(8).token[:])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["circuit-tracer-graph", "{study}", "out", "--trace", "other"],
            "has no trace other; choose from hostile",
        ),
        (
            ["neuronpedia-graph", "{study}", "out", "--supernodes", "a:99"],
            "node 99 is not in the exported graph",
        ),
        (["neuronpedia-graph", "{study}", "out", "--supernodes", "a:x"], "must have the form"),
        (
            ["viewer-features", "{study}", "out", "--run", RUN, "--layers", "0", "7"],
            "no feature tables of layer 7",
        ),
        (["viewer-features", "{study}", "out"], "name a run with --run"),
        (["neuronpedia", "{study}", "out", "--run", RUN, "--model", "a/b"], "use letters, digits, - and _"),
        *(
            ([name, "nothing", "out"], "there is no study nothing: no folder results/nothing")
            for name in EXPORT_FORMATS
        ),
        (
            ["circuit-tracer-graph", "{study}", "out", "--model", "/nowhere"],
            "--model /nowhere: not a folder with",
        ),
        (["delphi", "{study}", "out", "--run", RUN, "--model", "./a"], "--model ./a: not a folder with"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    arguments, problem, study, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=problem) as caught:
        export(*(argument.format(study=study) for argument in arguments))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_prompt_traced_and_groups_of_several_traces_are_refused(study, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    shutil.copytree(copy / "circuits" / "hostile", copy / "circuits" / "other")
    with pytest.raises(
        ValueError, match=r"--supernodes needs --trace: .* 2 traces; choose from hostile, other"
    ):
        export("neuronpedia-graph", copy, tmp_path / "out", "--supernodes", "a:0")
    shutil.rmtree(copy / "circuits")
    with pytest.raises(ValueError, match="no prompt was traced"):
        export("neuronpedia-graph", copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_tokenizer_or_a_hub_name_is_the_model_of_a_graph(study, tmp_path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "tokenizer.json").write_text("{}")
    for name in (str(own), "org/model", "gpt2"):
        export("circuit-tracer-graph", study, tmp_path / "out", "--model", name)
        saved = torch.load(tmp_path / "out" / "hostile.pt", weights_only=False)
        assert saved["cfg"].to_dict()["tokenizer_name"] == name
