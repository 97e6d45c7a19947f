"""`loss: paper` trains in the authors' coordinates; its dictionaries are saved in raw ones."""

import pytest
import torch
from torch import nn

from circuitloom.activations.statistics import Moments
from circuitloom.config import Run
from circuitloom.dictionaries.training.objective import compute_loss
from circuitloom.dictionaries.training.paper_loss import PaperCoordinates
from circuitloom.dictionaries.training.trainer import Trainer

D, WIDTH, TOKENS = 12, 40, 256


def norm(kind: str) -> nn.Module | None:
    """A norm with a gain, and with a bias for LayerNorm."""
    generator = torch.Generator().manual_seed(5)
    module = {"layer": nn.LayerNorm(D), "rms": nn.RMSNorm(D), "none": None}[kind]
    for parameter in [] if module is None else module.parameters():
        parameter.data = 1 + 0.3 * torch.randn(D, generator=generator)
    return module


def draw(seed: int) -> torch.Tensor:
    return torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(seed))


def moments(x: torch.Tensor) -> Moments:
    return Moments(x.mean(0), 1.0, float((x - x.mean(0)).square().sum(1).mean()))


def trained(kind: str, coordinates: PaperCoordinates, skip: bool = False) -> Trainer:
    site = {"kind": "sae"} if kind == "sae" else {}
    keys = {"tokens": TOKENS * 20, "batch": TOKENS, "learning_rate": 1e-2, "sparsity": 1e-3, "name": "r"}
    run = Run(width=WIDTH, act="relu", loss="paper", skip=skip, **keys, **site)
    x, y = draw(1) + 0.5, draw(2) - 0.3
    target = x if kind == "sae" else y
    trainer = Trainer(run, 0, moments(x), moments(target), (x, target), coordinates)
    for i in range(20):
        trainer.step(i, x, target)
    return trainer


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
def test_the_saved_transcoder_computes_on_raw_activations_what_training_did(kind: str, skip: bool) -> None:
    coordinates = PaperCoordinates(norm(kind), centred=True)
    trainer = trained("transcoder", coordinates, skip)
    p, x = trainer.parameters, draw(3)
    with torch.no_grad():
        normalised = coordinates.normalise_input(x)
        z = ((normalised - p.b_in) @ p.W_enc.T + p.b_enc).relu()
        y_hat = z @ p.W_dec + p.b_dec + (normalised @ p.W_skip.T if skip else 0)
        # the constant part of the mean over d that centring removed
        y_hat = y_hat + trainer.scales.y_mean.mean()
        assert torch.allclose(trainer.dictionary()(x), y_hat, atol=1e-5)


def test_normalising_the_input_undoes_the_norms_gain_and_bias() -> None:
    layer_norm = norm("layer")
    raw = draw(4)
    expected = torch.nn.functional.layer_norm(raw, (D,), eps=layer_norm.eps)
    found = PaperCoordinates(layer_norm, centred=True).normalise_input(layer_norm(raw))
    assert torch.allclose(found, expected, atol=1e-5)


def test_decoder_rows_keep_unit_norm() -> None:
    trainer = trained("transcoder", PaperCoordinates(norm("layer"), centred=True))
    assert torch.allclose(trainer.parameters.W_dec.norm(dim=1), torch.ones(WIDTH), atol=1e-5)


def test_an_sae_subtracts_the_bias_that_it_adds() -> None:
    trainer = trained("sae", PaperCoordinates(None, centred=False))
    assert trainer.parameters.b_in is trainer.parameters.b_dec
    x = draw(3)
    fresh = Trainer(trainer.run, 0, moments(x), moments(x), (x, x), PaperCoordinates(None, False))
    fresh.restore(trainer.state())
    assert torch.equal(fresh.dictionary()(x), trainer.dictionary()(x))


def test_training_does_not_change_the_stored_mean() -> None:
    run = Run(width=WIDTH, act="relu", loss="paper", kind="sae", batch=TOKENS, name="r")
    x = draw(1) + 0.5
    stored = moments(x)
    before = stored.mean.clone()
    trainer = Trainer(run, 0, stored, stored, (x, x), PaperCoordinates(None, centred=False))
    trainer.step(0, x, x)
    assert not torch.equal(trainer.parameters.b_dec, before), "nothing was trained"
    assert torch.equal(stored.mean, before)


def test_the_loss_is_that_of_the_authors() -> None:
    trainer = trained("transcoder", PaperCoordinates(norm("layer"), centred=True))
    p, x, y = trainer.parameters, draw(6), draw(7)
    no_dead = torch.zeros(0, dtype=torch.int64)
    terms = compute_loss(p, trainer.run, x, y, variance=1.0, sparsity_weight=0.01, dead=no_dead)
    with torch.no_grad():
        z = ((x - p.b_in) @ p.W_enc.T + p.b_enc).relu()
        y_hat = z @ p.W_dec + p.b_dec
        expected = ((y_hat - y) ** 2 / y.norm(dim=1, keepdim=True)).mean() + 0.01 * z.sum(1).mean()
    # dense products run in bfloat16 if the hardware supports it
    assert terms.loss.item() == pytest.approx(float(expected), rel=1e-2)


def test_a_gain_of_zero_is_refused() -> None:
    broken = nn.LayerNorm(D)
    broken.weight.data[3] = 0
    with pytest.raises(ValueError, match="gain, which is 0 in some dimension; train with loss: standard"):
        PaperCoordinates(broken, centred=True)
