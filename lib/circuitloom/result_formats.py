"""`circuitloom export FORMAT`: graphs and features of a study in the formats of other tools."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .core.hub import is_hub_name
from .core.layout import NEURONS, RESIDUAL, Layout

if TYPE_CHECKING:
    from .attribution.graph_json import Json
    from .config.model_shape import ModelShape
    from .features.formats.feature_texts import FeatureSource
    from .features.formats.labels import Labels

BY_RULE = "rule"
"""Value of --supernodes that groups nodes by the rule."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""Files of which a tokenizer's folder has at least one."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of these formats. RESULTS, OUT, --run, --layers and --model are those of all formats."""
    parser.add_argument("--trace", metavar="NAME", help="graphs: the trace (all traces of the study)")
    parser.add_argument(
        "--scan", metavar="NAME", help="circuit-tracer-graph: name or repository of the transcoders (the run)"
    )
    parser.add_argument(
        "--supernodes",
        metavar="GROUPS",
        help="graphs: `rule` groups features of one position with equal labels or similar activations; `none`: no "
        "groups; or groups of nodes of one --trace, as the explorer's address has them: 'years:1,2;others:3' (groups "
        "that were saved in the explorer)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="graphs, neuronpedia: Parquet or CSV file with the columns run, layer, feature, label (the study's)",
    )
    parser.add_argument(
        "--source-set",
        metavar="NAME",
        help="neuronpedia, neuronpedia-graph: source set of the features (the run)",
    )
    parser.add_argument(
        "--features-url",
        metavar="URL",
        help="neuronpedia-graph: address of feature files, instead of a source set",
    )
    parser.add_argument("--creator", metavar="NAME", help="neuronpedia: shown as creator (circuitloom)")
    parser.add_argument(
        "--release", metavar="NAME", help="neuronpedia: name of the release (the study's name)"
    )


def export_circuit_tracer_graph(arguments: argparse.Namespace) -> None:
    """Write NAME.pt and NAME.json of each trace, and the index of the folder for circuit-tracer's viewer."""
    from .attribution.graph_json import complete_graph, write_viewer
    from .attribution.graph_pt import graph_tensors, write_graph_pt

    shape, model = _model(Layout.find(arguments.results))
    tokenizer = _tokenizer(arguments.model, model)
    architecture = _architecture(model)
    for content, groups, labels in _graphs(arguments):
        made = complete_graph(content, arguments.scan, labels=labels, supernodes=groups)
        file = arguments.output / f"{content['metadata']['slug']}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_graph_pt(graph_tensors(made, shape, tokenizer, architecture), file)
        print(f"{file}, {write_viewer(made, arguments.output)}")


def export_neuronpedia_graph(arguments: argparse.Namespace) -> None:
    """Write NAME.json of each trace, to be uploaded to Neuronpedia."""
    from .attribution.graph_json import complete_graph, write_viewer

    for content, groups, labels in _graphs(arguments):
        source_set = arguments.source_set or content["metadata"]["scan"]
        details = (
            {"feature_json_base_url": arguments.features_url}
            if arguments.features_url
            else {"neuronpedia_source_set": source_set}
        )
        model = arguments.model or Layout.find(arguments.results).root.resolve().name
        print(write_viewer(complete_graph(content, model, details, labels, groups), arguments.output))


def export_viewer_features(arguments: argparse.Namespace) -> None:
    """Write the feature files of a run for circuit-tracer's viewer."""
    from .features.formats import viewer

    viewer.export_viewer_features(_sources(arguments), arguments.output)
    print(arguments.output / viewer.FOLDER)


def export_neuronpedia(arguments: argparse.Namespace) -> None:
    """Write the files from which Neuronpedia imports a run."""
    from .features.formats.neuronpedia import NeuronpediaNames, export_neuronpedia

    sources, study = _sources(arguments), Layout.find(arguments.results).root.resolve().name
    names = NeuronpediaNames(
        model=arguments.model or study,
        source_set=arguments.source_set or sources[0].run,
        creator=arguments.creator or "circuitloom",
        release=arguments.release or study,
    )
    run, layers = sources[0].run, {source.layer for source in sources}
    labels = {place: text for place, text in _labels(arguments, run).items() if place[0] in layers}
    if arguments.labels is not None and not labels:
        raise ValueError(f"{arguments.labels}: has no label of {run} in the exported layers; remove --labels")
    export_neuronpedia(sources, arguments.output, names, _model(Layout.find(arguments.results))[0], labels)
    print(arguments.output / "v1" / names.model)


def export_delphi(arguments: argparse.Namespace) -> None:
    """Write the activations of a run as delphi's cache."""
    from .corpus.token_arrays import open_token_arrays
    from .features.formats.delphi import LATENTS, export_delphi

    layout, sources = Layout.find(arguments.results), _sources(arguments)
    modules = {source.layer: _module(layout, source) for source in sources}
    model = _tokenizer(arguments.model, layout.model)
    export_delphi(sources, arguments.output, open_token_arrays(layout.tokens("validation")), modules, model)
    print(arguments.output / LATENTS)


RESULT_EXPORTS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "circuit-tracer-graph": export_circuit_tracer_graph,
    "neuronpedia-graph": export_neuronpedia_graph,
    "viewer-features": export_viewer_features,
    "neuronpedia": export_neuronpedia,
    "delphi": export_delphi,
}
"""Maps each format of graphs and features in `config.export_formats` to the function that exports. It reads results and
output of its argument, and the format's options."""


def _graphs(arguments: argparse.Namespace) -> list[tuple["Json", dict[str, list[str]], "Labels"]]:
    """Returns the graph of each trace, the node ids of each supernode, and the labels of its run."""
    from .attribution.graph_json import feature_of, read_graph_json
    from .attribution.supernodes import NO_GROUPS
    from .core.tables import read_table

    layout = Layout.find(arguments.results)
    known = sorted(file.parent.name for file in layout.circuits.glob("*/graph.json"))
    if not known:
        raise ValueError(
            f"{layout.circuits}: no prompt was traced; name some under circuits.prompts of the study"
        )
    if arguments.trace is not None and arguments.trace not in known:
        raise ValueError(f"{layout.root} has no trace {arguments.trace}; choose from {', '.join(known)}")
    named = arguments.supernodes not in (None, "", BY_RULE, NO_GROUPS)
    if named and arguments.trace is None and len(known) > 1:
        raise ValueError(
            f"--supernodes needs --trace: it names nodes of one graph, and the study has {len(known)} traces; choose "
            f"from {', '.join(known)}"
        )
    chosen = known if arguments.trace is None else [arguments.trace]
    graphs = []
    for name in chosen:
        folder = layout.trace(name)
        graph = read_graph_json(folder / "graph.json")
        (run,) = read_table(folder / "trace.parquet", columns=["run"])["run"].to_pylist()
        groups = _supernodes(arguments.supernodes, layout, name, graph)
        graphs.append((graph, groups, _labels(arguments, run)))
    found = {
        place for graph, _, own in graphs for node in graph["nodes"] if (place := feature_of(node)) in own
    }
    if arguments.labels is not None and not found:
        raise ValueError(f"{arguments.labels}: has no label of a feature in the graphs; remove --labels")
    return graphs


def _labels(arguments: argparse.Namespace, run: str) -> "Labels":
    """Returns the labels of a run in the file that the arguments name, or else the study's own."""
    from .core.feature_labels import read_feature_labels
    from .features.formats.labels import read_labels

    layout = Layout.find(arguments.results)
    if arguments.labels is None:
        return {place: label.text for place, label in read_feature_labels(layout, run).items()}
    return read_labels(arguments.labels, layout).get(run, {})


def _supernodes(text: str | None, layout: Layout, trace: str, graph: "Json") -> dict[str, list[str]]:
    """Returns the node ids of each supernode: of the groups in `text`, by the rule, or by default of saved groups."""
    from .attribution.graph_json import node_ids
    from .attribution.node_names import node_name
    from .attribution.supernodes import LEAST_COSINE, parse_groups, saved_groups
    from .core.tables import read_table

    rows = read_table(layout.trace(trace) / "node.parquet").to_pylist()
    names = node_ids(rows, graph)
    if text == BY_RULE:
        from .catalog.client import CatalogClient

        groups = CatalogClient(layout.root).supernodes(trace, LEAST_COSINE)
    elif text:
        groups = parse_groups(text)
    else:
        in_graph = [{"node": row["node"], "label": node_name(row)} for row in rows if row["in_graph"]]
        groups, missing = saved_groups(layout, trace, in_graph)
        if missing:
            print(f"{layout.supernodes(trace)}: not in the graph any more, left out: {', '.join(missing)}")
    if missing := [number for members in groups.values() for number in members if number not in names]:
        raise ValueError(
            f"--supernodes: node {missing[0]} is not in the exported graph; name features, errors or tokens"
        )
    return {group: [names[number] for number in members] for group, members in groups.items()}


def _sources(arguments: argparse.Namespace) -> list["FeatureSource"]:
    """Returns the feature tables of the run and layers that the arguments name."""
    from .catalog.client import CatalogClient
    from .features.formats.feature_texts import feature_sources

    layout = Layout.find(arguments.results)
    spacing = CatalogClient(layout.root).spacing
    return feature_sources(layout.all_features, arguments.run, arguments.layers, spacing, (NEURONS, RESIDUAL))


def _model(layout: Layout) -> tuple["ModelShape", Path]:
    """Returns the sizes and the folder of the study's model."""
    from .config.model_shape import shape_of

    folder = layout.model
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: no config.json; run `snakemake --cores all language_model` for this study first"
        )
    return shape_of(json.loads((folder / "config.json").read_text())), folder


def _tokenizer(name: str | None, model: Path) -> str:
    """Returns the folder or hub name from which the other tool loads the tokenizer: `name`, or the study's `model`."""
    if name is None:
        return str(model.resolve())
    if not is_hub_name(name, None) and not any((Path(name) / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"--model {name}: not a folder with {' or '.join(TOKENIZER_FILES)}; name one, or a repository of the hub"
        )
    return name


def _architecture(model: Path) -> str:
    """Returns the name of the class of the model in transformers."""
    named = json.loads((model / "config.json").read_text()).get("architectures") or [""]
    return str(named[0])


def _module(layout: Layout, source: "FeatureSource") -> str:
    """Returns the name of a module in delphi: the MLP, attention, or the block for its residual stream."""
    config = layout.dictionary(source.run, source.layer) / "config.json"
    if not config.is_file():
        return f"layers.{source.layer}.{source.run}"
    # the layer itself comes first, also in a cross-layer transcoder
    output = json.loads(config.read_text())["outputs"][0]
    part = {"resid_mid": "", "resid_pre": "", "attn_added": ".attn"}.get(output["site"], ".mlp")
    return f"layers.{source.layer}{part}"
