"""Keys of the case study of a computation whose steps are known."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from ..dictionaries import Run
from .base import Bound, Case

TRAINING = {
    "width": 48,
    "act": "jumprelu",
    "penalty": "tanh",
    "sparsity": 1.0,
    "sparsity_warmup": 0.5,
    "bandwidth": 0.2,
    "tokens": 400_000,
    "batch": 500,
    "learning_rate": 6e-3,
    "precision": "float32",
}
"""Keys of the runs that `training` does not set."""


class KnownStepsCase(Case):
    """Do circuits name the steps of a computation, if these are known? The model is made by hand, and transcoders are
    trained on it within the case study."""

    tables: ClassVar = ("claim", "outcome")
    figures: ClassVar = ("steps",)
    alone: ClassVar = True
    kind: Literal["known_steps"]
    """Selects the case study of known steps."""
    across: bool = False
    """Whether the first step's values come from two tokens, which attention brings together before the second step. If
    false, the text is a single token, so that every layer could compute everything."""
    groups: Annotated[dict[str, Literal["all"] | NonNegativeInt], Field(min_length=1)] = {
        "plt": 0,
        "reach1": 1,
        "clt": "all",
    }
    """Groups of cross-layer transcoders, and the `reach` of each. Reach 0 are transcoders of one layer."""
    seeds: PositiveInt = 2
    """Number of transcoders per group. They differ in their seed alone."""
    training: dict[str, Any] = {}
    """Keys of a run (section `dictionaries`), which replace those of the case study."""
    matching: Bound = 0.5
    """A feature is of a value of the computation if it tells the value with at least this F1."""
    named: Bound = 0.5
    """Claims, for each group and step: at least this share of the influence passes through features of the step's
    values in the layer that computes them."""
    wrong: Bound = 0.25
    """Claims, for each group and step: if these features are ablated, the predicted drop of the logit differs from the
    drop that ablating the step's neurons causes by at most this share of the latter."""

    def run_of(self, reach: Literal["all"] | int, seed: int) -> Run:
        """Returns the settings of one transcoder. Raises ValueError if a key of `training` is invalid."""
        try:
            return Run.model_validate(
                {**TRAINING, **self.training, "kind": "clt", "reach": reach, "seed": seed}
            )
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(["training", *map(str, first["loc"])])
            raise ValueError(f"{key}: {first.get('ctx', {}).get('error', first['msg'])}") from None

    @model_validator(mode="after")
    def _complete(self) -> "KnownStepsCase":
        if self.run is not None:
            raise ValueError("the case study trains its own transcoders and has no `run`; remove the key")
        if fixed := {"kind", "reach", "seed", "name", "site", "reads"} & self.training.keys():
            raise ValueError(f"training.{min(fixed)}: the case study sets this key; remove it")
        for reach in self.groups.values():
            self.run_of(reach, 0)
        return self
