"""Takes the pictures of the documentation: `python -m tests.service.browser.screenshots FOLDER`."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

from playwright.sync_api import sync_playwright
from tests.service.browser.scene import Night, launched, night

from ledgerbeam.io.machine import HOST

LARGEST = 150_000
"""Bytes of a picture at most."""


class Shot(NamedTuple):
    """A picture.

    Attributes:
        name: of its file.
        page: which, as the scene names it.
        scheme: dark or light.
        width: of the window, in pixels.
        height: of it.
        at: a heading that it begins with; empty for the page's top.
    """

    name: str
    page: str
    scheme: Literal["dark", "light"]
    width: int
    height: int
    at: str = ""


SHOTS = (
    Shot("tonight", "tonight", "light", 1100, 840),
    Shot("deadlines", "tonight", "light", 1100, 420, "Runs against their deadlines"),
    Shot("tonight-phone", "tonight", "dark", 360, 740),
    Shot("run", "run", "dark", 1100, 840),
    Shot("balance", "run-done", "light", 1100, 720, "Control totals"),
    Shot("components", "components", "light", 1100, 560),
    Shot("results", "results", "dark", 1100, 760),
)


def take(found: Night, folder: Path) -> None:
    """Take all pictures, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, launched(playwright) as browser:
        for shot in SHOTS:
            size = {"width": shot.width, "height": shot.height}
            page = browser.new_page(
                base_url=found.server,
                color_scheme=shot.scheme,
                viewport=size,  # type: ignore[arg-type]
            )
            page.goto("/sign-in")
            page.get_by_label("API key").fill(found.key)
            page.get_by_role("button", name="Sign in").click()
            page.goto(found.paths[shot.page])
            if shot.page == "components":
                page.locator("summary").filter(has_text="Retry…").first.click()
            if shot.at:
                heading = page.get_by_role("heading", name=shot.at)
                heading.evaluate("each => window.scrollTo(0, each.offsetTop - 16)")
            path = folder / f"{shot.name}.png"
            page.screenshot(path=path)
            page.close()
            assert path.stat().st_size < LARGEST, f"{path} has {path.stat().st_size:,} bytes"


if __name__ == "__main__":
    os.environ[HOST] = "laptop"
    # Its name is seen in the pictures.
    home = Path(tempfile.gettempdir(), "bank")
    home.mkdir()
    try:
        with night(home) as tonight:
            take(tonight, Path(sys.argv[1]))
    finally:
        shutil.rmtree(home)
