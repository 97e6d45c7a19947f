"""Inputs of every case study: model, tokenizer, dictionaries, and prompts filled from templates."""

import itertools
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..attribution.tracer import Tracer
from ..config.cases.base import Slots, slots_of
from ..corpus.tokenizer import Tokenizer, load_tokenizer
from ..dictionaries.cross_layer import LayerDictionary, load_layers
from ..language_model.model import LanguageModel, load_model

FINDING, TESTING = "finding", "testing"
"""Halves of the prompts. Circuits are chosen on the finding half. Claims are measured on the testing half."""
MAX_LISTED = 10_000
"""Maximum number of word combinations to list and shuffle. If there are more, combinations are drawn at random."""


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


def fill_templates(templates: Sequence[str], slots: Slots, count: int, seed: int) -> list[tuple[str, ...]]:
    """Returns up to `count` distinct fillings of a group of templates. A filling uses the same words in all templates.
    The slots `NAME` and `NAME_2` get different words."""
    names = [name for name in slots if any(name in slots_of(template) for template in templates)]
    choices = [slots[name] for name in names]
    if math.prod(map(len, choices)) <= MAX_LISTED:
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
    return re.sub(r"\{([a-z_0-9]+)\}", lambda match: values.get(match[1], match[0]), template)
