"""Copies of this checkout in which Snakemake runs studies."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.workflow.snakemake_forks import run_snakemake

ROOT = Path(__file__).parents[2]
STUDY = "config/studies/tiny.yaml"
SNAKEMAKE = Path(sys.executable).with_name("snakemake")


@dataclass(frozen=True)
class Project:
    """A copy of this checkout."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny"

    @property
    def environment(self) -> dict[str, str]:
        environment = os.environ | {"PYTHONPATH": str(self.folder / "lib"), "HF_HUB_OFFLINE": "1"}
        # with this variable, which some containers set, each job would compile the library
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return environment

    def command(self, *arguments: str, study: str = STUDY, cores: int = 2) -> list[str]:
        # --configfile comes last: it takes all following words
        return [str(SNAKEMAKE), *arguments, "--cores", str(cores), "--configfile", study]

    def snakemake(
        self, *arguments: str, study: str = STUDY, cores: int = 2, timeout: int = 900
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments, study=study, cores=cores)
        if {"--dry-run", "--summary"} & set(arguments):
            return run_snakemake(command[1:], self.folder, self.environment)
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip

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
    for name in ("lib", "workflow", "scripts", "config"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    return Project(folder)
