"""The tables of greater-than."""

from collections.abc import Iterator
from typing import Any

import torch

from ...ablation.behaviour import curve_rows
from ...ablation.faithfulness import Curve
from ...attribution.paths import EMBEDDING, FEATURE, HEAD, POSITION
from ..case_report import Rows
from ..context import FINDING, TESTING
from .measured import YearMeasurements

KINDS = {FEATURE: "feature", HEAD: "head", EMBEDDING: "token", POSITION: "position"}
METRIC, SHIFT = "greater_than", "shift"
PATHS, LEAVES = "paths", "leaves"
"""Names of the circuits: what greedy paths go through; what all paths together end in."""


def make_tables(name: str, found: YearMeasurements, strings: list[str]) -> dict[str, Rows]:
    """The tables by name, claims left out."""
    return {
        "outcome": list(_outcomes(name, found)),
        "source": [*_path_sources(name, found, strings), *_leaf_sources(name, found, strings)],
        "faithfulness": list(_faithfulness(name, found)),
        "year": list(_years(name, found)),
    }


def _outcomes(name: str, found: YearMeasurements) -> Iterator[dict[str, Any]]:
    prompts = found.prompts
    columns = list(zip(range(len(prompts)), prompts.text, prompts.half, strict=True))

    def rows(measure: str, condition: str, values: list[float], chosen: list) -> Iterator[dict[str, Any]]:
        for (prompt, text, half), value in zip(chosen, values, strict=True):
            yield {
                "case_study": name, "measure": measure, "condition": condition, "prompt": prompt, "text": text,
                "half": half, "value": value,
            }  # fmt: skip

    for condition, values in found.conditions.items():
        yield from rows(METRIC, condition, values.tolist(), columns)
    for half, shifts in {FINDING: found.finding_shifts, TESTING: found.shifts}.items():
        chosen = [column for column in columns if column[2] == half]
        yield from rows(SHIFT, "other start year", shifts.total.tolist(), chosen)
        for layer, head, values in zip(shifts.layer, shifts.head, shifts.shift.tolist(), strict=True):
            yield from rows(SHIFT, f"head {layer}.{head} patched", values, chosen)


def _path_sources(name: str, found: YearMeasurements, strings: list[str]) -> list[dict[str, Any]]:
    """What paths go through: effects are means over the traced prompts."""
    circuit, rows = found.circuit, []
    for (kind, layer, number, position), values in circuit.contribution.items():
        component = kind in (FEATURE, HEAD)
        rows.append(
            {
                "kind": KINDS[kind],
                "layer": layer if component else None,
                "component": number if component else None,
                **_place(found, position, strings),
                "effect": sum(values) / circuit.prompts,
                "n_prompts": len(values),
            }
        )
    return _ranked(name, PATHS, rows, sum(abs(row["effect"]) for row in rows))


def _leaf_sources(name: str, found: YearMeasurements, strings: list[str]) -> list[dict[str, Any]]:
    """What all paths end in: effects are means over the traced prompts."""
    leaves, rows = found.leaves, []

    def add(kind: str, values: torch.Tensor, layer: int | None = None, position: int | None = None) -> None:
        if values.any():
            place = {"relative_position": None, "token": None}
            if position is not None:
                place = _place(found, position, strings)
            effect, counted = float(values.mean()), int((values != 0).sum())
            rows.append(
                {
                    "kind": kind,
                    "layer": layer,
                    "component": None,
                    **place,
                    "effect": effect,
                    "n_prompts": counted,
                }
            )

    for position in range(leaves.token.shape[1]):
        add("token", leaves.token[:, position], position=position)
        add("position", leaves.position[:, position], position=position)
        for layer in range(leaves.error.shape[1]):
            add("error", leaves.error[:, layer, position], layer, position)
    add("constant", leaves.constant)
    return _ranked(name, LEAVES, rows, float(leaves.size.mean()))


def _place(found: YearMeasurements, position: int, strings: list[str]) -> dict[str, Any]:
    """Offset from the last token, and the token there where it is the same on all prompts."""
    here = found.prompts.token[:, position]
    same = bool((here == here[0]).all()) and int(here[0]) < len(strings)
    return {
        "relative_position": position - found.prompts.token.shape[1] + 1,
        "token": strings[int(here[0])] if same else None,
    }


def _ranked(name: str, circuit: str, rows: list[dict[str, Any]], size: float) -> list[dict[str, Any]]:
    rows = sorted(rows, key=lambda row: -abs(row["effect"]))
    return [
        {
            "case_study": name,
            "circuit": circuit,
            "rank": rank,
            **row,
            "share": abs(row["effect"]) / size if size else 0.0,
        }
        for rank, row in enumerate(rows)
    ]


def _faithfulness(name: str, found: YearMeasurements) -> Iterator[dict[str, Any]]:
    for each in found.kept:
        names = {
            "behaviour": name,
            "basis": each.basis.name,
            "ablation": each.ablation,
            "ranking": "variance",
        }
        yield from curve_rows(names, len(each.basis), each.curve)
    own = found.circuit.components(found.basis)
    for kind, alone in found.alone.items():
        size = torch.tensor([0, int(own.sum())])
        kept = torch.stack([alone.none, alone.kept], 1)
        # without nothing the transcoders still stand in for the MLPs
        removed = torch.stack([alone.all, alone.removed], 1)
        kl = torch.stack([alone.kl_none, alone.kl], 1)
        names = {"behaviour": name, "basis": found.basis.name, "ablation": kind, "ranking": "circuit"}
        yield from curve_rows(names, len(own), Curve(size, kept, removed, kl, alone.untouched))


def _years(name: str, found: YearMeasurements) -> Iterator[dict[str, Any]]:
    years = found.years
    for rank, feature in enumerate(years.feature.tolist()):
        for i, year in enumerate(years.year.tolist()):
            yield {
                "case_study": name,
                "run": found.run,
                "layer": found.layer,
                "feature": feature,
                "rank": rank,
                "variance": float(found.variance[feature]),
                "year": year,
                "activation": float(years.activation[rank, i]),
                "logit_attribution": float(years.attribution[rank, i]),
                "deembedding_score": None if years.score is None else float(years.score[rank, i]),
                "head": None if years.head is None else "{}.{}".format(*years.head),
            }
