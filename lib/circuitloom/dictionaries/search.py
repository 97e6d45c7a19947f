"""The search for the largest scores of a block, on a CPU: few passes over all, and those by vector instructions.

The maxima of groups of features are found first. The k-th largest of these maxima is a bound: at least k scores of a
token reach it, one in each of k groups, and no other group holds one that does.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

GROUPS = (16, 8, 4)
"""Features of a group: the most of these that divides the width and leaves enough groups."""
GROUPS_PER_WANTED = 4
"""Groups for each of the entries wanted of a token, at least."""


def largest_of_rows(scores: Float[Tensor, "token feature"], k: int) -> Int[Tensor, " entry"]:
    """Places, ascending, in the flattened block, of at least the k largest positive scores of each row.

    A row has fewer where fewer are positive, and more where others lie between the k-th and the bound that is found.
    """
    keys = _keys(scores)
    tokens, width = keys.shape
    if k >= width:
        return _places(keys > 0)
    group = _group(width, k)
    if group == 1:
        return _places(keys >= _floors(keys, k)[:, None])
    maxima = keys.view(tokens, group, -1).amax(1)
    floors = _floors(maxima, k)
    hit = _places(maxima >= floors[:, None])
    return _within(keys, hit, group, floors.index_select(0, hit // maxima.shape[1]))


def largest_of_block(
    scores: Float[Tensor, "token feature"], n: int
) -> tuple[Int[Tensor, " entry"], Float[Tensor, ""]]:
    """Places, ascending, of at least the n largest positive scores of all rows together; and the bound they reach.

    The bound is a score: all that reach it are there.
    """
    keys = _keys(scores)
    tokens, width = keys.shape
    per_token = -(-n // tokens)
    group = _group(width, per_token)
    maxima = keys.view(tokens, group, -1).amax(1)
    floor = _floors(maxima.view(1, -1), min(n, maxima.numel()))
    hit = _places(maxima >= floor)
    return _within(keys, hit, group, floor), _scores(floor, scores.dtype)[0].float()


def reaching(
    scores: Float[Tensor, "token feature"], floor: float | Float[Tensor, " feature"]
) -> Int[Tensor, " entry"]:
    """Places, ascending, of the scores above `floor`."""
    return _places(scores > floor)


def _group(width: int, k: int) -> int:
    """Features of a group; 1 where grouping does not pay."""
    fitting = (each for each in GROUPS if width % each == 0 and width // each >= GROUPS_PER_WANTED * k)
    return next(fitting, 1)


def _keys(scores: Float[Tensor, "token feature"]) -> Shaped[Tensor, "token feature"]:
    """What is compared: positive bfloat16 are ordered as their bits are, and all others are negative or zero."""
    return scores.view(torch.int16) if scores.dtype == torch.bfloat16 else scores


def _scores(keys: Shaped[Tensor, " some"], dtype: torch.dtype) -> Float[Tensor, " some"]:
    return keys.view(torch.bfloat16) if dtype == torch.bfloat16 else keys


def _floors(keys: Shaped[Tensor, "token feature"], k: int) -> Shaped[Tensor, " token"]:
    """The k-th largest key of each row, or the smallest that is positive."""
    # numpy's partition has vector instructions: three to six times as fast as torch.topk and torch.kthvalue
    kth = np.partition(keys.numpy(), keys.shape[1] - k, axis=1)[:, keys.shape[1] - k]
    smallest = 1 if keys.dtype == torch.int16 else torch.finfo(keys.dtype).tiny
    return torch.from_numpy(kth).clamp_min(smallest)


def _within(
    keys: Shaped[Tensor, "token feature"], hit: Int[Tensor, " hit"], group: int, floor: Tensor
) -> Int[Tensor, " entry"]:
    """Places of the keys that reach `floor` (of each group, or of all) in the groups at places `hit`, ascending."""
    groups = keys.shape[1] // group
    # a group's features lie a stride apart, so that maxima of neighbouring groups are found side by side
    first = hit + hit // groups * (keys.shape[1] - groups)
    place = (torch.arange(0, keys.shape[1], groups)[:, None] + first).view(-1)
    reached = keys.view(-1).index_select(0, place).view(group, -1) >= floor
    return torch.from_numpy(np.sort(place.index_select(0, _places(reached)).numpy()))


def _places(mask: Shaped[Tensor, "token feature"]) -> Int[Tensor, " entry"]:
    # numpy finds them in half the time that torch takes
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
