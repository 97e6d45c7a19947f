"""What is tabulated about every feature."""

from pydantic import NonNegativeInt, PositiveInt

from .base import Section


class Features(Section):
    """Held-out tokens through model and dictionaries: every activation, and what can be said of each feature."""

    tokens: PositiveInt | None = None
    """Held-out tokens to tabulate, in whole sequences; null takes all there are."""
    batch: PositiveInt = 32
    """Sequences a forward pass."""
    examples: PositiveInt = 20
    """Largest activations of a feature that are kept with their surroundings."""
    bands: NonNegativeInt = 5
    """Bands of equal width, from 0 to the largest activation, from which more examples are taken."""
    band_examples: PositiveInt = 5
    """Examples from each band, evenly spaced over the text."""
    before: NonNegativeInt = 16
    """Tokens kept before the token of an example."""
    after: NonNegativeInt = 8
    """Tokens kept after it."""
    bins: PositiveInt = 20
    """Bins of the histogram of a feature's activations."""
    logits: PositiveInt = 10
    """Tokens kept that a feature raises most, and as many that it lowers most."""
    neurons: NonNegativeInt | None = None
    """Active neurons a token that are tabulated as features: those that write most; null: all."""
