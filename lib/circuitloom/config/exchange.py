"""Config of the exchange: which runs are exported, and in which formats of other libraries."""

from collections.abc import Sequence

from .base import Section
from .dictionaries import Run
from .export_formats import DictionaryFormat


class Exchange(Section):
    """Export of dictionaries for other libraries, each with a card, to results/STUDY/exchange/RUN/FORMAT/. Nothing is
    exported unless `formats` is set."""

    formats: list[DictionaryFormat] = []
    """Formats. `circuit-tracer`: transcoders of all layers from 0, and cross-layer
    transcoders without skip, but not topk. `saelens`: all but topk transcoders and SAEs with a
    skip. `sparsify`: topk."""
    runs: list[str] | None = None
    """Names of the exported runs. With null, every run is exported."""
    license: str | None = None
    """Licence on the card, as the hub's identifier, such as `mit`. With null, the card says that it is unknown, and
    `circuitloom push` refuses the folder."""
    model: str | None = None
    """Name of the language model in the files. With null, it is the model's name on the hub, or else that of its
    folder, or else that of the study."""


def refusal(format_name: str, run: Run, layers: Sequence[int]) -> str | None:
    """Returns why a format cannot represent a run, with the remedy, or None if it can as far as the config says."""
    if run.is_cross_layer:
        return _cross_layer_refusal(format_name, run)
    return _refusal(format_name, run, layers)


def _refusal(format_name: str, run: Run, layers: Sequence[int]) -> str | None:
    topk, sae = run.act == "topk", run.kind == "sae"
    if format_name == "circuit-tracer":
        if sae:
            return f"circuit-tracer has transcoders only, and {run.name} has SAEs; name other runs"
        missing = sorted(set(range(max(layers) + 1)) - set(layers))
        if missing:
            return f"circuit-tracer needs every layer from 0; add layer {missing[0]} to activations.layers"
    if format_name == "saelens" and topk and not sae:
        return f"SAELens has no topk transcoder, and {run.name} is one; name other runs, or use sparsify"
    if format_name == "saelens" and sae and run.skip:
        return f"SAELens has no SAE with a skip, and {run.name} is one; name other runs"
    if format_name == "sparsify" and not topk:
        return f"sparsify has topk only, and {run.name} is {run.act}; name other runs"
    return None


def _cross_layer_refusal(format_name: str, run: Run) -> str | None:
    name = f"{run.name} is a cross-layer transcoder"
    if format_name != "circuit-tracer":
        return f"{format_name} has no cross-layer transcoders, and {name}; name other runs, or use circuit-tracer"
    if run.act != "topk" and not run.skip:
        return None
    what = "of topk" if run.act == "topk" else "with skip"
    return (
        f"circuit-tracer's cross-layer transcoders have relu or thresholds and no skip, and {name} {what}; name other "
        "runs"
    )
