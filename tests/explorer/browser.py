"""The explorer in a browser, with a record of errors and foreign requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitloom.explorer.app import HOST, start
from circuitloom.explorer.graph_file import GraphFile

SCREENSHOTS = Path(__file__).parents[2] / "results" / "screenshots"
KNOWN = ("ReadPixels",)
"""Console warnings to ignore: a browser without a GPU warns when a plot draws many points."""
SECONDS = 60
"""Timeout; long enough for a busy machine."""


@dataclass
class Visit:
    """A page of the explorer in the browser."""

    page: Any
    address: str
    pending: int = 0
    """Number of unanswered requests."""
    problems: list[str] = field(default_factory=list)
    """Console errors and warnings, exceptions, dialogs, requests to other servers."""

    def open(self, path: str, wait: str = "#page > *") -> Any:
        """Go to `path` and wait for the selector `wait`."""
        self.page.goto(self.address + path)
        self.page.wait_for_selector(wait)
        return self.page

    def settle(self) -> None:
        """Wait until no request has been pending for 0.4 s of the page's own timers, which a busy page delays."""
        quiet = 0
        for _ in range(10 * SECONDS):
            self.page.evaluate("() => new Promise(done => setTimeout(done, 100))")
            quiet = 0 if self.pending else quiet + 1
            if quiet == 4:
                return
        raise AssertionError("the page never settles")

    def screenshot(self, name: str, full_page: bool = True) -> None:
        """A screenshot of the page, to be looked at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full_page)

    def text(self, selector: str = "#page") -> str:
        return self.page.inner_text(selector)


@contextmanager
def serving(results: Path | GraphFile) -> Iterator[str]:
    """The address of a running explorer of a study's folder, or of one graph."""
    server = start(results, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def visiting(browser: Any, address: str) -> Iterator[Visit]:
    """A visit to the explorer at `address`; tests check its `problems` at the end."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1000 * SECONDS)
    visit = Visit(page, address)

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning") and not any(known in message.text for known in KNOWN):
            visit.problems.append(f"{message.type}: {message.text}")

    def on_finished(_request: Any) -> None:
        visit.pending -= 1

    def on_request(request: Any) -> None:
        visit.pending += 1
        if not request.url.startswith((address, "data:", "blob:")):
            visit.problems.append(f"request: {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: visit.problems.append(f"exception: {error}"))
    page.on("request", on_request)
    page.on("requestfinished", on_finished)
    page.on("requestfailed", on_finished)
    page.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
    yield visit
    page.close()
