"""Prompts with targets, drawn from templates and split into those to find on and those to test on."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...ablation.behaviour import read_metric
from ...ablation.metrics import PromptMetric, make_probes
from ...attribution.targets import read_prompt
from ...config.cases.base import Slots, slots_of
from ...config.circuits import Example
from ...corpus.tokenizer import Tokenizer
from ..context import FINDING, TESTING, fill


@dataclass(frozen=True)
class DrawnPrompt:
    """A template, filled."""

    text: str
    target: str
    """`logit TOKEN vs TOKEN`, filled with the same words."""
    half: str
    """finding or testing."""


def draw_prompts(templates: Sequence[Example], slots: Slots, count: int, seed: int) -> list[DrawnPrompt]:
    """About `count` prompts, the templates by turns, no text twice; each template's first half is for finding.

    Templates with the same slots get the same words, in the same half. Raises ValueError where a template has too few
    fillings for both halves.
    """
    each = -(-count // len(templates))
    filled: list[list[tuple[str, str]]] = []
    slot_sets = [set(slots_of(template.text) + slots_of(template.target)) for template in templates]
    for template, own in zip(templates, slot_sets, strict=True):
        texts: dict[str, str] = {}
        # slots of the target alone give the same text with another target
        for text, target in fill(
            (template.text, template.target), slots, 4 * each, seed + slot_sets.index(own)
        ):
            texts.setdefault(text, target)
        if len(texts) < 2:
            raise ValueError(f"{template.text!r}: can be filled in one way only; add words to its slots")
        filled.append(list(texts.items())[:each])
    prompts: dict[str, DrawnPrompt] = {}
    for turn in range(each):
        for own_texts in filled:
            if turn < len(own_texts):
                text, target = own_texts[turn]
                half = FINDING if turn < len(own_texts) // 2 else TESTING
                prompts.setdefault(text, DrawnPrompt(text, target, half))
    return list(prompts.values())


def probe_prompts(prompts: Sequence[DrawnPrompt], tokenizer: Tokenizer, context: int) -> list[PromptMetric]:
    """A probe of each prompt; ValueError where a text or token cannot be read."""
    strings = tokenizer.strings()
    tokens = [read_prompt(prompt.text, tokenizer, context) for prompt in prompts]
    metrics = [read_metric(prompt.target, strings) for prompt in prompts]
    return make_probes(tokens, metrics, tokenizer.bos_id)
