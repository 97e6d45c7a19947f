"""Decoder rows may have any norm: scaling a row and its encoder the other way changes nothing in units of y."""

from dataclasses import replace

import pytest
import torch
from tests.attribution.inputs import BOS, PROMPT, load_tiny, make_dictionaries
from tests.cases.year_model import make_case, open_year_model
from tests.evaluation.inputs import make_held_out
from tests.models import LAYERS, VOCABULARY

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import direct_effects, logit_targets, total_effects
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.cases.greater_than.measurements import (
    deembedding_scores,
    last_feature_activations,
    logit_attribution,
    variances,
)
from circuitloom.cases.greater_than.prompts import find_answers, make_prompts
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.evaluation.scoring import score_runs
from circuitloom.weights.connections import find_connections, mean_effects


def rescale(dictionary: Dictionary) -> tuple[Dictionary, torch.Tensor]:
    """The same function with decoder rows of other norms, and these norms. ReLU is positively homogeneous."""
    norm = torch.logspace(-2, 2, dictionary.width)[torch.randperm(dictionary.width)].to(dictionary.W_dec)
    scaled = replace(
        dictionary,
        W_enc=dictionary.W_enc / norm[:, None],
        b_enc=dictionary.b_enc / norm,
        W_dec=dictionary.W_dec * norm[:, None],
    )
    return scaled, norm


@pytest.fixture
def pair(tmp_path):
    """A tiny model, its dictionaries with unit rows and with other rows, and the norms of the latter by layer."""
    model = load_tiny("gpt2", tmp_path, "float64")
    unit = {
        layer: each.to("cpu", torch.float64)
        for layer, each in make_dictionaries(model, act="relu", k=None).items()
    }
    torch.manual_seed(0)
    scaled = {layer: rescale(each) for layer, each in unit.items()}
    return (
        model,
        unit,
        {layer: each for layer, (each, _) in scaled.items()},
        {i: n for i, (_, n) in scaled.items()},
    )


def test_norms_of_unit_rows_and_of_zero_rows_are_exactly_1():
    rows = torch.randn(5000, 31, generator=torch.Generator().manual_seed(0))
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert (rows.norm(dim=1) != 1).any()
    rows[0] = 0
    rows[1:3] *= torch.tensor([[3.0], [1.001]])
    made = Dictionary(torch.zeros(5000, 31), torch.zeros(5000), rows, torch.zeros(31), "relu")
    torch.testing.assert_close(made.row_norm[:3], torch.tensor([1.0, 3.0, 1.001]))
    assert (made.row_norm[3:] == 1).all()


def test_what_features_write_and_their_effects_do_not_depend_on_the_norms(pair):
    model, unit, scaled, norm = pair
    captured = capture_pass(model, read_weights(model), PROMPT)
    one, other = (LinearizedModel(captured, each, BOS) for each in (unit, scaled))
    assert torch.equal(one.features.feature, other.features.feature)
    row = torch.cat(
        [norm[layer][one.features.feature[one.features.layer == layer]] for layer in range(LAYERS)]
    )
    torch.testing.assert_close(other.features.activation * row, one.features.activation)
    weights = torch.eye(VOCABULARY, dtype=torch.float64)[[12, 20]]
    for effects in (direct_effects, total_effects):
        a, b = (effects(each, logit_targets(each, torch.tensor([10, 6]), weights)) for each in (one, other))
        torch.testing.assert_close(a, b)
    held_out = make_held_out(sequences=3)
    a, b = score_runs(model, {"one": unit, "other": scaled}, held_out, 3).values()
    assert a.prediction.ce == pytest.approx(b.prediction.ce, rel=1e-9)
    assert a.reconstruction[1].fvu == pytest.approx(b.reconstruction[1].fvu, rel=1e-9)


def test_connections_are_ranked_by_what_sources_write(pair):
    model, unit, scaled, norm = pair
    weights = read_weights(model)
    a, b = (find_connections(model, weights, each, 2, n=6, heads=2) for each in (unit, scaled))
    for name in ("source_layer", "source", "head_layer", "head"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    # effects on a target's pre-activation are in the units of the target
    torch.testing.assert_close(a.weight, b.weight * norm[2][:, None])
    captured = capture_pass(model, weights, PROMPT)
    means = [
        mean_effects([LinearizedModel(captured, each, BOS)], {2: found})[2]
        for each, found in ((unit, a), (scaled, b))
    ]
    torch.testing.assert_close(means[0].mean, means[1].mean * norm[2][:, None])
    assert means[0].mean.abs().max() > 1e-3


def test_greater_than_ranks_features_by_what_they_write(tmp_path):
    context = open_year_model(tmp_path)
    torch.manual_seed(0)
    scaled = {layer: rescale(each)[0] for layer, each in context.transcoders.items()}
    answers = find_answers(make_case(), context.tokenizer)
    prompts = make_prompts(make_case(), context.tokenizer, 16, answers)
    weights, model, feature = read_weights(context.model), context.model, torch.arange(5)
    both = (context.transcoders, scaled)
    for measure in (
        lambda each: variances(model, each[1], prompts)["features"],
        lambda each: last_feature_activations(model, each[1], prompts, feature),
        lambda each: logit_attribution(weights, each[1], feature, answers.token),
        # all connections but one of each feature are equal
        lambda each: deembedding_scores(model, weights, each, 1, feature, (1, 0), answers.token, 1),
        lambda each: deembedding_scores(model, weights, each, 1, feature, (1, 0), answers.token, 7),
    ):
        one, other = map(measure, both)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.abs().max() > 0.1
