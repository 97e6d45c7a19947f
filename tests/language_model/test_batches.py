"""Which sequences a step sees."""

from collections import Counter

import pytest
import torch
from tests.language_model.inputs import make_tokens

from circuitloom.language_model.pretraining import Batches


def test_an_epoch_has_every_sequence_once_but_the_last(tmp_path):
    tokens = make_tokens(tmp_path / "train.zarr", sequences=41)
    batches = Batches(tokens, 8, seed=0)
    for epoch in range(2):
        seen = Counter(tuple(row.tolist()) for step in range(5) for row in batches.at(5 * epoch + step)[0])
        assert seen == Counter(tuple(row.tolist()) for row in tokens.take(slice(0, 40)))


@pytest.mark.parametrize("bos_id", [0, None])
def test_the_target_of_the_last_position_is_the_next_token_of_the_stream(tmp_path, bos_id):
    inputs, targets = Batches(make_tokens(tmp_path / "train.zarr", bos_id=bos_id), 8, seed=0).at(3)
    torch.testing.assert_close(inputs[:, 1:], targets[:, :-1])
    torch.testing.assert_close(targets[:, -1], (inputs[:, -1] + 3) % 62 + 2)


def test_batches_follow_from_seed_and_step_alone(tmp_path):
    tokens = make_tokens(tmp_path / "train.zarr")
    one, other = Batches(tokens, 8, seed=1), Batches(tokens, 8, seed=1)
    one.at(0)
    assert torch.equal(one.at(20)[0], other.at(20)[0])
    assert not torch.equal(one.at(20)[0], Batches(tokens, 8, seed=2).at(20)[0])


def test_an_epoch_that_ends_inside_a_batch_goes_on_in_the_next(tmp_path):
    batches = Batches(make_tokens(tmp_path / "train.zarr", sequences=4), 8, seed=0)
    assert batches.at(0)[0].unique(dim=0).shape[0] == 3


def test_one_sequence_is_too_few(tmp_path):
    with pytest.raises(ValueError, match=r"train.zarr: too few training tokens .* raise corpus.train_tokens"):
        Batches(make_tokens(tmp_path / "train.zarr", sequences=1), 8, seed=0)
