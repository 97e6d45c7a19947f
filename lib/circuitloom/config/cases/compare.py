"""Keys of the comparison of dictionaries."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, PositiveInt, model_validator

from ..base import Section, as_list
from ..circuits import parse_target
from ..templates import Slots, check_slots
from .base import Bound, Case

GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
ConceptNames = Annotated[list[str], BeforeValidator(as_list, json_schema_input_type=list[str] | str)]


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
    through: ConceptNames = []
    """A planted concept (docs/chronicle.md, docs/guilds.md) that is a step between the text and the target, or a list
    of concepts that are the same step at several places. Only with `concepts`."""
    other: str | None = None
    """A text with as many tokens, in which the step has another value. The features of the step are also patched: they
    get the activations that they have in this text."""
    other_through: ConceptNames = []
    """The concepts of the step's value in `other`. Their features are patched together with those of `through`."""


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
    prompts: list[ComparedPrompt] = []
    """Templates of texts, with their targets."""
    questions: list[Literal["told", "held_out"]] = []
    """Questions about facts of the corpus `guilds` (docs/guilds.md), which are prompts besides `prompts`: about facts
    that the text has (`told`) or that are held out of it. The target is the logit of the answer minus that of a person
    of another guild, and the step is the guild. Only with `concepts`."""
    slots: Slots = {}
    """Maps the name of each slot to the words that can fill it."""
    count: Annotated[int, Field(ge=2)] = 24
    """Number of prompts, drawn from the templates, and from each kind of `questions`, in turn."""
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
    patched: Bound = 0.5
    """Claim, for each group: on prompts with `other`, patching these features changes the target by at least this share
    of its difference between the two texts."""

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
        check_slots(
            [part for each in self.prompts for part in (each.text, each.target, each.other or "")], self.slots
        )
        if not self.prompts and not self.questions:
            raise ValueError("prompts: there are none; add a text")
        if self.questions and not self.concepts:
            raise ValueError("questions need the planted concepts; set concepts: true")
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
            if each.other is not None and not (each.through and each.other_through):
                raise ValueError(
                    f"{each.text!r} has `other`, but no step; set `through` and `other_through` to the concepts that "
                    "tell its value in either text"
                )
            if each.other_through and each.other is None:
                raise ValueError(f"{each.text!r} has `other_through`; set `other`, the text with that value")
            if each.through and not self.concepts:
                raise ValueError(
                    f"{each.text!r} has `through`, which needs the planted concepts; set concepts: true"
                )
        return self
