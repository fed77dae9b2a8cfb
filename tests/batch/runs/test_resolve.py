"""Components of which nobody knows how their one call ended, and a person who has looked."""

from collections import Counter
from pathlib import Path

import pytest
from tests.support.recorded import ACCOUNTS, NewPlace, Place, parts

from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.outcomes import Outcome
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus

UNKNOWN = ComponentStatus.UNKNOWN
pytestmark = pytest.mark.slow


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    """A run that has failed, as its process died in the midst of A7's call."""
    place = new_place("charging")
    place.set("kill-A7")
    place.launcher(place.record())
    run = place.until_rest()
    assert run.status is RunStatus.FAILURE, place.told()
    assert "are unknown" in (run.error or "")
    return place


def unknown_in(place: Place) -> list[Outcome]:
    return list(place.runs.components(place.run().id, UNKNOWN))


def resolved_as_failure(place: Place, account: str) -> None:
    name = f"charging/{place.day}"
    done = place.command("resolve", name, account, "FAILURE", "--why=the bank knows of none")
    assert (done.returncode, done.stdout) == (0, f"{account} FAILURE\n"), done.stderr


def mistake(place: Place, *arguments: str) -> str:
    done = place.command("resolve", f"charging/{place.day}", *arguments)
    assert done.returncode in {Exit.FAILURE, Exit.USAGE, Exit.NOT_FOUND}
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_what_took_effect_is_taken_over_and_the_rest_is_called_again(
    place: Place, tmp_path: Path
) -> None:
    quiet = Place(tmp_path / "quiet", f"sqlite:///{tmp_path}/quiet.db", "charging")
    quiet.launcher(quiet.record()).wait()
    unknown = [outcome.component for outcome in unknown_in(place)]
    done = place.resolve("A7")
    assert (done.returncode, done.stdout) == (0, "A7 SUCCESS\n"), done.stderr
    others = [account for account in unknown if account != "A7"]
    for account in others:
        resolved_as_failure(place, account)
    assert [outcome.component for outcome in unknown_in(place)] == unknown
    before = Counter(call.account for call in place.calls())
    place.runs.retry(place.run().id, "resolved")
    assert place.until_rest().status is RunStatus.SUCCESS, place.told()
    after = Counter(call.account for call in place.calls())
    assert after - before == Counter(others)
    assert parts(place.manifest()) == parts(quiet.manifest())
    history = {o.component: o for o in place.runs.components(place.run().id) if o.error}
    assert history["A7"][1:3] == (ComponentStatus.SUCCESS, 1)
    assert history["A7"].error.endswith(": it is on the statement")
    assert all(history[account][1:3] == (ComponentStatus.SUCCESS, 2) for account in others)
    events = place.runs.events(place.run().id)
    told = [
        (e.detail["component"], e.detail["status"], e.why) for e in events if e.type == "resolved"
    ]
    assert told[0] == ("A7", "SUCCESS", "it is on the statement")
    assert len(told) == len(unknown)
    place.check_story()


def test_what_is_not_resolved_stays_unknown(place: Place) -> None:
    unknown = {outcome.component for outcome in unknown_in(place)}
    resolved_as_failure(place, "A7")
    calls = len(place.calls())
    place.runs.restart(place.run().id, "what is missing")
    assert place.until_rest().status is RunStatus.FAILURE
    assert len(place.calls()) == calls
    place.runs.retry(place.run().id, "A7 is resolved")
    run = place.until_rest()
    left = {outcome.component for outcome in unknown_in(place)}
    assert left == unknown - {"A7"}
    assert run.status is (RunStatus.FAILURE if left else RunStatus.SUCCESS)


def test_a_call_that_may_be_made_again_dies_again(place: Place) -> None:
    for outcome in unknown_in(place):
        resolved_as_failure(place, outcome.component)
    place.set("kill-A7")
    place.runs.retry(place.run().id, "resolved")
    assert place.until_rest().status is RunStatus.FAILURE
    tries = {outcome.component: outcome.tries for outcome in unknown_in(place)}
    assert tries["A7"] == 2
    for account in tries:
        assert place.resolve(account).returncode == 0
    place.runs.retry(place.run().id, "resolved again")
    assert place.until_rest().status is RunStatus.SUCCESS, place.told()
    assert len(list(place.runs.components(place.run().id))) == len(ACCOUNTS)


def test_mistakes(place: Place, tmp_path: Path) -> None:
    assert "no component B9 is UNKNOWN" in mistake(place, "B9", "SUCCESS", "--why=x")
    assert "not as PENDING" in mistake(place, "A7", "PENDING", "--why=x")
    assert "resolving needs a reason" in mistake(place, "A7", "SUCCESS", "--why=")
    rows = tmp_path / "rows.csv"
    rows.write_text("amount\n1\n")
    assert "total" in mistake(place, "A7", "SUCCESS", "--why=x", f"--results={rows}")
    rows.write_text("total\nnine\n")
    assert "'nine'" in mistake(place, "A7", "SUCCESS", "--why=x", f"--results={rows}")
    assert "leave them out" in mistake(place, "A7", "FAILURE", "--why=x", f"--results={rows}")
    resolved_as_failure(place, "A7")
    resolved_as_failure(place, "A7")
    changed = mistake(place, "A7", "SUCCESS", "--why=x")
    assert "A7 was resolved as FAILURE by " in changed
    assert changed.endswith("the bank knows of none: that stands, `ledgerbeam retry` goes by it")


def test_a_run_that_is_not_at_rest_or_has_published(tmp_path: Path, base: Path) -> None:
    place = Place(tmp_path / "place", f"sqlite:///{tmp_path}/registry.db", "charging")
    run = place.record()
    assert "is INITIATED" in mistake(place, "A7", "SUCCESS", "--why=x")
    assert place.launcher(run).wait() == 0
    assert "is SUCCESS: a component is resolved when" in mistake(place, "A7", "SUCCESS", "--why=x")
