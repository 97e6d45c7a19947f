"""Prompts drawn from templates in two halves, and the role of each of their tokens: its place in the template."""

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ..config.circuits import BehaviourPrompt
from ..config.templates import Slots, slots_of
from .prompt_text import PromptText

FINDING, TESTING = "finding", "testing"
"""Halves of the prompts. Circuits are chosen on the finding half. Claims are measured on the testing half."""
MAX_LISTED = 10_000
"""Maximum number of word combinations to list and shuffle. If there are more, combinations are drawn at random."""
NAMED_TOKENS = 2
"""Largest number of tokens in the name of a role whose token differs between prompts without slots."""
Place = tuple[int, int]
"""Role of a token: a part of the template, and a place in this part."""


@dataclass(frozen=True)
class DrawnPrompt:
    """A filled template and its target."""

    text: str
    target: str
    """The template's target, filled with the same words as the text."""
    half: str
    """`finding` or `testing`."""
    special_tokens: bool = False
    """That of the template."""
    template: int = 0
    """Number of the template."""


@dataclass(frozen=True)
class TemplatePrompts:
    """The prompts of a template, aligned by role."""

    text: str
    """The template. Slots are in braces."""
    target: str
    prompts: Sequence[int]
    """Numbers of the prompts among all prompts."""
    read: Sequence[PromptText]
    roles: Sequence[Sequence[int]]
    """The role of each token of each prompt, as an index into `names`. No role occurs twice in a prompt."""
    names: Sequence[str]
    """Name of each role: its token, or the slot in braces where the token differs between prompts."""


# Filling templates


def fill_templates(templates: Sequence[str], slots: Slots, count: int, seed: int) -> list[tuple[str, ...]]:
    """Returns up to `count` distinct fillings of a group of templates. A filling uses the same words in all templates.
    The slots `NAME` and `NAME_2` get different words."""
    names = [name for name in slots if any(name in slots_of(template) for template in templates)]
    choices = [slots[name] for name in names]
    if math.prod(map(len, choices)) <= MAX_LISTED:
        drawn = list(itertools.product(*choices))
        random.Random(seed).shuffle(drawn)
    else:
        generator = random.Random(seed)
        draws = (tuple(generator.choice(words) for words in choices) for _ in range(20 * count))
        drawn = list(dict.fromkeys(draws))
    filled = []
    for words in drawn:
        values = dict(zip(names, words, strict=True))
        if any(values[name] == values.get(f"{name}_2") for name in names):
            continue
        texts = tuple(_fill(template, values) for template in templates)
        filled += [] if texts in filled else [texts]
        if len(filled) == count:
            break
    return filled


def _fill(template: str, values: dict[str, str]) -> str:
    return re.sub(r"\{([a-z_0-9]+)\}", lambda match: values.get(match[1], match[0]), template)


def draw_prompts(
    templates: Sequence[BehaviourPrompt], slots: Slots, count: int, seed: int
) -> list[DrawnPrompt]:
    """Returns about `count` prompts with distinct texts, drawn from the templates in turn.

    Each template gives half of its prompts to the finding half and the rest to the testing half. Templates with the
    same slots get the same words in each half. Raises ValueError if a template gives only one text.
    """
    per_template = -(-count // len(templates))
    filled: list[list[tuple[str, str]]] = []
    slot_sets = [set(slots_of(template.text) + slots_of(template.target)) for template in templates]
    for template, own in zip(templates, slot_sets, strict=True):
        texts: dict[str, str] = {}
        # if a slot is only in the target, the same text has several targets: keep the first
        for text, target in fill_templates(
            (template.text, template.target), slots, 4 * per_template, seed + slot_sets.index(own)
        ):
            texts.setdefault(text, target)
        if len(texts) < 2:
            raise ValueError(f"{template.text!r}: can be filled in one way only; add words to its slots")
        filled.append(list(texts.items())[:per_template])
    prompts: dict[str, DrawnPrompt] = {}
    for turn in range(per_template):
        for number, (template, own_texts) in enumerate(zip(templates, filled, strict=True)):
            if turn < len(own_texts):
                text, target = own_texts[turn]
                half = FINDING if turn < len(own_texts) // 2 else TESTING
                prompts.setdefault(text, DrawnPrompt(text, target, half, template.special_tokens, number))
    return list(prompts.values())


def group_prompts(prompts: Sequence[BehaviourPrompt], read: Sequence[PromptText]) -> list[DrawnPrompt]:
    """Returns prompts that were written without slots, in their order. Prompts with the same target and number of
    tokens are those of one template; they belong to the two halves in turn."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    drawn = []
    for number, (prompt, text) in enumerate(zip(prompts, read, strict=True)):
        own = groups[prompt.target, len(text.token)]
        own.append(number)
        half = (FINDING, TESTING)[(len(own) - 1) % 2]
        template = list(groups).index((prompt.target, len(text.token)))
        drawn.append(DrawnPrompt(prompt.text, prompt.target, half, prompt.special_tokens, template))
    return drawn


# Roles


def align_template(
    text: str,
    target: str,
    slots: Slots,
    prompts: Sequence[int],
    read: Sequence[PromptText],
    strings: list[str],
) -> TemplatePrompts:
    """Returns the fillings of a template, aligned by `template_roles`, whose error it raises. `strings` has the text of
    each token of the vocabulary."""
    places = [template_roles(each, text, slots) for each in read]
    order = sorted({place for each in places for place in each})
    roles = [[order.index(place) for place in each] for each in places]
    pieces = [piece for piece in re.split(r"(\{[a-z_0-9]+\})", text) if piece]

    def name(place: Place, tokens: list[str]) -> str:
        if len(tokens) == 1:
            return tokens[0]
        slot = pieces[place[0]] if 0 <= place[0] < len(pieces) else "?"
        return slot if place[1] in (-1, 0) else f"{slot} {place[1]}"

    tokens = _tokens_of_roles(read, roles, strings)
    names = [name(place, tokens[role]) for role, place in enumerate(order)]
    return TemplatePrompts(text, target, prompts, read, roles, names)


def align_positions(
    target: str, prompts: Sequence[int], read: Sequence[PromptText], strings: list[str]
) -> TemplatePrompts:
    """Returns prompts with the same number of tokens, aligned by position. Where the token differs between prompts, the
    name of the role lists the first tokens: `{lamps|kettles|...}`."""
    roles = [list(range(len(each.token))) for each in read]
    names = []
    for tokens in _tokens_of_roles(read, roles, strings).values():
        listed = "|".join(
            [each.strip() for each in tokens[:NAMED_TOKENS]] + ["..."] * (len(tokens) > NAMED_TOKENS)
        )
        names.append(tokens[0] if len(tokens) == 1 else f"{{{listed}}}")
    # a BOS is no part of the text
    first = read[0]
    added = len(first.token) - len(first.tokenizer.offsets(first.text, first.special))
    text = " ".join(name.strip() for name in names[added:])
    return TemplatePrompts(text, target, prompts, read, roles, names)


def _tokens_of_roles(
    read: Sequence[PromptText], roles: Sequence[Sequence[int]], strings: list[str]
) -> dict[int, list[str]]:
    """Returns the distinct tokens of each role, in the order of the prompts."""
    tokens: dict[int, dict[str, None]] = defaultdict(dict)
    for text, own in zip(read, roles, strict=True):
        for role, token in zip(own, text.token.tolist(), strict=True):
            tokens[role].setdefault(strings[int(token)])
    return {role: list(tokens[role]) for role in sorted(tokens)}


def template_roles(text: PromptText, template: str, slots: Slots) -> list[Place]:
    """Returns the role of each token of a filled template (see `slot_roles`). A BOS has the role (-1, 0).

    Raises ValueError if `text` is not a filling of the template.
    """
    pieces, groups, seen = re.split(r"(\{[a-z_0-9]+\})", template), [], set()
    for piece in filter(None, pieces):
        name = piece[1:-1] if piece in [f"{{{each}}}" for each in slots_of(template)] else None
        if name is None or name not in slots:
            groups.append((re.escape(piece), False))
        elif name in seen:
            groups.append((f"(?P={name})", True))
        else:
            seen.add(name)
            groups.append((f"(?P<{name}>{'|'.join(map(re.escape, slots[name]))})", True))
    # a name in a group is counted as a group too, so that the group of a part is found by its place
    places, expression, group = [], "", 0
    for pattern, _ in groups:
        expression += f"({pattern})"
        group += 1
        places.append(group)
        group += pattern.startswith("(?P<")
    found = re.fullmatch(expression, text.text, re.DOTALL)
    if found is None:
        raise ValueError(f"{text.text!r} is no filling of {template!r}; check the slots")
    parts = [(*found.span(place), is_slot) for place, (_, is_slot) in zip(places, groups, strict=True)]
    roles = slot_roles(parts, text.tokenizer.offsets(text.text, text.special))
    return [(-1, 0)] * (len(text.token) - len(roles)) + roles


def slot_roles(parts: Sequence[tuple[int, int, bool]], offsets: Int[np.ndarray, "token 2"]) -> list[Place]:
    """Returns the role of each token of a filled template, as (part, place). Equal roles are the same place.

    `parts` are the literal texts and slots of the template as (start, end, is a slot), in characters of the filled
    text. A token belongs to the part of its last character. In a literal text, places count from its first token. In a
    slot, they count from its last token, which is -1: the last tokens of words of different lengths have one role.
    """
    of_token = []
    for start, end in offsets.tolist():
        last = max(start, end - 1)
        of_token.append(next((i for i, part in enumerate(parts) if part[0] <= last < part[1]), len(parts)))
    total, seen, roles = Counter(of_token), Counter(), []
    for part in of_token:
        is_slot = part < len(parts) and parts[part][2]
        roles.append((part, seen[part] - total[part] if is_slot else seen[part]))
        seen[part] += 1
    return roles
