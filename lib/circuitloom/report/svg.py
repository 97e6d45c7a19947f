"""Pictures of matplotlib as SVG that many of can stand in one page."""

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def inline_svg(figure: "Figure", name: str, label: str) -> str:
    """`figure` as an SVG element; its text stays text, and its ids, which begin with `name`, meet no other's."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # the browser draws the text, and has signs that matplotlib's own font lacks
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = _own_ids(text.getvalue(), re.sub(r"\W", "-", name))
    # the page may make it narrower, the picture keeps its proportions
    width, view = (re.search(rf'{key}="[^"]*"', svg) for key in ("width", "viewBox"))
    assert width and view
    head = f'<svg {_SPACES} {width[0]} {view[0]} role="img" aria-label="{escape(label)}">'
    return re.sub(r"<svg [^>]*>", lambda _: head, svg, count=1)


def _own_ids(svg: str, name: str) -> str:
    """The element alone; ids that are referred to with `name` in front, the others, which all figures share, gone."""
    svg = svg[svg.index("<svg") :]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
