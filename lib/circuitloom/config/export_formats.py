"""The formats of other tools in which results are exported: the one list that the command `export`, the stage
`exchange` and docs/exchange.md read.

`exchange/exporters.py` writes dictionaries. `result_formats.py` writes graphs and features.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

Contents = Literal["dictionaries", "graphs", "features"]
DICTIONARY_OPTIONS = ("run", "layers", "model", "license")
"""Options of the command for all formats of dictionaries."""


@dataclass(frozen=True)
class ExportFormat:
    """A format of another tool."""

    contents: Contents
    summary: str
    """What an export is, in a few words."""
    files: str
    """Files that are written, as Markdown."""
    read_by: str
    """Tools that read the files, as Markdown."""
    options: tuple[str, ...]
    """Options that the command takes."""
    represents: str = ""
    """What the format can represent. Empty if it can represent all results of this kind."""


EXPORT_FORMATS: dict[str, ExportFormat] = {
    "circuit-tracer": ExportFormat(
        "dictionaries",
        "a transcoder set, or a cross-layer transcoder",
        "`config.yaml`, `layer_L.safetensors`; cross-layer: `W_enc_L.safetensors`, `W_dec_L.safetensors`",
        "circuit-tracer 0.5.0; sets of topk: versions after pull request 94",
        DICTIONARY_OPTIONS,
        "transcoders of all layers from 0, of equal width: relu, thresholds, topk with one k; with or without skip. "
        "Cross-layer transcoders of all layers: relu, thresholds; without skip",
    ),
    "saelens": ExportFormat(
        "dictionaries",
        "SAEs or transcoders of SAELens 6",
        "`layer_L/cfg.json`, `layer_L/sae_weights.safetensors`",
        "SAELens 6.54",
        DICTIONARY_OPTIONS,
        "SAEs: relu, thresholds from 0, topk. Transcoders: relu, thresholds from 0, with or without skip",
    ),
    "sparsify": ExportFormat(
        "dictionaries",
        "topk SAEs or transcoders of sparsify",
        "`MODULE/cfg.json`, `MODULE/sae.safetensors`",
        "eai-sparsify 1.3.3",
        DICTIONARY_OPTIONS,
        "SAEs and transcoders of topk, with or without skip",
    ),
    "circuit-tracer-graph": ExportFormat(
        "graphs",
        "graphs for circuit-tracer: .pt, and JSON for its viewer",
        "`OUT/TRACE.pt`, `OUT/TRACE.json`, `OUT/graph-metadata.json`",
        "circuit-tracer: `Graph.from_pt`, and `circuit-tracer start-server --graph_file_dir OUT`",
        ("trace", "model", "scan", "supernodes", "labels"),
    ),
    "neuronpedia-graph": ExportFormat(
        "graphs",
        "graphs for Neuronpedia: JSON",
        "`OUT/TRACE.json`, `OUT/graph-metadata.json`",
        "Neuronpedia: upload the file; its "
        "[schema](https://github.com/hijohnnylin/neuronpedia/blob/main/apps/webapp/app/api/graph/graph-schema.json)",
        ("trace", "model", "supernodes", "labels", "source_set", "features_url"),
    ),
    "viewer-features": ExportFormat(
        "features",
        "feature files for circuit-tracer's viewer",
        "`OUT/features/index.json.gz`, `layer_{i}.bin`",
        "circuit-tracer's viewer: 0.5.0 from a hub repository, its repository's later versions also from a folder",
        ("run", "layers"),
    ),
    "neuronpedia": ExportFormat(
        "features",
        "features for Neuronpedia: a source per layer",
        "`OUT/v1/MODEL/{layer}-{set}/`: `release.jsonl`, `model.jsonl`, `sourceset.jsonl`, `source.jsonl`, "
        "`features/batch-N.jsonl.gz`, `activations/batch-N.jsonl.gz`; with labels, `explanations/batch-N.jsonl.gz`",
        "Neuronpedia's importer",
        ("run", "layers", "model", "labels", "source_set", "creator", "release"),
    ),
    "delphi": ExportFormat(
        "features",
        "activations for delphi: a cache per layer",
        "`OUT/latents/MODULE/{start}_{end}.safetensors`, `config.json`",
        "delphi's `LatentDataset`, to explain and score features",
        ("run", "layers", "model"),
    ),
}
"""Maps the name of each format to its description."""


def formats_of(contents: Contents) -> list[str]:
    """Returns the names of the formats that hold dictionaries, graphs or features."""
    return [name for name, each in EXPORT_FORMATS.items() if each.contents == contents]


def check_options(format_name: str, given: set[str]) -> None:
    """Raise ValueError if the format does not take one of the options in `given`, which would have no effect."""
    options = EXPORT_FORMATS[format_name].options
    if others := sorted(given - set(options)):
        known = ", ".join(map(option_flag, options))
        raise ValueError(
            f"{format_name} takes no {option_flag(others[0])}; remove it, or choose from {known}"
        )


def option_flag(name: str) -> str:
    """Returns an option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _is_dictionary_format(name: str) -> str:
    if name not in formats_of("dictionaries"):
        raise ValueError(f"there is no format {name}; choose from {', '.join(formats_of('dictionaries'))}")
    return name


DictionaryFormat = Annotated[
    str,
    AfterValidator(_is_dictionary_format),
    WithJsonSchema({"type": "string", "enum": formats_of("dictionaries")}),
]
"""Name of a format of dictionaries."""
