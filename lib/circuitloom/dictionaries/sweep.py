"""A sweep at one layer: from the cached activations to a folder for each run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from .reduction import ALONE, Reduction
from .train import Read, train
from .trainee import Trainee


def train_sweep(
    runs: list[Run],
    layer: int,
    activations: Path,
    model: LanguageModel,
    outputs: list[Path],
    version: str = "",
    reduction: Reduction = ALONE,
) -> None:
    """Train `runs` on `layer` and write each one's dictionary and history into its folder of `outputs`.

    `version` is whatever else the result depends on, such as a hash of the code: another's work is not continued.
    Where several processes train together, each calls this with its `reduction`, and the first one writes.

    Raises ValueError where activations are missing or damaged, ArithmeticError where a run diverges.
    """
    sites = sorted({site for run in runs for site in (run.site_in, run.site_out)})
    sources = {site: open_activations(activations, site, layer, model) for site in sites}
    trainees = _trainees(runs, layer, sources, model, reduction)
    mark = fingerprint(
        runs=[run.model_dump(mode="json") for run in runs],
        activations={
            site: {
                "stored": [str(source.stored.folder), source.stored.order, source.stored.number_format],
                "moments": source.moments.to_json(),
            }
            for site, source in sources.items()
        },
        device=model.device.type,
        version=version,
    )
    # named after the first run, whose name is no other sweep's
    with _partial(outputs[0].parent / f".{outputs[0].name}", mark, reduction) as partial:
        read = _reader(sources, runs[0].batch, model.device, reduction)
        history = train(trainees, read, partial)
        for trainee, output in zip(trainees, outputs, strict=True):
            dictionary = trainee.dictionary()
            if reduction.rank > 0:
                continue
            ready = partial / trainee.run.name
            save_dictionary(dictionary, ready, trainee.run.model_dump(mode="json"))
            write_table(HISTORY, history[trainee.run.name], ready / "history.parquet")
            move(ready, output)
        if reduction.rank == 0:
            discard(partial)


@contextmanager
def _partial(output: Path, mark: str, reduction: Reduction) -> Iterator[Path]:
    """The partial folder of all processes, held by the first."""
    if reduction.rank > 0:
        yield Path(reduction.first(""))
        return
    with partial_folder(output, mark) as folder:
        yield Path(reduction.first(str(folder)))


def _trainees(
    runs: list[Run],
    layer: int,
    sources: Mapping[str, Activations],
    model: LanguageModel,
    reduction: Reduction,
) -> list[Trainee]:
    sample = _sample(sources, max(run.width for run in runs), runs[0].batch, model.device)
    trainees = []
    for run in runs:
        moments = sources[run.site_in].moments, sources[run.site_out].moments
        pair = sample[run.site_in], sample[run.site_out]
        paper = _paper(run, layer, model)
        trainees.append(Trainee(run, layer, *moments, pair, paper, reduction, model.device))
    return trainees


def _sample(
    sources: Mapping[str, Activations], rows: int, batch: int, device: torch.device
) -> dict[str, Tensor]:
    """The first rows of each site, which are tokens of all documents: as many as there are features, or all.

    On the CPU: a GPU may have no room for those of all features.
    """
    few = min(rows, *(source.rows for source in sources.values()))
    batches = read_sites(sources, batch, -(-few // batch), device=device)
    pieces = [{site: x.cpu() for site, x in each.items()} for each in batches]
    return {site: torch.cat([piece[site] for piece in pieces])[:few] for site in sources}


def _reader(
    sources: Mapping[str, Activations], batch: int, device: torch.device, reduction: Reduction
) -> Read:
    share = reduction.share(batch)
    return lambda start, stop: read_sites(sources, batch, stop, start, share=share, device=device)


def _paper(run: Run, layer: int, model: LanguageModel) -> PaperCoordinates | None:
    if run.loss != "paper":
        return None
    if run.kind == "sae":
        return PaperCoordinates(None, centred=False)
    return transcoder_coordinates(model, layer)
