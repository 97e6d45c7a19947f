"""Makes error messages of one line."""

import re

_DISK_FULL = re.compile(
    r"no space left|os error 28\b|quota exceeded|os error 122\b|\d+ requested and \d+ written", re.IGNORECASE
)
"""Matches messages about a full disk or a used-up disk quota. The last alternative is numpy's message."""
_QUOTA = re.compile(r"quota exceeded|os error 122\b", re.IGNORECASE)
_NO_MEMORY = ("out of memory", "can't allocate memory")
_EXPECTED = (ValueError, OSError, ArithmeticError, MemoryError)
"""Errors that the library raises, or passes on, for invalid input."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def error_message(error: BaseException, log: str) -> str:
    """Returns an error's message in one line, with the remedy if one is known. The message of an unexpected error names
    `log`, the file with the traceback."""
    # libraries report a full disk or exhausted memory in many error classes, so the message is searched
    text = " ".join(str(error).split()) or type(error).__name__
    if _DISK_FULL.search(text):
        place = error.filename if isinstance(error, OSError) else text
        cause = "the disk quota is used up" if _QUOTA.search(text) else "the disk is full"
        return f"{cause} ({place or 'while writing'}); make room and run again: finished work is kept"
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        return "out of memory; lower the batch or the shard_rows of the stage"
    if isinstance(error, _EXPECTED):
        return text
    return f"unexpected {type(error).__name__}: {text}; details in {log}"
