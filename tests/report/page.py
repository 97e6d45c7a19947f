"""Parser of reports: SQL, rows, table cells and text."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


@dataclass
class Page:
    """Contents of a report."""

    sql: dict[str, str] = field(default_factory=dict)
    """SQL shown, by name of the answer."""
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows embedded as JSON, by name of the answer."""
    cells: dict[str, list[list[str]]] = field(default_factory=dict)
    """Text of table cells, by name of the answer."""
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    """Targets of href, src and action attributes."""
    pictures: int = 0
    """Number of <img> elements."""
    text: str = ""
    scripts: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__(convert_charrefs=True)
        self.page = page
        self.open: list[tuple[str, dict[str, str]]] = []

    def inside(self, tag: str) -> dict[str, str] | None:
        return next((found for name, found in reversed(self.open) if name == tag), None)

    def handle_starttag(self, tag, attrs):
        found = {key: value or "" for key, value in attrs}
        self.page.ids += [found["id"]] if "id" in found else []
        self.page.links += [found[key] for key in ("href", "src", "xlink:href", "action") if key in found]
        self.page.pictures += tag == "img"
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append((tag, found))
        table = self.inside("table") or {}
        if "data-answer" in table and self.inside("tbody") is not None:
            rows = self.page.cells.setdefault(table["data-answer"], [])
            if tag == "tr":
                rows.append([])
            elif tag == "td":
                rows[-1].append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        script, details, table = self.inside("script"), self.inside("details"), self.inside("table")
        if script is not None:
            if "data-answer" in script:
                answer = json.loads(data)
                rows = [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]
                self.page.rows[script["data-answer"]] = rows
            else:
                self.page.scripts.append(data)
            return
        if details is not None and "data-answer" in details and self.inside("code") is not None:
            name = details["data-answer"]
            self.page.sql[name] = self.page.sql.get(name, "") + data
        if (
            table is not None
            and self.inside("td") is not None
            and self.page.cells.get(table.get("data-answer", ""))
        ):
            self.page.cells[table["data-answer"]][-1][-1] += data
        if self.inside("style") is None:
            self.page.text += data


def read_page(html: str) -> Page:
    """Contents of the report `html`."""
    page = Page()
    reader = _Reader(page)
    reader.feed(html)
    reader.close()
    return page
