"""Hash of the code that a script imports. The workflow reruns a job when the hash changes."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "circuitloom"
ROOT = Path(__file__).parents[1]
RESOURCE_SUFFIXES = {".sql", ".html", ".css", ".js"}
"""Suffixes of non-Python files that count as code of a package."""


def code_hash(script: Path) -> str:
    """Returns a hash of the library modules that `script` imports directly or indirectly.

    Comments and docstrings do not change the hash. The text of `script` is not hashed: Snakemake notices edited
    scripts.
    """
    seen: dict[str, Path] = {}
    pending = list(_imports(script, script.stem))
    while pending:
        module = pending.pop()
        file = _file(module)
        if module in seen or file is None:
            continue
        seen[module] = file
        pending.extend(_imports(file, module))
    digest = hashlib.sha256()
    for module, file in sorted(seen.items()):
        digest.update(module.encode() + b"\0" + _parse(file.read_text()).canonical + b"\0")
        # a package's SQL and templates are code too
        resources = sorted(file.parent.iterdir()) if file.name == "__init__.py" else []
        for resource in (each for each in resources if each.suffix in RESOURCE_SUFFIXES):
            digest.update(resource.name.encode() + b"\0" + resource.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _file(module: str) -> Path | None:
    """Returns the file of a module of this package, or None if there is no such module."""
    parts = module.split(".")[1:]
    for file in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
        if file.is_file() and file != ROOT.with_suffix(".py"):
            return file
    return None


def _imports(file: Path, module: str) -> Iterator[str]:
    """Yields the dotted names of the modules of this package that `file` imports.

    `from package import name` imports the module `package.name` if there is such a module, and `package` otherwise.
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
    """Imports and syntax tree of a module."""

    imports: list[ast.Import | ast.ImportFrom]
    canonical: bytes
    """Text of the syntax tree without docstrings. Editing a docstring reruns nothing."""


@cache
def _parse(source: str) -> _Source:
    """Parse a module. Results are cached, because Snakemake parses the modules of all scripts at each start."""
    tree = ast.parse(source)
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # remove docstrings, which are statements that consist of a string
            node.body = [
                s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
    return _Source(imports, ast.dump(tree).encode())
