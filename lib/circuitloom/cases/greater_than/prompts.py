"""Prompts, answers and metric of the case study of greater-than."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...attribution.targets import tokenize_prompt
from ...config.cases.greater_than import CENTURY, YEAR, Digits, GreaterThanCase
from ...config.templates import Slots
from ...corpus.prompt_text import find_token
from ...corpus.templates import FINDING, TESTING, fill_templates
from ...corpus.token_arrays import scored_positions
from ...corpus.tokenizer import Tokenizer

TENS = "tens_digit"
"""Name of the slot at the end of prompts that ask for units."""
MAX_FILLINGS = 1000
"""Maximum number of template fillings from which prompts are drawn."""
DIGITS: tuple[Digits, ...] = ("both", "tens", "units")
"""Forms of the answer, in the order in which `auto` tries them."""
ANSWERS: dict[Digits, range] = {"both": range(100), "tens": range(10), "units": range(10)}


@dataclass(frozen=True)
class AnswerYears:
    """Answers that are single tokens: two-digit years, or single digits. The metric uses only the logits of these
    tokens."""

    token: Int[Tensor, " answer"]
    year: Int[Tensor, " answer"]
    """Value of each answer, ascending: a two-digit year, a tens digit or a units digit."""
    digits: Digits = "both"
    """Digits of the end year that an answer has."""
    lead: str = ""
    """Text between the prompt's last word and the answer. Only used if answers are single digits."""

    def select(self, logits: Float[Tensor, "prompt vocabulary"]) -> Float[Tensor, "prompt answer"]:
        """Returns the logits of the answer tokens."""
        return logits[:, self.token.to(logits.device)]

    def value(self, year: int) -> int:
        """Returns the part of a two-digit year that is compared with answers."""
        return {"both": year, "tens": year // 10, "units": year % 10}[self.digits]

    def later(self, start: Int[Tensor, " prompt"]) -> Bool[Tensor, "prompt answer"]:
        """Returns a mask of the answers above `start`."""
        return self.year.to(start.device) > start[:, None]

    def others(self, start: Int[Tensor, " prompt"]) -> Bool[Tensor, "prompt answer"]:
        """Returns a mask of the answers that count against the metric: all that are not later. A tens digit equal to
        the start's is left out, because the units digit decides."""
        year = self.year.to(start.device)
        return year < start[:, None] if self.digits == "tens" else year <= start[:, None]

    def metric(
        self, logits: Float[Tensor, "prompt answer"], start: Int[Tensor, " prompt"]
    ) -> Float[Tensor, " prompt"]:
        """Returns `greater_than` of the answers' logits."""
        return greater_than(logits, self.year, start, equal=self.digits != "tens")


@dataclass(frozen=True)
class YearPrompts:
    """Prompts of equal length. Each prompt has a counterpart: the same text with another start year.

    If answers are single digits, "start year" means the digit of the start year that answers are compared with, in
    `start`, `other_start` and `place`."""

    text: list[str]
    token: Int[Tensor, "prompt position"]
    start: Int[Tensor, " prompt"]
    """Last two digits of the start year."""
    other: Int[Tensor, "prompt position"]
    """Tokens of the counterparts."""
    other_start: Int[Tensor, " prompt"]
    scored: Bool[Tensor, " position"]
    """True at positions where transcoders replace MLPs: all except the first position and separators."""
    place: int
    """Position of the start year."""
    half: list[str]
    """`finding` or `testing`, for each prompt."""
    dropped: int
    """Number of drawn prompts that `make_prompts` leaves out because they are unusable."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.text)

    def of(self, half: str) -> "YearPrompts":
        """Returns the prompts of one half."""
        return self[[i for i, each in enumerate(self.half) if each == half]]

    def spread(self, wanted: int) -> "YearPrompts":
        """Returns up to `wanted` prompts at evenly spaced indices."""
        return self[spread(len(self), wanted)]

    def __getitem__(self, chosen: list[int]) -> "YearPrompts":
        """Returns the prompts at the given indices."""
        return replace(
            self,
            text=[self.text[i] for i in chosen],
            token=self.token[chosen],
            start=self.start[chosen],
            other=self.other[chosen],
            other_start=self.other_start[chosen],
            half=[self.half[i] for i in chosen],
        )


def read_task(
    case: GreaterThanCase, tokenizer: Tokenizer, context_length: int
) -> tuple[AnswerYears, YearPrompts]:
    """Returns the answers and the prompts of a case.

    `case.digits` says which digits of the end year are asked for. With `auto`, these are both digits, else the tens,
    else the units: the first that this tokenizer and template give prompts for. Raises ValueError if there is none.
    """
    forms = DIGITS if case.digits == "auto" else (case.digits,)
    errors: list[tuple[bool, ValueError]] = []
    for form in forms:
        answers = None
        try:
            answers = find_answers(case, tokenizer, form)
            return answers, make_prompts(case, tokenizer, context_length, answers)
        except ValueError as error:
            errors.append((answers is None, error))
    # an error about prompts says more than one about a vocabulary without answers
    raise min(errors, key=lambda each: each[0])[1]


def find_answers(case: GreaterThanCase, tokenizer: Tokenizer, digits: Digits = "both") -> AnswerYears:
    """Returns the years from 00 to 99, or the digits from 0 to 9, that give a single token when filled into the
    template `case.answer`.

    A year follows the century as the start year does in `case.template`: with or without a blank. If only the other
    form is a token, this form is used. Raises ValueError if fewer than two years give a single token.
    """
    slot = f"{{{YEAR}}}"
    blank = " " if case.template.partition(slot)[0][-1:].isspace() else ""
    other = "" if blank else " "
    forms = [case.answer] if case.answer[0].isspace() else [blank + case.answer, other + case.answer]
    if digits == "units":
        # the answer follows the tens digit, which the prompt ends with
        forms = [slot + form.partition(slot)[2] for form in forms[:1]]
    names = {each: f"{each:02d}" if digits == "both" else str(each) for each in ANSWERS[digits]}
    tokens: dict[int, int] = {}
    leads = []
    for year, name in names.items():
        found = [find_token(form.replace(slot, name), tokenizer) for form in forms]
        form = next((i for i, each in enumerate(found) if each is not None), None)
        if form is not None and (token := found[form]) is not None:
            tokens[year] = token
            leads.append(forms[form].partition(slot)[0])
    if len(tokens) < 2:
        what = "years" if digits == "both" else "digits"
        raise ValueError(f"the vocabulary has no tokens for {what} written {case.answer!r}; change `answer`")
    return AnswerYears(
        torch.tensor(list(tokens.values())), torch.tensor(list(tokens)), digits, max(leads, key=leads.count)
    )


def make_prompts(
    case: GreaterThanCase, tokenizer: Tokenizer, context_length: int, answers: AnswerYears
) -> YearPrompts:
    """Returns the prompts of a case, sorted by start year. All prompts have a counterpart.

    Every start year is a single token and has a later answer. If answers are single digits, the compared digit of the
    start year is a single token and has a later answer, and for tens an earlier one; the counterpart changes only this
    digit. All prompts have the same length and the same position of the start year. Raises ValueError if fewer than
    four prompts remain, or if a prompt cannot be tokenized.
    """
    generator = random.Random(case.seed)
    years = list(range(case.first, case.last + 1))
    slots = {**case.slots, CENTURY: case.centuries}
    filled = [texts for (texts,) in fill_templates([case.template], slots, MAX_FILLINGS, case.seed)]
    token_of_year = dict(zip(answers.year.tolist(), answers.token.tolist(), strict=True))
    rows: list[_PromptRow] = []
    wanted = 0
    for number, year in enumerate(years):
        own = generator.sample(filled, min(case.fillings, len(filled)))
        wanted += len(own)
        # with units, years alternate in the next decade the other way round: both halves have all digits
        turn = number + (year // 10 if answers.digits == "units" else 0)
        for n, text in enumerate(own):
            half = (FINDING, TESTING)[(turn if len(own) == 1 else n) % 2]
            others = [each for each in generator.sample(years, len(years)) if each != year]

            def read(each: int, text=text) -> tuple[str, Tensor]:
                written = _write_prompt(text, each, case, answers)
                return written, tokenize_prompt(written, tokenizer, context_length)

            if _is_usable(year, read, answers, token_of_year, tokenizer, context_length):
                rows += _pair(read, year, others, token_of_year, half, answers)
    places = Counter((len(row.token), row.place) for row in rows)
    kept = [row for row in rows if (len(row.token), row.place) == places.most_common(1)[0][0]]
    if len(kept) < 4:
        part = "" if answers.digits == "both" else f"{answers.digits} digit that is one token in the "
        raise ValueError(
            f"{case.template!r}: {len(kept)} of {wanted} prompts have a {part or 'start year that is one token'}"
            f"{'start year and continues the prompt' if part else ''}; change the template, or `answer`"
        )
    dropped = wanted - len(kept)
    if case.prompts is not None:
        kept = _spread(kept, case.prompts)
    return YearPrompts(
        text=[row.text for row in kept],
        token=torch.stack([row.token for row in kept]),
        start=torch.tensor([row.year for row in kept]),
        other=torch.stack([row.other for row in kept]),
        other_start=torch.tensor([row.other_year for row in kept]),
        scored=scored_positions(kept[0].token[None], tokenizer.separator_id)[0],
        place=kept[0].place,
        half=[row.half for row in kept],
        dropped=dropped,
    )


def spread(n: int, wanted: int) -> list[int]:
    """Returns up to `wanted` evenly spaced indices below n."""
    wanted = min(wanted, n)
    return [(2 * i + 1) * n // (2 * wanted) for i in range(wanted)]


def _spread(rows: Sequence["_PromptRow"], wanted: int) -> list["_PromptRow"]:
    """Returns at most `wanted` rows, evenly spaced within each half, in their order."""
    chosen: list[int] = []
    for half in (FINDING, TESTING):
        own = [i for i, row in enumerate(rows) if row.half == half]
        chosen += [own[i] for i in spread(len(own), wanted // 2)]
    return [rows[i] for i in sorted(chosen)]


def prompt_template(case: GreaterThanCase, answers: AnswerYears) -> str:
    """Returns the template of all prompts. Where units are asked for, it ends with the slot of the start's tens
    digit."""
    if answers.digits != "units":
        return case.template
    slot = f"{{{YEAR}}}"
    before = case.answer.partition(slot)[0]
    blank = " " if case.template.partition(slot)[0][-1:].isspace() and not before[:1].isspace() else ""
    return f"{case.template}{blank}{before}{{{TENS}}}"


def prompt_slots(case: GreaterThanCase) -> Slots:
    """Returns the words that can fill each slot of `prompt_template`."""
    years = [f"{year:02d}" for year in range(case.first, case.last + 1)]
    return {**case.slots, CENTURY: case.centuries, YEAR: years, TENS: list("0123456789")}


def _write_prompt(text: str, year: int, case: GreaterThanCase, answers: AnswerYears) -> str:
    """Returns a filled template with the start year. Where units are asked for, it ends with the start's tens digit."""
    end = prompt_template(case, answers).removeprefix(case.template)
    return text.replace(f"{{{YEAR}}}", f"{year:02d}") + end.replace(f"{{{TENS}}}", str(year // 10))


def _is_usable(
    year: int,
    read: Callable[[int], tuple[str, Tensor]],
    answers: AnswerYears,
    token_of_year: dict[int, int],
    tokenizer: Tokenizer,
    context_length: int,
) -> bool:
    """Returns whether the start year, or its compared digit, is a token of the prompt and has a later answer. A digit
    must also continue the prompt as a token of its own, and a tens digit needs an earlier answer."""
    text, token = read(year)
    value = answers.value(year)
    # leave out the last year, because no answer is later
    if token_of_year.get(value, -1) not in token.tolist() or value >= max(token_of_year):
        return False
    if answers.digits == "both":
        return True
    goes_on = tokenize_prompt(f"{text}{answers.lead}{value}", tokenizer, context_length + 1).tolist()
    earlier = answers.digits == "units" or value > min(token_of_year)
    return earlier and goes_on == [*token.tolist(), token_of_year[value]]


class _PromptRow(NamedTuple):
    """A prompt and its counterpart."""

    text: str
    token: Int[Tensor, " position"]
    other: Int[Tensor, " position"]
    year: int
    other_year: int
    place: int
    half: str


def _pair(
    read: Callable[[int], tuple[str, Tensor]],
    year: int,
    others: Sequence[int],
    token_of_year: dict[int, int],
    half: str,
    answers: AnswerYears,
) -> list[_PromptRow]:
    """Returns one row: the prompt of `year` with its counterpart. Returns no row if there is no counterpart. The
    counterpart has the first year in `others` that changes only the token of the year, or of its compared digit."""
    text, token = read(year)
    value = answers.value(year)
    for other_year in others:
        other_value = answers.value(other_year)
        # with single digits, the other digit stays
        if answers.digits == "tens" and other_year % 10 != year % 10:
            continue
        if answers.digits == "units" and other_year // 10 != year // 10:
            continue
        _, other = read(other_year)
        if len(other) == len(token):
            changed = (token != other).nonzero()[:, 0].tolist()
            tokens = [(int(token[place]), int(other[place])) for place in changed]
            if tokens == [(token_of_year[value], token_of_year.get(other_value, -1))]:
                return [_PromptRow(text, token, other, value, other_value, changed[0], half)]
    return []


# The metric


def greater_than(
    logits: Float[Tensor, "prompt answer"],
    year: Int[Tensor, " answer"],
    start: Int[Tensor, " prompt"],
    equal: bool = True,
) -> Float[Tensor, " prompt"]:
    """Returns P(years later than `start`) - P(all other years). The softmax is over the answer tokens alone. Without
    `equal`, the answer that equals `start` is not among them."""
    year = year.to(start.device)
    later = year > start[:, None]
    if not equal:
        logits = logits.masked_fill((year == start[:, None]).to(logits.device), -torch.inf)
    return (logits.softmax(-1) * torch.where(later, 1.0, -1.0).to(logits)).sum(-1)
