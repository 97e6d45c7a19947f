"""Tabulates the norms of cached activations, and says whether a few tokens hold most of the squared norm."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config.activations import MLP_OUTPUTS
from ..core.layout import layer_group
from ..corpus.token_arrays import TokenArrays
from .arrays import open_array, read_rows
from .statistics import Moments, NormStatistics
from .store import cached_statistics, open_layer

Row = dict[str, Any]


class CachedStatistics(NamedTuple):
    """Statistics of the activations of one site in one layer."""

    site: str
    layer: int
    rows: int
    moments: Moments
    norms: NormStatistics


def norm_rows(
    folder: Path, sites: Sequence[str], layers: Sequence[int], tokens: TokenArrays, strings: Sequence[str]
) -> list[Row]:
    """Returns the rows of the table `activation_norm` for the activations in `folder`.

    `tokens` is the training split, and `strings` has the text of each token id. If mlp_in is cached, mlp_out has rows
    too, and so has mlp_added where it differs from mlp_out. Raises ValueError if activations are missing or damaged.
    """
    rows = []
    for site, layer, n, moments, norms in _cached_statistics(folder, sites, layers):
        sequence, position = (_origin(folder, name, norms.largest_row) for name in ("sequence", "position"))
        token = int(tokens.read(tokens.token, slice(sequence, sequence + 1))[0, position])
        rows.append(
            {
                "site": site,
                "layer": layer,
                "n_tokens": n,
                "scale": moments.scale,
                "median_norm": norms.median,
                "largest_norm": norms.largest,
                "largest_over_median": norms.largest_over_median if norms.median else None,
                "top_share": norms.top_share,
                **{f"n_over_{multiple}": count for multiple, count in norms.n_over.items()},
                "sequence": sequence,
                "position": position,
                "token": strings[token],
            }
        )
    return rows


def _cached_statistics(
    folder: Path, sites: Sequence[str], layers: Sequence[int]
) -> Iterator[CachedStatistics]:
    for site in sites:
        for layer in layers:
            attributes, stored = open_layer(layer_group(folder / site, layer), site, layer)
            yield CachedStatistics(site, layer, stored.rows, *cached_statistics(attributes, stored))
            for computed in MLP_OUTPUTS:
                if site == "mlp_in" and computed not in sites and f"moments_{computed}" in attributes:
                    statistics = cached_statistics(attributes, stored, f"_{computed}")
                    yield CachedStatistics(computed, layer, stored.rows, *statistics)


def _origin(folder: Path, name: str, row: int) -> int:
    """Returns the sequence or the position of a row, as `name` says."""
    path = folder / "rows.zarr"
    remedy = f"delete {path} and run again"
    return int(read_rows(open_array(path / name, remedy), row, row + 1, remedy)[0])


def warning(rows: Sequence[Row], above: float) -> str | None:
    """Returns a line about the site and layer with the largest norm relative to the median, if the ratio is more than
    `above`. Returns None otherwise."""
    large = [row for row in rows if row["largest_norm"] and _ratio(row) > above]
    if not large:
        return None
    worst = max(large, key=_ratio)
    return (
        f"massive activations at {len(large)} of {len(rows)} sites and layers: at {worst['site']} of layer "
        f"{worst['layer']}, {worst['token']!r} (sequence {worst['sequence']}, position {worst['position']}) has "
        f"{_ratio(worst):.0f} times the median norm, and 0.1 % of the tokens hold {100 * worst['top_share']:.0f} % of "
        "the squared norm; scale, loss and FVU are largely theirs (compare fvu_median); to leave them out or cap them, "
        "set activations.outliers.action"
    )


def _ratio(row: Row) -> float:
    return row["largest_over_median"] or float("inf")
