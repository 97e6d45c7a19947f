"""Inputs of every case study: model, tokenizer and dictionaries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..attribution.tracer import Tracer
from ..corpus.tokenizer import Tokenizer, load_tokenizer
from ..dictionaries.cross_layer import LayerDictionary, load_layers
from ..language_model.model import LanguageModel, load_model


@dataclass(frozen=True)
class CaseContext:
    """Model, tokenizer and dictionaries of a case study."""

    model: LanguageModel
    tokenizer: Tokenizer
    runs: Mapping[str, Mapping[int, LayerDictionary]]
    """Dictionaries by run and layer. The first run has the transcoders, or the cross-layer transcoder, under study."""
    context_length: int
    """Maximum number of tokens per prompt."""

    @property
    def run(self) -> str:
        """Run of the transcoders under study."""
        return next(iter(self.runs))

    @property
    def transcoders(self) -> Mapping[int, LayerDictionary]:
        """Transcoders under study, by layer."""
        return self.runs[self.run]

    def tracer(self) -> Tracer:
        """Returns a tracer with the transcoders under study."""
        return Tracer(self.model, self.tokenizer, self.run, self.transcoders, self.context_length)


def open_context(
    model: str, tokenizer: str, folders: Iterable[str], runs: Sequence[str], context_length: int, dtype: str
) -> CaseContext:
    """Load model, tokenizer and dictionaries in `dtype`. `folders` has one folder RUN/layerL per dictionary. Raises
    ValueError if a file is missing or damaged."""
    loaded = load_model(model, dtype)
    of_run: dict[str, list[Path]] = {run: [] for run in runs}
    for folder in map(Path, folders):
        of_run[folder.parent.name].append(folder)
    dictionaries = {run: load_layers(own, loaded.device, dtype) for run, own in of_run.items()}
    return CaseContext(loaded, load_tokenizer(tokenizer), dictionaries, context_length)
