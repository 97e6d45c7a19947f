"""Writes and parses the URLs of views. Path and query string determine everything that a view shows."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

Params = Mapping[str, str]


def link(page: str, **params: Any) -> str:
    """Returns the URL of a page. Parameters that are None are left out."""
    present = {key: value for key, value in params.items() if value is not None}
    return f"/{page}" + (f"?{urlencode(present)}" if present else "")


def feature_link(run: str, layer: int, feature: int) -> str:
    """Returns the URL of a feature's page."""
    return link("feature", run=run, layer=layer, feature=feature)


def parse(search: str | None) -> dict[str, str]:
    """Returns the parameters of a URL's query string. If a name occurs several times, its last value is used."""
    return dict(parse_qsl((search or "").removeprefix("?"), keep_blank_values=True))


def integer(params: Params, name: str) -> int | None:
    """Returns an integer parameter, or None if it is missing or empty. Raises ValueError for other texts."""
    text = params.get(name)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} in the address must be an integer") from None


def share(params: Params, name: str, default: float) -> float:
    """Returns a parameter from 0 to 1, or `default` if it is missing or empty. Raises ValueError for other texts."""
    try:
        value = float(params.get(name) or default)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={params[name]!r} in the address must be a number from 0 to 1")
    return value
