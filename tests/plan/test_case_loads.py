"""The plan counts the tokens that case studies pass through the model within a factor of 2."""

import pytest
import torch
from tests.attribution.inputs import load_tiny, make_dictionaries
from tests.cases.year_model import make_case, open_year_model
from tests.models import CONTEXT, D_MODEL, LAYERS, VOCABULARY

from circuitloom.cases.context import CaseContext
from circuitloom.cases.difference.study import study_difference
from circuitloom.cases.greater_than.study import measure_greater_than
from circuitloom.config import ModelShape
from circuitloom.config.cases import CompareCase, DifferenceCase, FeatureCase
from circuitloom.corpus.tokenizer import load_tokenizer
from circuitloom.plan.case_loads import (
    GRAPH_PASSES,
    compare_load,
    difference_load,
    feature_load,
    greater_than_load,
)

SHAPE = ModelShape(LAYERS, D_MODEL, 4 * D_MODEL, 2, CONTEXT, VOCABULARY)
DIFFERENCE = DifferenceCase.model_validate(
    {
        "kind": "difference",
        "prompts": [{"text": "w5 {a} w6 {b}", "target": "logit w20 vs w12"}],
        "slots": {name: [f"w{i}" for i in range(20 * n, 20 * n + 12)] for n, name in enumerate("ab", 1)},
        "count": 8, "traced": 1, "resamples": 50, "ablation": "zero",
    }
)  # fmt: skip


def count_tokens(context: CaseContext, run) -> int:
    """Returns the number of tokens that pass through the last block while `run` runs."""
    seen = []

    def count(_module, args, output):
        x = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(x.shape[:-1].numel())

    handle = context.model.block(context.model.layers - 1).register_forward_hook(count)
    run()
    handle.remove()
    return sum(seen)


@pytest.mark.parametrize("keys", [{}, {"measured": 4, "compare": False}])
def test_the_tokens_of_a_difference_are_counted_within_a_factor_of_2(keys: dict, tmp_path):
    model = load_tiny("gpt2", tmp_path)
    dictionaries = make_dictionaries(model)
    context = CaseContext(model, load_tokenizer(str(tmp_path / "gpt2")), {"tc": dictionaries}, CONTEXT)
    case = DIFFERENCE.model_copy(update=keys)
    real = count_tokens(context, lambda: study_difference("case", context, case))
    load = difference_load(case, sum(each.width for each in dictionaries.values()), SHAPE)
    assert 0.5 < (load.ablated + load.plain) / real < 2


def test_the_tokens_of_greater_than_are_counted_within_a_factor_of_2(tmp_path):
    context = open_year_model(tmp_path)
    case = make_case()
    real = count_tokens(context, lambda: measure_greater_than("years", context, case))
    shape = ModelShape(2, 48, 7, 2, 16, 14)
    load = greater_than_load(case, context.transcoders[0].width, shape)
    assert 0.5 < (load.ablated + load.plain) / real < 2


def test_the_cost_of_a_case_grows_with_its_counts():
    load = difference_load(DIFFERENCE, 3000, SHAPE)
    twice = difference_load(DIFFERENCE.model_copy(update={"count": 16}), 3000, SHAPE)
    assert twice.ablated == pytest.approx(2 * load.ablated)
    few = difference_load(DIFFERENCE.model_copy(update={"measured": 10}), 3000, SHAPE)
    assert few.passes < load.passes
    years = {"template": "from {year} to", "slots": {}, "first": 0, "last": 98}
    every, some = (
        greater_than_load(make_case(**years, **keys), 3000, SHAPE).plain for keys in ({}, {"prompts": 20})
    )
    assert some < every / 5
    case = FeatureCase(kind="feature", texts=["w5 {a}"], edited=["w6 {a}"], slots={"a": ["w7"]})
    assert feature_load(case, 1234.0, SHAPE).held_out == 1234


def test_a_prompt_with_another_text_costs_a_second_graph():
    keys = {"kind": "compare", "groups": {"a": ["x"]}, "concepts": True, "count": 10, "ablated": 2}
    text = {"text": "the Genoa brewer drinks", "through": "guild_1"}
    other = {"other": "the Genoa poet drinks", "other_through": "guild_2"}
    one = compare_load(CompareCase.model_validate(keys | {"prompts": [text]}), 0)
    two = compare_load(CompareCase.model_validate(keys | {"prompts": [text | other]}), 0)
    asked = compare_load(CompareCase.model_validate(keys | {"questions": ["told"]}), 0)
    assert two == asked
    assert two.passes - one.passes == 10 * GRAPH_PASSES
