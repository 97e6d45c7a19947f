"""Copies of this checkout in which Snakemake runs studies."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from tests.workflow.snakemake_forks import run_python, run_snakemake

from circuitloom.core.provenance import CodeHasher

ROOT = Path(__file__).parents[2]
STUDY = "config/studies/tiny.yaml"
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
PARSED = Path("results", ".code.json")
"""File in which Snakemake remembers the parsed library, which it reads at each start."""


@dataclass(frozen=True)
class Project:
    """A copy of this checkout."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny"

    @property
    def made(self) -> list[Path]:
        """Files and folders in `results`."""
        return [path for path in (self.folder / "results").iterdir() if path != self.folder / PARSED]

    @property
    def environment(self) -> dict[str, str]:
        environment = os.environ | {"PYTHONPATH": str(self.folder / "lib"), "HF_HUB_OFFLINE": "1"}
        # with this variable, which some containers set, each job would compile the library
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return environment

    def copy(self, folder: Path) -> "Project":
        """A copy of the project, with a link to the same library."""
        return Project(shutil.copytree(self.folder, folder, symlinks=True))

    def copy_library(self) -> None:
        """Replace the link to the library by a copy, which can be edited."""
        (self.folder / "lib").unlink()
        _copy("lib", self.folder)

    def command(self, *arguments: str, study: str = STUDY, cores: int = 2) -> list[str]:
        # --configfile comes last: it takes all following words
        return [str(SNAKEMAKE), *arguments, "--cores", str(cores), "--configfile", study]

    def snakemake(
        self, *arguments: str, study: str = STUDY, cores: int = 2
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake. It and the scripts of its jobs run in forks, which saves their imports."""
        command = self.command(*arguments, study=study, cores=cores)
        return run_snakemake(command[1:], self.folder, self.environment)

    def snakemake_alone(
        self, *arguments: str, study: str = STUDY, cores: int = 2, timeout: int = 900
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake as a user does: it and the scripts of its jobs are processes of their own."""
        return subprocess.run(
            self.command(*arguments, study=study, cores=cores), cwd=self.folder, env=self.environment, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

    def circuitloom(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command `circuitloom` in a fork."""
        return run_python(["-m", "circuitloom", *arguments], self.folder, self.environment)

    def stale(self, *arguments: str) -> set[str]:
        """Rules that would run, without the targets of stages."""
        run = self.snakemake("--dry-run", *arguments)
        assert run.returncode == 0, run.stdout
        lines = iter(run.stdout.splitlines())
        names = set()
        for line in lines:
            if line.startswith("job ") and "count" in line:
                next(lines)
                for row in lines:
                    if not row.strip():
                        return names - {"total", "all"}
                    names.add(row.split()[0])
        return names

    def config(self, name: str, replace: tuple[str, ...] = (), **sections: dict[str, Any]) -> str:
        """Write a study like tiny and return its path in the project.

        Keys of `sections` are added to those of tiny; sections in `replace` replace those of tiny.
        """
        config = yaml.safe_load((self.folder / STUDY).read_text())
        for key, value in sections.items():
            config[key] = value if key in replace else {**config.get(key, {}), **value}
        if {"corpus", "dictionaries"} & set(replace):
            # tiny's cases need its own corpus and runs
            config.pop("cases", None)
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return f"{name}.yaml"


def copy_project(folder: Path) -> Project:
    """Copy this checkout to `folder`."""
    for name in ("lib", "workflow", "scripts", "config"):
        _copy(name, folder)
    return Project(folder)


def link_project(folder: Path) -> Project:
    """Copy this checkout to `folder`, with a link to the library, which must not be edited: it is compiled and parsed
    once for all projects."""
    for name in ("workflow", "scripts", "config"):
        _copy(name, folder)
    (folder / "lib").symlink_to(ROOT / "lib")
    parsed = folder / PARSED
    parsed.parent.mkdir()
    parsed.write_bytes(_parsed_library())
    return Project(folder)


def _copy(name: str, folder: Path) -> None:
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))


@cache
def _parsed_library() -> bytes:
    """Content of `PARSED`; parsing the library takes seconds."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "code.json"
        hasher = CodeHasher(file)
        for script in (ROOT / "scripts").glob("*.py"):
            hasher.code_hash(script)
        hasher.save()
        return file.read_bytes()
