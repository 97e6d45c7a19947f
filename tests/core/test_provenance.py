"""The hash of a script's code changes with the code that the script imports, and is remembered."""

from pathlib import Path

import pytest

from circuitloom.core import provenance
from circuitloom.core.provenance import CodeHasher


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package in which `used` imports `helper`, a script that imports `used`, and a module that nobody imports."""
    root = tmp_path / "circuitloom"
    (root / "queries").mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", root)
    files = {
        "__init__": "",
        "used": "from .helper import number\nfrom .queries import run\n",
        "queries/__init__": "run = print\n",
        "helper": '"""Docstring."""\nnumber = 1\n',
        "other": "",
    }
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    (tmp_path / "script.py").write_text("with job:\n    from circuitloom.used import number\n")
    return root


def hash_of(package: Path) -> str:
    """Hash by a new process that knows what earlier ones have stored."""
    hasher = CodeHasher(package.parent / "stored.json")
    value = hasher.code_hash(package.parent / "script.py")
    hasher.save()
    return value


@pytest.mark.parametrize(
    ("file", "text", "changes"),
    [
        ("helper.py", "number = 2\n", True),
        ("used.py", "from .other import number\n", True),
        ("helper.py", '"""Reworded."""\n# comment\nnumber = 1\n', False),
        ("other.py", "number = 2\n", False),
        ("queries/one.sql", "SELECT 1", True),
    ],
)
def test_only_edited_code_that_is_imported_changes_the_hash(package, file, text, changes) -> None:
    before = hash_of(package)
    assert hash_of(package) == before
    (package / file).write_text(text)
    assert (hash_of(package) != before) == changes
    # the same without stored files
    (package.parent / "stored.json").unlink()
    assert (hash_of(package) != before) == changes


@pytest.mark.parametrize("stored", ["", "{", "[]", '{"a": 1}', '{"a": [[1], "b"]}'])
def test_a_damaged_store_is_ignored(package, stored: str) -> None:
    before = hash_of(package)
    (package.parent / "stored.json").write_text(stored)
    assert hash_of(package) == before
    assert hash_of(package) == before


def test_an_edited_file_replaces_its_entry_in_the_store(package) -> None:
    hash_of(package)
    size = len((package.parent / "stored.json").read_text())
    for number in range(10, 30):
        (package / "helper.py").write_text(f"number = {number}\n")
        hash_of(package)
    assert len((package.parent / "stored.json").read_text()) == size
