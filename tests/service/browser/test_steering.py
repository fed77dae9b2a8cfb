"""Runs, asked for and steered by clicks and keys."""

import datetime
import itertools
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect
from tests.service.browser.conftest import NewPage
from tests.support.recorded import TIMEOUT, Place, until
from tests.support.service import Service

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import RunStatus

pytestmark = pytest.mark.browser

DAYS = itertools.count()


@pytest.fixture
def place(service: Service) -> Iterator[Place]:
    """A place with switches of its own, over the registry of the service."""
    day = datetime.date(2026, 1, 1) + datetime.timedelta(days=next(DAYS))
    place = Place(service.place.folder.parent / str(day), service.place.url, day=day)
    yield place
    place.let_go()


@pytest.fixture
def submitted(service: Service, place: Place) -> Callable[..., RunRecord]:
    """Has a run begun, with switches set before."""

    def submit(*switches: str) -> RunRecord:
        place.set(*switches)
        with service.client() as client:
            return client.submit("counting", place.parameters(), timeout=TIMEOUT)

    return submit


@pytest.fixture
def page(service: Service, new_page: NewPage) -> Page:
    return new_page(service.server)


def fill_form(page: Page, place: Place, **others: str) -> None:
    page.goto("/")
    page.get_by_role("link", name="New run of counting").click()
    for name, value in place.parameters(**others).items():
        page.locator(f"#f-{name}").fill(str(value))
    page.get_by_label("Reason, for the record").fill("asked for on the page")


def to_run(page: Page) -> None:
    """From the page of a request to that of its run, once it has one."""
    link = page.locator("dd a[href^='/runs/']")
    link.wait_for()
    link.click()
    page.wait_for_url("**/runs/*")


def until_status(page: Page, expected: RunStatus) -> None:
    expect(page.locator("#live dd .status").first).to_have_text(expected)


def act(page: Page, verb: str, why: str, confirmation: str) -> None:
    page.locator("summary").filter(has_text=f"{verb}…").click()
    page.locator("details[open]").get_by_label("Reason, for the record").fill(why)
    page.get_by_role("button", name=confirmation).click()


def test_a_run_is_submitted_by_its_form_and_watched_to_its_end(page: Page, place: Place) -> None:
    place.set("hold-A5", "slow")
    fill_form(page, place, shards="40")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Submit counting")
    to_run(page)
    until_status(page, RunStatus.EXECUTING)
    page.evaluate("window.isTheSamePage = true")
    expect(page.locator("svg.grid rect.busy")).to_have_count(1)
    place.unset("hold-A5")
    until_status(page, RunStatus.SUCCESS)
    expect(page.get_by_text("What must be equal").first).to_be_visible()
    expect(page.locator("#live progress")).to_have_attribute("value", "40")
    assert page.evaluate("window.isTheSamePage"), "it was loaded again, not followed"
    # Who has watched it has seen its rate.
    expect(page.locator("#rate canvas")).to_be_visible()
    assert place.runs.registry.events(place.run().id)[0].who


def test_what_does_not_fit_is_corrected_in_the_form(page: Page, place: Place) -> None:
    fill_form(page, place, shards="-1")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".status.REJECTED")).to_be_visible()
    page.get_by_role("link", name="Correct it and submit again").click()
    shards = page.locator("#f-shards")
    expect(shards).to_have_value("-1")
    expect(shards).to_have_attribute("aria-invalid", "true")
    shards.fill("4")
    page.get_by_role("button", name="Submit").click()
    to_run(page)
    until_status(page, RunStatus.SUCCESS)


def test_a_run_is_paused_and_resumed_with_reasons(
    page: Page, place: Place, submitted: Callable[..., RunRecord]
) -> None:
    run = submitted("hold")
    page.goto(f"/runs/{run.id}")
    until_status(page, RunStatus.EXECUTING)
    act(page, "Pause", "a look at A5", "Pause this run")
    until_status(page, RunStatus.PAUSED)
    assert place.runs.registry.events(run.id)[-1].why == "a look at A5"
    assert page.locator("summary").filter(has_text="Pause…").count() == 0
    act(page, "Resume", "seen", "Resume this run")
    until_status(page, RunStatus.EXECUTING)
    place.unset("hold")
    until_status(page, RunStatus.SUCCESS)
    # The pause is seen in the attempt.
    expect(page.locator(".gantt rect.paused")).to_have_count(1)


def test_a_run_is_canceled(page: Page, place: Place, submitted: Callable[..., RunRecord]) -> None:
    run = submitted("hold")
    page.goto(f"/runs/{run.id}")
    act(page, "Cancel", "the file is wrong", "Cancel this run")
    place.unset("hold")
    until_status(page, RunStatus.CANCELED)
    assert "the file is wrong" in [event.why for event in place.runs.registry.events(run.id)]


def test_a_rate_is_limited_and_the_limit_lifted(
    page: Page, place: Place, submitted: Callable[..., RunRecord]
) -> None:
    run = submitted("hold")
    page.goto(f"/runs/{run.id}")
    page.locator("summary").filter(has_text="Limit the rate…").click()
    page.get_by_role("textbox", name="Components a second").fill("2.5")
    page.get_by_role("button", name="Limit the rate").click()
    expect(page.locator("dl")).to_contain_text("at most 2.5 components a second")
    assert place.runs.get(run.id).progress.steering.rate == 2.5
    page.locator("summary").filter(has_text="Limit the rate…").click()
    page.get_by_role("textbox", name="Components a second").fill("none")
    page.get_by_role("button", name="Limit the rate").click()
    expect(page.locator("dl")).not_to_contain_text("at most 2.5")


def test_a_component_that_failed_is_found_and_retried(
    page: Page, place: Place, submitted: Callable[..., RunRecord]
) -> None:
    run = submitted("fail-A7", "fail-A9")
    page.goto(f"/runs/{run.id}")
    until_status(page, RunStatus.FAILURE)
    expect(page.get_by_role("table").filter(has_text="Error of the first")).to_contain_text("A7")
    page.get_by_role("link", name="Components", exact=True).click()
    expect(page.get_by_role("row")).to_have_count(3)
    page.get_by_label("Its name, or text of its error").fill("A9 can't")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("row")).to_have_count(2)
    place.unset("fail-A9")
    act(page, "Retry", "A9 is mended", "Retry A9")
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry counting")
    to_run(page)
    expect(page.locator(".gantt .row")).to_have_count(3)
    until_status(page, RunStatus.FAILURE)
    page.get_by_role("link", name="Components", exact=True).click()
    expect(page.get_by_role("row").filter(has_text="A7")).to_have_count(1)
    expect(page.get_by_role("row").filter(has_text="A9")).to_have_count(0)
    place.unset("fail-A7")
    page.get_by_role("link", name="Overview").click()
    act(page, "Retry", "A7, too", "Retry this run")
    to_run(page)
    until_status(page, RunStatus.SUCCESS)


def test_what_is_written_survives_what_happens_meanwhile(
    page: Page, place: Place, submitted: Callable[..., RunRecord]
) -> None:
    run = submitted("hold")
    page.goto(f"/runs/{run.id}")
    until_status(page, RunStatus.EXECUTING)
    page.locator("summary").filter(has_text="Cancel…").click()
    reason = page.locator("#why-cancel")
    reason.press_sequentially("half a sen")
    with page.expect_response(f"**/runs/{run.id}"):
        place.runs.set_parallelism(run.id, 3, "meanwhile")
        # An event is what the page is told of at once.
        place.runs.pause(run.id, "somebody else")
    until_status(page, RunStatus.PAUSED)
    expect(reason).to_be_focused()
    reason.press_sequentially("tence")
    expect(reason).to_have_value("half a sentence")
    # The button still belongs to what was seen when the page was last refreshed.
    page.get_by_role("button", name="Cancel this run").click()
    place.unset("hold")
    until_status(page, RunStatus.CANCELED)


def test_two_people_do_not_undo_each_other(
    page: Page, place: Place, submitted: Callable[..., RunRecord]
) -> None:
    run = submitted("hold")
    place.until_status(RunStatus.EXECUTING)
    # A page that isn't followed stays as it was.
    page.route("**/events", lambda route: route.abort())
    page.goto(f"/runs/{run.id}")
    until_status(page, RunStatus.EXECUTING)
    place.runs.pause(run.id, "somebody else")
    act(page, "Pause", "me too", "Pause this run")
    expect(page.get_by_role("alert")).to_contain_text("is PAUSED now")
    place.runs.resume(run.id)


def test_an_action_is_a_command_too(
    page: Page, service: Service, place: Place, submitted: Callable[..., RunRecord]
) -> None:
    run = submitted("hold")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/runs/{run.id}")
    page.locator("summary").filter(has_text="Pause…").click()
    page.get_by_role("button", name="Copy the command ledgerbeam pause").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"ledgerbeam pause {run.id} --why=…"
    done = place.command(*copied.split()[1:])
    assert done.returncode == 0, done.stderr
    until_status(page, RunStatus.PAUSED)
    place.runs.resume(run.id)


def test_all_of_it_works_without_scripts(service: Service, place: Place, new_page: NewPage) -> None:
    page = new_page(service.server, java_script_enabled=False)
    place.set("hold")
    fill_form(page, place)
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/requests/*")
    request = page.url

    def loaded(text: str) -> bool:
        page.reload()
        return text in page.locator("main").inner_text()

    until(lambda: loaded("RUNNING") and page.locator("dd a").count(), "its run")
    to_run(page)
    until(lambda: loaded("EXECUTING"), "its attempt")
    act(page, "Pause", "by hand", "Pause this run")
    until_status(page, RunStatus.PAUSED)
    act(page, "Resume", "by hand", "Resume this run")
    until_status(page, RunStatus.EXECUTING)
    place.unset("hold")
    until(lambda: loaded("It has published"), "its end")
    expect(page.locator(".gantt svg").first).to_be_visible()
    expect(page.get_by_role("table", name="Counts")).to_be_visible()
    page.get_by_role("link", name="Results").click()
    expect(page.get_by_role("heading", name="First rows of results")).to_be_visible()
    page.goto(request)
    # A node records the end of a request a moment after that of its run.
    until(lambda: loaded("SUCCESS"), "the end of the request")


def test_keys_are_enough(page: Page, place: Place, submitted: Callable[..., RunRecord]) -> None:
    run = submitted("hold")
    page.goto(f"/runs/{run.id}")
    until_status(page, RunStatus.EXECUTING)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    pause = page.locator("#do-pause summary")
    for _ in range(20):
        page.keyboard.press("Tab")
        if pause.evaluate("each => each === document.activeElement"):
            break
    expect(pause).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("by keys")
    page.keyboard.press("Enter")
    until_status(page, RunStatus.PAUSED)
    assert place.runs.registry.events(run.id)[-1].why == "by keys"
    place.runs.resume(run.id)


@pytest.mark.parametrize("scripts", [True, False], ids=["followed", "without scripts"])
def test_runs_that_failed_are_retried_together(
    service: Service,
    place: Place,
    new_page: NewPage,
    submitted: Callable[..., RunRecord],
    axe: Callable[[Page], list[str]],
    scripts: bool,
) -> None:
    run = submitted("fail-A7")
    with service.client() as client:
        assert client.wait(run.id).run.status is RunStatus.FAILURE
    place.unset("fail-A7")
    page = new_page(service.server, java_script_enabled=scripts)
    page.goto("/runs?kind=counting&status=FAILURE")
    page.get_by_role("link", name="retry runs…").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Retry runs")
    expect(page.get_by_role("link", name=run.name, exact=True)).to_be_visible()
    if scripts:
        assert axe(page) == []
    page.get_by_label("Reason, for the record of each").fill("the account is there now")
    page.locator("button.do").click()
    page.wait_for_url("**/bulk/*-*")
    state = page.locator("#live dd .status").first
    if scripts:
        expect(state).to_have_text("DONE")
        assert axe(page) == []
    else:
        until(lambda: page.reload() and state.inner_text() == "DONE", "the action's end")
    expect(page.get_by_role("row").filter(has_text=run.name)).to_contain_text("request ")
    with service.client() as client:
        until(lambda: client.get(run.id).run.status is RunStatus.SUCCESS, "the run's success")
    whys = [event.why for event in place.runs.registry.events(run.id)]
    assert "the account is there now" in whys
