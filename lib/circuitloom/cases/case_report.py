"""Report of a case study, written as result.md, Parquet tables and PNG pictures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure

from ..core.atomic_io import atomic_path, write_atomically
from ..core.tables import CLAIM, SOURCE, TABLES, write_table
from .claims import Claim

Rows = pa.Table | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CaseReport:
    """Question, answer, claims, tables and pictures of a case study."""

    case: str
    """Name of the case study."""
    title: str
    question: str
    answer: Sequence[str]
    """One or two sentences that answer the question. `result_page` appends the sentence of `verdict`."""
    claims: Sequence[Claim]
    tables: Mapping[str, Rows]
    """Rows of each table, by table name. The rows of the table `claim` are in `claims`."""
    figures: Mapping[str, tuple[Figure, str]]
    """Maps the name of each picture to (picture, caption)."""
    method: Sequence[str]
    """Paragraphs about prompts, choice of components and further results."""


def write_report(report: CaseReport, folder: Path) -> None:
    """Write tables, pictures and result.md into `folder`. Each file is written atomically."""
    by_name = {table.name: table for table in TABLES}
    for name, rows in report.tables.items():
        write_table(by_name[name], rows, folder / f"{name}.parquet")
    write_table(CLAIM, [claim.row(report.case) for claim in report.claims], folder / "claim.parquet")
    for name, (figure, _) in report.figures.items():
        with atomic_path(folder / f"{name}.png") as new:
            figure.savefig(new, format="png", dpi=150)
    write_atomically(folder / "result.md", result_page(report).encode())


def result_page(report: CaseReport) -> str:
    """Returns the Markdown text of result.md: question, answer, table of claims, pictures and method."""
    parts = [
        f"# {report.case}: {report.title}",
        report.question,
        " ".join([*report.answer, verdict(report.claims)]),
        "\n".join(_claim_table(report.claims)),
        *(f"![{name}]({name}.png)\n\n{caption}" for name, (_, caption) in report.figures.items()),
        "## Method",
        *report.method,
    ]
    return "\n\n".join(parts) + "\n"


def code_span(text: str) -> str:
    """Returns `text` as a code span of Markdown, also if it contains backquotes."""
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", text))))
    return f"{fence} {text} {fence}"


def outcome_rows(
    case: str,
    measure: str,
    condition: str,
    prompts: Iterable[tuple[int, str, str]],
    values: Iterable[float | None],
) -> list[dict[str, Any]]:
    """Returns one row of the table `outcome` per prompt. `prompts` lists tuples (number, text, half)."""
    return [
        {
            "case_study": case, "measure": measure, "condition": condition, "prompt": prompt, "text": text,
            "half": half, "value": value,
        }
        for (prompt, text, half), value in zip(prompts, values, strict=True)
    ]  # fmt: skip


def source_rows(case: str, circuit: str, sources: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows of the table `source`, ranked by their order in `sources`. Missing columns become null."""
    names = {"case_study": case, "circuit": circuit}
    return [
        {**dict.fromkeys(SOURCE.columns), **names, "rank": rank, **source}
        for rank, source in enumerate(sources)
    ]


def verdict(claims: Sequence[Claim]) -> str:
    """Returns one sentence: the number of claims that hold, and the names of the failing claims."""
    failing = [claim.name.replace("_", " ") for claim in claims if not claim.holds]
    held = f"{len(claims) - len(failing)} of {len(claims)} claims hold"
    return f"{held}; these fail: {', '.join(failing)}." if failing else f"{held}."


def number(value: float | None) -> str:
    """Returns a number as text with three decimals. Integers get no decimals. None becomes an empty string."""
    if value is None:
        return ""
    text = f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def _claim_table(claims: Sequence[Claim]) -> list[str]:
    published = any(claim.published is not None for claim in claims)
    header = ["claim", "what is measured", "value", "interval", "claimed", "holds", "over"]
    lines = [header + ["published"] * published, ["---"] * (len(header) + published)]
    for claim in claims:
        interval = "" if claim.low is None else f"{number(claim.low)} to {number(claim.high)}"
        cells = [
            claim.name.replace("_", " "),
            claim.statement.replace("|", "\\|"),
            "not measurable" if claim.value is None else number(claim.value),
            interval,
            f"{'≥' if claim.relation == 'above' else '≤'} {number(claim.bound)}",
            "yes" if claim.holds else "**no**",
            f"{claim.n} {claim.of}",
        ]
        lines.append(cells + [number(claim.published)] * published)
    return [f"| {' | '.join(cells)} |" for cells in lines]
