"""Dictionary cards: README.md of an exported folder, as a repository of the Hugging Face hub shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config.dictionaries import FILE_KEYS, IMPORT_KEYS
from ..core.atomic_io import write_atomically
from ..core.formatting import format_value
from ..core.layout import ALL_LAYERS, Layout
from ..core.tables.table import read_table
from ..dictionaries.cross_layer import CrossLayerDictionary, LayerDictionary
from .exporters import Exporter
from .push import UNKNOWN
from .record import CARD
from .stored_run import ExportedModel, StoredRun


def write_card(
    folder: Path,
    format_name: str,
    exporter: Exporter,
    run: StoredRun,
    model: ExportedModel,
    license: str | None,
    hashes: Mapping[str, str],
) -> None:
    """Write the card of an export: front matter, how to load it, scores, training config and the files' SHA-256.

    Scores are those of the study's evaluation, if it has run. `hashes` maps the path of each file to its SHA-256.
    """
    first = run[min(run)]
    is_cross_layer = isinstance(first, CrossLayerDictionary)
    kind = "cross-layer transcoder" if is_cross_layer else "SAEs" if first.is_sae else "transcoders"
    count = f"A cross-layer transcoder of {len(run)} layers" if is_cross_layer else f"{len(run)} {kind}"
    front = _front_matter(exporter, model, first, license)
    sites = f"`{first.site_in}`" if first.is_sae else f"`{first.site_in}` to `{first.site_out}`"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {run.name}: {kind} of {model.name}",
        f"{count} ({sites}), {first.width:,} features {'per layer' if is_cross_layer else 'each'}, {_activation(first)}"
        f"{', with a linear skip connection' if first.W_skip is not None else ''}. "
        f"{'Imported' if run.is_imported else 'Trained'} by circuitloom in the study "
        f"`{run.results.resolve().name}`, and written in the format `{format_name}`.",
        f"## Load\n\n```python\n{exporter.usage(first, len(run), model)}\n```",
    ]
    if text := exporter.notice(first):
        parts.append(f"Note: {text}.")
    parts.append(_scores(run))
    parts.append(_origin(run))
    rows = [f"| `{name}` | `{digest}` |" for name, digest in hashes.items()]
    parts.append("\n".join(["## Files\n", "| file | SHA-256 |", "|---|---|", *rows]))
    write_atomically(folder / CARD, ("\n\n".join(parts) + "\n").encode())


def _front_matter(
    exporter: Exporter, model: ExportedModel, first: LayerDictionary, license: str | None
) -> dict[str, Any]:
    tags = ["sparse-autoencoder" if first.is_sae else "transcoder", "mechanistic-interpretability"]
    front: dict[str, Any] = {"license": license or UNKNOWN, "library_name": exporter.library, "tags": tags}
    # the hub refuses a base model that is not on the hub
    return front | ({} if model.hub_name is None else {"base_model": model.hub_name})


def _activation(first: LayerDictionary) -> str:
    if first.act == "topk":
        return f"the {first.k} largest pre-activations (topk), after a ReLU"
    return "ReLU" if first.act == "relu" else "a threshold per feature (JumpReLU)"


def _origin(run: StoredRun) -> str:
    """Returns the section with the run's config, and for an imported run the file of each layer."""
    config = run.config
    other = {key for key in config if key not in IMPORT_KEYS} if run.is_imported else set(FILE_KEYS)
    # a threshold of the import's test, which says nothing about the weights
    other.add("largest_fvu")
    other |= {"reads"} if config.get("kind") == "sae" else set()
    other |= {"k"} if config.get("act") in ("relu", "jumprelu") else set()
    shown = {
        key: value for key, value in config.items() if key not in other and value is not None and value != ""
    }
    text = f"```yaml\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}```"
    if not run.is_imported:
        return f"## Training\n\n{text}"
    rows = [f"| {layer} | `{source}` |" for layer in run if (source := run.source(layer))]
    files = "\n".join(["| layer | file |", "|---|---|", *rows])
    return f"## Imported from\n\n{text}" + (f"\n\n{files}" if rows else "")


def _scores(run: StoredRun) -> str:
    """Returns the section with the scores of each layer, and of all layers replaced at once."""
    rows = []
    for layer in (*run, ALL_LAYERS):
        file = Layout(run.results).run_evaluation(run.name, layer, "metric")
        for row in read_table(file).to_pylist() if file.is_file() else []:
            name = "all, replaced at once" if layer == ALL_LAYERS else str(layer)
            dead = None if row["alive"] is None else 1 - row["alive"]
            values = (row["fvu"], row["ce_recovered_zero"], row["delta_ce"], row["l0"], dead, row["n_tokens"])
            rows.append(f"| {name} | {' | '.join(map(format_value, values))} |")
    if not rows:
        return "## Scores\n\nNot scored: the evaluation of the study has not run."
    return "\n".join(
        [
            "## Scores\n",
            "On held-out tokens of the study's text. FVU: fraction of variance unexplained. CE recovered: (CE with the",
            "site zero-ablated - CE with the reconstruction) / (CE zero-ablated - CE of the model). Dead: fraction of",
            "features that do not fire on these tokens.\n",
            "| layer | FVU | CE recovered | ΔCE (nats per token) | L0 | dead | tokens |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
