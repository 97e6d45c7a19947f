"""Reports opened in a browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Heard:
    """What a page did beside being shown."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Any, file: Path, width: int = 1200, **keys) -> Iterator[tuple[Any, Heard]]:
    """The page of `file`, and what it does."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **keys)
    heard = Heard()
    page.on("console", lambda message: heard.messages.append(message.text))
    page.on("pageerror", lambda error: heard.messages.append(str(error)))
    page.on("dialog", lambda dialog: (heard.messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: heard.requests.append(request.url))
    page.goto(file.as_uri())
    try:
        yield page, heard
    finally:
        page.close()
