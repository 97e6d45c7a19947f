"""The explorer in a browser, and what a page did in it that it should not have done."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitloom.explorer.app import HOST, start

SCREENSHOTS = Path(__file__).parents[2] / "results" / "screenshots"
KNOWN = ("custom wheel sensitivity", "ReadPixels")
"""What Cytoscape, and a browser without a GPU that draws many points, say of their own accord."""
SECONDS = 60
"""A machine that is busy is slow."""


@dataclass
class Visit:
    """A page of the explorer, in the browser."""

    page: Any
    address: str
    under_way: int = 0
    """Requests that are not answered yet."""
    problems: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, requests to anywhere else."""

    def open(self, path: str, wait: str = "#page > *") -> Any:
        """Go to `path` and wait for `wait` to be there."""
        self.page.goto(self.address + path)
        self.page.wait_for_selector(wait)
        return self.page

    def settle(self) -> None:
        """Wait until nothing has been asked of the server for a moment.

        The moment is one of the page's own: a page that is too busy to run a timer has not come to rest.
        """
        quiet = 0
        for _ in range(10 * SECONDS):
            self.page.evaluate("() => new Promise(done => setTimeout(done, 100))")
            quiet = 0 if self.under_way else quiet + 1
            if quiet == 4:
                return
        raise AssertionError("the page never comes to rest")

    def keep(self, name: str, whole: bool = True) -> None:
        """A picture of the page, for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)

    def text(self, selector: str = "#page") -> str:
        return self.page.inner_text(selector)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of an explorer of the study in `folder`."""
    server = start(folder, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def visiting(browser: Any, address: str, width: int = 1400, height: int = 1000) -> Iterator[Visit]:
    """A visit to the explorer at `address`; a test ends by looking at its `problems`."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(1000 * SECONDS)
    visit = Visit(page, address)

    def told(message: Any) -> None:
        if message.type in ("error", "warning") and not any(known in message.text for known in KNOWN):
            visit.problems.append(f"{message.type}: {message.text}")

    def answered(_request: Any) -> None:
        visit.under_way -= 1

    def asked(request: Any) -> None:
        visit.under_way += 1
        if not request.url.startswith((address, "data:", "blob:")):
            visit.problems.append(f"request: {request.url}")

    page.on("console", told)
    page.on("pageerror", lambda error: visit.problems.append(f"exception: {error}"))
    page.on("request", asked)
    page.on("requestfinished", answered)
    page.on("requestfailed", answered)
    page.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
    yield visit
    page.close()
