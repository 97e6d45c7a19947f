"""Examples of a feature as HTML, for notebooks: tokens shaded by what the feature is on each."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ..colours import BLUE

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
