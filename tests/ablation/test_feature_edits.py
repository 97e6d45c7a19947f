"""Feature edits: frozen outcomes match direct effects, free outcomes match a hand-edited pass."""

import pytest
import torch
from tests.attribution.inputs import load_tiny, make_dictionaries, make_linearized
from tests.models import ARCHITECTURES, VOCABULARY

from circuitloom.ablation.feature_edits import apply_edits, dense_activations, make_edits, place_edits
from circuitloom.attribution.direct_effects import direct_effects, logit_targets
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.config.circuits import FeatureChange
from circuitloom.language_model.hooks import Site, edited


def last_logits(local: LinearizedModel):
    weights = torch.eye(VOCABULARY, dtype=local.captured.resid_final.dtype)[20:24]
    return logit_targets(local, torch.full((4,), len(local.captured) - 1), weights)


def some_features(local: LinearizedModel, layer: int, count: int = 3) -> list[str]:
    places = (local.features.layer == layer).nonzero()[:count, 0].tolist()
    return [f"{layer}/{local.features.feature[i]}@{local.features.position[i]}" for i in places]


CHANGES = {
    "ablate": {},
    "scale": {"strength": 3.0},
    "clamp": {"strength": 0.5},
    "add": {"strength": 0.7},
    "keep": {},
}


@pytest.mark.parametrize("dictionaries", ["skip transcoder", "cross-layer", "skip cross-layer"])
@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_edits_scale_direct_effects(architecture, kind, dictionaries, tmp_path):
    """A feature edited from z to z' changes targets by (z' - z)/z of its direct effect."""
    model = load_tiny(architecture, tmp_path, "float64")
    local = make_linearized(model, dictionaries)
    targets = last_logits(local)
    change = FeatureChange(
        kind=kind, features=some_features(local, 0) + some_features(local, 1), **CHANGES[kind]
    )
    edits = make_edits(local, change)
    outcome = apply_edits(model, local, edits, [targets])
    effects = direct_effects(local, targets)[:, : len(local.features)]
    factor = torch.zeros(len(local.features), dtype=torch.float64)
    for layer, edit in edits.items():
        own = (local.features.layer == layer).nonzero()[:, 0]
        z = dense_activations(local, layer)
        new = edit(z)[local.features.position[own], local.features.feature[own]]
        factor[own] = new / local.features.activation[own] - 1
    assert factor.any()
    torch.testing.assert_close(outcome.frozen - outcome.before, effects @ factor, atol=1e-6, rtol=1e-6)


def test_keep_and_ablate_split_the_activations(tmp_path):
    local = make_linearized(load_tiny("gpt2", tmp_path))
    features = some_features(local, 1)
    z = dense_activations(local, 1)
    kept = make_edits(local, FeatureChange(kind="keep", features=features))[1](z)
    ablated = make_edits(local, FeatureChange(kind="ablate", features=features))[1](z)
    assert torch.equal(kept + ablated, z) and int((kept != 0).sum()) == len(features)


def test_a_feature_without_position_is_edited_at_all_positions(tmp_path):
    local = make_linearized(load_tiny("gpt2", tmp_path))
    feature = int(local.features.feature[local.features.layer == 1].mode().values)
    z = dense_activations(local, 1)
    ablated = make_edits(local, FeatureChange(kind="ablate", features=[f"1/{feature}"]))[1](z)
    assert (z[:, feature] > 0).any() and not ablated[:, feature].any()
    assert torch.equal(ablated[:, :feature], z[:, :feature])


@pytest.mark.parametrize(
    ("architecture", "site"),
    [
        ("llama", "mlp_out"),
        ("gemma3_text", "mlp_out"),
        ("gemma3_text", "mlp_added"),
        ("granite", "mlp_added"),
    ],
)
def test_a_free_edit_adds_the_scaled_decoder_row(architecture, site, tmp_path):
    model = load_tiny(architecture, tmp_path)
    local = make_linearized(model, site_out=site)
    targets = last_logits(local)
    (name,) = some_features(local, 1, 1)
    outcome = apply_edits(
        model, local, make_edits(local, FeatureChange(kind="clamp", features=[name], strength=2.0)), [targets]
    )
    layer, rest = name.split("/")
    feature, position = map(int, rest.split("@"))
    place = local.features.find(int(layer), position, feature)
    row = (2.0 - local.features.activation[place]) * local.dictionaries[1].W_dec[feature]

    def add(_x, y):
        y = y.clone()
        y[0, position] += row
        return y

    with edited(model, {Site(site, 1): add}):
        logits = model.logits(local.captured.token[None])[0, -1]
    torch.testing.assert_close(outcome.free, (logits - logits.mean())[20:24], atol=1e-4, rtol=1e-4)


def test_patching_all_features_gives_the_activations_of_the_other_prompt(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    local = make_linearized(model)
    other = make_linearized(model, token=local.captured.token.flip(0).roll(1))
    features = [f"1/{feature}" for feature in range(40)]
    edits = make_edits(local, FeatureChange(kind="patch", features=features, source="the other"), other)
    assert torch.equal(edits[1](dense_activations(local, 1)), dense_activations(other, 1))


def test_a_patch_from_a_prompt_of_another_length_is_refused(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    local = make_linearized(model)
    other = make_linearized(model, token=local.captured.token[:-1])
    with pytest.raises(ValueError, match="differ in length"):
        make_edits(local, FeatureChange(kind="patch", features=["1/3"], source="shorter"), other)


@pytest.mark.parametrize(
    ("place", "message"),
    [("9/1", "layer 9 has no dictionary"), ("1/40", "features 0 to 39"), ("1/3@99", "outside the prompt")],
)
def test_an_unknown_feature_or_position_is_refused(place, message, tmp_path):
    local = make_linearized(load_tiny("gpt2", tmp_path))
    with pytest.raises(ValueError, match=message):
        make_edits(local, FeatureChange(kind="ablate", features=[place]))


def test_edits_of_the_same_feature_apply_one_after_the_other():
    at, dictionaries = torch.ones(4, dtype=torch.bool), make_dictionaries(None)
    first, second = (
        place_edits(dictionaries, FeatureChange(kind=kind, features=features, strength=3.0), at, int)[1]
        for kind, features in (("add", ["1/3", "1/5@2"]), ("scale", ["1/5", "1/9@1"]))
    )
    z = torch.rand(4, 40, generator=torch.Generator().manual_seed(0))
    both = first.then(second)
    assert both.feature.tolist() == [3, 5, 9]
    torch.testing.assert_close(both(z), second(first(z)))
    torch.testing.assert_close(both(z)[2, 5], 3 * (z[2, 5] + 3))
    assert not torch.allclose(both(z), first(second(z)))
