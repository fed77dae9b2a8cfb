"""Chromium, and services for it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.service.browser.scene import Night, launched, night
from tests.support.recorded import TIMEOUT, Place
from tests.support.service import Service, service_of

AXE = "LEDGERBEAM_AXE"
"""Names the file of axe-core."""


class NewPage(Protocol):
    """Opens a page of a browser of its own."""

    def __call__(self, server: str, **options: Any) -> Page:
        """Open it; the options are those of a browser's context."""


expect.set_options(timeout=1000 * TIMEOUT)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launched(playwright)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[NewPage]:
    """Pages in which nothing may go wrong: no script fails, and none breaks the policy."""
    contexts: list[BrowserContext] = []
    told: list[str] = []

    def make(server: str, **options: Any) -> Page:
        context = browser.new_context(base_url=server, **options)
        contexts.append(context)
        context.set_default_timeout(1000 * TIMEOUT)
        page = context.new_page()
        page.on("pageerror", lambda error: told.append(f"{page.url}: {error}"))
        page.on("console", lambda message: _note(told, message.type, message.text))
        return page

    yield make
    for context in contexts:
        context.close()
    assert told == []


def _note(told: list[str], kind: str, text: str) -> None:
    # What a person does wrong is answered by 4xx, which the console shows as an error.
    if kind in ("error", "warning") and "Failed to load resource" not in text:
        told.append(text)


@pytest.fixture(scope="module")
def lease() -> float:
    return 8.0


@pytest.fixture(scope="module")
def service(base: Path, lease: float) -> Iterator[Service]:
    """A service whose places all have the same registry; each test has a place of its own."""
    place = Place(base / "service", f"sqlite:///{base}/registry.db")
    with service_of(place, lease) as service:
        service.serve()
        service.route()
        service.work("--slots=3", "--ahead=1")
        yield service
    place.let_go()


@pytest.fixture(scope="session")
def the_night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """Runs in every state."""
    with night(tmp_path_factory.mktemp("night")) as found:
        yield found


@pytest.fixture(scope="session")
def axe() -> Callable[[Page], list[str]]:
    """Gives the violations of WCAG 2 A and AA on a page."""
    path = os.environ.get(AXE)
    if path is None:
        raise RuntimeError(f"{AXE} doesn't name axe-core: make browser-test fetches it")
    source = Path(path).read_text()

    def violations(page: Page) -> list[str]:
        page.evaluate(source)
        found = page.evaluate(
            "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})"
        )
        return [
            f"{page.url}: {each['id']}: {node['target']}: {node['failureSummary']}"
            for each in found["violations"]
            for node in each["nodes"]
        ]

    return violations
