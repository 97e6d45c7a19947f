"""Config of the feature tables: activations, examples, statistics and logit effects."""

from pydantic import NonNegativeInt, PositiveInt

from .base import Batch, Section


class Features(Section):
    """Feature tables: all activations on the held-out tokens, examples, statistics and logit effects."""

    tokens: PositiveInt | None = None
    """Number of held-out tokens to use, in complete sequences. With null, all tokens are used."""
    batch: Batch = "auto"
    """Number of sequences per forward pass. With `auto`, the activations of a pass take at most 2 GB, with at most 32
    sequences. The number depends on the model and on `corpus.context`, not on the machine. It changes results only by
    rounding."""
    examples: PositiveInt = 20
    """Number of maximally activating examples per feature."""
    bands: NonNegativeInt = 5
    """Number of activation bands with further examples. The bands have equal width, from 0 to the maximum
    activation."""
    band_examples: PositiveInt = 5
    """Number of examples per band, evenly spaced over the text."""
    before: NonNegativeInt = 16
    """Number of context tokens before an example's token."""
    after: NonNegativeInt = 8
    """Number of context tokens after an example's token."""
    bins: PositiveInt = 20
    """Number of bins of each feature's activation histogram."""
    logits: PositiveInt = 10
    """Number of tokens to list per feature: the tokens whose logits the feature raises most. The same number of tokens
    whose logits the feature lowers most is listed too."""
    neurons: NonNegativeInt | None = None
    """Number of neurons to record per token, for the feature tables of neurons. The neurons that write the vectors of
    largest norm are chosen. With 0, no neurons are recorded. With null, all active neurons are recorded."""
