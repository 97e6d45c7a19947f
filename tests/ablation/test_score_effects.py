"""Ablations of a source on one side of a head edge agree with QK attribution, which computes no pass."""

import pytest
import torch
from tests.attribution.inputs import PROMPT, make_linearized
from tests.attribution.test_attention_scores import attribute, load
from tests.models import VOCABULARY

from circuitloom.ablation.score_effects import SideAblation, ablate_sides
from circuitloom.attribution.direct_effects import logit_targets, source_columns
from circuitloom.attribution.linearized_model import LinearizedModel
from circuitloom.language_model.query_key import HeadEdge


def logit(linearized: LinearizedModel):
    """A logit of the last position."""
    weights = torch.eye(VOCABULARY, dtype=linearized.captured.resid_final.dtype)[[9]]
    return logit_targets(linearized, torch.tensor([len(PROMPT) - 1]), weights)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox", "gemma3_text", "gemma2", "qwen3"])
def test_frozen_drops_of_scores_equal_the_effects_of_sources(architecture, tmp_path):
    model = load(architecture, tmp_path, "float64")
    linearized = make_linearized(model, "skip transcoder")
    last = source_columns(linearized).position_embeddings.start
    cap = getattr(model.attention(0), "attn_logit_softcapping", None)

    def capped(score: float) -> torch.Tensor:
        value = torch.tensor(score, dtype=torch.float64)
        return value if cap is None else cap * torch.tanh(value / cap)

    ablations, expected = [], []
    for each in attribute(model, linearized)[::3]:
        for side, effects in (("query", each.query_effects), ("key", each.key_effects)):
            strongest = effects.abs().argsort(descending=True).tolist()
            for source in [source for source in strongest if source < last][:3]:
                ablations.append(SideAblation(each.edge, side, source))
                expected.append(capped(each.score) - capped(each.score - float(effects[source])))
    drops = ablate_sides(model, linearized, ablations, [logit(linearized)])
    predicted = torch.stack(expected)
    assert float(predicted.abs().max()) > 0.3
    # the stream of the pass without frozen attention rounds in the model's own norms and softmax
    torch.testing.assert_close(drops.frozen, predicted, atol=1e-5, rtol=1e-5)


def test_a_free_drop_is_that_of_a_pass_in_which_one_query_was_changed(tmp_path):
    """A source of layer 0 at position 10 moves only the query at 10: the same as ablating it in the whole model."""
    model = load("llama", tmp_path, "float64")
    linearized = make_linearized(model)
    edge, columns = HeadEdge(1, 1, 10, 6), source_columns(linearized)
    source = linearized.active_at(0, 10).start
    drops = ablate_sides(
        model,
        linearized,
        [SideAblation(edge, side, source) for side in ("query", "key")],
        [logit(linearized)],
    )
    assert columns.active > source
    assert abs(float(drops.free[0])) > 1e-4 and abs(float(drops.pattern[0])) > 1e-5
    assert abs(float(drops.targets[0, 0])) > 1e-6
    # position 6 does not read position 10
    assert float(drops.free[1]) == float(drops.pattern[1]) == 0
    assert float(drops.targets[1, 0]) == pytest.approx(0, abs=1e-6)


def test_the_constant_cannot_be_ablated(tmp_path):
    model = load("gpt2", tmp_path, "float32")
    linearized = make_linearized(model)
    ablation = SideAblation(HeadEdge(1, 0, 3, 2), "query", source_columns(linearized).constant)
    with pytest.raises(ValueError, match="cannot be ablated; choose another node"):
        ablate_sides(model, linearized, [ablation], [logit(linearized)])
