"""On what, and how, dictionaries are scored."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .base import Section


class Evaluation(Section):
    """Held-out tokens through the model, with dictionaries in place of MLPs."""

    tokens: PositiveInt | None = None
    """Held-out tokens to score on, in whole sequences; null takes all there are."""
    batch: PositiveInt = 32
    """Sequences a forward pass."""
    mask: Literal["bos", "none"] = "bos"
    """`bos` leaves BOS and position 0 out; `none` counts every position, as Dunefsky et al. 2024 did."""
    together: bool = True
    """Also replace the MLPs of all layers at once."""
    thresholds: Annotated[int, Field(ge=2)] = 256
    """Candidate thresholds a feature when concepts are scored; 256 find the best F1 to within 3 %."""
