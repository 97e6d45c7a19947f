"""Prompts of a case study: templates filled with words, as tokens. What every case study reads: the model, its
tokenizer, the dictionaries of its runs."""

import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..attribution.tracer import Tracer
from ..config.cases.base import Slots, slots_of
from ..corpus.tokenizer import Tokenizer, load_tokenizer
from ..dictionaries.dictionary import Dictionary, load_dictionary
from ..language_model.model import LanguageModel, load

FINDING, TESTING = "finding", "testing"
"""Halves of the prompts: what is chosen is chosen on the first, and claimed of the second."""


def fill(templates: Sequence[str], slots: Slots, count: int, seed: int) -> list[tuple[str, ...]]:
    """Up to `count` fillings of templates that belong together, the same words in all; each filling once.

    A slot whose name is another's with `_2` behind it never has that one's word. Drawn with `seed`, all where there
    are no more than `count`.
    """
    names = [name for name in slots if any(name in slots_of(template) for template in templates)]
    choices = [slots[name] for name in names]
    total = 1
    for words in choices:
        total *= len(words)
    if total <= 10_000:
        drawn = list(itertools.product(*choices))
        random.Random(seed).shuffle(drawn)
    else:
        generator = random.Random(seed)
        draws = (tuple(generator.choice(words) for words in choices) for _ in range(20 * count))
        drawn = list(dict.fromkeys(draws))
    filled = []
    for words in drawn:
        values = dict(zip(names, words, strict=True))
        if any(values[name] == values.get(f"{name}_2") for name in names):
            continue
        texts = tuple(_fill(template, values) for template in templates)
        filled += [] if texts in filled else [texts]
        if len(filled) == count:
            break
    return filled


def _fill(template: str, values: dict[str, str]) -> str:
    return re.sub(r"\{([a-z_0-9]+)\}", lambda found: values.get(found[1], found[0]), template)


@dataclass(frozen=True)
class CaseContext:
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


def open_context(
    model: str, tokenizer: str, folders: Iterable[str], runs: Sequence[str], context: int, dtype: str
) -> CaseContext:
    """Load what a case study reads; `folders` are those of dictionaries, RUN/layerL, of the runs named.

    Raises ValueError, naming the file, where one is missing or damaged.
    """
    loaded = load(model, dtype)
    found: dict[str, dict[int, Dictionary]] = {run: {} for run in runs}
    for folder in map(Path, folders):
        dictionary = load_dictionary(folder, loaded.device)
        found[folder.parent.name][dictionary.layer] = dictionary
    return CaseContext(loaded, load_tokenizer(tokenizer), found, context)
