"""A case's written result as a part of the page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

_TABLE = ("table_open", "table_close")


def render_result(text: str, pictures: Mapping[str, str]) -> tuple[str, str, set[str]]:
    """The title of `text`, the rest as HTML without its table, which the catalogue has, and the pictures it shows.

    `pictures` are data URIs by file name, and the only ones that are shown. HTML in `text`, and links, stay text.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    tokens = parser.parse(text)

    seen: set[str] = set()

    def image(shown: Sequence[Token], i: int, *_: Any) -> str:
        name = str(shown[i].attrs.get("src", ""))
        seen.add(name)
        alt = escape(shown[i].content)
        return f'<img alt="{alt}" src="{pictures[name]}">' if name in pictures else alt

    parser.renderer.rules["image"] = image  # type: ignore[attr-defined]
    title = ""
    if len(tokens) > 2 and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        title, tokens = tokens[1].content, tokens[3:]
    kept, inside = [], False
    for token in tokens:
        inside = inside or token.type == _TABLE[0]
        if not inside:
            kept.append(token)
        inside = inside and token.type != _TABLE[1]
    return title, parser.renderer.render(kept, parser.options, {}), seen
