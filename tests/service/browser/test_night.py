"""Every page: readable by all, on a phone and on a wall, by day and by night."""

from collections.abc import Callable
from typing import Literal

import pytest
from playwright.sync_api import Page, expect
from tests.service.browser.conftest import NewPage
from tests.service.browser.scene import Night
from tests.support.recorded import ACCOUNTS

pytestmark = pytest.mark.browser

Scheme = Literal["dark", "light"]
# The first account gives no row.
TOTAL = str(sum(n * n for n in range(4 * len(ACCOUNTS)) if n % len(ACCOUNTS)))
OVERFLOW = "document.scrollingElement.scrollWidth - document.documentElement.clientWidth"


def signed_in(night: Night, page: Page) -> Page:
    page.goto("/sign-in")
    page.get_by_label("API key").fill(night.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1, name="Tonight")).to_be_visible()
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_leaves_anybody_out(
    the_night: Night, new_page: NewPage, axe: Callable[[Page], list[str]], scheme: Scheme
) -> None:
    page = new_page(the_night.server, color_scheme=scheme)
    page.goto("/sign-in")
    found = axe(page)
    signed_in(the_night, page)
    for path in the_night.paths.values():
        page.goto(path)
        for details in page.locator("details").all():
            details.evaluate("each => { each.open = true }")
        found += axe(page)
    assert found == []


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_no_page_scrolls_sideways(the_night: Night, new_page: NewPage, width: int) -> None:
    page = signed_in(
        the_night, new_page(the_night.server, viewport={"width": width, "height": 900})
    )
    wide = []
    for name, path in the_night.paths.items():
        page.goto(path)
        for details in page.locator("details").all():
            details.evaluate("each => { each.open = true }")
        beyond = page.evaluate(OVERFLOW)
        if beyond > 0:
            wide.append(f"{name}: {beyond} px")
    assert wide == []


def test_dark_and_light_differ(the_night: Night, new_page: NewPage) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page = new_page(the_night.server, color_scheme=scheme)
        page.goto("/sign-in")
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(255, 255, 255)", "rgb(15, 20, 25)"}


def test_what_waits_for_a_person_comes_first(the_night: Night, new_page: NewPage) -> None:
    page = signed_in(the_night, new_page(the_night.server))
    matters = page.locator(".matters li")
    runs = the_night.runs
    for name, what in (
        ("late", "late"),
        ("late", "1 stuck"),
        ("failed", "failed"),
        ("unknown", "to be resolved"),
        ("done", "stayed locked"),
    ):
        here = matters.filter(has=page.locator(f"a[href^='/runs/{runs[name]}']"))
        expect(here.filter(has_text=what).first).to_be_visible()
    first = page.get_by_role("heading", level=2).first
    expect(first).to_have_text("Waits for a person")
    tiles = page.locator(".tiles li")
    expect(tiles.nth(0)).to_contain_text("1 late")
    expect(tiles.nth(1)).to_contain_text("1 stuck")


def test_a_run_tells_what_is_late_and_stuck(the_night: Night, new_page: NewPage) -> None:
    page = signed_in(the_night, new_page(the_night.server))
    page.goto(the_night.paths["run"])
    expect(page.get_by_text("late", exact=False).first).to_be_visible()
    stuck = page.get_by_role("table").filter(has_text="can't be counted yet")
    expect(stuck).to_contain_text("A5")
    grid = page.locator("svg.grid")
    assert "1 being executed" in (grid.get_attribute("aria-label") or "")
    assert grid.locator("rect.busy").count() == 1


def test_money_is_read_as_money(the_night: Night, new_page: NewPage) -> None:
    page = signed_in(the_night, new_page(the_night.server))
    page.goto(the_night.paths["run-done"])
    dollars = page.get_by_role("table", name="USD")
    row = dollars.get_by_role("row").filter(has_text="beginning balance - principal")
    cells = row.get_by_role("cell").all_inner_texts()
    _, went_in, came_out, difference, verdict = cells
    assert went_in == came_out
    assert went_in.endswith(" USD")
    assert went_in.partition(" ")[0][-3] == "."
    assert (difference, verdict) == ("0.00 USD", "balances")
    page.goto(the_night.paths["results"])
    expect(page.get_by_role("region", name="First rows of results")).to_contain_text("L000000001")
    page.get_by_role("link", name="entries").click()
    expect(page.get_by_role("heading", name="First rows of entries")).to_be_visible()


def test_a_report_is_opened_in_place_and_can_do_nothing(
    the_night: Night, new_page: NewPage
) -> None:
    page = signed_in(the_night, new_page(the_night.server))
    page.goto(f"/runs/{the_night.runs['reported']}/results")
    page.get_by_role("link", name="total.txt", exact=True).click()
    frame = page.locator("iframe")
    expect(page.frame_locator("iframe").locator("body")).to_contain_text(TOTAL)
    assert frame.get_attribute("sandbox") == ""
    # Where the page itself is, a report's document has no origin at all.
    (inner,) = page.frames[1:]
    assert page.evaluate("window.origin") == the_night.server
    assert inner.evaluate("window.origin") == "null"


def test_inputs_are_told_with_their_versions(the_night: Night, new_page: NewPage) -> None:
    page = signed_in(the_night, new_page(the_night.server))
    page.goto(the_night.paths["record"])
    inputs = page.get_by_role("table").filter(has_text="amounts.csv")
    expect(inputs).to_be_visible()
    expect(page.get_by_role("table").filter(has_text="LOST")).to_contain_text("reconcile")


def test_a_log_is_filtered_to_a_component(the_night: Night, new_page: NewPage) -> None:
    page = signed_in(the_night, new_page(the_night.server))
    page.goto(the_night.paths["log"])
    expect(page.locator("pre.log")).to_contain_text("component=A1 ")
    page.get_by_label("Component").fill("A7")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("pre.log")).to_contain_text("A7 can't be counted")
    expect(page.locator("pre.log")).not_to_contain_text("component=A1 ")
