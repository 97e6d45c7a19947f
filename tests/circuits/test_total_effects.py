"""What flows to a target from tokens, errors and biases is all of it."""

import pytest
import torch
from tests.circuits.inputs import KINDS, load_tiny, make_local
from tests.models import ARCHITECTURES

from circuitloom.circuits.attribution import direct_effects, logit_targets, sources, total_effects
from circuitloom.circuits.graph import Roots, adjacency


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_leaves_add_up_to_the_weighted_targets(architecture, kind, tmp_path):
    model = make_local(load_tiny(architecture, tmp_path, "float64"), kind)
    roots = some_roots(model)
    flow, columns = roots.weight @ total_effects(model, roots.targets), sources(model)
    value = direct_effects(model, roots.targets).sum(1) @ roots.weight
    torch.testing.assert_close(flow[columns.active :].sum(), value, rtol=1e-9, atol=1e-9)


def test_features_pass_on_what_reaches_them_through_all_others(tmp_path):
    model = make_local(load_tiny("gpt2", tmp_path, "float64"))
    roots, columns = some_roots(model), sources(model)
    effects = adjacency(model, roots)
    active = columns.active
    # the derivative of each feature by each other, and of the roots, solved all at once
    shares = effects[:active] / effects[:active].sum(1, keepdim=True)
    reached = torch.linalg.solve(
        (torch.eye(active) - shares[:, :active]).T, effects[active:, :active].T @ roots.weight
    )
    expected = effects[active:].T @ roots.weight + shares.T @ reached
    flow = roots.weight @ total_effects(model, roots.targets)
    torch.testing.assert_close(flow, expected, rtol=1e-8, atol=1e-9)
    assert (flow[:active] < 0).any() and (flow[:active] > 0).any()


def some_roots(model) -> Roots:
    """Two logit differences, the second counted backwards."""
    weights = model.frozen.resid_final.new_zeros(2, len(model.frozen.unembedding.weight))
    weights[0, 12], weights[0, 20], weights[1, 31], weights[1, 9] = 1, -1, 1, -1
    places = torch.tensor([len(model.frozen) - 1, len(model.frozen) - 3])
    return Roots(logit_targets(model, places, weights), weights.new_tensor([1.0, -0.5]))
