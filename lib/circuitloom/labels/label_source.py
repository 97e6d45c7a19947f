"""What a language model sees of the features of one run and layer: examples, promoted tokens, texts around tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int

from ..core.progress import announce
from ..core.tables import read_table
from ..corpus.token_arrays import TokenArrays
from .answers import STAGE
from .contexts import HeldOutText, read_held_out, spread
from .prompts import MarkedText


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
    strings: Sequence[str]
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
    def text(self) -> HeldOutText:
        """The held-out text."""
        return read_held_out(self.tokens, self.sequences)

    @cached_property
    def alive(self) -> Int[np.ndarray, " feature"]:
        """Features that fire, in ascending order."""
        rows = read_table(self.tables["feature"], columns=("feature", "alive"))
        feature = rows["feature"].to_numpy()
        return np.sort(feature[rows["alive"].to_numpy(zero_copy_only=False)])

    @cached_property
    def width(self) -> int:
        """Number of features."""
        return len(read_table(self.tables["feature"], columns=("feature",)))

    def choose(self, wanted: int | Sequence[int]) -> list[int]:
        """Returns the features to label. Raises ValueError if a listed feature does not exist.

        Listed features that never fire are left out, with a notice.
        """
        if isinstance(wanted, int):
            places = np.linspace(0, len(self.alive) - 1, min(wanted, len(self.alive))).round().astype(int)
            return self.alive[places].tolist()
        if largest := [each for each in wanted if each >= self.width]:
            raise ValueError(
                f"labels.model.features: {self.where} has no feature {largest[0]}; choose from 0 to {self.width - 1}"
            )
        dead = sorted(set(wanted) - set(self.alive.tolist()))
        if dead:
            announce(STAGE, f"{self.where}: never fires, and gets no label: {', '.join(map(str, dead))}")
        return [each for each in wanted if each not in dead]

    def examples(self, features: Sequence[int], n: int) -> dict[int, list[MarkedText]]:
        """Returns up to `n` examples of each feature from the learning documents, the strongest first.

        They are spread over the bands of the table `example`, evenly within a band.
        """
        wanted = pc.field("feature").isin(list(features))
        found: dict[int, dict[int, list[dict[str, Any]]]] = {feature: {} for feature in features}
        for row in read_table(self.tables["example"], wanted).to_pylist():
            if self.text.learning[row["sequence"] * self.text.context + row["position"]]:
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

    def marked(self, index: Int[np.ndarray, " judged"]) -> list[MarkedText]:
        """Returns the texts around tokens, each with this token marked."""
        context, text = self.text.context, self.text
        sequence, position = np.divmod(index, context)
        rows, row = np.unique(sequence, return_inverse=True)
        token = self.tokens.read(self.tokens.token, rows)
        found = []
        for own, first, place in zip(
            row.tolist(), (sequence * context).tolist(), position.tolist(), strict=True
        ):
            window = np.arange(max(0, place - self.before), min(context, place + self.after + 1))
            inside = text.scored[first + window] & (
                text.document[first + window] == text.document[first + place]
            )
            kept = window[inside]
            found.append(MarkedText([self.strings[i] for i in token[own, kept]], (kept == place).tolist()))
        return found


def _spread_examples(bands: list[list[dict[str, Any]]], n: int) -> list[MarkedText]:
    """Returns up to `n` of the examples of some bands, without repetition."""
    shares = spread([len(band) for band in bands], n)
    rows = [
        band[place]
        for band, share in zip(bands, shares, strict=True)
        for place in np.linspace(0, len(band) - 1, share).round().astype(int).tolist()
    ]
    # the largest activations are also in the highest band
    distinct = {(row["sequence"], row["position"]): row for row in rows}.values()
    largest = max((row["activation"] for row in distinct), default=1.0)
    ordered = sorted(distinct, key=lambda row: -row["activation"])
    return [
        MarkedText(
            row["tokens"],
            [value > 0 for value in row["activations"]],
            max(1, round(10 * row["activation"] / largest)),
        )
        for row in ordered
    ]
