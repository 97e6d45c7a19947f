"""Names of a tokenizer's tokens: the text of each token, different for each token id."""

import re
from collections.abc import Mapping

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import Decoder

from ..core.token_text import escape_name, name_bytes, whole_text

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_LETTER = {
    **{chr(byte): byte for byte in _PRINTABLE},
    **{chr(256 + place): byte for place, byte in enumerate(_OTHERS)},
}
"""Maps each letter in the vocabulary of a byte-level tokenizer to its byte (GPT-2's alphabet)."""
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
"""Tokens of one byte in vocabularies with byte fallback."""


def token_names(backend: Backend) -> list[str]:
    """Returns names[token id]. A name is the token's text, which may begin with a space.

    Bytes that are part of a character are written ⟨E4⟩ (`core.token_text`). The name of an unused id is ⟨#ID⟩. If
    tokens have the same text, one of them has this text as its name: the one that the tokenizer gives for the text. A
    byte token among the others is named ⟨41⟩, and ⟨#ID⟩ is appended to the text of the rest.
    """
    vocabulary: Mapping[str, int] = backend.get_vocab()
    decoder = backend.decoder
    names = [unknown_name(number) for number in range(max(vocabulary.values()) + 1)]
    for token, number in vocabulary.items():
        names[number] = escape_name(token) if decoder is None else _decoded(token, decoder)
    _separate(names, backend)
    return names


def unknown_name(number: int) -> str:
    """Returns the name of a token id that the tokenizer does not use, such as ids that only pad the embedding."""
    return f"⟨#{number}⟩"


def token_name(names: list[str], number: int) -> str:
    """Returns the name of a token id, which may be larger than all ids of the tokenizer."""
    return names[number] if number < len(names) else unknown_name(number)


def _decoded(token: str, decoder: Decoder) -> str:
    # some decoders drop a space at the start of a text, so the token is decoded as a pair, and the part that the second
    # adds is used
    pair = decoder.decode([token] * 2)
    once, added = pair[: len(pair) // 2], pair[len(pair) // 2 :]
    if once != added:
        once = decoder.decode([token])
        added = pair[len(once) :]
    if "\ufffd" in once:
        data = _bytes(token)
        # only if these are the bytes that the decoder sees
        if data is not None and data.decode("utf-8", "replace") == once:
            return name_bytes(data)
    return escape_name(added or token)


def _bytes(token: str) -> bytes | None:
    """Returns the bytes of a token in a vocabulary with byte fallback, or in a byte-level vocabulary."""
    if found := _BYTE_TOKEN.fullmatch(token):
        return bytes.fromhex(found[1])
    if all(letter in BYTE_OF_LETTER for letter in token):
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    return None


def _separate(names: list[str], backend: Backend) -> None:
    """Give tokens with the same text different names, in place."""
    numbers_of: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers_of.setdefault(name, []).append(number)
    for name, numbers in numbers_of.items():
        if len(numbers) == 1:
            continue
        left = []
        for number in numbers:
            if found := _BYTE_TOKEN.fullmatch(backend.id_to_token(number) or ""):
                names[number] = f"⟨{found[1]}⟩"
            else:
                left.append(number)
        kept = _encoded(name, backend) if len(left) > 1 else None
        for number in left:
            if number != (kept if kept in left else left[0]):
                names[number] = name + unknown_name(number)


def _encoded(name: str, backend: Backend) -> int | None:
    """Returns the token id that the tokenizer gives for the text of a token. None if it is not one token."""
    try:
        ids = backend.encode(whole_text(name), add_special_tokens=False).ids
    # word-level tokenizers without an unknown token raise a bare Exception
    except Exception:
        return None
    return ids[0] if len(ids) == 1 else None
