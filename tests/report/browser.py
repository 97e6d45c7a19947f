"""A report in a browser, with a log of its requests and messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class PageLog:
    """Requests, console messages, exceptions and dialogs of a page."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def open_report(browser: Any, file: Path, width: int = 1200, **keys) -> Iterator[tuple[Any, PageLog]]:
    """The page of `file` and its log."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **keys)
    log = PageLog()
    page.on("console", lambda message: log.messages.append(message.text))
    page.on("pageerror", lambda error: log.messages.append(str(error)))
    page.on("dialog", lambda dialog: (log.messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: log.requests.append(request.url))
    page.goto(file.as_uri())
    try:
        yield page, log
    finally:
        page.close()
