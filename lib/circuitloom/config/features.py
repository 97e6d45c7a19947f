"""Feature tables: activations, examples, statistics and logit effects."""

from pydantic import NonNegativeInt, PositiveInt

from .base import Section


class Features(Section):
    """Feature tables: all activations on the held-out tokens, and examples, statistics and logit effects."""

    tokens: PositiveInt | None = None
    """Number of held-out tokens, in complete sequences; null: all."""
    batch: PositiveInt = 32
    """Sequences per forward pass."""
    examples: PositiveInt = 20
    """Number of maximally activating examples per feature."""
    bands: NonNegativeInt = 5
    """Number of activation bands of equal width, from 0 to the maximum, with further examples."""
    band_examples: PositiveInt = 5
    """Examples per band, evenly spaced over the text."""
    before: NonNegativeInt = 16
    """Tokens of context before an example's token."""
    after: NonNegativeInt = 8
    """Tokens of context after an example's token."""
    bins: PositiveInt = 20
    """Bins of the activation histogram per feature."""
    logits: PositiveInt = 10
    """Number of top and of bottom tokens per feature by logit effect."""
    neurons: NonNegativeInt | None = None
    """Neurons per token to tabulate as features, by the norm of what they write; 0: none; null: all active neurons."""
