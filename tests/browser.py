"""A real browser for tests of pages: chromium through Playwright, which reports errors and requests.

`browser` in conftest.py is a fixture of `launched`; where either is missing, tests skip with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
_QUIET = ("--disable-background-networking", "--disable-component-update")
PHONE = (375, 740)  # CSS pixels


@contextmanager
def launched() -> Iterator[Any]:
    """A headless chromium; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not path:
        pytest.skip("needs chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_FLAGS, *_QUIET])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page that was opened.

    Attributes:
        page: Playwright's.
        complaints: errors and warnings of the console, and exceptions.
        requests: addresses that were asked for beside the page's own; ``data:`` and ``blob:`` are within it.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width


@contextmanager
def opened(browser: Any, path: Path, *, dark: bool = False, size: tuple[int, int] = (1280, 900)) -> Iterator[Opened]:
    """Open a file of ours, and wait until its charts are drawn."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", offline=True
    )
    context.set_default_timeout(300_000)  # a busy machine takes long
    found = Opened(context.new_page())
    address = path.resolve().as_uri()

    def asked(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            found.requests.append(request.url)

    def said(message: Any) -> None:
        if message.type in ("error", "warning"):
            found.complaints.append(message.text)

    found.page.on("request", asked)
    found.page.on("console", said)
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.goto(address)
    found.page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=120_000)
    try:
        yield found
    finally:
        context.close()
