"""Says what a tokenizer assumes, changes or loses: the separators of documents, normalization, unknown text."""

from collections.abc import Iterator

import numpy as np
from tokenizers.models import WordLevel

from ..core.notices import Notice
from .packing import PackedBlocks, Packing
from .tokenizer import Tokenizer

_PROBE = "Éa  Bc ﬁ X\u0000Y"
"""Text with an accent, capitals, two blanks, a ligature and a control character."""


def tokenizer_notices(tokenizer: Tokenizer) -> list[Notice]:
    """Returns what must be known about a tokenizer, whatever the text."""
    notices = []
    if separators := _separators(tokenizer):
        kind, message = separators
        notices.append(Notice("tokenizer", kind, None, message))
    normalizer = tokenizer.backend.normalizer
    # a byte-level normalizer only changes the alphabet
    if normalizer is not None and "ByteLevel" not in repr(normalizer):
        changed = normalizer.normalize_str(_PROBE).replace("▁", " ").strip()
        if changed != _PROBE:
            message = f"it changes the text before splitting it: {_PROBE!r} becomes {changed!r}"
            notices.append(Notice("tokenizer", "normalized", None, message))
    return notices


def _separators(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Returns (kind, message) about the token between documents. Returns None if the config names a BOS."""
    separator, role = tokenizer.separator_id, "EOS" if tokenizer.bos_id is None else "BOS"
    if separator is None:
        message = "neither BOS nor EOS is known, so nothing separates documents"
        return "no_separator", f"{message}; if it has one, name bos_token in tokenizer_config.json"
    token = f"{tokenizer.backend.id_to_token(separator)} (id {separator})"
    if tokenizer.assumed:
        message = (
            f"tokenizer_config.json names no BOS; {token} is used as {role}, because {tokenizer.assumed}"
        )
        return "assumed_separator", f"{message}; if that is wrong, name bos_token there"
    if role == "EOS":
        return "no_bos", f"no BOS: {token} ends each document, and is neither trained on nor scored"
    return None


def text_notices(packing: Packing, blocks: PackedBlocks) -> list[Notice]:
    """Returns what the tokenizer did to the text of a split: unknown tokens, lost characters, special tokens."""
    tokenizer = packing.tokenizer
    return [
        *_unknown_tokens(tokenizer, blocks),
        *_lost_characters(tokenizer, blocks),
        *(() if packing.special else _special_strings(tokenizer, blocks)),
    ]


def _unknown_tokens(tokenizer: Tokenizer, blocks: PackedBlocks) -> Iterator[Notice]:
    if tokenizer.unknown_id is None or tokenizer.has_every_byte:
        return
    unknown = total = 0
    for token, _ in blocks.arrays():
        unknown += int(np.count_nonzero(token == tokenizer.unknown_id))
        total += token.size
    if unknown:
        name = tokenizer.backend.id_to_token(tokenizer.unknown_id)
        share = f"{unknown:,} of {total:,} tokens ({unknown / total:.2%}) are {name}"
        message = f"{share}: the tokenizer has no token for their text"
        yield Notice(blocks.split, "unknown", unknown, message)


def _lost_characters(tokenizer: Tokenizer, blocks: PackedBlocks) -> Iterator[Notice]:
    """Yields a notice about characters that get no token, not even an unknown one. Blanks are not counted, because many
    tokenizers split at blanks and leave them out."""
    # a model of words refuses what it does not know
    if tokenizer.has_every_byte or isinstance(tokenizer.backend.model, WordLevel):
        return
    characters = [c for c in sorted(set().union(*map(set, blocks.texts()))) if not c.isspace()]
    once, twice = tokenizer.encode(characters), tokenizer.encode([2 * c for c in characters])
    lost = {
        character: 0
        for character, ids, more in zip(characters, once, twice, strict=True)
        if np.array_equal(ids, more) and tokenizer.unknown_id not in ids
    }
    for text in blocks.texts() if lost else ():
        for character in lost:
            lost[character] += text.count(character)
    if lost:
        number = sum(lost.values())
        examples = ", ".join(map(repr, sorted(lost, key=lost.__getitem__)[-3:]))
        message = f"{number:,} characters have no token and are left out, such as {examples}"
        yield Notice(blocks.split, "lost", number, message)


def _special_strings(tokenizer: Tokenizer, blocks: PackedBlocks) -> Iterator[Notice]:
    """Yields a notice about each of BOS and EOS whose string occurs in the text."""
    named = (tokenizer.bos_id, tokenizer.eos_id)
    found = {token: 0 for token, number in tokenizer.special_tokens.items() if number in named}
    for text in blocks.texts() if found else ():
        for token in found:
            found[token] += text.count(token)
    for token, count in found.items():
        if count:
            message = f"{token} occurs {count:,} times in the text and is ordinary text there"
            remedy = "if it separates documents, set corpus.separator"
            yield Notice(blocks.split, f"special {token}", count, f"{message}; {remedy}")
