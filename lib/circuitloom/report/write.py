"""The report: one file that needs no other."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
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
from . import facts
from .markdown import render_result
from .sections import PARETO_PANELS, AnswerLog, Sections, collect
from .templates import environment, policy
from .templates import read as read_template


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of."""

    folder: Path
    """Of the study, with its catalogue."""
    config: Mapping[str, Any]
    """The study's whole config, with every default."""
    model: Path
    tokens: Sequence[Path]
    """Token arrays."""
    dictionaries: Sequence[Path]
    results: Sequence[Path]
    """What case studies wrote, each in the folder that is named after the case."""
    pictures: Sequence[Path]
    """Of case studies, in the same folders."""
    benchmarks: Path
    """Folder of what Snakemake measured of each job."""
    rule: str
    """The rule that writes the report: its own time is not known yet."""


@dataclass(frozen=True)
class Result:
    """What a case study wrote."""

    case: str
    title: str
    text: Markup
    others: tuple[tuple[str, str], ...]
    """Pictures that the text does not show: name and data URI."""


def write_report(sources: ReportInputs, path: Path) -> None:
    """Write the report to `path`, whole or not at all.

    Raises ValueError, with the remedy, where the catalogue or something else is missing that the report is made of.
    """
    catalogue = AnswerLog(CatalogClient(sources.folder))
    sections = collect(catalogue, step_tokens(sources.config))
    write_atomically(path, render(sources, sections, catalogue).encode())


def render(sources: ReportInputs, sections: Sections, catalogue: AnswerLog) -> str:
    """The page."""
    filters = {
        "shown": format_value, "number": format_number, "signed": format_signed, "visible": escape_invisible, "token": format_token,
        "heading": column_heading, "duration": format_duration,
    }  # fmt: skip
    script = read_template("graph.js")
    times = facts.times(sources.benchmarks, sources.rule)
    return (
        environment(**filters)
        .get_template("report.html")
        .render(
            study=sources.config["name"],
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            policy=policy(script),
            style=Markup(read_template("report.css") + read_template("graph.css")),
            script=Markup(script),
            sections=sections,
            pareto_panels=PARETO_PANELS,
            answers=catalogue.answers,
            results={result.case: result for result in read_results(sources.results, sources.pictures)},
            config=yaml.safe_dump(dict(sources.config), sort_keys=False, allow_unicode=True, width=100),
            versions=facts.versions(),
            machine=facts.machine(),
            hashes=facts.hashes(sources.model, sources.tokens, sources.dictionaries),
            times=sorted(times, key=lambda time: -time.seconds),
        )
    )


def read_results(results: Sequence[Path], pictures: Sequence[Path]) -> list[Result]:
    """What case studies wrote, with their pictures as data.

    Raises ValueError where a file is missing.
    """
    found = []
    for file in results:
        own = {each.name: _data(each) for each in pictures if each.parent == file.parent}
        text = _read(file).decode()
        title, page, seen = render_result(text, own)
        others = tuple((name, data) for name, data in own.items() if name not in seen)
        case = file.parent.name
        title = title.removeprefix(f"{case}: ")
        # HTML in the text was escaped
        found.append(Result(case, title, Markup(page), others))
    return found


def step_tokens(config: Mapping[str, Any]) -> int:
    """Tokens of a step of pretraining; 0 where the model was not trained here."""
    model = config["language_model"]
    return model["batch"] * config["corpus"]["context"] if model["source"] == "pretrain" else 0


def _data(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(_read(file)).decode()}"


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise ValueError(f"{file} is missing; make it with `snakemake cases`")
    return file.read_bytes()
