"""The hand-made model computes its function, and faithful and collapsed circuits of it are told apart."""

import pytest
import torch

from circuitloom.attribution.capture import read_weights
from circuitloom.cases.known_steps.boolean_model import LOGIT, PAIRS, make_boolean_model
from circuitloom.cases.known_steps.study import (
    activation_rows,
    best_f1,
    matching_features,
    study_known_steps,
    trace_steps,
)
from circuitloom.config.cases import KnownStepsCase
from circuitloom.dictionaries.cross_layer import CrossLayerDictionary, CrossLayerTranscoder
from circuitloom.language_model.hooks import edited


@pytest.fixture(scope="module", params=[False, True], ids=["within", "across"])
def boolean(request):
    return make_boolean_model(request.param)


def expected(boolean) -> torch.Tensor:
    """r of each text, from the bits that the tokens' numbers spell."""
    bits = 8 if boolean.token.shape[1] == 2 else 4
    words = [[int(bit) for bit in f"{int(word) - 1:0{bits}b}"] for row in boolean.token for word in row[1:]]
    texts = torch.tensor(words).view(len(boolean.token), -1, bits // 2, 2).all(-1)
    if bits == 8:
        pairs = texts[:, 0]
        return pairs[:, :2].all(1) | pairs[:, 2:].all(1)
    return texts.all(1).any(1)


def answers(boolean) -> torch.Tensor:
    return boolean.model.logits(boolean.token)[:, -1, boolean.answer]


def test_the_model_computes_its_function_on_all_texts(boolean):
    assert len(boolean.token) == 2 ** (2 * PAIRS)
    wanted = expected(boolean).float()
    # 256 texts, of which 16 have each q, and one has both
    assert wanted.sum() == 31
    assert torch.equal(boolean.steps[2, "r"][:, -1].float(), wanted)
    torch.testing.assert_close(answers(boolean), LOGIT * wanted, rtol=0.01, atol=0.01)


def test_without_a_value_the_answer_is_gone(boolean):
    for pair in range(2):
        texts = boolean.texts(pair)
        assert len(texts) == 15
        for layer in range(2):
            for name in boolean.names(pair, layer):
                with edited(boolean.model, boolean.ablation(layer, name)):
                    assert answers(boolean)[texts].abs().max() < 0.01


def neurons_as_features(boolean) -> list[dict]:
    """The model's own neurons, as features of each layer."""
    made = []
    for block in boolean.model.module.transformer.h:
        fc, proj = block.mlp.c_fc, block.mlp.c_proj
        made.append(
            {"W_enc": fc.weight.T, "b_enc": fc.bias, "W_dec": proj.weight[:, None], "b_dec": proj.bias}
        )
    return made


def transcoder(layers: list[dict]) -> CrossLayerTranscoder:
    made = []
    for layer, fields in enumerate(layers):
        outputs = tuple(range(layer, layer + fields["W_dec"].shape[1]))
        tensors = {name: value.detach().clone() for name, value in fields.items()}
        made.append(
            CrossLayerDictionary(
                **tensors, act="relu", layer=layer, outputs=outputs, scales=(1.0,) * len(outputs)
            )
        )
    return CrossLayerTranscoder(made)


def trace(boolean, made: CrossLayerTranscoder):
    features = matching_features(made, boolean, activation_rows(boolean), 0.5)
    return list(trace_steps(boolean, read_weights(boolean.model), "g", 0, made, features))


@pytest.mark.slow
def test_the_models_own_neurons_are_a_faithful_circuit(boolean):
    rows = trace(boolean, transcoder(neurons_as_features(boolean)))
    assert len(rows) == 2 * 15 * 2
    for row in rows:
        # the mean logit of the vocabulary is subtracted
        assert row.true_drop == pytest.approx(LOGIT * (1 - 1 / (boolean.answer + 1)), rel=0.01)
        assert row.through == pytest.approx(1, abs=0.01) and row.early == 0
        assert row.skipped == pytest.approx(0, abs=0.01)
        assert row.outcome.predicted == pytest.approx(row.true_drop, rel=0.01)
        assert row.outcome.measured == pytest.approx(row.true_drop, rel=0.01)


@pytest.mark.slow
def test_a_circuit_that_skips_a_step_is_found_out():
    boolean = make_boolean_model(across=False)
    layers = neurons_as_features(boolean)
    first, second = layers[0], layers[1]
    # two more features of layer 0 read all four bits of q_j, and write q_j to the output of layer 1
    pairs = [first["W_enc"][2 * j : 2 * j + 1] + first["W_enc"][2 * j + 1 : 2 * j + 2] for j in range(2)]
    later = torch.zeros(10, 2, 32)
    later[:8, :1] = first["W_dec"]
    later[8:, 1] = second["W_dec"][:2, 0]
    layers[0] = {
        "W_enc": torch.cat([first["W_enc"], *pairs]),
        "b_enc": torch.cat([first["b_enc"], torch.full((2,), -3.0)]),
        "W_dec": later,
        "b_dec": first["b_dec"],
    }
    layers[1] = {**second, "W_dec": torch.zeros_like(second["W_dec"])}
    for row in trace(boolean, transcoder(layers)):
        assert row.through == pytest.approx(0, abs=0.01)
        if row.layer == 0:
            # the features of p are not on the path: nothing is predicted, but the model loses the answer
            assert row.outcome.predicted == pytest.approx(0, abs=0.01)
            assert row.outcome.measured == pytest.approx(row.true_drop, rel=0.01)
        else:
            assert row.early == pytest.approx(1, abs=0.01)
            assert row.skipped == pytest.approx(1, abs=0.01)


def test_the_best_threshold_lies_between_different_values():
    z = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    truth = torch.tensor([True, True, False, False])
    # the second feature cannot tell the first three rows apart, the third never fires
    assert best_f1(z, truth).tolist() == pytest.approx([1.0, 2 * 2 / (3 + 2), 0.0])


@pytest.mark.slow
def test_the_case_study_trains_and_reports_each_group():
    case = KnownStepsCase(
        kind="known_steps", seeds=1, groups={"plt": 0, "clt": "all"}, training={"tokens": 2000}, resamples=50
    )
    report = study_known_steps("steps", case)
    assert {claim.name for claim in report.claims} == {
        f"{group}_{verb}_the_{step}_step"
        for group in ("plt", "clt")
        for verb in ("names", "predicts")
        for step in ("first", "second")
    }
    assert all(claim.n == 30 for claim in report.claims)
    # six values for each of two steps of 30 texts in two runs
    assert len(report.tables["outcome"]) == 6 * 2 * 30 * 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"training": {"steepness": 1}}, "training.steepness"),
        ({"training": {"tokens": 1}}, "raise tokens or lower batch"),
        ({"training": {"reach": 1}}, "training.reach: the case study sets this key"),
        ({"run": "x"}, "trains its own transcoders"),
    ],
)
def test_keys_that_cannot_be_used_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        KnownStepsCase(kind="known_steps", **keys)
