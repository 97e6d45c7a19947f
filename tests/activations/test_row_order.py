import numpy as np
import pytest
from tests.activations.inputs import SHARD_ROWS, make_order, make_tokens

from circuitloom.activations.row_order import row_order


def origins(order, size=7):
    """(sequence, position) of every row, in stored order."""
    rows = np.full((order.rows, 2), -1)
    for shard in range(order.shards):
        start, _ = order.bounds(shard)
        for batch in order.batches(shard, size):
            context = batch.tokens.shape[1]
            rows[start + batch.slot, 0] = batch.sequences[batch.source // context]
            rows[start + batch.slot, 1] = batch.source % context
    return rows


@pytest.mark.parametrize("bos_id", [1, 0, None])
def test_every_scored_token_has_one_row_and_no_bos_has_any(bos_id):
    tokens = make_tokens(120, bos_id)
    token = tokens.take(slice(None)).numpy()
    scored = np.ones_like(token, dtype=bool) if bos_id is None else token != bos_id
    scored[:, 0] = False
    expected = np.argwhere(scored)
    found = origins(make_order(120, bos_id))
    assert np.array_equal(found[np.lexsort(found.T[::-1])], expected)


def test_order_is_independent_of_the_batch_size():
    order = make_order()
    assert np.array_equal(origins(order, size=1), origins(order, size=1000))


def test_order_is_a_function_of_the_seed():
    assert np.array_equal(origins(make_order(seed=3)), origins(make_order(seed=3)))
    assert not np.array_equal(origins(make_order(seed=3)), origins(make_order(seed=4)))
    assert make_order(seed=3).digest == make_order(seed=3).digest != make_order(seed=4).digest


def test_adjacent_rows_rarely_share_a_document():
    document = make_tokens(120).take_document(slice(None)).numpy()
    owner = document[tuple(origins(make_order()).T)]
    # about 45 documents lie in a shard of 1,024 rows
    assert (owner[1:] == owner[:-1]).mean() < 0.05


def test_tokens_of_a_shard_come_from_the_entire_split():
    sequences = origins(make_order())[:SHARD_ROWS, 0]
    assert np.ptp(sequences) > 100


def test_a_limit_does_not_change_the_first_shards():
    full, limited = make_order(), make_order(limit=2 * SHARD_ROWS + 10)
    assert limited.rows == 2 * SHARD_ROWS + 10
    assert np.array_equal(origins(limited)[: 2 * SHARD_ROWS], origins(full)[: 2 * SHARD_ROWS])


def test_text_without_a_scored_token_is_refused():
    tokens = make_tokens(2)
    tokens.token[:] = tokens.separator_id
    with pytest.raises(
        ValueError, match="no token other than separators of documents; give the corpus more text"
    ):
        row_order(tokens, 0, SHARD_ROWS)
