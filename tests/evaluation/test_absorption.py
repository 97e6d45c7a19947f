"""Absorption is found in a dictionary in which it is planted, and nowhere else."""

import pytest
import torch
from tests.evaluation.test_probing import documents, sparse

from circuitloom.dictionaries.dictionary import Dictionary
from circuitloom.evaluation.absorption import Absorption, NestedPair, measure_absorption, nested_pairs
from circuitloom.evaluation.probing import ProbeTasks, make_tasks

PARENT, CHILD, OTHER = torch.eye(4)[:3]
PAIR = NestedPair(parent=1, child=0)


@pytest.fixture
def text() -> tuple[torch.Tensor, ProbeTasks]:
    """Activations of 40 documents of 10 tokens: 2 tokens have parent and child, 3 the parent alone, 5 another thing."""
    kind = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2]).repeat(40)
    x = torch.stack([PARENT + CHILD, PARENT, OTHER])[kind]
    tasks, left_out = make_tasks({"child": kind == 0, "parent": kind <= 1}, documents(40, 10), least=30)
    assert not left_out
    return x, tasks


def measure(
    x: torch.Tensor, tasks: ProbeTasks, W_enc: torch.Tensor, W_dec: torch.Tensor, b_enc=None
) -> Absorption | None:
    b_enc = torch.zeros(len(W_enc)) if b_enc is None else b_enc
    dictionary = Dictionary(
        W_enc, b_enc, W_dec, torch.zeros(4), act="relu", site_in="resid_mid", site_out="resid_mid"
    )
    return measure_absorption(sparse(dictionary.encode(x)), W_dec, x, tasks, [PAIR])[PAIR]


def test_the_concept_that_contains_the_other_is_the_parent(text) -> None:
    _, tasks = text
    assert tasks.names == ("child", "parent")
    assert nested_pairs(tasks, least=30) == [PAIR]
    # each half has 20 * 3 tokens of the parent outside the child
    assert nested_pairs(tasks, least=61) == []


def test_concepts_that_overlap_or_are_equal_are_not_nested() -> None:
    place = torch.arange(10).repeat(40)
    labels = {"a": place < 4, "b": (place > 2) & (place < 8), "same": place < 4}
    tasks, _ = make_tasks(labels, documents(40, 10), least=30)
    assert nested_pairs(tasks, least=1) == []


def test_a_child_s_feature_that_writes_the_parent_s_direction_absorbs_every_token(text) -> None:
    # feature 0 is the parent except where the child is; feature 1 writes both
    W_enc, W_dec = torch.stack([PARENT - CHILD, CHILD, OTHER]), torch.stack([PARENT, PARENT + CHILD, OTHER])
    found = measure(*text, W_enc, W_dec)
    assert found is not None
    assert found.main_feature == 0
    assert (found.absorbed.value, found.silent.value, found.silent_outside.value) == (1, 1, 0)


def test_a_dictionary_with_a_feature_per_concept_absorbs_nothing(text) -> None:
    rows = torch.stack([PARENT, CHILD, OTHER])
    found = measure(*text, rows, rows)
    assert found is not None
    assert (found.absorbed.value, found.silent.value, found.silent_outside.value) == (0, 0, 0)


def test_a_silent_parent_is_not_absorbed_where_the_child_s_feature_does_not_write_it(text) -> None:
    W_enc = torch.stack([PARENT - CHILD, CHILD, OTHER])
    found = measure(*text, W_enc, torch.stack([PARENT, CHILD, OTHER]))
    assert found is not None
    assert (found.absorbed.value, found.silent.value) == (0, 1)


def test_a_silent_parent_is_not_absorbed_by_a_feature_that_is_not_the_child_s(text) -> None:
    # feature 1 fires on every token and writes the parent's direction most
    W_enc = torch.stack([PARENT - CHILD, torch.zeros(4), OTHER])
    found = measure(*text, W_enc, torch.stack([PARENT, PARENT, OTHER]), torch.tensor([0.0, 1.0, 0.0]))
    assert found is not None
    assert (found.absorbed.value, found.silent.value) == (0, 1)


def test_a_part_of_the_tokens_is_absorbed(text) -> None:
    x, tasks = text
    x = x.clone()
    # in documents 1, 5, 9, ... the child is weak, so that the parent's feature fires on both tokens of the child
    weak = (torch.arange(400) // 10 % 4 == 1) & tasks.label[:, 0]
    x[weak] = PARENT + 0.5 * CHILD
    W_enc, W_dec = torch.stack([PARENT - CHILD, CHILD, OTHER]), torch.stack([PARENT, PARENT + CHILD, OTHER])
    found = measure(x, tasks, W_enc, W_dec)
    assert found is not None
    assert found.absorbed.value == found.silent.value == 0.5
    # all documents with an odd number are scored, and each adds its share minus 1/2, over 20 documents
    assert sorted(set(found.absorbed.influence.tolist())) == pytest.approx([-0.5 / 20, 0.5 / 20])


def test_without_a_feature_for_the_parent_nothing_is_said(text) -> None:
    assert measure(*text, torch.stack([OTHER]), torch.stack([OTHER])) is None
