"""Formats numbers, tokens and column names as text for the report and the explorer."""

import math
import unicodedata
from typing import Any

from .token_text import whole_text

_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣"}
_MAX_DIGITS = 6
"""Numbers with more than twice this number of digits are in scientific notation."""
_HEADINGS = {
    "l0": "L0 (features per token)", "fvu": "FVU", "fvu_median": "median FVU of a token",
    "ce": "CE (nats per token)", "delta_ce": "ΔCE (nats per token)",
    "kl": "KL (nats per token)", "delta_ce_together": "ΔCE, all layers (nats per token)",
    "kl_together": "KL, all layers (nats per token)", "ce_recovered_zero": "CE recovered (relative to zero ablation)",
    "ce_recovered_mean": "CE recovered (relative to mean ablation)", "alive": "alive (fraction)",
    "density_over_1_percent": "denser than 1 % (fraction)", "density_over_10_percent": "denser than 10 % (fraction)",
    "mean_f1": "mean F1", "median_f1": "median F1", "f1": "F1", "found_at_0_8": "F1 ≥ 0.8", "found_at_0_5": "F1 ≥ 0.5",
    "n_active": "active features", "n_nodes": "nodes", "n_edges": "edges", "n_prompts": "prompts",
    "replacement_score": "replacement score", "seconds": "time (s)", "act": "activation function",
    "width": "width, F", "seed": "seed", "n_steps": "steps",
}  # fmt: skip
"""Maps columns with unclear names to headings with units."""


def format_value(value: Any, digits: int = 4) -> str:
    """Returns the text of a table cell. A float has `digits` significant digits, an integer has all digits, and None is
    empty."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return format_number(value, digits)
        case list() | tuple():
            return ", ".join(format_value(item, digits) for item in value)
    return escape_invisible(str(value))


def column_heading(column: str) -> str:
    """Returns the heading of a table column."""
    return _HEADINGS.get(column, column.replace("_", " "))


def format_number(value: float | None, digits: int = 4) -> str:
    """Returns a number with `digits` significant digits. Very small and very large numbers are in scientific
    notation."""
    if value is None or not math.isfinite(value):
        return ""
    if value == round(value) and abs(value) < 10**_MAX_DIGITS:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 10 ** (2 * _MAX_DIGITS) else f"{value:.{digits - 1}e}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    # 3.9999 must become 4.000, because 4 would look like a whole number
    return text if "." in text else f"{value:#.{digits}g}"


def format_signed(value: float | None, digits: int = 4) -> str:
    """Returns the text of `format_number`, with a + before positive numbers."""
    text = format_number(value, digits)
    return f"+{text}" if value is not None and value > 0 and text else text


def escape_invisible(text: str) -> str:
    """Returns `text` with visible symbols in place of line breaks and other control characters."""
    return "".join(c if c.isprintable() else _SIGNS.get(c) or f"\\u{ord(c):04x}" for c in text)


def format_token(token: str) -> str:
    """Returns a token with visible symbols for control characters, and for leading and trailing spaces. An empty token
    becomes ∅. A combining mark at its start stands on ◌."""
    if not token:
        return "∅"
    text = whole_text(token)
    middle = text.strip(" ")
    if not middle:
        return _SIGNS[" "] * len(text)
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - len(text.rstrip(" "))
    if unicodedata.category(middle[0]).startswith("M"):
        middle = "◌" + middle
    return _SIGNS[" "] * before + escape_invisible(middle) + _SIGNS[" "] * after


def format_duration(seconds: float) -> str:
    """Returns `seconds` as text in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
