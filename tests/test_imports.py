"""Each stage imports only earlier stages, and no class name is used twice."""

import ast
import subprocess
import sys
from collections import Counter
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
"""Packages that all others may import, and that import no stage."""


def imported(file: Path) -> set[str]:
    """Packages of circuitloom that a file imports."""
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
            # the tracer verifies its predictions by interventions
            also = {"ablation"} if file == ROOT / "attribution" / "tracer.py" else set()
            assert imported(file) <= SHARED | also | set(STAGES[: i + 1]), file


def test_shared_packages_import_no_stage() -> None:
    files = [file for name in SHARED for file in (ROOT / name).rglob("*.py")]
    assert len(files) > 20
    for file in files:
        assert imported(file) <= SHARED, file


def test_the_library_does_not_know_snakemake() -> None:
    for file in ROOT.rglob("*.py"):
        assert "import snakemake" not in file.read_text(), file


def test_scripts_are_short_and_named_after_their_stage() -> None:
    for file in (ROOT.parents[1] / "scripts").glob("*.py"):
        assert len(file.read_text().splitlines()) <= 30, file
        assert file.stem.split("_")[0] in {*STAGES, "circuits", "plan", "language"}, file


def test_the_snakefile_imports_neither_torch_nor_duckdb_nor_pyarrow() -> None:
    rules = (ROOT.parents[1] / "workflow" / "rules" / "common.smk").read_text()
    imports = "\n".join(line for line in rules.splitlines() if line.startswith("from circuitloom"))
    code = f"{imports}\nimport sys\nprint([name for name in ('torch', 'duckdb', 'pyarrow') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_class_name_is_used_twice() -> None:
    names = Counter(
        node.name
        for file in ROOT.rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
