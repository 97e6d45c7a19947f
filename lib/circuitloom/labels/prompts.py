"""Questions to a language model about features, and the reading of its answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.token_text import whole_tokens
from .model_client import Question

LABEL_TOKENS, VERDICT_TOKENS = 60, 4
"""Largest number of tokens of a label, and of a yes or no."""
LONGEST_LABEL = 200
"""Largest number of characters of a label. The rest is cut off."""
CHARACTERS_PER_TOKEN = 4
"""For estimates: number of characters per token in English prompts."""

_ABOUT = (
    "A feature of a language model is active on some tokens of a text. Whether it is active on a token depends on this "
    "token and on the text before it."
)
_DESCRIBE = (
    f"{_ABOUT} Below are pieces of text from a corpus. The tokens on which one feature is active are in [[ ]], and the "
    "number before a piece says how strongly, from 1 to 10. Say in one short phrase on which tokens the feature is "
    "active. Name the words or the kind of words, and what must come before them if that matters. Do not explain."
)
_JUDGE = (
    f"{_ABOUT} You get a description of a feature, and a text with one token in [[ ]]. Say whether the feature should "
    "be active on this token if the description is right. A match elsewhere in the text does not count. Answer with "
    "yes or no only."
)
_REFUSAL = re.compile(
    r"(i['\u2019]m|i am)?\s*(very |so )?sorry\b|i (can['\u2019]?t|cannot|can not|am unable|won['\u2019]t)\b|as an ai\b",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"<think>.*?</think>|^.*</think>", re.DOTALL)
_PREFIX = re.compile(
    r"^(\W*)(the )?(label|description|answer|phrase)( is)?\s*[:=]\s*|^(the|this) feature (is active|fires|activates) "
    r"(on|for)\s+",
    re.IGNORECASE,
)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("**", "**"))


@dataclass(frozen=True)
class MarkedText:
    """A piece of text for a question: tokens, of which some are marked."""

    tokens: Sequence[str]
    marked: Sequence[bool]
    strength: int = 0
    """Strength of the feature from 1 to 10, for examples."""

    def text(self, spacing: str) -> str:
        """Returns the text in one line, with marked tokens in [[ ]]. `spacing` is written between tokens."""
        parts = []
        for inside, text in whole_tokens(self.tokens):
            if any(self.marked[i] for i in inside):
                blanks = len(text) - len(text.lstrip(" "))
                # a token of spaces alone is inside the marks
                parts.append(f"{text[:blanks]}[[{text[blanks:]}]]" if text.strip(" ") else f"[[{text}]]")
            else:
                parts.append(text)
        joined = spacing.join(parts)
        return joined.replace("\r", "").replace("\n", "⏎").replace("\t", " ").strip()


def label_question(examples: Sequence[MarkedText], promoted: Sequence[str], spacing: str) -> Question:
    """Returns the question what a feature fires on. `promoted` are tokens whose logits the feature raises."""
    lines = [f"{example.strength}: {example.text(spacing)}" for example in examples]
    text = "\n".join(lines)
    if promoted:
        text += f"\nIt makes these next tokens more likely: {', '.join(token.strip() or token for token in promoted)}"
    return Question(_LABEL_TURNS, f"{text}\n{_LABEL_END}", LABEL_TOKENS)


def verdict_question(label: str, context: MarkedText, spacing: str) -> Question:
    """Returns the question whether a label says that the feature fires on the marked token of `context`."""
    return Question(_VERDICT_TURNS, _verdict_text(label, context.text(spacing)), VERDICT_TOKENS)


def read_label(answer: str | None) -> str | None:
    """Returns the label in an answer, or None if the model refused, or wrote nothing."""
    text = _THOUGHTS.sub("", answer or "").strip()
    line = next((each.strip() for each in text.splitlines() if each.strip()), "")
    line = _PREFIX.sub("", line).strip()
    for opening, closing in _QUOTES:
        if line.startswith(opening) and line.endswith(closing) and len(line) > len(opening + closing):
            line = line[len(opening) : -len(closing)].strip()
    # a marked token in a label would look like the token to judge
    line = line.replace("[[", "").replace("]]", "").rstrip(".").strip()
    return None if not line or _REFUSAL.match(line) else line[:LONGEST_LABEL]


def read_verdict(answer: str | None) -> bool | None:
    """Returns whether an answer says yes, or None if it says neither yes nor no."""
    text = _THOUGHTS.sub("", answer or "")
    found = re.match(r"\W*(?:answer\W+)?(yes|no)\b", text, re.IGNORECASE)
    return found and found[1].lower() == "yes"


def _verdict_text(label: str, text: str) -> str:
    return (
        f"Description: {label}\nText: {text}\nIs the feature active on the token in [[ ]]? Answer yes or no."
    )


_LABEL_END = "On which tokens is the feature active? Answer with one short phrase."
_LABEL_TURNS = (
    (
        f"{_DESCRIBE}\n\n10: It [[rained]] all day and we stayed at home.\n7: In winter the wind and the [[snow]] kept "
        "the road closed.\n2: She said that the [[weather]] would change.\nIt makes these next tokens more likely: "
        f"heavily, clouds, storm\n{_LABEL_END}",
        "words for weather, such as rain and snow",
    ),
    # small models repeat the form of a single example
    (
        "10: He looked up and smiled [[at]] the child.\n8: She was angry [[at]] them.\n1: They meet at home "
        "[[on]] Sundays.\nIt makes these next tokens more likely: the, him, them\n"
        f"{_LABEL_END}",
        "the word at, after a verb or a feeling",
    ),
)
_VERDICT_TURNS = (
    (
        f"{_JUDGE}\n\n{_verdict_text('words for weather', 'The wind and the [[snow]] kept the road closed.')}",
        "yes",
    ),
    (_verdict_text("words for weather", "It rained all day and we [[stayed]] at home."), "no"),
)
