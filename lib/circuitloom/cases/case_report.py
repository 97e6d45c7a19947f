"""What a case study has found, and how it is written: tables, pictures, and a result worded by its claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.figure import Figure

from ..core.atomic_io import replace, replacing
from ..core.tables import CLAIM, TABLES, write_table
from .claims import Claim

Rows = pa.Table | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CaseReport:
    """What a case study has found."""

    case: str
    title: str
    """What the case is about, a line."""
    claims: Sequence[Claim]
    tables: Mapping[str, Rows]
    """By name; the claims' own is made from them."""
    figures: Mapping[str, tuple[Figure, str]]
    """By name: the picture, and what it shows in a sentence."""
    remarks: Sequence[str] = ()
    """Sentences about what was found, made from what was measured: which feature, which head, which rule."""


def write_findings(findings: CaseReport, folder: Path) -> None:
    """Write tables, pictures and result.md into `folder`, each whole or not at all."""
    by_name = {table.name: table for table in TABLES}
    for name, rows in findings.tables.items():
        write_table(by_name[name], rows, folder / f"{name}.parquet")
    write_table(CLAIM, [claim.row(findings.case) for claim in findings.claims], folder / "claim.parquet")
    for name, (figure, _) in findings.figures.items():
        with replacing(folder / f"{name}.png") as new:
            figure.savefig(new, format="png", dpi=150)
    replace(folder / "result.md", result_page(findings).encode())


def result_page(findings: CaseReport) -> str:
    """The result in words: a paragraph and a table made from the claims, then the pictures."""
    parts = [f"# {findings.case}: {findings.title}", summary(findings.claims), *findings.remarks]
    parts.append("\n".join(_table(findings.claims)))
    parts += [f"![{name}]({name}.png)\n\n{text}" for name, (_, text) in findings.figures.items()]
    return "\n\n".join(parts) + "\n"


def summary(claims: Sequence[Claim]) -> str:
    """What holds and what does not, a sentence a claim."""
    held = sum(claim.holds for claim in claims)
    sentences = [f"{held} of {len(claims)} claims hold.", *(sentence(claim) for claim in claims)]
    return " ".join(sentences)


def sentence(claim: Claim) -> str:
    """The claim, its value and whether it holds."""
    claimed = f"at {'least' if claim.relation == 'above' else 'most'} {number(claim.bound)} is claimed"
    start = claim.statement[0].upper() + claim.statement[1:]
    if claim.value is None:
        return f"{start} could not be measured, where {claimed}: this fails."
    ends = "" if claim.low == claim.high else f" ({number(claim.low)} to {number(claim.high)})"
    verdict = "this holds" if claim.holds else "this fails"
    known = "" if claim.published is None else f"; {number(claim.published)} was published"
    return f"{start} is {number(claim.value)}{ends}, where {claimed}: {verdict}{known}."


def number(value: float | None) -> str:
    """Three decimals; whole numbers plain; nothing for None."""
    if value is None:
        return ""
    text = f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def _table(claims: Sequence[Claim]) -> list[str]:
    lines = ["| claim | value | interval | claimed | holds | over |", "|---|---|---|---|---|---|"]
    for claim in claims:
        ends = "" if claim.low is None else f"{number(claim.low)} to {number(claim.high)}"
        side = "≥" if claim.relation == "above" else "≤"
        cells = (
            claim.name.replace("_", " "),
            number(claim.value),
            ends,
            f"{side} {number(claim.bound)}",
            "yes" if claim.holds else "**no**",
            f"{claim.n} {claim.of}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines
