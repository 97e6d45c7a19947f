"""What pages are made of: links, tables, tokens shaded by activation, the query behind a view."""

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from ..core import formatting as wording
from ..core.formatting import token_text, visible
from ..core.plotting import BLUE
from .asking import Answer, Row
from .urls import feature_link, link

Content = Any
"""What components may hold: text, numbers, components, lists of these, None."""
_BLUE = ", ".join(str(int(BLUE[i : i + 2], 16)) for i in (1, 3, 5))


def aria(**names: str) -> dict[str, Any]:
    """Attributes that say to those who do not see a page what a part of it is."""
    return {f"aria-{name}": value for name, value in names.items()}


def behind(answer: Answer, text: str = "SQL") -> Component:
    """The query behind a view, opened by a button, with a way into the console."""
    return html.Details(
        [
            html.Summary(text, title="the query behind this view"),
            html.Pre(answer.sql),
            dcc.Link("open in the SQL console", href=link("sql", query=answer.sql)),
        ],
        className="behind",
    )


def panel(title: str, *content: Content, answer: Answer | None = None, **attributes: Any) -> Component:
    """A part of a page under a heading, with the query behind it."""
    head = [html.H2(visible(title)), *([behind(answer)] if answer else [])]
    return html.Section([html.Div(head, className="head"), *content], **attributes)


def nothing(text: str) -> Component:
    """Says why there is nothing to see."""
    return html.P(text, className="nothing")


def signed(value: float | None) -> Component:
    """An effect, coloured and signed by its direction."""
    way = "" if not value else "raises" if value > 0 else "lowers"
    return html.Span(wording.signed(value, 3), className=way)


def feature_name(layer: int, feature: int) -> str:
    """A feature as LAYER/NUMBER, as the config writes it."""
    return f"{layer}/{feature}"


def to_feature(run: str, layer: int, feature: int) -> Component:
    """A link to a feature's page."""
    return dcc.Link(feature_name(layer, feature), href=feature_link(run, layer, feature))


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Content]],
    words: Sequence[int] = (),
    caption: str | None = None,
) -> Component:
    """A table; columns whose places are in `words` hold text, the others numbers."""
    kinds = ["" if i in words else "number" for i in range(len(head))]
    body = [
        html.Tr([html.Td(_cell(cell), className=kind) for cell, kind in zip(row, kinds, strict=True)])
        for row in rows
    ]
    heads = [html.Th(name, className=kind, scope="col") for name, kind in zip(head, kinds, strict=True)]
    made = html.Table(
        [
            *([html.Caption(caption)] if caption else []),
            html.Thead(html.Tr(heads)),
            html.Tbody(body),
        ]
    )
    return html.Div(made, className="table", tabIndex="0", role="region", **aria(label=caption or head[0]))


def _cell(content: Content) -> Content:
    # names hold tokens, and those hold characters that turn what follows around
    return visible(content) if isinstance(content, str) else content


def shaded(row: Row, largest: float, spacing: str) -> Component:
    """An example's tokens, shaded by the feature's activation on them; the example's own token is underlined."""
    # what is not shaded is joined: a page of thousands of components takes the browser seconds
    pieces: list[Any] = [""]
    for place, (token, activation) in enumerate(zip(row["tokens"], row["activations"], strict=True)):
        strength = max(0.0, min(1.0, activation / largest)) if largest else 0.0
        if not strength and place != row["place"]:
            pieces[-1] += visible(token) + spacing
            continue
        shade = html.Span(
            visible(token),
            style={"backgroundColor": f"rgba({_BLUE}, {0.65 * strength:.3f})"},
            title=f"{activation:.4g}",
            className="here" if place == row["place"] else None,
        )
        pieces += [shade, spacing]
    return html.Span(pieces, className="text")


def tokens_with_effects(rows: Sequence[Mapping[str, Any]], sign: int) -> Component:
    """Tokens of one sign with bars as long as their effects, beside the largest of them all."""
    largest = max((abs(row["effect"]) for row in rows), default=0.0) or 1.0
    chosen = [row for row in rows if row["sign"] == sign]
    return html.Ol(
        [
            html.Li(
                [
                    html.Span(token_text(row["token"]), className="token", title=token_text(row["token"])),
                    html.Span(
                        className=f"bar {'raises' if sign > 0 else 'lowers'}",
                        style={"width": f"{6 * abs(row['effect']) / largest:.2f}em"},
                    ),
                    html.Span(f"{row['effect']:+.3g}", className="value"),
                ]
            )
            for row in chosen
        ],
        className="tokens",
    )


def choice(name: str, value: str) -> dict[str, str]:
    """The identity of a control whose change changes the parameter `name` of the address; `value` is what it is now."""
    return {"go": name, "now": value}


def select(name: str, options: Sequence[str] | Mapping[str, str], value: str, label: str) -> Component:
    """A labelled choice, of values or of values with what they are called; it changes the address (explorer.js)."""
    called = options if isinstance(options, Mapping) else {option: option for option in options}
    choices = [{"value": key, "label": text} for key, text in called.items()]
    return html.Label(
        [
            html.Span(label),
            dcc.Dropdown(
                choices, value, id=choice(name, value), clearable=False, searchable=len(options) > 8,
                className="select",
            ),
        ],
        className="field",
    )  # fmt: skip
