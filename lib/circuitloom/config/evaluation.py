"""How dictionaries are scored on held-out tokens."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .base import Section


class Evaluation(Section):
    """Evaluation on held-out tokens, with dictionaries in place of MLPs."""

    tokens: PositiveInt | None = None
    """Number of held-out tokens, in complete sequences; null: all."""
    batch: PositiveInt = 32
    """Sequences per forward pass."""
    mask: Literal["bos", "none"] = "bos"
    """`bos`: exclude BOS and position 0; `none`: count every position, as Dunefsky et al. (2024) did."""
    together: bool = True
    """Also score each run with the MLPs of all layers replaced at once."""
    thresholds: Annotated[int, Field(ge=2)] = 256
    """Candidate thresholds per feature for concept scores; 256 find the best F1 to within 3 %."""
