"""What went wrong, in one line."""

import re

_FULL = re.compile(r"no space left|os error 28|\d+ requested and \d+ written", re.IGNORECASE)
"""The last is numpy's."""
_NO_MEMORY = ("out of memory", "can't allocate memory")
_EXPECTED = (ValueError, OSError, ArithmeticError, MemoryError)
"""What the library raises, or lets through, on broken input."""


def first_line(error: BaseException) -> str:
    """The first line of what `error` says; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def error_message(error: BaseException, log: str) -> str:
    """All that `error` says, in one line, with the remedy where it is known; `log` is where its details are.

    Libraries tell a full disk and exhausted memory in errors of many classes: they are known by their words.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if _FULL.search(text):
        place = error.filename if isinstance(error, OSError) else text
        return f"the disk is full ({place or 'while writing'}); make room and run again: what is done is kept"
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        return "out of memory; lower the batch or the shard_rows of the stage"
    if isinstance(error, _EXPECTED):
        return text
    return f"unexpected {type(error).__name__}: {text}; details in {log}"
