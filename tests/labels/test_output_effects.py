"""Output scores, compared with a pass per context, on tiny random models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.activations.inputs import make_tokens
from tests.features.inputs import LAYER, WIDTH, make_basis
from tests.models import VOCABULARY, tiny_model

from circuitloom.core.tables import ACTIVATION, LABEL, read_table, write_table
from circuitloom.corpus.tokens import Tokens
from circuitloom.features.basis import FeatureBasis
from circuitloom.labels.contexts import FeatureActivations
from circuitloom.labels.output_effects import (
    ScaledContexts,
    _changes,
    choose_contexts,
    ids_by_name,
    output_scores,
    write_label_outputs,
)
from circuitloom.labels.text import scoring_index
from circuitloom.language_model.hooks import Site, edited
from circuitloom.language_model.lm_head import find_lm_head
from circuitloom.language_model.model import LanguageModel, load_model
from circuitloom.language_model.residual import read_unembedding


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    return load_model(tiny_model("llama", tmp_path_factory.mktemp("model") / "llama"), device="cpu")


TOKENS = make_tokens(40)


def random_firings(features: int, seed: int = 0) -> dict[int, FeatureActivations]:
    random = np.random.default_rng(seed)
    position = random.integers(1, TOKENS.context, (features, 6))
    sequence = np.stack([random.permutation(len(TOKENS))[:6] for _ in range(features)])
    index = np.sort(sequence * TOKENS.context + position)
    return {i: FeatureActivations(index[i], random.random(6) + 0.5) for i in range(features)}


def with_decoders(basis: FeatureBasis, site: str, decoders: dict[int, torch.Tensor]) -> FeatureBasis:
    norm = torch.stack([decoder.norm(dim=1) for decoder in decoders.values()]).norm(dim=0)
    return replace(
        basis,
        site_out=site,
        decoders=decoders,
        width=len(norm),
        decoder_norm=norm,
        encoder_norm=None,
        bias=None,
    )


def rise_one_by_one(
    model: LanguageModel,
    basis: FeatureBasis,
    tokens: Tokens,
    index: int,
    feature: int,
    value: float,
    said: list[int],
) -> float:
    """Change of the log probability of the said tokens in one context, in a pass of its own."""
    sequence, position = divmod(index, tokens.context)
    text = tokens.take(np.array([sequence]))[:, : position + 1]

    def add(decoder: torch.Tensor):
        def edit(_x, y):
            y = y.clone()
            y[0, position] += value * decoder[feature]
            return y

        return edit

    def log_probability() -> float:
        return float(model.logits(text)[0, -1].double().softmax(-1)[said].sum().log())

    with torch.inference_mode():
        before = log_probability()
        with edited(model, {Site(basis.site_out, output): add(d) for output, d in basis.decoders.items()}):
            return log_probability() - before


@pytest.mark.parametrize(("site", "layers"), [("mlp_out", (1,)), ("resid_mid", (1,)), ("mlp_out", (1, 2))])
def test_changes_are_those_of_a_pass_per_context(
    model: LanguageModel, site: str, layers: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    d = make_basis(model).decoders[LAYER].shape[1]
    basis = with_decoders(
        make_basis(model), site, {layer: torch.randn(WIDTH, d, generator=generator) for layer in layers}
    )
    firings = random_firings(WIDTH)
    said = {feature: [feature, feature + 7] for feature in range(WIDTH)}
    chosen = choose_contexts(firings, 3)
    change, document = _changes(model, find_lm_head(model), basis, TOKENS, chosen, said, 2.0)
    for i in range(0, len(chosen), 5):
        own = (int(chosen.index[i]), int(chosen.feature[i]), float(chosen.value[i]))
        assert change[i] == pytest.approx(
            rise_one_by_one(model, basis, TOKENS, *own, said[own[1]]), rel=1e-3, abs=1e-6
        )
    rows = TOKENS.take_document(slice(None)).numpy().ravel()
    assert (document == rows[chosen.index]).all()


def test_features_that_write_the_said_tokens_score_high_and_low_if_subtracted(model: LanguageModel) -> None:
    rows = read_unembedding(model).rows
    last = model.layers - 1
    basis = with_decoders(make_basis(model), "mlp_out", {last: rows[:WIDTH] * 3})
    firings, said = random_firings(WIDTH), {feature: [feature] for feature in range(WIDTH)}
    high = output_scores(model, basis, TOKENS, firings, said)
    low = output_scores(model, basis, TOKENS, firings, said, factor=0.0)
    assert np.mean([each.value for each in high.values()]) > 0.95
    assert np.mean([each.value for each in low.values()]) < 0.05


def test_random_directions_score_about_one_half(model: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(2)
    n = 300
    d = make_basis(model).decoders[LAYER].shape[1]
    basis = with_decoders(make_basis(model), "mlp_out", {LAYER: torch.randn(n, d, generator=generator)})
    said = {i: [i % VOCABULARY, (i + 11) % VOCABULARY] for i in range(n)}
    found = output_scores(model, basis, TOKENS, random_firings(n), said)
    values = np.array([each.value for each in found.values()])
    # 4 standard errors, from the values themselves
    assert abs(values.mean() - 0.5) < 4 * values.std() / np.sqrt(n)
    assert values.std() > 0


def test_a_feature_without_effect_scores_one_half_exactly(model: LanguageModel) -> None:
    basis = make_basis(model)
    basis = with_decoders(basis, "mlp_out", {LAYER: torch.zeros_like(basis.decoders[LAYER])})
    found = output_scores(model, basis, TOKENS, random_firings(2), {0: [5], 1: [6]})
    assert [each.value for each in found.values()] == [0.5, 0.5]


def test_features_that_do_not_fire_or_promote_nothing_have_no_score(model: LanguageModel) -> None:
    firings = random_firings(3)
    firings[1] = FeatureActivations(np.zeros(0, np.int64), np.zeros(0))
    assert set(output_scores(model, make_basis(model), TOKENS, firings, {0: [5], 1: [5], 2: []})) == {0}
    assert output_scores(model, make_basis(model), TOKENS, {}, {}) == {}


def test_contexts_are_spread_over_bands_of_activation() -> None:
    value = np.array([0.1, 0.15, 0.2, 0.3, 0.6, 1.0])
    chosen = choose_contexts({7: FeatureActivations(np.arange(6), value)}, 4)
    assert sorted(np.minimum(chosen.value * 4, 3).astype(int).tolist()) == [0, 1, 2, 3]
    assert (chosen.feature == 7).all() and isinstance(chosen, ScaledContexts)


def test_rule_labels_are_scored_by_the_next_tokens_that_they_name(model: LanguageModel, tmp_path) -> None:
    rows = read_unembedding(model).rows
    last = model.layers - 1
    # feature 0 writes what it says, feature 1 the opposite, and the label of feature 2 says nothing
    decoder = torch.stack([rows[20], -rows[21], rows[22]]) * 3
    basis = with_decoders(make_basis(model), "mlp_out", {last: decoder})
    key = {"run": basis.run, "layer": basis.layer, "source": "rule"}
    labels = [
        {**key, "feature": 0, "label": "says `t20`", "promoted": ["t20"]},
        {**key, "feature": 0, "label": "`t3`", "source": "frequent"},
        {**key, "feature": 1, "label": "says `t21`", "promoted": ["t21"]},
        {**key, "feature": 2, "label": "`t22`"},
    ]
    write_table(LABEL, labels, tmp_path / "label.parquet")
    scoring = scoring_index(TOKENS, len(TOKENS))
    document = TOKENS.take_document(slice(None)).numpy().ravel()
    assert len(scoring) and (document[scoring] % 2 == 1).all()
    fires = [
        {
            **key,
            "feature": feature,
            "sequence": i // TOKENS.context,
            "position": i % TOKENS.context,
            "activation": 1.0,
        }
        for feature in range(3)
        for i in scoring[:6].tolist()
    ]
    for row in fires:
        del row["source"]
    write_table(ACTIVATION, fires, tmp_path / "activation.parquet")
    ids = ids_by_name([f" t{i}" if i % 2 else f"t{i}" for i in range(VOCABULARY)])
    files = (tmp_path / "label.parquet", tmp_path / "activation.parquet", tmp_path / "label_output.parquet")
    write_label_outputs(basis, model, TOKENS, scoring, ids, *files)
    found = read_table(files[2]).to_pylist()
    assert [(row["feature"], row["label"], row["output"]) for row in found] == [
        (0, "says `t20`", 1.0),
        (1, "says `t21`", 0.0),
    ]
    # activations on the learning documents do not count
    learning = np.setdiff1d(np.arange(TOKENS.context, 2 * TOKENS.context), scoring)[:1]
    write_table(
        ACTIVATION,
        [
            {**fires[0], "sequence": int(i) // TOKENS.context, "position": int(i) % TOKENS.context}
            for i in learning
        ],
        tmp_path / "activation.parquet",
    )
    write_label_outputs(basis, model, TOKENS, scoring, ids, *files)
    assert read_table(files[2]).num_rows == 0


def test_tokens_with_and_without_a_space_before_them_are_one_name() -> None:
    assert ids_by_name(["by", " by", "\n", " "]) == {"by": [0, 1], "⏎": [2], "space": [3]}
