"""A page in headless Chromium, for the tests of what a browser shows.

Chromium is the one that is installed; playwright drives it and downloads nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu")  # as root and without a graphics card, which is what CI has
PATIENCE = 60_000.0  # ms for anything a page is asked, on machines that do much else as well


def find_chromium() -> str:
    """The program $CHROMIUM names, else the first of NAMES on the path.

    Where there is none the calling test is skipped, or fails when CI=true: what only a browser shows would go unseen.
    """
    named = os.environ.get("CHROMIUM")
    found = next((path for path in map(shutil.which, [named] if named else NAMES) if path), None)
    if found:
        return found
    why = f"$CHROMIUM is {named}, which is no program" if named else f"none of {', '.join(NAMES)} is installed"
    reason = f"no Chromium: {why}; install one, or name one in $CHROMIUM"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def browser_page(**options: Any) -> Iterator[Any]:
    """A page (playwright.sync_api.Page) in a fresh profile.

    options  of the profile, playwright's `Browser.new_context`: viewport={"width": 390, "height": 800}, color_scheme="dark"
    """
    executable = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*ARGUMENTS], timeout=PATIENCE)
        try:
            context = browser.new_context(**options)
            context.set_default_timeout(PATIENCE)
            yield context.new_page()
        finally:
            browser.close()
