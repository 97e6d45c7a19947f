"""Hash of the code that a script imports. The workflow reruns a job when the hash changes."""

import ast
import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .atomic_io import write_atomically

PACKAGE = "circuitloom"
ROOT = Path(__file__).parents[1]
RESOURCE_SUFFIXES = {".sql", ".html", ".css", ".js"}
"""Suffixes of non-Python files that count as code of a package."""


class Import(NamedTuple):
    """An import statement: `import module`, or `from ..module import names` with two dots as level 2."""

    level: int
    module: str
    names: list[str]
    """Imported names. Empty for `import module`."""


class ParsedFile(NamedTuple):
    """What the code hash needs to know about a file."""

    imports: list[Import]
    digest: str
    """Hash of the syntax tree without docstrings. Editing a docstring or comment reruns nothing."""


class CodeHasher:
    """Hashes the code of scripts. Parsed files are remembered, because Snakemake hashes all scripts at each start."""

    def __init__(self, file: Path) -> None:
        """`file` stores what earlier processes have parsed. A missing or damaged file costs a second."""
        self._file = file
        self._sources: dict[str, ParsedFile] = {}
        self._known = 0
        with suppress(OSError, ValueError, TypeError, AttributeError):
            stored = json.loads(file.read_text())
            self._sources = {
                key: ParsedFile([Import(*each) for each in imports], digest)
                for key, (imports, digest) in stored.items()
            }
            self._known = len(self._sources)
        self._used: set[str] = set()
        self._imports = cache(self._find_imports)
        self._module_file = cache(_module_file)

    def code_hash(self, script: Path) -> str:
        """Returns a hash of the library modules that `script` imports directly or indirectly.

        Comments and docstrings do not change the hash. The text of `script` is not hashed: Snakemake notices edited
        scripts.
        """
        seen: dict[str, Path] = {}
        pending = list(self._imports(script, script.stem))
        while pending:
            module = pending.pop()
            file = self._module_file(module)
            if module in seen or file is None:
                continue
            seen[module] = file
            pending.extend(self._imports(file, module))
        digest = hashlib.sha256()
        for module, file in sorted(seen.items()):
            digest.update(f"{module}\0{self._source(file).digest}\0".encode())
            # a package's SQL and templates are code too
            resources = sorted(file.parent.iterdir()) if file.name == "__init__.py" else []
            for resource in (each for each in resources if each.suffix in RESOURCE_SUFFIXES):
                digest.update(resource.name.encode() + b"\0" + resource.read_bytes() + b"\0")
        return digest.hexdigest()[:16]

    def save(self) -> None:
        """Write what was parsed, unless the file has it already. Files that no script imports now are forgotten."""
        if len(self._sources) > self._known:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            kept = {key: source for key, source in self._sources.items() if key in self._used}
            write_atomically(self._file, json.dumps(kept).encode())

    def _source(self, file: Path) -> ParsedFile:
        content = file.read_bytes()
        key = hashlib.sha256(content).hexdigest()
        self._used.add(key)
        if key not in self._sources:
            self._sources[key] = _parse(content)
        return self._sources[key]

    def _find_imports(self, file: Path, module: str) -> list[str]:
        """Returns the dotted names of the modules of this package that `file` imports.

        `from package import name` imports the module `package.name` if there is such a module, and `package` otherwise.
        """
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found = []
        for level, name, names in self._source(file).imports:
            base = name
            if level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - level + 1], *([name] if name else [])])
            if base.split(".")[0] != PACKAGE:
                continue
            submodules = [f"{base}.{each}" for each in names if self._module_file(f"{base}.{each}")]
            found += submodules
            if len(submodules) < len(names) or not names:
                found.append(base)
        return found


def _module_file(module: str) -> Path | None:
    """Returns the file of a module of this package, or None if there is no such module."""
    parts = module.split(".")[1:]
    for file in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
        if file.is_file() and file != ROOT.with_suffix(".py"):
            return file
    return None


def _parse(content: bytes) -> ParsedFile:
    tree = ast.parse(content)
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # remove docstrings, which are statements that consist of a string
            node.body = [
                s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
        elif isinstance(node, ast.Import):
            imports += [Import(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append(Import(node.level, node.module or "", [alias.name for alias in node.names]))
    return ParsedFile(imports, hashlib.sha256(ast.dump(tree).encode()).hexdigest())
