"""What a definition wants approved is done by another person than the one who asks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.batch.runs.test_runs import verb
from tests.support.recorded import NewPlace, Place

from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.model.approval import ASKED, REFUSED, open_approvals
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.run import AttemptKind, RecordedEvent, RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.io.errors import (
    ApprovalNeededError,
    DefinitionError,
    IllegalMoveError,
    ParameterError,
    SamePersonError,
    UserError,
)

WHY = "a typing error"


def happened(sequence: int, type_: str, **fields: Any) -> RecordedEvent:
    given = {"run": "8f3a", "process": "p", "instance": "i", "at": datetime.now(UTC), "who": "ann"}
    return RecordedEvent(**{**given, "type": type_, "sequence": sequence, **fields})


def asked(sequence: int) -> RecordedEvent:
    detail = {"act": "correct", "arguments": {"components": [], "parameters": {"a": sequence}}}
    return happened(sequence, ASKED, detail=detail)


def test_what_waits_is_what_nobody_has_answered_since_the_run_has_moved() -> None:
    failed = happened(2, "status", to_status=RunStatus.FAILURE)
    history = [asked(1), failed, asked(3), happened(4, "limits"), asked(5), asked(6)]
    assert [one.number for one in open_approvals(history)] == [3, 5, 6]
    history.append(happened(7, REFUSED, detail={"approval": 5}))
    history.append(happened(8, "resolved", detail={"approval": 3, "component": "A7"}))
    assert [one.number for one in open_approvals(history)] == [6]
    history.append(happened(9, "status", to_status=RunStatus.EXECUTING))
    assert open_approvals(history) == []


def test_only_some_things_can_be_approved() -> None:
    with pytest.raises(DefinitionError, match="nobody can approve 'pay': name correct, replace"):
        type("Paying", (BatchProcess,), {"approvals": ("pay",)})


@pytest.fixture
def approved(new_place: NewPlace) -> Place:
    return new_place("approved")


@pytest.fixture
def failed(approved: Place) -> RunRecord:
    """A run that has failed by its parameters."""
    assert approved.launcher(approved.record(max_rejects=0)).wait() == 0
    assert approved.run().status is RunStatus.FAILURE, approved.told()
    return approved.run()


@pytest.fixture
def ann(approved: Place) -> Runs:
    return approved.runs.signed_by("ann")


@pytest.fixture
def bob(approved: Place) -> Runs:
    return approved.runs.signed_by("bob")


def number_of(ask: Callable[[], object]) -> int:
    with pytest.raises(ApprovalNeededError, match="ledgerbeam approve") as caught:
        ask()
    assert caught.value.approval is not None
    return caught.value.approval


@pytest.mark.slow
class TestCorrections:
    def test_another_person_has_it_done(
        self, approved: Place, failed: RunRecord, ann: Runs, bob: Runs
    ) -> None:
        right = {"max_rejects": 3}
        number = number_of(lambda: ann.retry(failed.id, WHY, parameters=right))
        # Asked for again, it is the same, whoever has looked at the run before.
        asked = (failed.id, AttemptKind.RETRY, WHY, (), right)
        assert number_of(lambda: ann.reopen(*asked)) == number
        assert number_of(lambda: ann.retry(failed.id, WHY, parameters=right)) == number
        (waiting,) = bob.get(failed.id).approvals
        assert (waiting.number, waiting.act, waiting.who, waiting.why) == (
            number,
            "correct",
            "ann",
            WHY,
        )
        assert "to be approved" in verb(approved, "get", failed.id).out
        with pytest.raises(SamePersonError, match="another person approves it"):
            ann.approve(failed.id)
        assert approved.run().status is RunStatus.FAILURE
        bob.approve(failed.id, why="I see it")
        assert bob.wait(failed.id).run.status is RunStatus.SUCCESS, approved.told()
        assert approved.run().parameters["max_rejects"] == 3
        (event,) = [event for event in bob.events(failed.id) if "approval" in event.detail]
        assert (event.who, event.why, event.detail["asked_by"]) == ("bob", "I see it", "ann")
        approved.check_story()

    def test_what_does_not_fit_is_not_asked_for(self, failed: RunRecord, ann: Runs) -> None:
        with pytest.raises(ParameterError, match="shards"):
            ann.retry(failed.id, WHY, parameters={"shards": "many"})
        with pytest.raises(ParameterError, match="say why"):
            ann.retry(failed.id, parameters={"max_rejects": 3})
        assert not ann.get(failed.id).approvals

    def test_what_is_refused_is_not_done(self, failed: RunRecord, ann: Runs, bob: Runs) -> None:
        first = number_of(lambda: ann.retry(failed.id, WHY, parameters={"max_rejects": 3}))
        second = number_of(lambda: ann.retry(failed.id, WHY, parameters={"max_rejects": 4}))
        with pytest.raises(IllegalMoveError, match=f"{first}, {second} wait for approval"):
            bob.approve(failed.id)
        bob.refuse(failed.id, "three were agreed on", second)
        with pytest.raises(IllegalMoveError, match=f"{second} doesn't wait"):
            bob.approve(failed.id, second)
        assert [each.number for each in bob.get(failed.id).approvals] == [first]

    def test_what_was_asked_for_before_the_run_went_on_is_past(
        self, approved: Place, failed: RunRecord, ann: Runs, bob: Runs
    ) -> None:
        number = number_of(lambda: ann.retry(failed.id, WHY, parameters={"max_rejects": 3}))
        ann.retry(failed.id)
        assert bob.wait(failed.id).run.status is RunStatus.FAILURE
        with pytest.raises(IllegalMoveError, match=f"{number} doesn't wait"):
            bob.approve(failed.id, number)
        assert approved.run().parameters["max_rejects"] == 0

    def test_of_two_who_approve_one_has_it_done(
        self, approved: Place, failed: RunRecord, ann: Runs, bob: Runs
    ) -> None:
        number = number_of(lambda: ann.retry(failed.id, WHY, parameters={"max_rejects": 3}))

        def approve(runs: Runs) -> bool:
            try:
                runs.approve(failed.id, number)
            except UserError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(approve, (bob, approved.runs.signed_by("eve"))))
        assert sorted(done) == [False, True]
        assert bob.wait(failed.id).run.status is RunStatus.SUCCESS, approved.told()
        assert len(approved.run().attempts) == 2

    def test_the_command_line(self, approved: Place, failed: RunRecord, ann: Runs) -> None:
        done = verb(approved, "retry", failed.id, "--set=max_rejects=3", f"--why={WHY}", "--json")
        assert done.code == Exit.APPROVAL
        assert '"code": "approval-needed"' in done.err
        (run,) = verb(approved, "get", failed.id, "--json").lines
        assert [each["arguments"]["parameters"] for each in run["approvals"]] == [
            {"max_rejects": "3"}
        ]
        own = verb(approved, "approve", failed.id)
        assert (own.code, "another person" in own.err) == (Exit.FAILURE, True)
        assert verb(approved, "refuse", failed.id, "--why=a mistake").code == 0
        assert "nothing waits" in verb(approved, "approve", failed.id).err
        number_of(lambda: ann.retry(failed.id, WHY, parameters={"max_rejects": 3}))
        assert verb(approved, "approve", failed.id).code == 0
        assert verb(approved, "wait", failed.id).code == 0, approved.told()


@pytest.mark.slow
def test_a_run_is_replaced_when_another_person_says_so(
    approved: Place, failed: RunRecord, ann: Runs, bob: Runs
) -> None:
    right = approved.parameters()
    number = number_of(lambda: ann.submit("approved", right, replace=True, why=WHY))
    assert approved.run().id == failed.id
    new = bob.approve(failed.id, number)
    assert new.id != failed.id
    assert (new.submitted_by, new.parameters["max_rejects"]) == ("bob", 3)
    assert bob.wait(new.id).run.status is RunStatus.SUCCESS, approved.told()


@pytest.mark.slow
def test_a_call_is_resolved_when_another_person_says_so(
    approved: Place, ann: Runs, bob: Runs
) -> None:
    approved.set("kill-A7")
    approved.launcher(approved.record())
    run = approved.until_rest()
    lost = [one.component for one in ann.components(run.id, ComponentStatus.UNKNOWN)]
    for component in lost:
        number = number_of(
            lambda name=component: ann.resolve(  # type: ignore[misc]
                run.id, name, ComponentStatus.FAILURE, "it isn't on the statement"
            )
        )
        with pytest.raises(SamePersonError):
            ann.approve(run.id, number)
        bob.approve(run.id, number)
    assert not bob.get(run.id).approvals
    ann.retry(run.id)
    assert bob.wait(run.id).run.status is RunStatus.SUCCESS, approved.told()
