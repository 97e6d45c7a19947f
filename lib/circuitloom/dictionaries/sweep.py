"""A sweep at one layer: from the cached activations to a folder for each run."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..activations.batches import read_sites
from ..activations.store import Activations, open_activations
from ..config.dictionaries import Run
from ..language_model.model import LanguageModel
from ..partial import discard, fingerprint, move, partial_folder
from ..tables import HISTORY, write_table
from .dictionary import save_dictionary
from .paper import PaperCoordinates, transcoder_coordinates
from .train import Read, train
from .trainee import Trainee


def train_sweep(
    runs: list[Run],
    layer: int,
    activations: Path,
    model: LanguageModel,
    outputs: list[Path],
    version: str = "",
) -> None:
    """Train `runs` on `layer` and write each one's dictionary and history into its folder of `outputs`.

    `version` is whatever else the result depends on, such as a hash of the code: another's work is not continued.

    Raises ValueError where activations are missing or damaged, ArithmeticError where a run diverges.
    """
    sites = sorted({site for run in runs for site in (run.site_in, run.site_out)})
    sources = {site: open_activations(activations, site, layer, model) for site in sites}
    device = model.device
    sample = _sample(sources, max(run.width for run in runs), device)
    trainees = []
    for run in runs:
        moments = sources[run.site_in].moments, sources[run.site_out].moments
        pair = sample[run.site_in], sample[run.site_out]
        trainees.append(Trainee(run, layer, *moments, pair, _paper(run, layer, model)))
    mark = fingerprint(
        runs=[run.model_dump(mode="json") for run in runs],
        activations={
            site: {
                "stored": [str(source.stored.folder), source.stored.order, source.stored.number_format],
                "moments": source.moments.to_json(),
            }
            for site, source in sources.items()
        },
        device=device.type,
        version=version,
    )
    # named after the first run, whose name is no other sweep's
    with partial_folder(outputs[0].parent / f".{outputs[0].name}", mark) as partial:
        history = train(trainees, _reader(sources, runs[0].batch, device), partial)
        for trainee, output in zip(trainees, outputs, strict=True):
            ready = partial / trainee.run.name
            save_dictionary(trainee.dictionary(), ready, trainee.run.model_dump(mode="json"))
            write_table(HISTORY, history[trainee.run.name], ready / "history.parquet")
            move(ready, output)
        discard(partial)


def _sample(sources: Mapping[str, Activations], rows: int, device: torch.device) -> dict[str, Tensor]:
    """The first rows of each site, which are tokens of all documents: as many as there are features, or all."""
    few = min(rows, *(source.rows for source in sources.values()))
    return next(iter(read_sites(sources, few, 1, device=device)))


def _reader(sources: Mapping[str, Activations], batch: int, device: torch.device) -> Read:
    return lambda start, stop: read_sites(sources, batch, stop, start, device=device)


def _paper(run: Run, layer: int, model: LanguageModel) -> PaperCoordinates | None:
    if run.loss != "paper":
        return None
    if run.kind == "sae":
        return PaperCoordinates(None, centred=False)
    return transcoder_coordinates(model, layer)
