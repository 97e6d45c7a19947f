"""What code a script depends on, as a hash: what decides whether its results are stale."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "circuitloom"
ROOT = Path(__file__).parents[1]
RESOURCE_SUFFIXES = {".sql", ".html", ".css", ".js"}
"""Kinds of files that are read by the package whose folder they lie in."""


def code_hash(script: Path) -> str:
    """Hash of `script`'s library modules, imported directly or not; comments and docstrings left out.

    Snakemake itself notices an edited script, but not an edited library under it.
    """
    seen: dict[str, Path] = {}
    waiting = list(_imports(script, script.stem))
    while waiting:
        module = waiting.pop()
        file = _file(module)
        if module in seen or file is None:
            continue
        seen[module] = file
        waiting.extend(_imports(file, module))
    digest = hashlib.sha256()
    for module, file in sorted(seen.items()):
        digest.update(module.encode() + b"\0" + _parse(file.read_text()).canonical + b"\0")
        # SQL and templates that a package holds are code as well
        held = sorted(file.parent.iterdir()) if file.name == "__init__.py" else []
        for other in (each for each in held if each.suffix in RESOURCE_SUFFIXES):
            digest.update(other.name.encode() + b"\0" + other.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _file(module: str) -> Path | None:
    """The file of a module of this package; None for a name that is no module."""
    parts = module.split(".")[1:]
    for file in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
        if file.is_file() and file != ROOT.with_suffix(".py"):
            return file
    return None


def _imports(file: Path, module: str) -> Iterator[str]:
    """Names that `file` imports from this package: each may be a module, or a name within one.

    A package's own `__init__` counts only where something is imported from it by name.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in _parse(file.read_text()).imports:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
            continue
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
        if base.split(".")[0] != PACKAGE:
            continue
        submodules = [f"{base}.{alias.name}" for alias in node.names if _file(f"{base}.{alias.name}")]
        yield from submodules
        if len(submodules) < len(node.names):
            yield base


class _Source(NamedTuple):
    """What a module's source says."""

    imports: list[ast.Import | ast.ImportFrom]
    canonical: bytes
    """Its syntax tree without docstrings, so that rewording reruns nothing."""


@cache
def _parse(source: str) -> _Source:
    """Parsed once, as most modules are below many scripts: every start of Snakemake waits for this."""
    tree = ast.parse(source)
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # a lone string, a field's or a function's documentation, is no code
            node.body = [
                s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
    return _Source(imports, ast.dump(tree).encode())
