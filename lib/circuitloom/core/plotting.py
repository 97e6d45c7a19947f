"""Colours and style of all figures. Colour-blind readers can tell the colours apart (Okabe and Ito 2008)."""

import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
POSITIVE, NEGATIVE = BLUE, VERMILION
"""Colours of positive and negative effects."""
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, "black")
"""Colours of the series of a plot, in order."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": "medium",
    "axes.labelsize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.85",
    "grid.linewidth": 0.5,
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
    "legend.frameon": False,
    "legend.fontsize": "small",
    "figure.titlesize": "medium",
    "figure.labelsize": "medium",
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
}


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator that applies STYLE while `draw` runs. matplotlib reads the style when it creates an artist."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def escape_mathtext(text: str) -> str:
    """Returns `text` as matplotlib can draw it: with $ and control characters escaped, ⟨U+4E2D⟩ for letters that the
    font lacks, and ◌ below a combining mark at the start."""
    from matplotlib.font_manager import FontProperties, findfont

    known = _letters(findfont(FontProperties()))
    if text and unicodedata.category(text[0]).startswith("M"):
        text = "◌" + text

    def drawable(letter: str) -> str:
        if not letter.isprintable():
            return repr(letter)[1:-1]
        return letter if ord(letter) in known else f"⟨U+{ord(letter):04X}⟩"

    return "".join(map(drawable, text)).replace("$", r"\$")


@lru_cache
def _letters(font: str) -> Mapping[int, int]:
    """Returns the letters that a font file can draw, as code points."""
    from matplotlib.font_manager import get_font

    return get_font(font).get_charmap()
