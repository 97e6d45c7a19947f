"""Every command of the README's tour runs, on the results of tiny instead of quickstart."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from tests.workflow.project import ROOT, Project

SECTION = (ROOT / "README.md").read_text().split("\n## A tour\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
EXPLORE = "circuitloom explore"
PORT = 8050


@pytest.fixture(scope="session")
def toured(finished, tmp_path_factory) -> Project:
    """A folder in which results/quickstart is the finished tiny study."""
    folder = tmp_path_factory.mktemp("toured")
    (folder / "results").mkdir()
    (folder / "results" / "quickstart").symlink_to(finished.results)
    (folder / "lib").symlink_to(finished.folder / "lib")
    return Project(folder)


def environment(project: Project) -> dict[str, str]:
    """The environment variables of an activated virtual environment."""
    return project.environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_tour_has_five_steps_and_starts_with_make_reproduce() -> None:
    assert re.findall(r"^\*\*(\d)\.", SECTION, re.MULTILINE) == list("12345")
    assert COMMANDS[0] == "make reproduce"
    assert EXPLORE in COMMANDS


def test_make_reproduce_runs_the_workflow() -> None:
    # --no-print-directory: inside `make test`, make would print its folder
    run = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "reproduce"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == ".venv/bin/snakemake --cores all"


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in ("make reproduce", EXPLORE)])
def test_a_command_of_the_tour_prints_a_result(toured, command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "circuitloom"
    run = toured.circuitloom(*arguments)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) > 2, "the table has no rows"
    if command.startswith("circuitloom trace "):
        assert "checks: sums of sources agree with the model to " in run.stdout


def test_the_explorer_of_the_tour_serves_pages_until_interrupted(toured) -> None:
    with socket.socket() as free:
        taken = free.connect_ex(("127.0.0.1", PORT)) == 0
    command = [*shlex.split(EXPLORE), *(["--port", "0"] if taken else [])]
    with subprocess.Popen(
        command, cwd=toured.folder, env=environment(toured), stdout=subprocess.PIPE, text=True
    ) as served:
        try:
            assert served.stdout is not None
            found = re.search(r"http://\S+", served.stdout.readline())
            assert found is not None
            with urlopen(found.group(), timeout=60) as page:
                assert page.status == 200
                assert b"circuitloom" in page.read()
            served.send_signal(signal.SIGINT)
            assert served.wait(timeout=60) == 0
        finally:
            served.kill()
