"""The tokens around an example: within its sequence, and within its document. Which activations of a feature are
shown: the largest, and samples of every band of its range.

Both are chosen from the sorted activations without sorting them by value: the histogram says from which bin up the
k largest are to be found, and which places in a band are evenly spaced over the text. Examples of a feature as
HTML, for notebooks: tokens shaded by what the feature is on each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from ..config.features import Features
from ..core.plotting import BLUE
from ..corpus.tokens import Tokens
from .external_sort import Chunk, Piece, stable_order
from .statistics import bins_of, counts


@dataclass(frozen=True)
class Windows:
    """Tokens around some positions."""

    inside: Bool[np.ndarray, "example window"]
    """Whether each place, from `before` tokens before to `after` after, is in the same sequence and document."""
    token: Int[np.ndarray, " inside"]
    """Token ids of those that are, example after example."""
    start: Int[np.ndarray, " example"]
    """Position, in its sequence, of the first."""


def windows(tokens: Tokens, flat: Int[np.ndarray, " example"], before: int, after: int) -> Windows:
    """The windows around positions of the flattened token array; reads no sequence but those.

    Raises ValueError where the tokens are damaged.
    """
    context = tokens.context
    sequence, position = np.divmod(flat, context)
    rows, row = np.unique(sequence, return_inverse=True)
    token, document = tokens.take(rows).numpy(), tokens.take_document(rows).numpy()
    place = position[:, None] + np.arange(-before, after + 1)
    inside = (place >= 0) & (place < context)
    place = place.clip(0, context - 1)
    inside &= document[row[:, None], place] == document[row, position][:, None]
    ids = token[row[:, None], place][inside]
    return Windows(inside, ids, place[np.arange(len(flat)), inside.argmax(1)])


@dataclass(frozen=True)
class Examples:
    """Activations chosen, by feature, band and rank."""

    feature: Int[np.ndarray, " example"]
    """Number of the feature, from 0 for the first of the chunk."""
    band: Int[np.ndarray, " example"]
    """0: the largest; 1, 2, ...: bands of equal width, upwards."""
    token: Int[np.ndarray, " example"]
    """Position in the flattened token array."""
    value: Float32[np.ndarray, " example"]
    around: Float32[np.ndarray, "example window"]
    """The feature's activations from `before` tokens before to `after` tokens after."""

    def take(self, which: np.ndarray) -> "Examples":
        """Some of the examples, in the order asked for."""
        return Examples(*(column[which] for column in vars(self).values()))

    @property
    def rank(self) -> Int[np.ndarray, " example"]:
        """Place of each example in its band, from 0."""
        return _rank(self.feature * (self.band.max(initial=0) + 1) + self.band)


def choose(
    chunk: Chunk,
    largest: Float32[np.ndarray, " feature"],
    histogram: Int[np.ndarray, "feature bin"],
    config: Features,
) -> tuple[Examples, Int[np.ndarray, "feature band"]]:
    """The examples of a chunk's features, and how many activations lie in each band."""
    in_band = (
        counts(chunk.pieces(), largest, config.bands)
        if config.bands
        else np.zeros((chunk.width, 0), np.int64)
    )
    # the lowest bin of which all entries, with those of the bins above, may be among the largest
    enough = histogram[:, ::-1].cumsum(1) >= np.minimum(config.examples, chunk.n)[:, None]
    lowest_bin = histogram.shape[1] - 1 - enough.argmax(1)
    found: list[Examples] = []
    seen = np.zeros_like(in_band).ravel()
    for piece in chunk.pieces():
        top = np.flatnonzero(bins_of(piece, largest, histogram.shape[1]) >= lowest_bin[piece.feature])
        found.append(_gather(piece, top, np.zeros_like(top), config))
        if config.bands:
            band = bins_of(piece, largest, config.bands)
            sampled = _sample(piece, band, in_band, seen, config.band_examples)
            found.append(_gather(piece, sampled, band[sampled] + 1, config))
    return _ranked(found, config.examples), in_band


def _sample(
    piece: Piece,
    band: Int[np.ndarray, " entry"],
    in_band: Int[np.ndarray, "feature band"],
    seen: Int[np.ndarray, " group"],
    wanted: int,
) -> Int[np.ndarray, " some"]:
    """Entries whose places among those of their feature and band are evenly spaced; all where they are few.

    `seen` counts those of earlier pieces, and is brought up to date.
    """
    group = piece.feature.astype(np.int64) * in_band.shape[1] + band
    order = stable_order(group, in_band.size)
    ordered = group[order]
    place = _rank(ordered) + seen[ordered]
    n = in_band.ravel()[ordered]
    middle = (2 * (place * wanted // np.maximum(n, 1)) + 1) * n // (2 * wanted)
    seen += np.bincount(group, minlength=in_band.size)
    return np.sort(order[(n <= wanted) | (place == middle)])


def _rank(group: Int[np.ndarray, " entry"]) -> Int[np.ndarray, " entry"]:
    """Place of each entry among those of its group, which stand together."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))


def _gather(
    piece: Piece, which: Int[np.ndarray, " some"], band: Int[np.ndarray, " some"], config: Features
) -> Examples:
    token, feature = piece.token[which], piece.feature[which]
    around = np.zeros((len(which), config.before + 1 + config.after), np.float32)
    # of sorted entries, those within some tokens of one lie within as many entries of it
    for step in range(-config.before, config.after + 1):
        near = np.clip(which + step, 0, len(piece.token) - 1)
        place = piece.token[near] - token + config.before
        row = np.flatnonzero((piece.feature[near] == feature) & (place >= 0) & (place < around.shape[1]))
        around[row, place[row]] = piece.value[near[row]]
    return Examples(feature, band, token, piece.value[which], around)


def _ranked(found: list[Examples], largest: int) -> Examples:
    """All examples by feature, band, falling activation and token; of band 0 the `largest` first of each feature."""
    joined = Examples(
        *(
            np.concatenate([getattr(part, name) for part in found])
            for name in ("feature", "band", "token", "value", "around")
        )
    )
    ordered = joined.take(np.lexsort((joined.token, -joined.value, joined.band, joined.feature)))
    return ordered.take(np.flatnonzero((ordered.band > 0) | (ordered.rank < largest)))


_SHADE = ", ".join(str(int(BLUE[i : i + 2], 16)) for i in (1, 3, 5))
_LINE = "font-family: monospace; line-height: 1.7; text-align: left"


def examples_html(examples: Iterable[Mapping[str, Any]], largest: float, spacing: str = "") -> str:
    """Rows of the table `example`, one below the other: the activation, then the tokens around it.

    A token is shaded by its share of `largest`, the example's own underlined; `spacing` stands between two. Tokens
    are escaped, whatever they hold.
    """
    lines = [
        f"<div><code>{row['activation']:8.2f}</code>&ensp;{_text(row, largest, spacing)}</div>"
        for row in examples
    ]
    return f'<div style="{_LINE}">{"".join(lines)}</div>'


def _text(row: Mapping[str, Any], largest: float, spacing: str) -> str:
    place = row["position"] - row["window_start"]
    pieces = []
    for i, (token, activation) in enumerate(zip(row["tokens"], row["activations"], strict=True)):
        text = escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in token))
        if activation > 0 and largest > 0:
            shade = 0.65 * min(1.0, activation / largest)
            style = f'style="background: rgba({_SHADE}, {shade:.2f})" title="{activation:.4g}"'
            text = f"<span {style}>{text}</span>"
        pieces.append(f"<u>{text}</u>" if i == place else text)
    return spacing.join(pieces)
