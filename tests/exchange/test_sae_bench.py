"""SAEBench's core evaluation and ours measure the same on the same model, dictionary and tokens, where definitions
agree. Where they do not, the difference is the one that docs/dictionary_benchmark.md states."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.exchange.environments import peer_python
from tests.models import D_MODEL, VOCABULARY, tiny_model
from torch import Tensor

from circuitloom.config.evaluation import Evaluation
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.dictionaries.formats.saelens import export_saelens
from circuitloom.evaluation.core_metrics import core_metrics, measure_core
from circuitloom.evaluation.held_out import HeldOut
from circuitloom.evaluation.score_rows import metric_row
from circuitloom.evaluation.scoring import baseline_rows, score_runs
from circuitloom.language_model.hooks import Site, edited
from circuitloom.language_model.model import LanguageModel, load_model

pytestmark = pytest.mark.exchange
SCRIPT = Path(__file__).parent / "peers" / "run_saebench.py"
BOS, LAYER, WIDTH = 1, 1, 40
SITE = Site("mlp_added", LAYER)
DIFFERENT = (
    "explained_variance",
    "mse",
    "ce_loss_with_ablation",
    "ce_loss_score",
    "kl_div_with_ablation",
    "kl_div_score",
)
"""Metrics of the same name whose definitions differ."""


@dataclass(frozen=True)
class Measured:
    """What both measure, by the name of the tokens and of the metric."""

    model: LanguageModel
    sae: Dictionary
    tokens: dict[str, HeldOut]
    ours: dict[str, dict[str, float]]
    theirs: dict[str, dict[str, float]]


def held_out_tokens(name: str) -> HeldOut:
    """Random tokens with separators. Sequences named `closed` end with one, so that nothing is scored at their end."""
    generator = torch.Generator().manual_seed(0)
    token = torch.randint(4, VOCABULARY, (8, 20), generator=generator)
    token[torch.rand(token.shape, generator=generator) < 0.1] = BOS
    token[:, 0] = BOS
    token[:, -1] = BOS if name == "closed" else 5
    return HeldOut(token, (token == BOS).flatten().cumsum(0).view_as(token), token != BOS, token == BOS)


def our_metrics(model: LanguageModel, sae: Dictionary, held_out: HeldOut) -> dict[str, float]:
    runs = {"ours": {LAYER: sae}}
    score = score_runs(model, runs, held_out, "auto")["ours"]
    [baseline] = baseline_rows(model, [SITE.name], [LAYER], held_out, Evaluation())
    metric = metric_row("ours", LAYER, score, baseline)
    sums = measure_core(model, runs, held_out, "auto")["ours", LAYER]
    return {each.name: each.value for each in core_metrics(sae, sums, metric)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    python, folder = peer_python("saebench"), tmp_path_factory.mktemp("saebench")
    model = load_model(tiny_model("llama", folder / "model"), device="cpu")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(WIDTH, D_MODEL, generator=generator)
    rows = rows / rows.norm(dim=1, keepdim=True)
    sae = Dictionary(
        rows, -0.05 * torch.rand(WIDTH, generator=generator), 4 * rows,
        0.01 * torch.randn(D_MODEL, generator=generator),
        act="relu", site_in=SITE.name, site_out=SITE.name, layer=LAYER,
    )  # fmt: skip
    export_saelens(sae, folder / "sae", "tiny", hook_name=f"blocks.{LAYER}.hook_mlp_out")
    tokens = {name: held_out_tokens(name) for name in ("closed", "open")}
    save_file({name: each.token for name, each in tokens.items()}, folder / "tokens.safetensors")
    done = subprocess.run(
        [str(python), str(SCRIPT), str(folder)], text=True, capture_output=True, check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names = [*tokens, *(f"{name}_with_special" for name in tokens)]
    theirs = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    ours = {name: our_metrics(model, sae, each) for name, each in tokens.items()}
    return Measured(model, sae, tokens, ours, theirs)


def test_metrics_with_the_same_definition_agree(measured: Measured) -> None:
    ours, theirs = measured.ours["closed"], measured.theirs["closed"]
    same = (ours.keys() & theirs.keys()) - set(DIFFERENT)
    assert len(same) == 17
    for name in same:
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-6), name
    # the dictionary is neither perfect nor useless, so that agreement says something
    assert ours["kl_div_with_sae"] > 0.01 and 0.05 < ours["freq_over_10_percent"] < 1


def test_their_mse_is_divided_by_the_number_of_tokens_of_the_batch(measured: Measured) -> None:
    for name, held_out in measured.tokens.items():
        theirs = measured.theirs[name]["mse"] * held_out.n_tokens
        assert theirs == pytest.approx(measured.ours[name]["mse"], rel=1e-4)


def test_their_explained_variance_subtracts_a_mean_of_squares(measured: Measured) -> None:
    for name in measured.tokens:
        ours, theirs = measured.ours[name], measured.theirs[name]["explained_variance"]
        assert theirs == pytest.approx(ours["saebench_explained_variance"], rel=1e-4)
        assert abs(theirs - ours["explained_variance"]) > 1e-3


def test_their_kl_counts_the_last_position_of_each_sequence(measured: Measured) -> None:
    held_out = measured.tokens["open"]
    ours, theirs = measured.ours["open"], measured.theirs["open"]

    def reconstruct(_: Tensor, y: Tensor) -> Tensor:
        return torch.where(held_out.scored[..., None], measured.sae(y), y)

    p = measured.model.logits(held_out.token).log_softmax(-1)
    with edited(measured.model, {SITE: reconstruct}):
        q = measured.model.logits(held_out.token).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert theirs["kl_div_with_sae"] == pytest.approx(float(kl[held_out.scored].mean()), rel=1e-4)
    assert ours["kl_div_with_sae"] == pytest.approx(
        float(kl[:, :-1][held_out.scored[:, :-1]].mean()), rel=1e-4
    )
    assert theirs["kl_div_with_sae"] != pytest.approx(ours["kl_div_with_sae"], rel=1e-3)
    # the last position has no next token, so that the CE is the same
    assert theirs["ce_loss_with_sae"] == pytest.approx(ours["ce_loss_with_sae"], rel=1e-5)


def test_their_ablation_changes_separators_too(measured: Measured) -> None:
    held_out = measured.tokens["closed"]
    token, scored = held_out.token, held_out.scored[:, :-1]

    def ce(kept: Tensor) -> float:
        with edited(measured.model, {SITE: lambda _, y: y * kept[..., None]}):
            log_p = measured.model.logits(token).log_softmax(-1)[:, :-1]
        return float(-log_p.gather(2, token[:, 1:, None])[..., 0][scored].mean())

    ours, theirs = (
        measured.ours["closed"]["ce_loss_with_ablation"],
        measured.theirs["closed"]["ce_loss_with_ablation"],
    )
    assert theirs == pytest.approx(ce(torch.zeros(token.shape)), rel=1e-5)
    assert ours == pytest.approx(ce(held_out.keeps_original.float()), rel=1e-5)
    assert abs(theirs - ours) > 1e-4


def test_by_default_they_reconstruct_separators_too(measured: Measured) -> None:
    default, excluded = measured.theirs["closed_with_special"], measured.theirs["closed"]
    assert abs(default["ce_loss_with_sae"] - excluded["ce_loss_with_sae"]) > 1e-4
    assert default["l0"] == excluded["l0"]
