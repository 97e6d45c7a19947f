"""The tokens around an example: within its sequence, and within its document."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ..corpus.tokens import Tokens


@dataclass(frozen=True)
class Windows:
    """Tokens around some positions."""

    inside: Bool[np.ndarray, "example window"]
    """Whether each place, from `before` tokens before to `after` after, is in the same sequence and document."""
    token: Int[np.ndarray, " inside"]
    """Token ids of those that are, example after example."""
    start: Int[np.ndarray, " example"]
    """Position, in its sequence, of the first."""


def windows(tokens: Tokens, flat: Int[np.ndarray, " example"], before: int, after: int) -> Windows:
    """The windows around positions of the flattened token array; reads no sequence but those.

    Raises ValueError where the tokens are damaged.
    """
    context = tokens.context
    sequence, position = np.divmod(flat, context)
    rows, row = np.unique(sequence, return_inverse=True)
    token, document = tokens.take(rows).numpy(), tokens.take_document(rows).numpy()
    place = position[:, None] + np.arange(-before, after + 1)
    inside = (place >= 0) & (place < context)
    place = place.clip(0, context - 1)
    inside &= document[row[:, None], place] == document[row, position][:, None]
    ids = token[row[:, None], place][inside]
    return Windows(inside, ids, place[np.arange(len(flat)), inside.argmax(1)])
