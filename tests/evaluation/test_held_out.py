from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from circuitloom.config import Evaluation
from circuitloom.corpus.tokens import Tokens
from circuitloom.evaluation.held_out import load_held_out

TOKEN = torch.tensor([[0, 11, 0, 22], [0, 23, 24, 25], [0, 31, 32, 33]])


def make_token_arrays(bos_id: int | None, separator_id: int | None) -> Tokens:
    token = TOKEN.numpy().astype(np.uint16)
    document = (token // 10).astype(np.int32)
    return Tokens(Path("validation.zarr"), zarr.array(token), zarr.array(document), bos_id, separator_id, 64)


@pytest.fixture
def token_arrays() -> Tokens:
    return make_token_arrays(bos_id=0, separator_id=0)


def test_position_zero_and_every_bos_keep_their_activation_even_where_the_bos_is_zero(token_arrays):
    held_out = load_held_out(token_arrays, Evaluation())
    assert held_out.scored[0].tolist() == [False, True, False, True]
    assert torch.equal(held_out.keeps_original, ~held_out.scored)
    assert held_out.n_tokens == 8


def test_without_a_mask_every_position_is_scored_and_a_bos_keeps_its_activation(token_arrays):
    held_out = load_held_out(token_arrays, Evaluation(mask="none"))
    assert held_out.scored.all()
    assert torch.equal(held_out.keeps_original, TOKEN == 0)


def test_an_eos_between_documents_is_treated_like_a_bos():
    held_out = load_held_out(make_token_arrays(bos_id=None, separator_id=0), Evaluation())
    assert held_out.scored[0].tolist() == [False, True, False, True]
    assert torch.equal(held_out.keeps_original, ~held_out.scored)
    unmasked = load_held_out(make_token_arrays(bos_id=None, separator_id=0), Evaluation(mask="none"))
    assert torch.equal(unmasked.keeps_original, TOKEN == 0)


def test_without_bos_and_eos_only_position_zero_is_not_scored():
    held_out = load_held_out(make_token_arrays(None, None), Evaluation())
    assert torch.equal(held_out.scored.all(0), torch.tensor([False, True, True, True]))
    assert not load_held_out(make_token_arrays(None, None), Evaluation(mask="none")).keeps_original.any()


@pytest.mark.parametrize(("tokens", "sequences"), [(None, 3), (8, 2), (11, 2), (1, 1), (999, 3)])
def test_held_out_tokens_are_complete_sequences(token_arrays, tokens, sequences):
    held_out = load_held_out(token_arrays, Evaluation(tokens=tokens))
    assert len(held_out) == sequences
    assert torch.equal(held_out.document, TOKEN[:sequences] // 10)


def test_batches_are_all_sequences_in_order(token_arrays):
    held_out = load_held_out(token_arrays, Evaluation())
    parts = list(held_out.batches(2))
    assert [len(part) for part in parts] == [2, 1]
    assert torch.equal(torch.cat([part.token for part in parts]), held_out.token)
