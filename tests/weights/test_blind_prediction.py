"""Blind predictions match direct computations, and are scored on tokens that they did not use."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from tests.activations.inputs import make_tokens
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.evaluation.inputs import BOS, make_held_out
from tests.models import ARCHITECTURES, D_MODEL, LAYERS, VOCABULARY

from circuitloom.attribution.capture import capture_pass, read_weights
from circuitloom.attribution.direct_effects import direct_effects, feature_targets, source_columns
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.evaluation.held_out import load_sequences
from circuitloom.weights.blind_prediction import (
    ActivePositions,
    ContextMeans,
    Prediction,
    choose_features,
    compute_context_means,
    find_active_positions,
    predict_plain,
    predict_restricted,
    score_predictions,
    write_blind_predictions,
)
from circuitloom.weights.deembedding import embed_vocabulary, write_deembedding

STRINGS = [f" w{number}" for number in range(VOCABULARY)]


@pytest.fixture(params=ARCHITECTURES)
def model(request, tmp_path):
    return load_tiny(request.param, tmp_path)


def blind(model, dictionaries, text, folder, **keys):
    """Rows of the table by layer, feature and protocol."""
    weights = read_weights(model)
    tokens = embed_vocabulary(model, weights, dictionaries[0], VOCABULARY)
    paths = {layer: folder / f"{layer}.parquet" for layer in dictionaries}
    write_blind_predictions("tc", dictionaries, model, weights, tokens, STRINGS, text, paths, **keys)
    rows = [row for path in paths.values() for row in pq.read_table(path).to_pylist()]
    found = {(row["layer"], row["feature"], row["protocol"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def token_detectors(model) -> Dictionary:
    """Features of layer 0 that each fire on one token's embedding, without attention."""
    weights = read_weights(model)
    rows = embed_vocabulary(model, weights, None, VOCABULARY).embedding
    with torch.inference_mode():
        x = model.norm(0, model.anatomy.norm_mlp)(rows)
    unit = x - x.mean(0)
    unit = unit / unit.norm(dim=1, keepdim=True)
    like = x @ unit.T
    # threshold halfway between the token's own value and the next largest
    two = like.topk(2, dim=0).values
    own = like.diagonal() == two[0]
    bias = torch.where(own, -two.mean(0), -1e9)
    zero = torch.zeros(VOCABULARY, D_MODEL)
    return Dictionary(unit.clone(), bias.clone(), zero, zero[0], "relu", layer=0)


def test_a_feature_that_reads_one_token_is_predicted_to_fire_on_it(tmp_path):
    """In parallel blocks with rotary positions, layer 0 reads only the token; here all denominators are equal."""
    model = load_tiny("neox", tmp_path)
    rows = model.module.get_submodule(model.anatomy.embedding).weight
    rows -= rows.mean(1, keepdim=True)
    rows /= rows.norm(dim=1, keepdim=True)
    found = blind(model, {0: token_detectors(model)}, make_tokens(80), tmp_path, features=60)
    assert len({feature for _, feature, _ in found}) > 30
    for (_, feature, _), row in found.items():
        assert row["tokens"][0] == STRINGS[feature] and row["place"] == "here"
        assert row["recall"] == 1 and row["n_tokens"] > 0
        assert row["precision"] == pytest.approx(row["f1"] / (2 - row["f1"]))
        if len(row["tokens"]) == 1:
            assert row["precision"] == 1
    assert sum(len(row["tokens"]) == 1 for row in found.values()) > 10


@pytest.mark.parametrize("kind", ["transcoder", "cross-layer"])
def test_context_means_are_mean_direct_effects_where_a_feature_fires(model, kind):
    dictionaries, weights = make_dictionaries(model, kind), read_weights(model)
    prompts = [
        LinearizedModel(capture_pass(model, weights, row), dictionaries, BOS)
        for row in make_held_out(sequences=4).token
    ]
    for layer in range(LAYERS):
        active = ActivePositions(
            *(
                torch.cat(columns)
                for columns in zip(
                    *(
                        (torch.full_like(p.features.layer, n), p.features.position, p.features.feature)
                        for n, p in enumerate(prompts)
                    ),
                    strict=True,
                )
            )
        ).select(torch.cat([p.features.layer for p in prompts]) == layer)
        active = active.select(active.feature.argsort(stable=True))
        contexts = active.for_features(choose_features(active, 6)).evenly_spaced(3)
        found = compute_context_means(enumerate(prompts), {layer: contexts})[layer]
        for row, feature in enumerate(contexts.feature.unique().tolist()):
            mine = contexts.select(contexts.feature == feature)
            for place in (0, 1):
                contributed, embedded = [], []
                for number, position in zip(mine.sequence.tolist(), mine.position.tolist(), strict=True):
                    prompt = prompts[number]
                    target = prompt.features.find(layer, position, feature)
                    effects = direct_effects(prompt, feature_targets(prompt, torch.tensor([target])))[0]
                    layer0 = prompt.active_at(0, position - place)
                    each = torch.zeros(40)
                    if layer > 0:
                        each[prompt.features.feature[layer0]] = effects[layer0]
                    contributed.append(each)
                    embedded.append(effects[source_columns(prompt).embeddings][position - place])
                expected = torch.stack(contributed).mean(0)
                total = expected.sum() + torch.stack(embedded).mean()
                contribution = found.contribution[row, place]
                torch.testing.assert_close(contribution, expected, atol=1e-4, rtol=1e-3)
                torch.testing.assert_close(found.total[row, place], total, atol=1e-4, rtol=1e-3)
                if len(mine.feature) == 1:
                    token = prompts[int(mine.sequence)].captured.embedding[int(mine.position) - place]
                    read = found.vector[row, place] @ token
                    torch.testing.assert_close(read, embedded[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["transcoder", "cross-layer"])
def test_restricted_scores_are_the_de_embedding(model, kind, tmp_path):
    dictionaries, weights = make_dictionaries(model, kind), read_weights(model)
    tokens = embed_vocabulary(model, weights, dictionaries[0], VOCABULARY)
    paths = {layer: tmp_path / f"{layer}.parquet" for layer in (0, 2)}
    write_deembedding("tc", dictionaries, model, weights, tokens, STRINGS, paths, n=VOCABULARY)
    for layer, path in paths.items():
        expected = torch.zeros(40, VOCABULARY)
        for row in pq.read_table(path).to_pylist():
            if row["sign"] == 1 and row["via"] in ("direct", "layer0"):
                expected[row["feature"], row["token_id"]] += row["effect"]
        found = predict_restricted(weights, layer, dictionaries[layer], slice(None), tokens)
        torch.testing.assert_close(found.score, expected, atol=1e-4, rtol=1e-3)
        assert not found.place.any()


def test_plain_scores_add_contributions_of_layer_0_features(model):
    dictionaries, weights = make_dictionaries(model), read_weights(model)
    tokens = embed_vocabulary(model, weights, dictionaries[0], VOCABULARY)
    norm = model.norm(0, model.anatomy.norm_mlp)
    with torch.inference_mode():
        z = dictionaries[0].encode(norm(tokens.embedding))
    contribution = torch.randn(5, 2, 40, generator=torch.Generator().manual_seed(0))
    read = torch.randn(5, 2, D_MODEL, generator=torch.Generator().manual_seed(1))
    total = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, -1.0], [-2.0, -1.0], [3.0, 3.5]])
    found = predict_plain(ContextMeans(read, contribution, total), tokens)
    assert found.place.tolist() == [1, 0, 0, 1, 1]
    largest = z.amax(0)
    assert (largest > 0).sum() > 20
    for row, place in enumerate(found.place.tolist()):
        expected = tokens.embedding @ read[row, place]
        for feature in range(40):
            if largest[feature] > 0:
                expected = expected + contribution[row, place, feature] * z[:, feature] / largest[feature]
        torch.testing.assert_close(found.score[row], expected, atol=1e-4, rtol=1e-3)


def test_predicted_tokens_score_more_than_halfway_from_mean_to_largest():
    scores = torch.tensor([[9.0, 6.0, 5.9, 4.0, 1.0, 2.1], [-1.0, -9.0, -9.0, -9.0, -9.0, -9.0]])
    scores[0] += 4.666667 - scores[0].mean()
    found = Prediction(scores, torch.zeros(2, dtype=torch.int64)).token
    # means 4.67 and -7.67
    limit = (scores.mean(1) + scores.amax(1)) / 2
    assert found.tolist() == [[bool(v > limit[row]) for v in scores[row]] for row in (0, 1)]
    assert found.sum(1).tolist() == [1, 1]


def test_precision_and_recall_equal_a_count_by_hand():
    held_out = make_held_out(sequences=7, positions=20)
    random = torch.Generator().manual_seed(3)
    features = torch.tensor([2, 5, 11, 12])
    prediction = Prediction(torch.randn(4, VOCABULARY, generator=random), torch.tensor([0, 1, 1, 0]))
    fires = torch.rand(13, *held_out.token.shape, generator=random) < 0.2
    fires &= held_out.scored
    fires[12] = False
    feature, sequence, position = fires.nonzero(as_tuple=True)
    found = score_predictions(prediction, features, ActivePositions(sequence, position, feature), held_out)
    for row, number in enumerate(features.tolist()):
        hit, predicted, n = 0, 0, 0
        for s, t in held_out.scored.nonzero().tolist():
            said = bool(prediction.token[row, held_out.token[s, t - int(prediction.place[row])]])
            fired = bool(fires[number, s, t])
            hit, predicted, n = hit + (said and fired), predicted + said, n + fired
        assert predicted > 0 and found.n_tokens[row] == n
        assert float(found.precision[row]) == pytest.approx(hit / predicted)
        if n:
            assert float(found.recall[row]) == pytest.approx(hit / n)
            assert float(found.f1[row]) == pytest.approx(2 * hit / (predicted + n))
    assert found.recall[3].isnan() and found.f1[3].isnan()


def test_contexts_are_evenly_spaced_and_all_kept_if_few():
    feature = torch.tensor([3] * 2 + [4] * 9 + [8] * 4)
    active = ActivePositions(torch.arange(15), torch.arange(15) + 1, feature)
    kept = active.evenly_spaced(4)
    # places (2j + 1) n / 8 of 9, and of 4
    assert kept.sequence.tolist() == [0, 1, 2 + 1, 2 + 3, 2 + 5, 2 + 7, 11, 12, 13, 14]
    assert kept.feature.tolist() == [3] * 2 + [4] * 4 + [8] * 4


def test_active_positions_are_those_of_scored_tokens(model):
    dictionaries, held_out = make_dictionaries(model), make_held_out()
    found = find_active_positions(model, dictionaries, held_out, batch=4)
    for layer, dictionary in dictionaries.items():
        with torch.inference_mode():
            seen = []
            handle = model.mlp(layer).register_forward_pre_hook(
                lambda _m, args, seen=seen: seen.append(args[0])
            )
            model.logits(held_out.token)
            handle.remove()
        fires = (dictionary.encode(seen[0]) > 0) & held_out.scored[..., None]
        feature, sequence, position = fires.permute(2, 0, 1).nonzero(as_tuple=True)
        assert torch.equal(found[layer].feature, feature)
        assert torch.equal(found[layer].sequence, sequence)
        assert torch.equal(found[layer].position, position)


def test_predictions_do_not_depend_on_the_scored_tokens(model, tmp_path):
    text, dictionaries = make_tokens(40), make_dictionaries(model)
    keys = {"features": 9, "context_tokens": 10 * text.context}
    first = blind(model, dictionaries, text, tmp_path, **keys)
    token = np.asarray(text.token[:]).copy()
    token[10:] = np.where(token[10:] == BOS, BOS, 4 + (token[10:] + 17) % (VOCABULARY - 4))
    again = blind(model, dictionaries, replace(text, token=zarr.array(token)), tmp_path, **keys)
    assert first.keys() == again.keys() and len(first) == 2 * 9 * LAYERS
    assert {layer for layer, _, _ in first} == set(range(LAYERS))
    for key, row in first.items():
        assert (row["tokens"], row["place"]) == (again[key]["tokens"], again[key]["place"])
    assert any(row["precision"] != again[key]["precision"] for key, row in first.items())


def test_tokens_after_the_contexts_are_scored(tmp_path):
    model = load_tiny("llama", tmp_path)
    text, dictionaries = make_tokens(40), make_dictionaries(model)
    keys = {"context_tokens": 10 * text.context, "scored_tokens": 12 * text.context}
    found = blind(model, dictionaries, text, tmp_path, **keys)
    fires = find_active_positions(model, dictionaries, load_sequences(text, slice(10, 22)), batch=4)
    for (layer, feature, _), row in found.items():
        assert row["n_tokens"] == int((fires[layer].feature == feature).sum())


def test_a_layer_in_which_nothing_fires_has_no_rows(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    dictionaries = make_dictionaries(model)
    silent = replace(dictionaries[1], act="relu", k=None, b_enc=torch.full((40,), -1e6))
    found = blind(model, dictionaries | {1: silent}, make_tokens(20), tmp_path, features=5)
    assert {layer for layer, _, _ in found} == {0, 2}


def test_a_text_of_one_sequence_raises(tmp_path):
    model = load_tiny("gpt2", tmp_path)
    with pytest.raises(ValueError, match="add held-out text"):
        blind(model, make_dictionaries(model), make_tokens(1), tmp_path)
