"""Config of the exchange: which runs are exported, and in which formats of other libraries."""

from collections.abc import Sequence

from .base import Section
from .dictionaries import Run
from .export_formats import DictionaryFormat


class Exchange(Section):
    """Export of dictionaries for other libraries, each with a card, to results/STUDY/exchange/RUN/FORMAT/. Nothing is
    exported unless `formats` is set."""

    formats: list[DictionaryFormat] = []
    """Formats. `circuit-tracer`: transcoders of all layers from 0. `saelens`: all but topk transcoders and SAEs with a
    skip. `sparsify`: topk."""
    runs: list[str] | None = None
    """Names of the exported runs. With null, every run is exported, except cross-layer transcoders."""
    license: str | None = None
    """Licence on the card, as the hub's identifier, such as `mit`. With null, the card says that it is unknown, and
    `circuitloom push` refuses the folder."""
    model: str | None = None
    """Name of the language model in the files. With null, it is the model's name on the hub, or else that of its
    folder, or else that of the study."""


def refusal(format_name: str, run: Run, layers: Sequence[int]) -> str | None:
    """Returns why a format cannot represent a run, with the remedy, or None if it can as far as the config says."""
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
