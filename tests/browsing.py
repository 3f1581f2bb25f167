"""A headless Chromium for tests of pages; they are slow, and skipped where it is missing.

Needs Playwright (requirements-app.txt) and Debian's chromium-headless-shell, or another Chromium.
"""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)


def needs_browser(*packages: str) -> Any:
    """Marks a test that needs a browser, Playwright and `packages`."""
    missing = [name for name in ("playwright", *packages) if importlib.util.find_spec(name) is None]
    missing += [] if BROWSER else ["chromium"]
    skip = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
    return lambda test: pytest.mark.slow(skip(test))  # a browser takes seconds to start


@contextmanager
def open_browser() -> Iterator[Any]:
    """Playwright's `Browser`, without a sandbox: tests may run as root."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


def watch_errors(page: Any) -> list[str]:
    """A list that fills with what goes wrong in a page from now on: scripts, console, requests."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    return errors
