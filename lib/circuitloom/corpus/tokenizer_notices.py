"""Says what a tokenizer assumes, changes or loses: the separators of documents, normalization, unknown text."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

import numpy as np
from tokenizers import decoders
from tokenizers.models import BPE, WordLevel

from ..core.notices import Notice
from ..core.token_text import whole_text
from .packing import PackedBlocks, Packing
from .tokenizer import Tokenizer

_PROBE = "Éa  Bc ﬁ X\u0000Y, 12\n— 😀"
"""Text with an accent, capitals, two blanks, a ligature, a control character, digits, a line break, a dash and an
emoji."""
_SAMPLED_DOCUMENTS, _SAMPLED_CHARACTERS = 200, 200_000
"""Largest size of the sample of a split whose text is compared with that of its tokens."""
_LISTED = 5
"""Largest number of different characters that a notice lists."""


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
    # the others may not know the characters at all
    if tokenizer.has_every_byte and (lost := _missing(_PROBE, _given_back(tokenizer, [_PROBE], False)[0])):
        message = f"of {_PROBE!r} its tokens do not give back {', '.join(map(repr, lost))}"
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
    """Returns what the tokenizer did to the text of a split: unknown tokens, lost and changed characters, special
    tokens."""
    tokenizer = packing.tokenizer
    lost = _lost_characters(tokenizer, blocks)
    return [
        *_unknown_tokens(tokenizer, blocks),
        *_lost_notice(lost, blocks),
        *_changed_characters(packing, blocks, lost),
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


def _lost_characters(tokenizer: Tokenizer, blocks: PackedBlocks) -> dict[str, int]:
    """Counts characters that get no token, not even an unknown one. Blanks are not counted, because many tokenizers
    split at blanks and leave them out."""
    # a model of words refuses what it does not know
    if tokenizer.has_every_byte or isinstance(tokenizer.backend.model, WordLevel):
        return {}
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
    return lost


def _lost_notice(lost: dict[str, int], blocks: PackedBlocks) -> Iterator[Notice]:
    if lost:
        number = sum(lost.values())
        examples = ", ".join(map(repr, sorted(lost, key=lost.__getitem__)[-3:]))
        message = f"{number:,} characters have no token and are left out, such as {examples}"
        yield Notice(blocks.split, "lost", number, message)


def _changed_characters(packing: Packing, blocks: PackedBlocks, known: Collection[str]) -> Iterator[Notice]:
    """Yields a notice about characters of a sample that its tokens do not give back, because the tokenizer changes text
    before it splits it, or removes what it splits at. `known` are characters about which another notice tells."""
    texts = _sample(blocks, packing.tokenizer)
    changed, example = Counter[str](), ""
    for text, given in zip(texts, _given_back(packing.tokenizer, texts, packing.special), strict=True):
        lost = _missing(_without_unknown(packing, text), given)
        if not packing.tokenizer.has_every_byte:
            # tokens that are words may leave out the blanks between them
            del lost[" "]
        for character in known:
            del lost[character]
        if lost and not example:
            place = min(text.index(character) for character in lost)
            example = repr(text[max(0, place - 10) : place + 10])
        changed += lost
    if number := changed.total():
        listed = ", ".join(f"{character!r} ({count:,})" for character, count in changed.most_common(_LISTED))
        more = ", ..." if len(changed) > _LISTED else ""
        total = sum(map(len, texts))
        message = (
            f"{number:,} of {total:,} characters of a sample are changed or left out by the tokenizer: {listed}{more}; "
            f"the first in {example}"
        )
        yield Notice(blocks.split, "changed", number, message)


def _sample(blocks: PackedBlocks, tokenizer: Tokenizer) -> list[str]:
    """Returns documents from the whole split. Long documents end early, behind a word."""
    documents = blocks.cursor.document + 1
    chosen = islice(blocks.texts(), 0, None, -(-documents // _SAMPLED_DOCUMENTS))
    longest = _SAMPLED_CHARACTERS // min(documents, _SAMPLED_DOCUMENTS)
    # a part of a word could be unknown, which is an error without an unknown token
    refuses = tokenizer.unknown_id is None and not tokenizer.has_every_byte
    texts = []
    for text in islice(chosen, _SAMPLED_DOCUMENTS):
        cut = text[:longest].rstrip()
        texts.append(text if refuses or len(text) <= longest else cut.rpartition(" ")[0].rstrip() or cut)
    return texts


def _given_back(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> list[str]:
    """Returns the text of the tokens of each text, without unknown tokens."""
    encoded = [
        ids[ids != tokenizer.unknown_id].tolist() if tokenizer.unknown_id is not None else ids.tolist()
        for ids in tokenizer.encode(texts, special)
    ]
    backend = tokenizer.backend
    if backend.decoder is not None:
        decoded = backend.decode_batch(encoded, skip_special_tokens=False)
        # decoders such as WordPiece's also tidy up the text
        if all(not _missing(text, given) for text, given in zip(texts, decoded, strict=True)):
            return decoded
        names = tokenizer.strings()
        named = [whole_text("".join(names[number] for number in ids)) for ids in encoded]
        return [
            min(pair, key=lambda given: _missing(text, given).total())
            for text, *pair in zip(texts, decoded, named, strict=True)
        ]
    tokens = [[str(backend.id_to_token(number)) for number in ids] for ids in encoded]
    if not tokenizer.has_every_byte:
        return [" ".join(each) for each in tokens]
    model = backend.model
    bytes_ = (
        decoders.ByteFallback() if isinstance(model, BPE) and model.byte_fallback else decoders.ByteLevel()
    )
    decoder = decoders.Sequence([decoders.Replace("▁", " "), bytes_, decoders.Fuse()])
    return [decoder.decode(each) for each in tokens]


def _missing(text: str, given: str) -> Counter[str]:
    """Counts the characters of `text` that `given` does not have. Blanks before the text do not count."""
    return Counter(text.lstrip(" ")) - Counter(given.lstrip(" "))


def _without_unknown(packing: Packing, text: str) -> str:
    """Returns `text` without what became unknown tokens."""
    unknown = packing.tokenizer.unknown_id
    if unknown is None or packing.tokenizer.has_every_byte:
        return text
    ((ids, offsets),) = packing.tokenizer.encode_with_offsets([text], packing.special)
    kept, end = [], 0
    for start, stop in offsets[ids == unknown].tolist():
        kept.append(text[end:start])
        end = stop
    return "".join([*kept, text[end:]])


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
