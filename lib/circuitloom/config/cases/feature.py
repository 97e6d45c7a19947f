"""Keys of the case study of one feature."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, PositiveFloat, PositiveInt, model_validator

from ..circuits import BehaviourPrompt, parse_feature
from ..templates import Slots, Texts, check_slots
from .base import Bound, Case

EXCHANGES = 8
"""Number of random replacement tokens per text and condition of a rule."""


def is_feature(text: str) -> str:
    """Returns `text` if it is written LAYER/NUMBER. Raises ValueError otherwise."""
    if parse_feature(text).position is not None:
        raise ValueError(f"{text!r} names a position; write LAYER/NUMBER")
    return text


class FeatureCase(Case):
    """What does a feature fire on, what does it read, and what does it do?"""

    tables: ClassVar = ("claim", "outcome", "source")
    figures: ClassVar = ("activations", "sources")
    kind: Literal["feature"]
    """Selects the case study of one feature."""
    concept: str | None = None
    """Concept of the corpus that the feature should predict. With null, the feature that best separates `texts` from
    `edited` is chosen, among those that `candidates`, `precision`, `recall`, `strength` and `dense` allow. There may be
    none."""
    feature: Annotated[str, AfterValidator(is_feature)] | None = None
    """The feature, written LAYER/NUMBER. With null, the case study chooses the feature."""
    texts: Texts
    """Templates of texts. The feature should fire on the last token. `{name}` is replaced by a word of `slots`."""
    edited: Texts
    """Edited templates, one per template of `texts`, in the same order. The feature should not fire on the last
    token."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it."""
    effect: str | None = None
    """Metric of the logits after each text: `logit TOKEN` or `logit TOKEN vs TOKEN`. Ablating the feature should lower
    the metric. With null, no metric is measured."""
    published: dict[str, PositiveFloat] = {}
    """Maps texts to the published activation of the feature at the text's last token."""
    tokens: PositiveInt | None = None
    """Number of held-out tokens on which the feature and its rules are scored. With null, `evaluation.tokens`, or more
    if these are parts of fewer than 100 documents: at most 200,000."""
    prompts: PositiveInt = 40
    """Number of texts per template. The feature and its rule are found on the finding half of the texts, and tested on
    the testing half."""
    traced: PositiveInt = 8
    """Number of texts of the finding half to trace."""
    candidates: PositiveInt = 100
    """Number of features to judge if the feature is chosen by contrast: those with the largest standardized difference
    between texts and edits, on the finding half."""
    precision: Bound = 0.8
    """A feature chosen by contrast fires on texts in at least this share of the cases in which it fires on a text or an
    edit. The threshold is chosen on other pairs of the finding half."""
    recall: Bound = 0.5
    """A feature chosen by contrast fires on at least this share of the texts. The threshold is chosen on other pairs of
    the finding half."""
    strength: Bound = 0.1
    """A feature chosen by contrast has on the texts at least this share of its largest activation on held-out text, on
    average. Its threshold is at least this share, too."""
    dense: Bound = 0.1
    """A feature chosen by contrast fires on at most this share of the held-out tokens."""
    least_share: Bound = 0.05
    """An offset is a candidate for the rule if its tokens have at least this share of the effect of all tokens."""
    found: Bound = 0.8
    """Three claims. The F1 for the concept is at least this value. The feature separates at least this share of the
    pairs of a text and its edited text. At least this share of token exchanges more than halves the activation."""
    described: Bound = 0.8
    """Two claims: on held-out text, the blind rule and the fitted rule each have at least this F1."""
    reproduced: Bound = 0.05
    """Claim: the relative difference between measured and published activation is at most this value."""
    sufficient: Bound = 0.5
    """Claim: with the rule's tokens alone, at least this share of the activation remains."""

    @model_validator(mode="after")
    def _complete(self) -> "FeatureCase":
        if len(self.texts) != len(self.edited):
            raise ValueError(
                f"{len(self.texts)} texts and {len(self.edited)} edited ones: each text needs its edit; add the "
                "missing ones"
            )
        check_slots([*self.texts, *self.edited], self.slots)
        if self.effect is not None:
            BehaviourPrompt(text=self.texts[0], target=self.effect)
        return self
