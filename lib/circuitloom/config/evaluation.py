"""Config of the evaluation: how dictionaries are scored on held-out tokens."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .base import Batch, Section


class Evaluation(Section):
    """Scores of dictionaries on held-out tokens, including the model's loss with reconstructions in place of
    activations."""

    tokens: PositiveInt | None = None
    """Number of held-out tokens to score, in complete sequences. With null, all tokens are scored."""
    batch: Batch = "auto"
    """Number of sequences per forward pass. With `auto`, the activations of a pass take at most 2 GB, with at most 32
    sequences. The number depends on the model and on `corpus.context`, not on the machine. It changes results only by
    rounding."""
    mask: Literal["bos", "none"] = "bos"
    """Positions that are not scored. `bos`: separators of documents (BOS, or EOS if the tokenizer has no BOS) and
    position 0. `none`: every position is scored, as in Dunefsky et al. (2024)."""
    together: bool = True
    """Whether to score each run also with the MLPs of all layers replaced at once."""
    thresholds: Annotated[int, Field(ge=2)] = 256
    """Number of candidate thresholds per feature for concept scores. With 256, the best F1 is found to within 3 %."""
