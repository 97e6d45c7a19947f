"""Stages import each other in one direction only."""

import ast
from pathlib import Path

import circuitloom

ROOT = Path(circuitloom.__file__).parent
STAGES = (
    "corpus",
    "language_model",
    "activations",
    "dictionaries",
    "evaluation",
    "features",
    "attribution",
    "ablation",
    "weights",
    "cases",
    "catalog",
    "report",
)
SHARED = {"config", "core"}
"""What all may import, and what imports no stage."""


def imported(file: Path) -> set[str]:
    """Packages and modules of circuitloom, by their first name, that a file imports."""
    depth = len(file.relative_to(ROOT).parts)
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level == depth:
                names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            elif not node.level and (node.module or "").startswith("circuitloom."):
                names.add(node.module.split(".")[1])
    return names


def test_each_stage_imports_only_stages_before_it() -> None:
    for i, stage in enumerate(STAGES):
        for file in (ROOT / stage).rglob("*.py"):
            # the tracer checks its own predictions by interventions
            also = {"ablation"} if file == ROOT / "attribution" / "tracer.py" else set()
            assert imported(file) <= SHARED | also | set(STAGES[: i + 1]), file


def test_what_all_share_imports_no_stage() -> None:
    files = [file for name in SHARED for file in (ROOT / name).rglob("*.py")]
    assert len(files) > 20
    for file in files:
        assert imported(file) <= SHARED, file


def test_the_library_does_not_know_snakemake() -> None:
    for file in ROOT.rglob("*.py"):
        assert "import snakemake" not in file.read_text(), file


def test_scripts_only_adapt() -> None:
    for file in (ROOT.parents[1] / "scripts").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 30, file
        assert file.stem.split("_")[0] in {*STAGES, "circuits", "plan", "language"}, file
