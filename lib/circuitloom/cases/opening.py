"""What every case study reads: the model, its tokenizer, the dictionaries of its runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..circuits.study import Tracer
from ..corpus.tokenizer import Tokenizer, load_tokenizer
from ..dictionaries.dictionary import Dictionary, load_dictionary
from ..language_model.model import LanguageModel, load


@dataclass(frozen=True)
class Opened:
    """A model and what case studies go through."""

    model: LanguageModel
    tokenizer: Tokenizer
    runs: Mapping[str, Mapping[int, Dictionary]]
    """Run to layer to dictionary; the transcoders that the case goes through come first."""
    context: int
    """Tokens of the longest prompt."""

    @property
    def run(self) -> str:
        """The transcoders that the case goes through."""
        return next(iter(self.runs))

    @property
    def transcoders(self) -> Mapping[int, Dictionary]:
        """Their dictionaries, by layer."""
        return self.runs[self.run]

    def tracer(self) -> Tracer:
        """What traces prompts through them."""
        return Tracer(self.model, self.tokenizer, self.run, self.transcoders, self.context)


def open_case(
    model: str, tokenizer: str, folders: Iterable[str], runs: Sequence[str], context: int, dtype: str
) -> Opened:
    """Load what a case study reads; `folders` are those of dictionaries, RUN/layerL, of the runs named.

    Raises ValueError, naming the file, where one is missing or damaged.
    """
    loaded = load(model, dtype)
    found: dict[str, dict[int, Dictionary]] = {run: {} for run in runs}
    for folder in map(Path, folders):
        dictionary = load_dictionary(folder, loaded.device)
        found[folder.parent.name][dictionary.layer] = dictionary
    return Opened(loaded, load_tokenizer(tokenizer), found, context)
