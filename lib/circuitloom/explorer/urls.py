"""Addresses of views: path and query string determine everything that a view shows."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

Params = Mapping[str, str]


def link(page: str, **params: Any) -> str:
    """The address of a view; parameters that are None are dropped."""
    present = {key: value for key, value in params.items() if value is not None}
    return f"/{page}" + (f"?{urlencode(present)}" if present else "")


def feature_link(run: str, layer: int, feature: int) -> str:
    """The address of one feature."""
    return link("feature", run=run, layer=layer, feature=feature)


def parse(search: str | None) -> dict[str, str]:
    """The parameters of a query string; of repeated names, the last."""
    return dict(parse_qsl((search or "").removeprefix("?"), keep_blank_values=True))


def integer(params: Params, name: str) -> int | None:
    """An integer parameter; None if it is missing or empty. Raises ValueError for any other text."""
    text = params.get(name)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} in the address must be an integer") from None


def share(params: Params, name: str, default: float) -> float:
    """A parameter between 0 and 1. Raises ValueError for any other text."""
    try:
        value = float(params.get(name) or default)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={params[name]!r} in the address must be a number from 0 to 1")
    return value
