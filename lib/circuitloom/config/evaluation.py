"""Config of the evaluation: how dictionaries are scored on held-out tokens."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .base import Section


class Evaluation(Section):
    """Evaluation of dictionaries on held-out tokens. It includes the model's loss when reconstructions replace the
    original activations."""

    tokens: PositiveInt | None = None
    """Number of held-out tokens, in complete sequences. With null, all tokens are used."""
    batch: PositiveInt = 32
    """Number of sequences per forward pass."""
    mask: Literal["bos", "none"] = "bos"
    """Which positions are not scored. `bos`: BOS tokens and position 0. `none`: every position is scored, as by
    Dunefsky et al. (2024)."""
    together: bool = True
    """Whether each run is also scored with the MLPs of all layers replaced at once."""
    thresholds: Annotated[int, Field(ge=2)] = 256
    """Number of candidate thresholds per feature for concept scores. With 256, the best F1 is found to within 3 %."""
