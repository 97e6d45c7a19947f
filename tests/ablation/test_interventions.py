"""Interventions on the linearized model match direct effects; on the model itself, hand-written hooks."""

import pytest
import torch
from tests.attribution.inputs import BOS, KINDS, PROMPT, load_tiny, make_dictionaries, make_linearized
from tests.models import ARCHITECTURES, VOCABULARY

from circuitloom.ablation.feature_edits import edited_probabilities, make_edits
from circuitloom.ablation.interventions import ablate_free, ablate_frozen, run_free, run_frozen
from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import (
    direct_effects,
    feature_targets,
    logit_targets,
    source_columns,
)
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.config.activations import MLP_OUTPUTS
from circuitloom.config.circuits import FeatureChange
from circuitloom.language_model.hooks import Site, capture, edited


def all_targets(local: LinearizedModel):
    """All active features, and five logits at the last position."""
    last = torch.full((5,), len(local.captured) - 1)
    weights = torch.eye(VOCABULARY, dtype=local.captured.resid_final.dtype)[10:15]
    features = [(local.features.layer == layer).nonzero()[:, 0] for layer in local.dictionaries]
    return [*(feature_targets(local, places) for places in features), logit_targets(local, last, weights)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_linearized_model_run_forward_equals_the_model(architecture, kind, tmp_path):
    model = load_tiny(architecture, tmp_path, "float64")
    local = make_linearized(model, kind)
    targets = all_targets(local)
    start = local.captured.layers[0].resid_pre
    held = torch.cat(run_frozen(local, {}, start[None], targets), 1)
    free = torch.cat(run_free(model, local, 1, {}, targets), 1)
    torch.testing.assert_close(held, free, atol=1e-6, rtol=0)


CHANGED = [(name, site) for name in ("gemma3_text", "olmo2", "granite") for site in MLP_OUTPUTS]
"""Models whose MLPs add something else than they return, with the site that transcoders reconstruct."""
CASES = [
    *((name, "mlp_out", "mlp_in") for name in ARCHITECTURES),
    *((*each, "mlp_in") for each in CHANGED),
    *((name, "mlp_out", "resid_mid") for name in ("gpt2", "llama")),
    *((*each, "resid_mid") for each in CHANGED),
]
"""Models, and the sites that transcoders reconstruct and read."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_passes_over_prompts_compute_no_logits(architecture, tmp_path):
    model = load_tiny(architecture, tmp_path)
    weights, rows = read_weights(model), []
    model.unembedding.register_forward_hook(lambda _m, args, _y: rows.append(args[0].shape))
    captured = capture_pass(model, weights, PROMPT)
    local = LinearizedModel(captured, make_dictionaries(model, "transcoder"), BOS)
    ablate_free(model, local, torch.arange(0, len(local.features), 5), all_targets(local))
    edits = make_edits(local, FeatureChange(kind="ablate", features=[f"1/{int(local.features.feature[0])}"]))
    probabilities = edited_probabilities(model, local, edits, 3)
    assert rows == []
    assert probabilities.shape == captured.probabilities(3).shape == (VOCABULARY,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "site", "reads"), CASES)
def test_frozen_ablations_change_targets_by_the_direct_effects(architecture, site, reads, kind, tmp_path):
    local = make_linearized(load_tiny(architecture, tmp_path), kind, site_out=site, site_in=reads)
    columns = source_columns(local)
    nodes = torch.arange(len(columns) - 1)
    if local.captured.position_embedding is None:
        nodes = nodes[: columns.embeddings.stop]
    targets = all_targets(local)
    predicted = torch.cat([direct_effects(local, target) for target in targets])
    measured = ablate_frozen(local, nodes, targets).T
    size = predicted.abs().sum(1, keepdim=True).clamp(min=1)
    assert ((measured - predicted[:, nodes]).abs() / size).max() < 1e-4


@pytest.mark.parametrize(("architecture", "site", "reads"), CASES)
def test_free_ablations_equal_hand_written_hooks(architecture, site, reads, tmp_path):
    """By hand: the feature's decoder row is subtracted from the site in a separate pass."""
    model = load_tiny(architecture, tmp_path)
    local = make_linearized(model, site_out=site, site_in=reads)
    targets = all_targets(local)
    places = torch.arange(0, len(local.features), 5)
    measured = ablate_free(model, local, places, targets)
    before = model.logits(PROMPT[None])[0, -1].log_softmax(0)
    for i, place in enumerate(places.tolist()):
        layer, position = int(local.features.layer[place]), int(local.features.position[place])
        row = local.dictionaries[layer].W_dec[local.features.feature[place]]

        def ablate(_x, y, position=position, row=row, z=local.features.activation[place]):
            y = y.clone()
            y[0, position] -= z * row
            return y

        with edited(model, {Site(site, layer): ablate}):
            after = model.logits(PROMPT[None])[0, -1].log_softmax(0)
        change = (before - after)[10:15]
        # logits are demeaned: their differences are those of log-probabilities
        torch.testing.assert_close(measured[i, -5:].diff(), change.diff(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("architecture", "site", "reads"), [CASES[0], *CASES[len(ARCHITECTURES) :]])
def test_ablating_an_error_leaves_the_reconstruction(architecture, site, reads, tmp_path):
    model = load_tiny(architecture, tmp_path)
    local = make_linearized(model, site_out=site, site_in=reads)
    targets = all_targets(local)
    position = 6
    node = torch.tensor([source_columns(local).errors.start + 1 * len(local.captured) + position])
    measured = ablate_free(model, local, node, targets)[0, -5:]

    # nothing before layer 1's MLP is edited
    x = capture(model, PROMPT[None], [Site(reads, 1)])[Site(reads, 1)]

    def replace(_x, y):
        y = y.clone()
        y[0, position] = local.dictionaries[1](x[0, position])
        return y

    before = model.logits(PROMPT[None])[0, -1]
    with edited(model, {Site(site, 1): replace}):
        after = model.logits(PROMPT[None])[0, -1]
    torch.testing.assert_close(measured.diff(), (before - after)[10:15].diff(), atol=1e-5, rtol=0)


def test_mlp_outputs_at_bos_and_the_first_position_are_errors(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    token = PROMPT.clone()
    token[4] = BOS
    local = make_linearized(model, token=token)
    assert not local.replaced[[0, 4]].any() and local.replaced.sum() == len(token) - 2
    assert not ((local.features.position == 0) | (local.features.position == 4)).any()
    for layer, block in enumerate(local.captured.layers):
        assert torch.equal(local.errors[layer, [0, 4]], block.mlp_out[[0, 4]])
