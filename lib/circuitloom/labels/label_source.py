"""What a language model sees of the features of one run and layer: examples, promoted tokens, texts around tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int

from ..config.features import Features
from ..core.progress import announce
from ..core.tables import read_table
from ..corpus.token_arrays import TokenArrays, count_sequences, scored_positions
from ..corpus.token_names import token_name
from ..corpus.tokenizer import load_tokenizer
from .answers import STAGE
from .contexts import spread
from .prompts import MarkedText
from .text import LabelText, read_text

PROMOTED = 8
"""Number of tokens with raised logits that the model sees, and that a feature is said to promote."""


@dataclass(frozen=True)
class LabelSource:
    """What labels of the features of one run and layer are made from."""

    run: str
    layer: int
    tables: Mapping[str, Path]
    """Files of the tables activation, example, feature and logit."""
    tokens: TokenArrays
    sequences: int
    """Number of held-out sequences that the tables describe."""
    strings: list[str]
    """Text of each token id."""
    spacing: str
    """Text between two tokens: one space if tokens are words, else none."""
    before: int
    """Number of tokens that the model sees before a token that it judges."""
    after: int
    """The same after it."""
    bands: int
    """Number of bands of activation."""

    @property
    def where(self) -> str:
        """The run and the layer, for messages."""
        return f"{self.run} layer {self.layer}"

    @cached_property
    def text(self) -> LabelText:
        """The held-out text in two halves."""
        return read_text(self.tokens, self.sequences, self.strings)

    @cached_property
    def width(self) -> int:
        """Number of features."""
        return len(self._alive)

    @cached_property
    def _alive(self) -> np.ndarray:
        rows = read_table(self.tables["feature"], columns=("feature", "alive")).sort_by("feature")
        return rows["alive"].to_numpy()

    def choose(self, wanted: int | Sequence[int]) -> list[int]:
        """Returns the features to label, in ascending order. Raises ValueError if a listed feature does not exist.

        Listed features that never fire are left out, with a notice.
        """
        alive = np.flatnonzero(self._alive)
        if isinstance(wanted, int):
            places = np.linspace(0, len(alive) - 1, min(wanted, len(alive))).round().astype(int)
            return alive[places].tolist()
        if largest := [each for each in wanted if each >= self.width]:
            raise ValueError(
                f"labels.model.features: {self.where} has no feature {largest[0]}; choose from 0 to {self.width - 1}"
            )
        dead = sorted(set(wanted) - set(alive.tolist()))
        if dead:
            announce(STAGE, f"{self.where}: never fires, and gets no label: {', '.join(map(str, dead))}")
        return sorted(set(wanted) - set(dead))

    def examples(self, features: Sequence[int], n: int) -> dict[int, list[MarkedText]]:
        """Returns up to `n` examples of each feature from the learning documents, the strongest first.

        They are spread over the bands of the table `example`, evenly within a band.
        """
        wanted = pc.field("feature").isin(list(features))
        rows = read_table(self.tables["example"], wanted).to_pylist()
        index = [row["sequence"] * self.tokens.context + row["position"] for row in rows]
        found: dict[int, dict[int, list[dict[str, Any]]]] = {feature: {} for feature in features}
        for row, learning in zip(rows, np.isin(index, self.text.learning.index).tolist(), strict=True):
            if learning:
                found[row["feature"]].setdefault(row["band"], []).append(row)
        return {feature: _spread_examples(list(bands.values()), n) for feature, bands in found.items()}

    def promoted(self, features: Sequence[int], n: int) -> dict[int, list[tuple[int, str]]]:
        """Returns the ids and texts of up to `n` tokens whose logits each feature raises most."""
        rows = read_table(
            self.tables["logit"], pc.field("feature").isin(list(features)) & (pc.field("sign") == 1)
        ).to_pylist()
        found: dict[int, list[tuple[int, str]]] = {feature: [] for feature in features}
        for row in sorted(rows, key=lambda row: (row["feature"], row["rank"])):
            if row["rank"] < n:
                found[row["feature"]].append((row["token_id"], row["token"]))
        return found

    def marked(self, position: Int[np.ndarray, " judged"]) -> list[MarkedText]:
        """Returns the texts around positions of the scoring half, each with this token marked."""
        context, tokens = self.tokens.context, self.tokens
        sequence, place = np.divmod(self.text.scoring.index[position], context)
        rows, row = np.unique(sequence, return_inverse=True)
        token, document = tokens.read(tokens.token, rows), tokens.read(tokens.document, rows)
        scored = scored_positions(token, tokens.separator_id)
        found = []
        for own, at in zip(row.tolist(), place.tolist(), strict=True):
            window = np.arange(max(0, at - self.before), min(context, at + self.after + 1))
            kept = window[scored[own, window] & (document[own, window] == document[own, at])]
            texts = [token_name(self.strings, number) for number in token[own, kept].tolist()]
            found.append(MarkedText(texts, (kept == at).tolist()))
        return found


def open_label_source(
    run: str, layer: int, files: Iterable[Path | str], tokens: TokenArrays, tokenizer: str, config: Features
) -> LabelSource:
    """Returns the source for labels of a run and layer. `files` are its feature tables, and `tokenizer` is a folder.

    Raises ValueError if the tokenizer is damaged.
    """
    loaded = load_tokenizer(tokenizer)
    return LabelSource(
        run=run,
        layer=layer,
        tables={Path(file).stem: Path(file) for file in files},
        tokens=tokens,
        sequences=count_sequences(tokens, config.tokens),
        strings=loaded.strings(),
        spacing=" " if loaded.separate_words else "",
        before=config.before,
        after=config.after,
        bands=max(1, config.bands),
    )


def _spread_examples(bands: list[list[dict[str, Any]]], n: int) -> list[MarkedText]:
    """Returns up to `n` of the examples of some bands, without repetition."""
    rows = [
        band[place]
        for band, share in zip(bands, spread([len(band) for band in bands], n), strict=True)
        for place in np.linspace(0, len(band) - 1, share).round().astype(int).tolist()
    ]
    # the largest activations are also in the highest band
    distinct = {(row["sequence"], row["position"]): row for row in rows}.values()
    largest = max((row["activation"] for row in distinct), default=1.0)
    return [
        MarkedText(
            row["tokens"],
            [value > 0 for value in row["activations"]],
            max(1, round(10 * row["activation"] / largest)),
        )
        for row in sorted(distinct, key=lambda row: -row["activation"])
    ]
