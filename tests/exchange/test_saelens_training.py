"""What SAELens trains on a real model is imported, and both projects measure the same on the same tokens."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.exchange.environments import peer_python
from torch import Tensor

from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.dictionaries.formats.published import read_published
from circuitloom.evaluation.metrics import (
    FiringSums,
    firing_sums,
    fractions_unexplained,
    reconstruction_sums,
)
from circuitloom.language_model.hooks import Site, capture
from circuitloom.language_model.model import LanguageModel, load_model

pytestmark = pytest.mark.exchange
SCRIPT = Path(__file__).parent / "peers" / "train_saelens.py"
LAYER, CONTEXT, ROWS, BATCH = 2, 128, {"train": 320, "held_out": 32}, 16
"""`BATCH` is the number of sequences that SAELens evaluates at once."""


def token_rows(file: Path, model: Path) -> Iterator[list[int]]:
    """Rows of CONTEXT tokens: a BOS and a part of the stories, between which there is a BOS too."""
    tokenizer = load_tokenizer(str(model))
    assert tokenizer.bos_id is not None
    stories = tokenizer.encode([json.loads(line)["text"] for line in file.read_text().splitlines()])
    stream = np.concatenate([part for story in stories for part in (story, [tokenizer.bos_id])])
    for start in range(0, len(stream), CONTEXT - 1):
        yield [tokenizer.bos_id, *stream[start : start + CONTEXT - 1].tolist()]


@dataclass(frozen=True)
class Trained:
    """What SAELens trained and measured, and the same language model here."""

    model: LanguageModel
    sae: Dictionary
    transcoder: Dictionary
    metrics: dict[str, Any]
    tensors: dict[str, Tensor]
    """What SAELens computed on held-out tokens: x, y, and activations and reconstructions of both, by token."""
    sites: dict[str, Tensor]
    """Activations of the same tokens here, by site."""
    read: Tensor
    """Whether a token is evaluated. SAELens leaves out special tokens, here the BOS."""


@pytest.fixture(scope="module")
def trained(real_input: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    python, folder = peer_python("saelens"), tmp_path_factory.mktemp("saelens")
    name, data = real_input / "models" / "stories260K", real_input / "data" / "tinystories"
    files = {"train": data / "train.jsonl", "held_out": data / "validation.jsonl"}
    tokens = {
        key: torch.tensor(list(islice(token_rows(file, name), ROWS[key]))) for key, file in files.items()
    }
    save_file(tokens, folder / "tokens.safetensors")
    done = subprocess.run(
        [str(python), str(SCRIPT), str(folder), str(name)], text=True, capture_output=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    model, metrics = load_model(name, device="cpu"), json.loads((folder / "metrics.json").read_text())
    found = capture(model, tokens["held_out"], [Site(site, LAYER) for site in ("mlp_in", "mlp_added")])
    return Trained(
        model,
        read_published(folder / "sae", LAYER),
        read_published(folder / "transcoder", LAYER, model),
        metrics,
        load_file(folder / "held_out.safetensors"),
        {site.name: value.flatten(0, 1) for site, value in found.items()},
        ~torch.isin(tokens["held_out"].flatten(), torch.tensor(metrics["special"])),
    )


def firing(z: Tensor) -> FiringSums:
    return firing_sums(z.nonzero()[:, 1], z.shape[1], len(z))


def undecided(dictionary: Dictionary, x: Tensor, within: float) -> Tensor:
    """Whether an activation is so near to its threshold that rounding may decide whether it fires."""
    assert dictionary.threshold is not None
    return (x @ dictionary.W_enc.T + dictionary.b_enc - dictionary.threshold).abs() < within


def test_both_read_the_same_activations_of_the_model(trained: Trained) -> None:
    torch.testing.assert_close(trained.sites["mlp_added"], trained.tensors["y"], atol=1e-4, rtol=1e-4)


def test_the_sae_that_saelens_trained_is_imported(trained: Trained) -> None:
    y, theirs = trained.tensors["y"], trained.tensors
    assert trained.sae.is_sae and trained.sae.site_in == "mlp_added" and trained.sae.act == "threshold"
    known = ~undecided(trained.sae, y, 1e-5)
    torch.testing.assert_close(trained.sae.encode(y)[known], theirs["sae_z"][known], atol=1e-5, rtol=1e-5)
    rows = known.all(1)
    torch.testing.assert_close(trained.sae(y)[rows], theirs["sae_y"][rows], atol=1e-5, rtol=1e-5)
    assert rows.double().mean() > 0.99


def test_metrics_of_the_sae_are_those_of_saelens(trained: Trained) -> None:
    y = trained.tensors["y"][trained.read]
    firings, sums = firing(trained.sae.encode(y)), reconstruction_sums(y, trained.sae(y))
    sparsity, quality, shrinkage = (
        trained.metrics["sae"][group] for group in ("sparsity", "reconstruction_quality", "shrinkage")
    )
    # L0 is the same number of activations, of which SAELens gives the mean in float32
    different = abs(round(sparsity["l0"] * len(y)) - int(firings.fires.sum()))
    assert different <= int(undecided(trained.sae, y, 1e-5).sum())
    assert quality["explained_variance"] == pytest.approx(1 - sums.fvu, abs=1e-6)
    assert quality["mse"] == pytest.approx(sums.mse, rel=1e-5)
    assert quality["cossim"] == pytest.approx(sums.cosine, rel=1e-5)
    assert shrinkage["l2_ratio"] == pytest.approx(sums.norm_ratio, rel=1e-5)
    # it was trained: the mean explains 0
    assert quality["explained_variance"] > 0.2


def test_their_legacy_explained_variance_is_a_mean_of_ratios(trained: Trained) -> None:
    rows = CONTEXT * BATCH
    fractions = []
    for start in range(0, len(trained.read), rows):
        batch = slice(start, start + rows)
        y = trained.tensors["y"][batch][trained.read[batch]]
        fractions.append(fractions_unexplained(y, trained.sae(y), y.mean(0)))
    theirs = trained.metrics["sae"]["reconstruction_quality"]
    assert theirs["explained_variance_legacy"] == pytest.approx(
        1 - float(torch.cat(fractions).mean()), abs=1e-5
    )
    assert abs(theirs["explained_variance_legacy"] - theirs["explained_variance"]) > 1e-3


def test_a_transcoder_of_saelens_is_imported_for_the_norm_s_output_with_gain(trained: Trained) -> None:
    transcoder, theirs = trained.transcoder, trained.metrics["transcoder"]
    assert transcoder.is_transcoder and (transcoder.site_in, transcoder.site_out) == ("mlp_in", "mlp_added")
    x, y = trained.sites["mlp_in"], trained.sites["mlp_added"]
    # both models compute their own x
    near = undecided(transcoder, x, 1e-3)
    rows = ~near.any(1)
    torch.testing.assert_close(
        transcoder(x)[rows], trained.tensors["transcoder_y"][rows], atol=1e-3, rtol=1e-3
    )
    read = trained.read
    counts = firing(transcoder.encode(x[read])).fires.sum(), round(theirs["l0"] * int(read.sum()))
    assert abs(int(counts[0]) - counts[1]) <= int(near[read].sum())
    assert rows.double().mean() > 0.5
    sums = reconstruction_sums(y[read], transcoder(x[read]))
    assert 1 - sums.fvu == pytest.approx(theirs["explained_variance"], abs=1e-3)
    assert theirs["explained_variance"] > 0.05
