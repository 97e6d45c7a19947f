"""Keys of the comparison of dictionaries."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from ..base import Section
from ..circuits import parse_target
from ..templates import Slots, check_slots
from .base import Bound, Case

GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


def _is_logits(target: str) -> str:
    parsed = parse_target(target)
    if parsed.kind not in ("logits", "logit", "difference"):
        raise ValueError(
            f"target {target!r}: runs have different features, so only logits can be compared; write logits, "
            "logit TOKEN or logit TOKEN vs TOKEN"
        )
    return target


class ComparedPrompt(Section):
    """A template of texts, its target, and the concept through which the model is known to compute the target."""

    text: Annotated[str, Field(min_length=1)]
    """The text. `{name}` is replaced by a word of `slots`."""
    special_tokens: bool = False
    """Whether special tokens that the text spells out are special tokens. If false, they are text."""
    target: Annotated[str, AfterValidator(_is_logits)] = "logits"
    """What the graphs explain: `logits`, `logit TOKEN` or `logit TOKEN vs TOKEN`, read as in `circuits.prompts`."""
    through: str | None = None
    """A planted concept (docs/chronicle.md) that is a step between the text and the target. Only with `concepts`."""


class CompareCase(Case):
    """Which dictionaries give the better circuits? Groups of runs are compared on the same prompts."""

    tables: ClassVar = ("claim", "compared_run", "compared_prompt")
    figures: ClassVar = ("scores",)
    kind: Literal["compare"]
    """Selects the comparison of dictionaries."""
    groups: Annotated[dict[GroupName, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    """Groups of runs of transcoders or cross-layer transcoders. Runs of a group should differ in their seed alone:
    their scores are averaged."""
    pairs: list[str] = []
    """Comparisons of two groups, each written `GROUP vs GROUP`. The claims are that the first is at least as good."""
    prompts: Annotated[list[ComparedPrompt], Field(min_length=1)]
    """Templates of texts, with their targets."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it."""
    count: Annotated[int, Field(ge=2)] = 24
    """Number of prompts, drawn from the templates in turn."""
    ablated: Annotated[int, Field(ge=2)] = 32
    """Number of features that are ablated one by one, per prompt and run: those of the largest influence."""
    concepts: bool = False
    """Whether to score the runs with planted concepts, as the kind `planted` does. Only for the generated corpus."""
    matching: Bound = 0.5
    """A feature is of the concept `through` if it predicts the concept with at least this F1, on the half of the
    held-out documents on which features are chosen."""
    found: Bound = 0.8
    """A concept is found if its feature has at least this F1 on held-out documents."""
    occurrences: PositiveInt = 8
    """Maximum number of documents per half on which the sources of each concept's feature are traced."""
    passed: Bound = 0.5
    """Claim, for each group: on prompts with `through`, at least this share of the influence passes through features of
    the concept."""
    predicted: NonNegativeFloat = 0.5
    """Claim, for each group: if these features are ablated, predicted and measured changes of the target differ by at
    most this share of the measured ones."""

    @property
    def generated(self) -> bool:
        """Whether the case study needs the concepts of every token."""
        return self.concepts

    @property
    def first_run(self) -> str | None:
        """The first run of the first group."""
        return next(iter(self.groups.values()))[0]

    @property
    def runs_named(self) -> list[str]:
        """Names of the runs of all groups."""
        return [run for runs in self.groups.values() for run in runs]

    @property
    def compared(self) -> list[tuple[str, str]]:
        """Pairs of groups."""
        return [tuple(pair.split(" vs ")) for pair in self.pairs]  # type: ignore[misc]

    @model_validator(mode="after")
    def _complete(self) -> "CompareCase":
        check_slots([part for each in self.prompts for part in (each.text, each.target)], self.slots)
        if self.run is not None:
            raise ValueError("a comparison has no `run`; name its runs under `groups`")
        if len(set(self.runs_named)) < len(self.runs_named):
            raise ValueError("groups: a run is named twice; name each run once")
        for pair in self.pairs:
            names = pair.split(" vs ")
            if len(names) != 2 or names[0] == names[1]:
                raise ValueError(f"pairs: {pair!r} is no pair; write GROUP vs GROUP, two names of `groups`")
            for name in names:
                if name not in self.groups:
                    raise ValueError(f"pairs: there is no group {name}; choose from {', '.join(self.groups)}")
        for each in self.prompts:
            if each.through is not None and not self.concepts:
                raise ValueError(
                    f"{each.text!r} has `through`, which needs the planted concepts; set concepts: true"
                )
        return self
