"""Ablating sets of features at roles, and the random sets that they are compared with."""

from collections import Counter

import pytest
import torch
from tests.attribution.inputs import PROMPT, load_tiny, make_linearized

from circuitloom.ablation.common_circuit import draw_controls, measure_role_sets
from circuitloom.ablation.feature_edits import apply_edits, make_edits
from circuitloom.ablation.metrics import logit_difference, make_prompt_metrics
from circuitloom.attribution.aggregate_graph import RoleFeature, firing_counts
from circuitloom.attribution.direct_effects import logit_targets
from circuitloom.config.circuits import FeatureChange

ROLES = [10 * position for position in range(len(PROMPT))]


@pytest.mark.parametrize("kind", ["transcoder", "skip cross-layer"])
def test_sets_alone_and_ablated_are_what_feature_edits_measure(kind, tmp_path):
    model = load_tiny("gpt2", tmp_path, "float64")
    local = make_linearized(model, kind)
    (prompt,) = make_prompt_metrics([PROMPT], [logit_difference(12, 20)], 1)
    active = list(firing_counts([(local, ROLES)]))
    # the last feature is at a role that the prompt does not have
    sets = [active[::2], [*active[1::3], RoleFeature(0, 7, 3)]]
    alone, without = measure_role_sets(model, local, prompt, ROLES, sets)
    weights = torch.zeros(1, len(model.logits(PROMPT[None])[0, 0]), dtype=torch.float64)
    weights[0, 12], weights[0, 20] = 1, -1
    targets = logit_targets(local, torch.tensor([len(PROMPT) - 1]), weights)
    for number, own in enumerate(sets):
        names = [f"{each.layer}/{each.feature}@{each.role // 10}" for each in own if each.role % 10 == 0]
        for change, found in (("keep", alone), ("ablate", without)):
            edits = make_edits(local, FeatureChange(kind=change, features=names))
            outcome = apply_edits(model, local, edits, [targets])
            assert float(found[number]) == pytest.approx(float(outcome.free), abs=1e-9)
    assert abs(float(alone[0] - without[0])) > 1e-4


def test_controls_have_as_many_features_per_layer_that_fire_as_often_if_there_are_enough():
    counts = Counter({RoleFeature(0, role, feature): 5 - role for role in range(5) for feature in range(4)})
    counts |= Counter({RoleFeature(1, 0, feature): 1 for feature in range(3)})
    circuit = [RoleFeature(0, 0, 0), RoleFeature(0, 1, 0), RoleFeature(1, 0, 0)]
    controls = draw_controls(circuit, counts, 4, 20, 0)
    for drawn in controls:
        assert Counter(each.layer for each in drawn) == {0: 2, 1: 1}
        assert len(set(drawn)) == 3 and not set(drawn) & set(circuit)
        assert all(counts[each] >= 4 for each in drawn if each.layer == 0)
    assert len({tuple(drawn) for drawn in controls}) > 5
    # two features are left in layer 1, of which three are wanted
    wanted = [RoleFeature(1, 0, 0), *circuit[:1]]
    assert all(len(drawn) == 2 for drawn in draw_controls(wanted, counts, 9, 3, 0))
