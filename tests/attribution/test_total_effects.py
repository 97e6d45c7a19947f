"""What flows to a target from tokens, errors and biases by way of all features is all of it."""

import pytest
import torch
from tests.attribution.inputs import KINDS, PROMPT, load_tiny, make_linearized
from tests.models import ARCHITECTURES, LAYERS

from circuitloom.attribution.direct_effects import (
    AttributionTargets,
    direct_effects,
    feature_targets,
    logit_targets,
    source_columns,
    total_effects,
)
from circuitloom.attribution.graph import Roots, adjacency
from circuitloom.attribution.linearized_model import LinearizedModel


@pytest.fixture(scope="module", params=[(a, kind) for a in ARCHITECTURES for kind in KINDS])
def local(request, tmp_path_factory) -> LinearizedModel:
    architecture, kind = request.param
    return make_linearized(load_tiny(architecture, tmp_path_factory.mktemp(architecture), "float64"), kind)


def some_targets(local: LinearizedModel) -> list[AttributionTargets]:
    """Two logit differences; and what fires in the last layer, at the end of the prompt and two positions before."""
    weights = local.captured.resid_final.new_zeros(2, len(local.captured.unembedding.weight))
    weights[0, 12], weights[0, 20], weights[1, 31], weights[1, 9] = 1, -1, 1, -1
    places = torch.tensor([len(PROMPT) - 1, len(PROMPT) - 3])
    features = local.features
    active = (features.layer == LAYERS - 1) & torch.isin(features.position, places)
    return [logit_targets(local, places, weights), feature_targets(local, active.nonzero()[:, 0])]


def test_tokens_positions_errors_and_biases_add_up_to_targets(local):
    for targets in some_targets(local):
        total = total_effects(local, targets)[:, source_columns(local).active :].sum(1)
        expected = direct_effects(local, targets).sum(1)
        torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


def test_total_effects_are_the_direct_ones_summed_over_all_paths(local):
    active = source_columns(local).active
    for targets in some_targets(local):
        direct = adjacency(local, Roots(targets, targets.constant.new_ones(len(targets))))
        # a feature passes on what it gets, so that its column over its activation is a slope
        slope = direct[:, :active] / local.features.activation
        through = torch.linalg.solve(torch.eye(active) - slope[:active], direct[:active])
        expected = direct[active:] + slope[active:] @ through
        torch.testing.assert_close(total_effects(local, targets), expected, rtol=1e-8, atol=1e-9)
