"""Prompts and answers as people write them: a prompt's text as token ids, and a word as the token that would follow.

All stages that take prompts or answers from the config or from a user read them here.
"""

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ..config.circuits import Target, parse_answer
from ..core.token_text import OPEN, escape_name, whole_text
from .tokenizer import Tokenizer

NO_BLANK_BEFORE = frozenset(".,:;!?%'…")
"""Characters that follow a word without a blank. Closing brackets and quotation marks do so, too."""
UNSPACED_SCRIPTS = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "FULLWIDTH", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip
"""Beginnings of the Unicode names of letters and marks of scripts that write no blank between words."""


@dataclass(frozen=True)
class AnswerToken:
    """The token that an answer means."""

    token_id: int
    name: str
    """Name of the token, as in `Tokenizer.strings`."""
    note: str | None
    """A line that says which token was taken, if its name is not the answer as written."""


@dataclass(frozen=True)
class PromptText:
    """A prompt as token ids. `read_prompt` makes it."""

    tokenizer: Tokenizer
    text: str
    """The text without a BOS at its start."""
    special: bool
    """Whether special tokens that the text spells out are special tokens."""
    token: Int[np.ndarray, " position"]
    """Token ids. The first is BOS if the tokenizer has one."""
    notes: tuple[str, ...]
    """Lines that say what was read in another way than a reader of the text may think."""

    def answer(self, written: str, position: int = -1) -> AnswerToken:
        """Returns the token that `written` means after the prompt's token at `position`.

        A word is the token with which the text goes on if the word is written behind it: ` by` after `he was caught`.
        Text in quotes (`parse_answer`) is exactly one token, and so are names of special tokens and bytes (⟨E4⟩).
        Raises ValueError, with the tokens, if the answer is not one token.
        """
        text, exact = parse_answer(written)
        names = self.tokenizer.strings()
        if exact or text in self.tokenizer.special_tokens or (OPEN in text and text in self.tokenizer.ids):
            number = find_token(text, self.tokenizer)
            if number is None:
                raise ValueError(self._refusal(text, text, self._encode(text)))
            return AnswerToken(number, names[number], None)
        before = self._text_up_to(position)
        wanted = blank_between(before, text) + text
        following = self._following(before, wanted)
        if following is not None and len(following) == 1 and _same(names[following[0]], wanted):
            number = following[0]
        elif following is None or len(following) == 1:
            # the prompt's own tokens change where the answer is attached to them, or the answer is an unknown word
            number = find_token(wanted, self.tokenizer)
        else:
            number = None
        if number is None:
            ids = self._encode(wanted) if following is None else following
            raise ValueError(self._refusal(text, wanted, ids))
        return AnswerToken(number, names[number], self._note(text, number))

    def answers(self, target: Target) -> list[AnswerToken]:
        """Returns the token of a target `logit`, or both tokens of a `difference`.

        Raises ValueError if an answer is not one token, or if both are the same token.
        """
        written = [each for each in (target.token, target.against) if each]
        answers = [self.answer(each, target.position) for each in written]
        if len({answer.token_id for answer in answers}) < len(answers):
            raise ValueError(
                f"{' vs '.join(written)}: both are the token {answers[0].name!r} (id {answers[0].token_id}), so the "
                "difference is always 0; name two tokens"
            )
        return answers

    def _text_up_to(self, position: int) -> str:
        place = position % len(self.token)
        if place == len(self.token) - 1:
            return self.text
        place -= self.tokenizer.bos_id is not None
        return "" if place < 0 else self.text[: self.tokenizer.offsets(self.text, self.special)[place, 1]]

    def _encode(self, text: str) -> list[int]:
        """Returns token ids, or an empty list if the tokenizer does not know a word."""
        try:
            return self.tokenizer.encode([text], self.special)[0].tolist()
        # word-level tokenizers that have no unknown token raise a bare Exception
        except Exception:
            return []

    def _following(self, before: str, wanted: str) -> list[int] | None:
        """Returns the tokens of `wanted` behind the text `before`. None if it changes the tokens of `before`, or if it
        has an unknown word."""
        own, both = self._encode(before) if before else [], self._encode(before + wanted)
        return both[len(own) :] if len(both) > len(own) and both[: len(own)] == own else None

    def _note(self, text: str, number: int) -> str | None:
        name = self.tokenizer.strings()[number]
        if name == text:
            return None
        exact = find_token(text, self.tokenizer)
        other = "" if exact in (None, number) else f"; {_quoted(text)} is {text!r}"
        return f"the answer {text!r} is the token {name!r} (id {number}), with which the text goes on{other}"

    def _refusal(self, text: str, wanted: str, ids: Sequence[int]) -> str:
        names = self.tokenizer.strings()
        refusal = f"{text!r} is not a single token of the vocabulary"
        if len(ids) > 1:
            listed = ", ".join(repr(names[number]) for number in ids)
            exact = find_token(text, self.tokenizer)
            other = "" if exact is None else f", or write {_quoted(text)} for {text!r} alone"
            return f"{refusal}: {wanted!r} is {len(ids)} tokens, {listed}; name one of them in quotes{other}"
        near = [name for name in names if name.strip() and text.startswith(name.strip())]
        hint = f"; it begins with the token {max(near, key=len)!r}" if near else ""
        return f"{refusal}{hint}; name another"


def read_prompt(
    text: str, tokenizer: Tokenizer, context: int, special: bool = False, remedy: str = "shorten it"
) -> PromptText:
    """Returns a prompt as token ids, with one BOS in front if the tokenizer has one.

    A BOS that the text spells out at its start counts once. Other special tokens in the text are text, or special
    tokens with `special`. Raises ValueError if the prompt is empty or contains an unknown word. Also raises ValueError
    if the prompt has only one token, or more than `context` tokens: `remedy` says what to do then.
    """
    if not text.strip():
        raise ValueError("the prompt is empty; give it at least one word")
    bos_id = tokenizer.bos_id
    bos = None if bos_id is None else tokenizer.backend.id_to_token(bos_id)
    own = text
    while bos and own.lstrip().startswith(bos):
        own = own.lstrip().removeprefix(bos)
    try:
        (ids,) = tokenizer.encode([own], special)
    # word-level tokenizers that have no unknown token raise a bare Exception
    except Exception as error:
        known = tokenizer.ids.keys() - (() if special else tokenizer.special_tokens)
        unknown = [word for word in own.split() if word not in known]
        named = f" {unknown[0]!r}" if unknown else ""
        raise ValueError(
            f"the tokenizer does not know the word{named} of the prompt; use words of the corpus ({error})"
        ) from error
    token = np.array([*([] if bos_id is None else [bos_id]), *ids.tolist()], np.int64)
    if len(token) > context:
        raise ValueError(f"the prompt has {len(token)} tokens, the context is {context}; {remedy}")
    if len(token) < 2:
        raise ValueError("the prompt has only its first token, which dictionaries skip; add a word")
    counted = [f"the BOS {bos} at the start of the prompt counts once"] if own != text else []
    notes = (*counted, *_notes(own, tokenizer, ids.tolist(), special))
    return PromptText(tokenizer, own, special, token, notes)


def print_notes(name: str, notes: Iterable[str]) -> None:
    """Print each distinct note once, as a line on stderr that begins with `name`."""
    for note in dict.fromkeys(notes):
        print(f"circuitloom: {name}: {note}", file=sys.stderr, flush=True)


def find_token(text: str, tokenizer: Tokenizer) -> int | None:
    """Returns the id of the token that is exactly `text`, or whose name is `text`. None if there is none.

    For tokenizers whose tokens are separate words, blanks around a word do not matter.
    """
    wanted = [text, escape_name(text), *([text.strip()] if tokenizer.separate_words else [])]
    return next((tokenizer.ids[each] for each in wanted if each in tokenizer.ids), None)


def blank_between(before: str, word: str) -> str:
    """Returns the blank that written text has between `before` and `word`, or an empty string."""
    if not before or before[-1].isspace() or word[0].isspace():
        return ""
    last, first = before[-1], word[0]
    closing = first in NO_BLANK_BEFORE or unicodedata.category(first) in ("Pe", "Pf")
    opening = unicodedata.category(last) in ("Ps", "Pi", "Pc", "Sc") or last in "/@#"
    opening |= last == '"' and before.count('"') % 2 == 1
    # the hyphen of a compound, not a dash between blanks
    opening |= unicodedata.category(last) == "Pd" and before[-2:-1].isalnum()
    number = last.isdigit() and first.isdigit()
    unspaced = any(unicodedata.name(each, "").startswith(UNSPACED_SCRIPTS) for each in (last, first))
    return "" if closing or opening or number or unspaced else " "


def _quoted(text: str) -> str:
    """Returns `text` in quotes, as targets name a token exactly."""
    return json.dumps(text, ensure_ascii=False)


def _same(name: str, wanted: str) -> bool:
    """Whether a token's name is the text `wanted`, apart from blanks around it and what tokenizers normalize."""

    def folded(text: str) -> str:
        return unicodedata.normalize("NFKC", text).casefold().strip()

    whole = whole_text(name)
    return whole == wanted or folded(whole) == folded(wanted) != ""


def _notes(text: str, tokenizer: Tokenizer, ids: Sequence[int], special: bool) -> Iterator[str]:
    """Yields a line per special token that the text spells out, a line about unknown tokens, and a line about a blank
    at the end."""
    for token in () if special else tokenizer.special_tokens:
        if token in text:
            yield f"{token} in the prompt is text; special_tokens: true makes it a special token"
    unknown = getattr(tokenizer.backend.model, "unk_token", None)
    if unknown and unknown not in text:
        count = sum(number == tokenizer.backend.token_to_id(unknown) for number in ids)
        if count:
            yield f"{count} of the {len(ids)} tokens of the prompt are unknown to the tokenizer ({unknown})"
    words = text.rstrip()
    # tokenizers that split at blanks leave the last one out
    if words != text and not np.array_equal(tokenizer.encode([words], special)[0], ids):
        yield (
            f"the prompt ends in {text[len(words) :]!r}, behind which the target then follows; leave it out if "
            "the target is to follow the last word"
        )
