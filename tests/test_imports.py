"""Each stage imports only earlier stages, and no class name is used twice."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.models import tiny_model
from transformers import AutoConfig

import circuitloom
from circuitloom.corpus.tokenizer import word_tokenizer
from circuitloom.language_model.anatomy import find_anatomy, write_anatomy

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
    "labels",
    "cases",
    "exchange",
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
    files = (ROOT.parents[1] / "workflow" / "rules").glob("*.smk")
    lines = [line for file in files for line in file.read_text().splitlines()]
    imports = "\n".join(line for line in lines if line.startswith("from circuitloom"))
    code = f"{imports}\nimport sys\nprint([name for name in ('torch', 'duckdb', 'pyarrow') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


HEAVY = ("torch", "transformers", "transformer_lens", "datasets", "duckdb", "matplotlib", "scipy", "pandas")
"""Libraries whose import takes tenths of a second, or seconds."""
MODEL = {"torch"}
"""For jobs that run a model or compute with tensors. `load_model` imports transformers when it is called."""
MAY_IMPORT = {
    "activations_cache": MODEL,
    "activations_index": set(),
    "activations_measure": MODEL,
    "activations_join": MODEL,
    "cases_compare": MODEL | {"matplotlib"},
    "cases_difference": MODEL | {"matplotlib"},
    "cases_feature": MODEL | {"matplotlib"},
    "cases_greater_than": MODEL | {"matplotlib"},
    "cases_known_steps": MODEL | {"matplotlib"},
    "cases_planted": MODEL | {"matplotlib"},
    "catalog_build": {"duckdb"},
    "circuits_ablate": MODEL,
    "circuits_draw": {"matplotlib"},
    "circuits_trace": MODEL,
    "circuits_weights": MODEL,
    "corpus_annotate": set(),
    "corpus_build": set(),
    "dictionaries_import": MODEL,
    "dictionaries_train": MODEL,
    "evaluation_ablate": MODEL,
    "evaluation_draw": set(),
    "evaluation_gather": set(),
    "evaluation_match": MODEL,
    "evaluation_score": MODEL,
    "exchange_export": MODEL,
    "features_tabulate": MODEL,
    "labels_ask": MODEL,
    "labels_score_outputs": MODEL,
    "labels_describe": set(),
    "language_model_install": MODEL,
    "language_model_measure": MODEL,
    "language_model_plot": {"matplotlib"},
    "language_model_pretrain": MODEL | {"transformers"},
    "plan_print": MODEL,
    "report_write": {"duckdb", "matplotlib"},
}
"""The heavy libraries that each script may import."""
IMPORT_EACH = """
import importlib, json, os, sys
# shared imports happen once, because they take seconds; what they load counts for each script
import numpy, pyarrow, pydantic, tokenizers, zarr
import circuitloom.config.corpus, circuitloom.core.tables

groups, heavy = json.loads(sys.argv[1])
for once, scripts in groups:
    for module in once:
        importlib.import_module(module)
    for name, imports in scripts.items():
        # a fork for each script, because a module stays imported
        if os.fork() == 0:
            exec(imports)
            print(json.dumps([name, [module for module in heavy if module in sys.modules]]), flush=True)
            os._exit(0)
        assert os.wait()[1] == 0, name
"""
"""Imports what each script imports. Prints the heavy libraries that are then loaded."""


def test_each_script_imports_only_the_heavy_libraries_that_it_uses() -> None:
    scripts = {}
    for file in (ROOT.parents[1] / "scripts").glob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        scripts[file.stem] = "\n".join(
            ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
        )
    assert set(scripts) == set(MAY_IMPORT)
    plots = {"torch", "matplotlib"}
    groups = [
        ((), {n: s for n, s in scripts.items() if "torch" not in MAY_IMPORT[n]}),
        (("torch",), {n: s for n, s in scripts.items() if plots & MAY_IMPORT[n] == {"torch"}}),
        (("matplotlib.pyplot",), {n: s for n, s in scripts.items() if plots <= MAY_IMPORT[n]}),
    ]
    lines = output_of(IMPORT_EACH, json.dumps([groups, HEAVY]))
    found = {name: set(modules) for name, modules in map(json.loads, lines)}
    assert found == {name: found[name] & MAY_IMPORT[name] for name in scripts}


def test_a_job_that_reads_a_saved_model_and_tokenizer_loads_no_transformer_lens(tmp_path) -> None:
    folder = tiny_model("gpt2", tmp_path / "model")
    write_anatomy(find_anatomy(AutoConfig.from_pretrained(folder)), folder)
    word_tokenizer(["a", "b"]).save(tmp_path / "tokenizer")
    code = """
import sys
from circuitloom.corpus.tokenizer import load_tokenizer
load_tokenizer(sys.argv[1] + "/tokenizer").strings()
print("transformers" in sys.modules or "torch" in sys.modules)
from circuitloom.language_model.model import load_model
load_model(sys.argv[1] + "/model", device="cpu")
print("transformers" in sys.modules, "transformer_lens" in sys.modules)
"""
    assert output_of(code, str(tmp_path)) == ["False", "True False"]


def output_of(code: str, argument: str) -> list[str]:
    """Lines that `code` prints in another process."""
    command = [sys.executable, "-c", code, argument]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def test_no_class_name_is_used_twice() -> None:
    names = Counter(
        node.name
        for file in ROOT.rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
