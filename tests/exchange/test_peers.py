"""Other libraries compute our function from what we export, and we compute theirs from what they save.

Each library runs in an environment of its own, which `make test-exchange` builds.
"""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.exchange.environments import peer_python
from tests.exchange.results import SAE, D, random_dictionary, write_results

from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.exchange.export import export_run
from circuitloom.exchange.stored_run import StoredRun

pytestmark = pytest.mark.exchange
LAYER = 3
READER = "circuitloom.dictionaries.formats.published"
"""Module with `read_published`."""
TRANSCODERS = {
    f"{act}{' skip' if skip else ''} transcoder": {"act": act, "skip": skip}
    for act in ("relu", "threshold", "topk")
    for skip in (False, True)
}
SAES = {f"{act} sae": {"act": act, **SAE} for act in ("relu", "threshold", "topk")}
SKIP_SAE = {"topk skip sae": {"act": "topk", "skip": True, **SAE}}


@dataclass(frozen=True)
class PeerCase:
    """A library, and what is exported for it."""

    format_name: str
    keys: dict[str, dict]
    made: tuple[str, ...] = ()
    """Names of the dictionaries that the library saves itself."""


PEERS = {
    "saelens": PeerCase(
        "saelens",
        {name: keys for name, keys in (TRANSCODERS | SAES).items() if not name.startswith("topk") or "sae" in name},
        (
            "standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder",
            "jumprelu_skip_transcoder",
        ),
    ),
    "circuit_tracer": PeerCase("circuit-tracer", TRANSCODERS),
    "sparsify": PeerCase(
        "sparsify",
        {name: keys for name, keys in (TRANSCODERS | SAES | SKIP_SAE).items() if name.startswith("topk")},
        ("sae", "transcoder", "skip_transcoder"),
    ),
    "dictionary_learning": PeerCase(
        "",
        {},
        (
            "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK",
            "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
        ),
    ),
}  # fmt: skip
READS_AS_RELU = [("circuit_tracer", name) for name in TRANSCODERS if name.startswith("topk")]
EXPORTED = [
    (peer, name) for peer, case in PEERS.items() for name in case.keys if (peer, name) not in READS_AS_RELU
]
MADE = [(peer, name) for peer, case in PEERS.items() for name in case.made]


def exported_dictionaries(keys: dict) -> dict[int, Dictionary]:
    """The dictionaries of all layers up to LAYER, because circuit-tracer needs every layer from 0."""
    return {layer: random_dictionary(layer, **keys) for layer in range(LAYER + 1)}


@pytest.fixture(scope="session")
def run_peer(tmp_path_factory) -> Callable[[str], Path]:
    """A function that runs a library once, on everything that is exported for it. Returns its folder."""
    folders: dict[str, Path] = {}
    failed: dict[str, str] = {}

    def run(peer: str) -> Path:
        python = peer_python(peer)
        if peer in folders:
            return folders[peer]
        assert peer not in failed, failed[peer]
        folder, case = tmp_path_factory.mktemp(peer), PEERS[peer]
        for name, keys in case.keys.items():
            own = folder / "ours" / name
            results = write_results(folder / "studies" / name, exported_dictionaries(keys))
            layers = None if peer == "circuit_tracer" else [LAYER]
            export_run(case.format_name, StoredRun(results, "some", layers), own / "export")
            x = torch.randn(30, D, generator=torch.Generator().manual_seed(1))
            save_file({"x": x}, own / "x.safetensors")
        script = Path(__file__).parent / "peers" / f"run_{peer}.py"
        done = subprocess.run(
            [str(python), str(script), str(folder)], text=True, capture_output=True, check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if done.returncode:
            failed[peer] = done.stderr[-3000:]
        assert peer not in failed, failed[peer]
        folders[peer] = folder
        return folder

    return run


@pytest.mark.parametrize(("peer", "name"), EXPORTED)
def test_a_library_computes_our_function_from_what_we_export(peer: str, name: str, run_peer) -> None:
    case = run_peer(peer) / "ours" / name
    x, theirs = load_file(case / "x.safetensors")["x"], load_file(case / "theirs.safetensors")
    ours = exported_dictionaries(PEERS[peer].keys[name])[LAYER]
    torch.testing.assert_close(theirs["z"], ours.encode(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs["y"], ours(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("peer", "name"), READS_AS_RELU)
def test_circuit_tracer_0_5_reads_topk_as_relu(peer: str, name: str, run_peer) -> None:
    # if this fails, a newer version reads topk: correct docs/exchange.md and the notice of the export
    case = run_peer(peer) / "ours" / name
    x, theirs = load_file(case / "x.safetensors")["x"], load_file(case / "theirs.safetensors")
    ours = exported_dictionaries(PEERS[peer].keys[name])[LAYER]
    pre = x @ ours.W_enc.T + ours.b_enc
    torch.testing.assert_close(theirs["z"], pre.relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("peer", "name"), MADE)
def test_we_compute_a_library_s_function_from_what_it_saves(peer: str, name: str, run_peer) -> None:
    if find_spec(READER) is None:
        pytest.skip("this version does not import published dictionaries")
    from circuitloom.dictionaries.formats.published import read_published

    case = run_peer(peer) / "made" / name
    expected = load_file(case / "expected.safetensors")
    dictionary = read_published(case, LAYER)
    torch.testing.assert_close(dictionary.encode(expected["x"]), expected["z"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary(expected["x"]), expected["y"], atol=1e-5, rtol=1e-5)
