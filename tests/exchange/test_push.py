"""An exported folder is uploaded as it is, and not without a licence, a token or intact files."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.exchange.hub import Hub, hub_server
from tests.exchange.results import random_dictionary, write_results

from circuitloom.exchange.export import export_run
from circuitloom.exchange.push import card_license, push
from circuitloom.exchange.stored_run import StoredRun


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


def exported(folder: Path, license: str | None = "mit") -> Path:
    """An exported run of two layers."""
    results = write_results(folder / "study", {layer: random_dictionary(layer) for layer in (0, 1)})
    export_run("circuit-tracer", StoredRun(results, "some"), folder / "out", license=license)
    return folder / "out"


def push_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `circuitloom push`, in a process of its own because huggingface_hub reads its environment once."""
    # a login of this machine must not be used
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "circuitloom", "push", str(folder), *arguments], text=True, capture_output=True,
        env={**clean, "HF_HOME": str(folder.parent / "hf"), **environment}, check=False,
    )  # fmt: skip


def test_every_file_arrives_in_a_private_repository(hub: Hub, tmp_path: Path) -> None:
    folder = exported(tmp_path)
    run = push_command(folder, "me/private", **hub.environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{hub.address}/me/private/commit/{'0' * 40}\n"
    assert hub.private["me/private"]
    assert hub.files["me/private"] == {file.name: file.read_bytes() for file in folder.iterdir()}
    # a second upload goes to the same repository
    assert push_command(folder, "me/private", **hub.environment).returncode == 0


def test_a_repository_can_be_public(hub: Hub, tmp_path: Path) -> None:
    assert push_command(exported(tmp_path), "me/public", "--public", **hub.environment).returncode == 0
    assert not hub.private["me/public"]


def test_without_token_or_with_a_wrong_one_the_message_is_one_line(hub: Hub, tmp_path: Path) -> None:
    folder, environment = exported(tmp_path), hub.environment
    wrong = push_command(folder, "me/refused", **{**environment, "HF_TOKEN": "hf_wrong"})
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("circuitloom: push: me/refused: could not be uploaded (")
    assert "hf_wrong" not in wrong.stderr
    del environment["HF_TOKEN"]
    without = push_command(folder, "me/refused", **environment)
    assert without.stderr.splitlines()[-1] == (
        "circuitloom: push: there is no token; set HF_TOKEN, or run `hf auth login`"
    )
    assert "me/refused" not in hub.files


def test_a_folder_without_licence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the card states no licence; export again with `--license`"):
        push(exported(tmp_path, license=None), "me/some")


def test_a_damaged_folder_or_another_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / "layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"layer_1.safetensors: not what was exported"):
        push(folder, "me/some")
    (folder / "export.json").unlink()
    with pytest.raises(ValueError, match=r"there is no export.json"):
        push(folder, "me/some")
    with pytest.raises(ValueError, match="no card with front matter"):
        push(tmp_path, "me/some")


def test_offline_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    # tests set HF_HUB_OFFLINE
    with pytest.raises(ValueError, match="set HF_HUB_OFFLINE=0 to upload"):
        push(exported(tmp_path), "me/some")


def test_the_licence_of_a_card_is_read(tmp_path: Path) -> None:
    for text, expected in (("license: mit", "mit"), ("license: unknown", None), ("license: null", None)):
        (tmp_path / "README.md").write_text(f"---\n{text}\n---\n# Card\n")
        assert card_license(tmp_path) == expected
