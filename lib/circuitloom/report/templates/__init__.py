"""Reads the Jinja templates, style sheets and script of the report. The templates escape all text."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...catalog.output import finite

FOLDER = Path(__file__).parent
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def environment(**filters: Any) -> Environment:
    """Returns a Jinja environment with `filters` and the filter `script_json`. Values that are not Markup are
    escaped."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"script_json": script_json, **filters}
    return templates


def read(name: str) -> str:
    """Returns the text of a file in this folder."""
    return (FOLDER / name).read_text()


def script_json(value: Any) -> Markup:
    """Returns `value` as JSON that is safe inside a script element. NaN and infinity become null."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup("".join(_UNSAFE.get(c, c) for c in text))


def policy(script: str) -> str:
    """Returns a Content-Security-Policy. The page may run only `script`, and may load no external files."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
