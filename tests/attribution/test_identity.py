"""A pre-activation equals the sum over its sources, on every architecture, with every kind of dictionary."""

import pytest
from tests.attribution.inputs import KINDS, load_tiny, make_linearized
from tests.models import ARCHITECTURES

from circuitloom.attribution.direct_effects import direct_effects, feature_targets

BOUNDS = {"float64": 1e-9, "float32": 1e-4}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pre_activation_equals_the_sum_of_its_sources(architecture, kind, dtype, tmp_path):
    local = make_linearized(load_tiny(architecture, tmp_path, dtype), kind)
    assert len(local.features) > 50
    for layer, dictionary in local.dictionaries.items():
        places = (local.features.layer == layer).nonzero()[:, 0]
        effects = direct_effects(local, feature_targets(local, places))
        read = local.captured.layers[layer].mlp_in[local.features.position[places]]
        feature = local.features.feature[places]
        expected = (read * dictionary.W_enc[feature]).sum(-1) + dictionary.b_enc[feature]
        error = (effects.sum(1) - expected).abs() / expected.abs().clamp(min=1)
        assert error.max() < BOUNDS[dtype]
