"""Effects of resid_mid features on MLP features."""

import pytest
import torch
from tests.ablation.component_inputs import INSIDE, make_prompt, make_saes
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.evaluation.inputs import make_held_out

from circuitloom.ablation import feature_effects as module
from circuitloom.ablation.components import Ablation, feature_basis
from circuitloom.ablation.feature_effects import capture_resid_mid, feature_effects
from circuitloom.config.activations import MLP_INPUTS
from circuitloom.language_model.hooks import Site, capture

LAYER = 1


def gathered(*args, **kwargs) -> dict[tuple[int, int], tuple[float, ...]]:
    """Pair to (tokens, tokens that change, effect, magnitude); each pair once."""
    found = {}
    for piece in feature_effects(*args, **kwargs):
        names = ("n_tokens", "n_changed", "effect", "absolute")
        rows = zip(*(getattr(piece, name).tolist() for name in ("source", "target", *names)), strict=True)
        for source, target, *values in rows:
            assert (source, target) not in found
            found[source, target] = tuple(values)
    assert list(found) == sorted(found)
    return found


@pytest.fixture
def inputs(request, tmp_path):
    """Model, sources, targets and stream of a tiny model."""
    model = load_tiny(getattr(request, "param", "gpt2"), tmp_path)
    held_out = make_held_out()
    stream = capture_resid_mid(model, held_out.token, held_out.scored, LAYER, batch=4)
    assert stream.shape == (held_out.n_tokens, 16)
    source = make_saes(model, "resid_mid")[LAYER]
    return model, source, make_saes(model, act="relu", k=None)[LAYER], stream


@pytest.mark.parametrize("site", ["mlp_out", "mlp_added", "mlp_in", "resid_mid"])
@pytest.mark.parametrize("inputs", ["gpt2", "llama", "gemma3_text", "granite"], indirect=True)
def test_effects_equal_a_double_loop(inputs, site, monkeypatch):
    model, source, target, stream = inputs
    target = make_saes(model, site, act="relu", k=None)[LAYER]
    if site in MLP_INPUTS:
        target = make_dictionaries(model, site_in=site)[LAYER]
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 40 * 13)
    found = gathered(model, source, target, stream)
    norm = model.block(LAYER).get_submodule(model.anatomy.norm_mlp)

    def encode(r):
        x = r[None, None] if site == "resid_mid" else norm(r[None, None])
        y = x if site in MLP_INPUTS else model.mlp(LAYER)(x)
        if site == "mlp_added" and model.anatomy.norm_mlp_after:
            y = model.block(LAYER).get_submodule(model.anatomy.norm_mlp_after)(y)
        elif site == "mlp_added":
            y = y * model.residual_multiplier
        return target.encode(y[0, 0])

    z, changes = source.encode(stream), {}
    for t in range(len(stream)):
        before = encode(stream[t])
        for i in z[t].nonzero()[:, 0].tolist():
            changes.setdefault(i, []).append(before - encode(stream[t] - z[t, i] * source.W_dec[i]))
    expected = {}
    for i, rows in changes.items():
        each = torch.stack(rows)
        for j in (each.abs().max(0).values > 1e-5).nonzero()[:, 0].tolist():
            expected[i, j] = len(each), each[:, j].mean(), each[:, j].abs().mean()
    assert set(expected) <= set(found)
    for pair, (n, _, effect, absolute) in found.items():
        if pair not in expected:
            assert absolute < 1e-5
            continue
        assert n == expected[pair][0]
        torch.testing.assert_close(
            torch.tensor([effect, absolute]), torch.stack(expected[pair][1:]), atol=1e-5, rtol=1e-4
        )
    # a chunk ends within a source, whose tokens are counted once
    assert any(n > 13 for n, *_ in found.values())


def test_effects_equal_those_in_a_full_pass(tmp_path):
    """In a full pass: the same ablation in the stream, read at mlp_out."""
    model = load_tiny("llama", tmp_path)
    prompt, position = make_prompt(), 7
    source, target = make_saes(model, "resid_mid")[LAYER], make_saes(model)[LAYER]
    at = (torch.arange(len(INSIDE)) == position)[None]
    stream = capture_resid_mid(model, INSIDE[None], at, LAYER)
    found = gathered(model, source, target, stream)
    basis = feature_basis("run", {LAYER: source})
    site = Site("mlp_out", LAYER)
    before = target.encode(capture(model, INSIDE[None], [site])[site][0, position])
    feature = next(iter(found))[0]
    ablated = (torch.arange(len(basis)) == feature)[None]
    with basis.ablating(model, Ablation(ablated, at), prompt.where, [None]):
        after = target.encode(capture(model, INSIDE[None], [site])[site][0, position])
    change = before - after
    assert change.any()
    for j in change.nonzero()[:, 0].tolist():
        n, n_changed, effect, absolute = found[feature, j]
        assert (n, n_changed) == (1, 1)
        assert effect == pytest.approx(float(change[j]), abs=1e-5)
        assert absolute == abs(effect)


def test_sampled_tokens_of_a_source_are_evenly_spaced(inputs):
    model, source, target, stream = inputs
    token, feature, value = module._ablations(source, stream, 4)
    z = source.encode(stream)
    for i in feature.unique().tolist():
        fires = z[:, i].nonzero()[:, 0]
        n, m = len(fires), min(4, len(fires))
        own = token[feature == i]
        assert own.tolist() == [int(fires[(2 * j + 1) * n // (2 * m)]) for j in range(m)]
        assert torch.equal(value[feature == i], z[own, i])
    found = gathered(model, source, target, stream, per_source=4)
    assert {n for n, *_ in found.values()} <= {1, 2, 3, 4}


def test_the_targets_that_change_most_are_kept(inputs):
    model, source, target, stream = inputs
    every, few = gathered(model, source, target, stream), gathered(model, source, target, stream, most=3)
    for i in {source for source, _ in every}:
        largest = sorted((pair for pair in every if pair[0] == i), key=lambda pair: -every[pair][-1])[:3]
        assert {pair for pair in few if pair[0] == i} == set(largest)
    assert all(few[pair] == every[pair] for pair in few)


def test_a_model_without_resid_mid_is_refused(tmp_path):
    model = load_tiny("neox", tmp_path)
    source, target = make_saes(model, "resid_mid")[LAYER], make_saes(model)[LAYER]
    with pytest.raises(ValueError, match="no resid_mid; use resid_pre"):
        capture_resid_mid(model, INSIDE[None], INSIDE[None] != 1, LAYER)
    with pytest.raises(ValueError, match="no resid_mid; use resid_pre"):
        list(feature_effects(model, source, target, torch.zeros(3, 16)))


def test_dictionaries_of_other_sites_or_layers_are_refused(inputs):
    model, source, target, stream = inputs
    with pytest.raises(ValueError, match="name a run of SAEs on resid_mid"):
        list(feature_effects(model, target, target, stream))
    with pytest.raises(ValueError, match="name transcoders, or SAEs on mlp_out or mlp_added"):
        list(feature_effects(model, source, source, stream))
    with pytest.raises(ValueError, match="give dictionaries of one"):
        list(feature_effects(model, source, make_saes(model)[2], stream))
