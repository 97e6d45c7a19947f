"""Names of tokens, and the characters that neighbouring tokens make up together.

A token of a byte-level or byte-fallback tokenizer can be part of a character. Its name has ⟨E4⟩ for each byte that is
part of a character. The macro `whole_text` of the catalogue and `wholeTokens` in graph.js do the same as this module.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

OPEN, CLOSE = "⟨", "⟩"
_C = "⟨[89AB][0-9A-F]⟩"
CHARACTER = re.compile(
    rf"""⟨[0-7][0-9A-F]⟩
    |⟨(?:C[2-9A-F]|D[0-9A-F])⟩{_C}
    |(?:⟨E0⟩⟨[AB][0-9A-F]⟩|⟨ED⟩⟨[89][0-9A-F]⟩|⟨E[1-9A-CEF]⟩{_C}){_C}
    |(?:⟨F0⟩⟨[9AB][0-9A-F]⟩|⟨F4⟩⟨8[0-9A-F]⟩|⟨F[1-3]⟩{_C}){_C}{_C}""",
    re.VERBOSE,
)
"""Bytes, as names of tokens write them, that are one character of UTF-8."""


def name_bytes(data: bytes) -> str:
    """Returns the text of `data`, with ⟨E4⟩ for each byte that is part of no whole character."""
    text = escape_name(data.decode("utf-8", "surrogateescape"))
    return re.sub("[\udc80-\udcff]", lambda match: f"⟨{ord(match[0]) - 0xDC00:02X}⟩", text)


def escape_name(text: str) -> str:
    """Returns the name of a token with this text: ⟨ itself is written as bytes, so that ⟨E4⟩ is always a byte."""
    return text.replace(OPEN, "".join(f"⟨{byte:02X}⟩" for byte in OPEN.encode()))


def whole_text(text: str) -> str:
    """Returns joined names of tokens as text: bytes that are a whole character become this character."""
    if OPEN not in text:
        return text
    return CHARACTER.sub(lambda match: bytes.fromhex(re.sub("[⟨⟩]", "", match[0])).decode(), text)


def whole_tokens(tokens: Sequence[str]) -> list[tuple[range, str]]:
    """Returns (indices, text) of groups of neighbouring tokens, so that no character is split between two groups."""
    starts, length = [0], 0
    for token in tokens:
        length += len(token)
        starts.append(length)
    joined = "".join(tokens)
    characters = CHARACTER.finditer(joined) if OPEN in joined else ()
    inside = {place for match in characters for place in range(match.start() + 1, match.end())}
    # a token without text between two halves of a character belongs to the group, too
    edges = [i for i, start in enumerate(starts) if i in (0, len(tokens)) or start not in inside]
    return [
        (range(first, stop), whole_text(joined[starts[first] : starts[stop]]))
        for first, stop in pairwise(edges)
    ]
