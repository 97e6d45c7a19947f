"""Makes components that several pages use: panels, tables, links, tokens shaded by activation, and the SQL button."""

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from ..catalog.client import Answer, CatalogClient, Row
from ..core.formatting import escape_invisible, format_signed, format_token
from ..core.plotting import BLUE
from ..core.token_text import whole_tokens
from .urls import feature_link, link

Content = Any
"""Content of a component: text, a number, a component, a list of these, or None."""
_BLUE = ", ".join(str(int(BLUE[i : i + 2], 16)) for i in (1, 3, 5))


def aria(**names: str) -> dict[str, Any]:
    """Returns ARIA attributes, which screen readers use. `label="x"` becomes the attribute `aria-label`."""
    return {f"aria-{name}": value for name, value in names.items()}


def sql_button(answer: Answer, text: str = "SQL") -> Component:
    """Returns a button that shows the SQL of an answer, with a link to the SQL console."""
    return html.Details(
        [
            html.Summary(text, title="the query of this view"),
            html.Pre(answer.sql),
            dcc.Link("open in the SQL console", href=link("sql", query=answer.sql)),
        ],
        className="sql",
    )


def panel(title: str, *content: Content, answer: Answer | None = None, **attributes: Any) -> Component:
    """Returns a section with a heading. If `answer` is given, the heading has an SQL button."""
    head = [html.H2(escape_invisible(title)), *([sql_button(answer)] if answer else [])]
    return html.Section([html.Div(head, className="head"), *content], **attributes)


def empty_note(text: str) -> Component:
    """Returns a note that says why a view is empty."""
    return html.P(text, className="empty")


def notes_of(notes: Sequence[str] | None) -> list[Component]:
    """Returns the notes on how a prompt and its target were read, one paragraph each."""
    return [html.P(escape_invisible(note), className="count") for note in notes or ()]


def signed(value: float | None) -> Component:
    """Returns a number with its sign. The colour shows the sign too."""
    direction = "" if not value else "raises" if value > 0 else "lowers"
    return html.Span(format_signed(value, 3), className=direction)


def feature_name(layer: int, feature: int) -> str:
    """Returns the name of a feature in configs: LAYER/NUMBER."""
    return f"{layer}/{feature}"


def fires_on(
    client: CatalogClient, run: str, features: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], str]:
    """Says what each (layer, feature) fires on: its label with the F1, or without one its most frequent tokens."""
    labels, words = client.labels(run, features), client.words(run, features)
    texts = {place: ", ".join(map(format_token, tokens)) for place, tokens in words.items()}
    return texts | {place: label.scored for place, label in labels.items()}


def to_feature(run: str, layer: int, feature: int) -> Component:
    """Returns a link to a feature's page."""
    return dcc.Link(feature_name(layer, feature), href=feature_link(run, layer, feature))


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Content]],
    text_columns: Sequence[int] = (),
    caption: str | None = None,
) -> Component:
    """Returns a table. `text_columns` are the indices of columns with text. Other columns contain numbers."""
    kinds = ["" if i in text_columns else "number" for i in range(len(head))]
    body = [
        html.Tr([html.Td(_cell(cell), className=kind) for cell, kind in zip(row, kinds, strict=True)])
        for row in rows
    ]
    heads = [html.Th(name, className=kind, scope="col") for name, kind in zip(head, kinds, strict=True)]
    content = html.Table(
        [
            *([html.Caption(caption)] if caption else []),
            html.Thead(html.Tr(heads)),
            html.Tbody(body),
        ]
    )
    return html.Div(content, className="table", tabIndex="0", role="region", **aria(label=caption or head[0]))


def _cell(content: Content) -> Content:
    # names may contain tokens with control characters, such as those that reverse the direction of text
    return escape_invisible(content) if isinstance(content, str) else content


def shaded(row: Row, largest: float, spacing: str) -> Component:
    """Returns the tokens of an example as text, separated by `spacing`.

    The shade of a token is its activation divided by `largest`. The token at index `place` is underlined, unless it is
    None. Tokens that are parts of one character are shown together, with the largest of their activations as shade.
    """
    # neighbouring tokens without shade become one text, because a browser needs seconds for thousands of components
    pieces: list[Any] = [""]
    for places, text in whole_tokens(row["tokens"]):
        activations = [row["activations"][place] for place in places]
        strength = max(0.0, min(1.0, max(activations) / largest)) if largest else 0.0
        here = row["place"] in places
        if not strength and not here:
            pieces[-1] += escape_invisible(text) + spacing
            continue
        shade = html.Span(
            escape_invisible(text),
            style={"backgroundColor": f"rgba({_BLUE}, {0.65 * strength:.3f})"},
            title=", ".join(f"{activation:.4g}" for activation in activations),
            className="here" if here else None,
        )
        pieces += [shade, spacing]
    return html.Span(pieces, className="text")


def tokens_with_effects(rows: Sequence[Mapping[str, Any]], sign: int) -> Component:
    """Returns a list of the tokens with effects of the given sign. Bars show the sizes of the effects."""
    largest = max((abs(row["effect"]) for row in rows), default=0.0) or 1.0
    chosen = [row for row in rows if row["sign"] == sign]
    return html.Ol(
        [
            html.Li(
                [
                    html.Span(
                        format_token(row["token"]), className="token", title=format_token(row["token"])
                    ),
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
    """Returns the Dash id of a control for the URL parameter `name`. `value` is the current value."""
    return {"go": name, "now": value}


def select(name: str, options: Sequence[str] | Mapping[str, str], value: str, label: str) -> Component:
    """Returns a labelled dropdown for the URL parameter `name`.

    `options` are the possible values. If `options` is a mapping, it maps each value to the displayed text.
    """
    texts = options if isinstance(options, Mapping) else {option: option for option in options}
    choices = [{"value": key, "label": text} for key, text in texts.items()]
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
