"""Writes the report of a study as one self-contained HTML file."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from ..catalog.client import CatalogClient
from ..core.atomic_io import write_atomically
from ..core.formatting import (
    column_heading,
    escape_invisible,
    format_duration,
    format_number,
    format_signed,
    format_token,
    format_value,
)
from . import provenance
from .sections import PARETO_PANELS, AnswerLog, Sections, collect
from .templates import environment, policy
from .templates import read as read_template


@dataclass(frozen=True)
class ReportInputs:
    """Inputs of a report."""

    folder: Path
    """Folder of the study's results, including the catalogue."""
    config: Mapping[str, Any]
    """The study's config, including default values."""
    model: Path
    tokens: Sequence[Path]
    """Folders of the token arrays."""
    dictionaries: Sequence[Path]
    results: Sequence[Path]
    """The file result.md of each case study. The file's folder has the name of the case study."""
    pictures: Sequence[Path]
    """PNG files next to the files result.md."""
    case_runs: Mapping[str, str]
    """Run under study of each case study, by name."""
    benchmarks: Path
    """Folder of Snakemake's benchmark files."""
    rule: str
    """Name of the rule that writes the report. The job times exclude this rule, because it is still running."""


@dataclass(frozen=True)
class CaseResult:
    """The text and pictures of a case study's result."""

    case: str
    title: str
    text: Markup
    other_pictures: tuple[tuple[str, str], ...]
    """(name, data URI) of each picture that the text does not contain."""


def write_report(inputs: ReportInputs, path: Path) -> None:
    """Write the report to `path`. Raises ValueError if an input is missing."""
    catalogue = AnswerLog(CatalogClient(inputs.folder))
    sections = collect(catalogue, step_tokens(inputs.config), named_features(inputs))
    write_atomically(path, render(inputs, sections, catalogue).encode())


def render(inputs: ReportInputs, sections: Sections, catalogue: AnswerLog) -> str:
    """Returns the report as an HTML page."""
    filters = {
        "shown": format_value, "number": format_number, "signed": format_signed, "visible": escape_invisible,
        "token": format_token, "heading": column_heading, "duration": format_duration,
    }  # fmt: skip
    script = read_template("graph.js")
    times = provenance.times(inputs.benchmarks, inputs.rule)
    return (
        environment(**filters)
        .get_template("report.html")
        .render(
            study=inputs.config["name"],
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            policy=policy(script),
            style=Markup(read_template("graph.css") + read_template("report.css")),
            script=Markup(script),
            sections=sections,
            pareto_panels=PARETO_PANELS,
            answers=catalogue.answers,
            results={result.case: result for result in read_results(inputs.results, inputs.pictures)},
            config=yaml.safe_dump(dict(inputs.config), sort_keys=False, allow_unicode=True, width=100),
            sources=provenance.sources(inputs.model, inputs.tokens[0]),
            versions=provenance.versions(),
            machine=provenance.machine(),
            hashes=provenance.hashes(inputs.model, inputs.tokens, inputs.dictionaries),
            times=sorted(times, key=lambda time: -time.seconds),
        )
    )


def named_features(inputs: ReportInputs) -> dict[str, tuple[str, list[str]]]:
    """Returns the run of each case study, and all that its result writes as a feature: LAYER/NUMBER."""
    named = {}
    for file in inputs.results:
        if run := inputs.case_runs.get(file.parent.name):
            found = re.findall(r"(?<![\w./-])\d+/\d+(?![\w/])", _read(file).decode())
            named[file.parent.name] = (run, list(dict.fromkeys(found)))
    return named


def read_results(results: Sequence[Path], pictures: Sequence[Path]) -> list[CaseResult]:
    """Returns the results of the case studies, with pictures as data URIs. Raises ValueError if a file is missing."""
    found = []
    for file in results:
        own = {each.name: _data_uri(each) for each in pictures if each.parent == file.parent}
        text = _read(file).decode()
        title, page, seen = render_result(text, own)
        others = tuple((name, data) for name, data in own.items() if name not in seen)
        case = file.parent.name
        title = title.removeprefix(f"{case}: ")
        # this is safe as Markup because render_result escapes HTML in the text
        found.append(CaseResult(case, title, Markup(page), others))
    return found


def step_tokens(config: Mapping[str, Any]) -> int:
    """Returns the number of tokens per pretraining step, or 0 if no model is pretrained."""
    model = config["language_model"]
    return model["batch"] * config["corpus"]["context"] if model["source"] == "pretrain" else 0


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(_read(file)).decode()}"


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise ValueError(f"{file} is missing; make it with `snakemake cases`")
    return file.read_bytes()


def render_result(text: str, pictures: Mapping[str, str]) -> tuple[str, str, set[str]]:
    """Convert the Markdown of a case study. Returns (title, HTML of the rest, names of the pictures).

    `pictures` maps file names to data URIs. Other pictures are replaced by their alt text. HTML and links in `text`
    become plain text. Tables are dropped, because the report shows the claims from the catalogue.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    tokens = parser.parse(text)
    seen: set[str] = set()

    def image(tokens: Sequence[Token], i: int, *_: Any) -> str:
        name = str(tokens[i].attrs.get("src", ""))
        seen.add(name)
        alt = escape(tokens[i].content)
        return f'<img alt="{alt}" src="{pictures[name]}">' if name in pictures else alt

    parser.renderer.rules["image"] = image  # type: ignore[attr-defined]
    title = ""
    if len(tokens) > 2 and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        title, tokens = tokens[1].content, tokens[3:]
    kept, in_table = [], False
    for token in tokens:
        in_table = in_table or token.type == "table_open"
        if not in_table:
            kept.append(token)
        in_table = in_table and token.type != "table_close"
    return title, parser.renderer.render(kept, parser.options, {}), seen
