"""Chooses example tokens of each feature.

Some examples are the tokens with the largest activations. Other examples are sampled from bands. A band is an interval
of activation values. Activations are not sorted by value. Instead, a histogram gives the lowest bin that can contain
one of the k largest activations. The samples of a band are evenly spaced over the text. `examples_html` shows examples
in notebooks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from ..config.features import Features
from ..core.plotting import BLUE
from ..corpus.tokens import Tokens
from .external_sort import FeatureRange, SortedActivations, stable_order
from .statistics import bin_counts, bin_indices


@dataclass(frozen=True)
class Windows:
    """Windows of context tokens around examples."""

    inside: Bool[np.ndarray, "example window"]
    """True where a window position is in the same sequence and document as the example."""
    token: Int[np.ndarray, " inside"]
    """Token ids at the positions where `inside` is true, window by window."""
    start: Int[np.ndarray, " example"]
    """Position of the first token inside each window, counted from the start of the sequence."""


def windows(tokens: Tokens, flat: Int[np.ndarray, " example"], before: int, after: int) -> Windows:
    """Returns the windows around examples.

    A window has `before` positions before the example and `after` positions after the example. `flat` contains the
    index of each example in the flattened token array. Raises ValueError if the stored tokens are damaged.
    """
    context = tokens.context
    sequence, position = np.divmod(flat, context)
    rows, row = np.unique(sequence, return_inverse=True)
    token, document = tokens.take(rows).numpy(), tokens.take_document(rows).numpy()
    window = position[:, None] + np.arange(-before, after + 1)
    inside = (window >= 0) & (window < context)
    window = window.clip(0, context - 1)
    inside &= document[row[:, None], window] == document[row, position][:, None]
    ids = token[row[:, None], window][inside]
    return Windows(inside, ids, window[np.arange(len(flat)), inside.argmax(1)])


@dataclass(frozen=True)
class Examples:
    """Chosen examples, ordered by feature, band and rank."""

    feature: Int[np.ndarray, " example"]
    """Index of the feature within the feature range."""
    band: Int[np.ndarray, " example"]
    """Band 0 contains the largest activations. Bands 1, 2, ... are equal intervals from 0 to the largest activation."""
    token: Int[np.ndarray, " example"]
    """Index of each example in the flattened token array."""
    value: Float32[np.ndarray, " example"]
    around: Float32[np.ndarray, "example window"]
    """Activation of the example's feature at each window position."""

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at `indices`."""
        return Examples(*(column[indices] for column in vars(self).values()))

    @property
    def rank(self) -> Int[np.ndarray, " example"]:
        """Rank of each example within its feature and band, counted from 0."""
        return _rank(self.feature * (self.band.max(initial=0) + 1) + self.band)


def choose_examples(
    features: FeatureRange,
    largest: Float32[np.ndarray, " feature"],
    histogram: Int[np.ndarray, "feature bin"],
    config: Features,
) -> tuple[Examples, Int[np.ndarray, "feature band"]]:
    """Returns the examples of a feature range, and counts[feature, band].

    counts[feature, band] is the number of activations in the band. `largest` contains each feature's largest
    activation.
    """
    band_counts = (
        bin_counts(features.batches(), largest, config.bands)
        if config.bands
        else np.zeros((features.width, 0), np.int64)
    )
    # find the highest bin for which this bin and all higher bins together contain at least `examples` activations
    enough = histogram[:, ::-1].cumsum(1) >= np.minimum(config.examples, features.n)[:, None]
    lowest_bin = histogram.shape[1] - 1 - enough.argmax(1)
    found: list[Examples] = []
    seen = np.zeros_like(band_counts).ravel()
    for batch in features.batches():
        top = np.flatnonzero(bin_indices(batch, largest, histogram.shape[1]) >= lowest_bin[batch.feature])
        found.append(_examples(batch, top, np.zeros_like(top), config))
        if config.bands:
            band = bin_indices(batch, largest, config.bands)
            sampled = _sample(batch, band, band_counts, seen, config.band_examples)
            found.append(_examples(batch, sampled, band[sampled] + 1, config))
    return _ranked(found, config.examples), band_counts


def _sample(
    activations: SortedActivations,
    band: Int[np.ndarray, " entry"],
    band_counts: Int[np.ndarray, "feature band"],
    seen: Int[np.ndarray, " group"],
    wanted: int,
) -> Int[np.ndarray, " some"]:
    """Returns the indices of the sampled entries of this batch.

    In the complete text, `wanted` evenly spaced entries are sampled per feature and band. If a feature has fewer
    entries in a band, all entries are sampled. `seen` counts the entries of earlier batches per feature and band. This
    function adds the entries of this batch to `seen`.
    """
    group = activations.feature.astype(np.int64) * band_counts.shape[1] + band
    order = stable_order(group, band_counts.size)
    ordered = group[order]
    rank = _rank(ordered) + seen[ordered]
    n = band_counts.ravel()[ordered]
    middle = (2 * (rank * wanted // np.maximum(n, 1)) + 1) * n // (2 * wanted)
    seen += np.bincount(group, minlength=band_counts.size)
    return np.sort(order[(n <= wanted) | (rank == middle)])


def _rank(group: Int[np.ndarray, " entry"]) -> Int[np.ndarray, " entry"]:
    """Returns the rank of each entry within its group, counted from 0. The entries of a group must be contiguous."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))


def _examples(
    activations: SortedActivations,
    indices: Int[np.ndarray, " some"],
    band: Int[np.ndarray, " some"],
    config: Features,
) -> Examples:
    token, feature = activations.token[indices], activations.feature[indices]
    around = np.zeros((len(indices), config.before + 1 + config.after), np.float32)
    # a feature's entries are sorted by token, so two entries at most n tokens apart are at most n entries apart
    for step in range(-config.before, config.after + 1):
        near = np.clip(indices + step, 0, len(activations.token) - 1)
        column = activations.token[near] - token + config.before
        row = np.flatnonzero(
            (activations.feature[near] == feature) & (column >= 0) & (column < around.shape[1])
        )
        around[row, column[row]] = activations.value[near[row]]
    return Examples(feature, band, token, activations.value[indices], around)


def _ranked(found: list[Examples], largest: int) -> Examples:
    """Returns the examples, sorted by feature, band, activation (descending) and token.

    In band 0, only the first `largest` examples per feature are returned.
    """
    joined = Examples(
        *(
            np.concatenate([getattr(examples, name) for examples in found])
            for name in ("feature", "band", "token", "value", "around")
        )
    )
    ordered = joined.take(np.lexsort((joined.token, -joined.value, joined.band, joined.feature)))
    return ordered.take(np.flatnonzero((ordered.band > 0) | (ordered.rank < largest)))


_SHADE = ", ".join(str(int(BLUE[i : i + 2], 16)) for i in (1, 3, 5))
_LINE = "font-family: monospace; line-height: 1.7; text-align: left"


def examples_html(examples: Iterable[Mapping[str, Any]], largest: float, spacing: str = "") -> str:
    """Returns HTML with one line per row of the table `example`. A line shows the activation and the window's tokens.

    A larger activation gives its token a darker background. Activations of at least `largest` get the darkest
    background. `spacing` is inserted between tokens. The token of the example is underlined. All text is escaped.
    """
    lines = [
        f"<div><code>{row['activation']:8.2f}</code>&ensp;{_window_html(row, largest, spacing)}</div>"
        for row in examples
    ]
    return f'<div style="{_LINE}">{"".join(lines)}</div>'


def _window_html(row: Mapping[str, Any], largest: float, spacing: str) -> str:
    own = row["position"] - row["window_start"]
    spans = []
    for i, (token, activation) in enumerate(zip(row["tokens"], row["activations"], strict=True)):
        text = escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in token))
        if activation > 0 and largest > 0:
            shade = 0.65 * min(1.0, activation / largest)
            style = f'style="background: rgba({_SHADE}, {shade:.2f})" title="{activation:.4g}"'
            text = f"<span {style}>{text}</span>"
        spans.append(f"<u>{text}</u>" if i == own else text)
    return spacing.join(spans)
