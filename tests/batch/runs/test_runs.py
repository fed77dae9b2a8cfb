"""The verbs on finished and on recorded runs, in Python and as commands."""

import csv
import json
import re
import sqlite3
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from tests.support.json_lines import lines_of
from tests.support.recorded import ACCOUNTS, DAY, SHARDS, WORKLOADS, Place

from ledgerbeam.batch.cli.app import main
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.runs import reconcile
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.control_log import Steering
from ledgerbeam.io.errors import UserError

pytestmark = pytest.mark.slow


class Done(NamedTuple):
    """What a command has come to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """Its lines of JSON, which fit their schemas."""
        return lines_of(self.out)


def verb(place: Place, *arguments: str) -> Done:
    """`ledgerbeam …` in this process, with the place's registry."""
    name, *others = arguments
    out, err = StringIO(), StringIO()
    command = ["ledgerbeam", name, f"--registry={place.url}", *others]
    with patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(err):
        try:
            code = main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def mistake(place: Place, *arguments: str) -> str:
    """The one line that a command says of a user's mistake."""
    done = verb(place, *arguments)
    assert done.code in {Exit.FAILURE, Exit.USAGE, Exit.NOT_FOUND, Exit.UNAVAILABLE}, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("ledgerbeam: ")
    return line.removeprefix("ledgerbeam: ")


@pytest.fixture(scope="module")
def done(base: Path) -> Place:
    """A run that was submitted and has succeeded; one component at the second try."""
    place = Place(base / "done", f"sqlite:///{base}/done.db")
    place.set("flaky-A3")
    submitted = place.command("submit", place.process, "--json", *place.flags())
    assert submitted.returncode == 0, submitted.stderr
    run = json.loads(submitted.stdout)
    assert (run["name"], run["status"]) == (f"counting/{DAY}", "INITIATED")
    waited = place.command("wait", run["id"], "--json")
    assert waited.returncode == 0, waited.stderr + place.told()
    assert json.loads(waited.stdout)["status"] == "SUCCESS"
    return place


@pytest.fixture(scope="module")
def failed(base: Path) -> Place:
    """A run that has failed, because two of its components did."""
    place = Place(base / "failed", f"sqlite:///{base}/failed.db")
    place.set("fail-A1", "fail-A4", "log")
    assert place.command("submit", place.process, *place.flags()).returncode == 0
    assert place.command("wait", place.run().id).returncode == 1, place.told()
    return place


@pytest.fixture
def fresh(tmp_path: Path, base: Path) -> Place:
    """A registry without runs."""
    return Place(tmp_path / "fresh", f"sqlite:///{tmp_path}/registry.db")


class TestFinished:
    def test_get(self, done: Place) -> None:
        (shown,) = verb(done, "get", f"counting/{DAY}", "--json").lines
        assert shown["status"] == "SUCCESS"
        progress = shown["progress"]
        assert (progress["shards_done"], progress["shards_total"]) == (SHARDS, SHARDS)
        assert progress["components"] == {"SUCCESS": len(ACCOUNTS)}
        assert progress["totals"]["rows"] == 4 * len(ACCOUNTS)
        assert progress["rate"] > 0
        assert (progress["executing"], progress["workers"]) == ([], 0)
        (attempt,) = shown["attempts"]
        assert (attempt["kind"], attempt["outcome"]) == ("first", "SUCCESS")
        text = verb(done, "get", shown["id"][:8]).out
        for part in (shown["id"], "SUCCESS", "4 of 4", "12 SUCCESS", "published at", "first"):
            assert part in text

    def test_submitted_again_it_is_the_same_run(self, done: Place) -> None:
        before = done.run(), done.runs.events(done.run().id)
        again = verb(done, "submit", done.process, "--json", *done.flags())
        assert again.lines[0]["id"] == done.run().id
        assert (done.run(), done.runs.events(done.run().id)) == before

    def test_submitted_with_other_parameters_it_is_refused(self, done: Place) -> None:
        line = mistake(done, "submit", done.process, *done.flags(shards=5))
        assert "with other parameters: shards" in line

    def test_another_run_number_needs_a_reason(self, done: Place) -> None:
        line = mistake(done, "submit", done.process, *done.flags(run_number=2))
        assert "give the reason why it is run again as number 2" in line
        line = mistake(done, "submit", done.process, *done.flags(run_number=7, reason="why not"))
        assert "give --run-number=2" in line

    @pytest.mark.parametrize("name", ["retry", "restart", "pause", "cancel"])
    def test_what_has_published_stays(self, done: Place, name: str) -> None:
        assert "next run number and a reason" in mistake(done, name, done.run().id)

    def test_nothing_is_left_to_steer(self, done: Place) -> None:
        assert "nothing to resume" in mistake(done, "resume", done.run().id)
        for name in ("set-rate", "set-parallelism"):
            assert "nothing to steer" in mistake(done, name, done.run().id, "5")

    def test_components_by_page_and_by_status(self, done: Place) -> None:
        name = f"counting/{DAY}"
        listed: list[dict[str, Any]] = []
        while page := verb(
            done, "components", name, "--limit=5", "--json",
            *([f"--after={listed[-1]['component']}"] if listed else []),
        ).lines:  # fmt: skip
            assert len(page) <= 5
            listed += page
        assert sorted(row["component"] for row in listed) == sorted(ACCOUNTS)
        assert {row["status"] for row in listed} == {"SUCCESS"}
        (late,) = (row for row in listed if row["tries"] == 2)
        assert late["component"] == "A3"
        assert re.match(r"RuntimeError: A3 can't be counted yet \(counting.py:\d+\)", late["error"])
        assert verb(done, "components", name, "--status=FAILURE", "--json").lines == []
        assert "no component A99" in mistake(done, "components", name, "--after=A99")
        assert "A3" in verb(done, "components", name).out
        named = done.runs.components(name, ComponentStatus.SUCCESS)
        assert sorted(outcome.component for outcome in named) == sorted(ACCOUNTS)

    def test_results(self, done: Place, tmp_path: Path) -> None:
        name = f"counting/{DAY}"
        totals = {
            account: sum(n * n for n in range(4 * len(ACCOUNTS)) if n % len(ACCOUNTS) == index)
            for index, account in enumerate(ACCOUNTS)
            if account != "EMPTY"
        }
        rows = done.runs.results(name).to_table().to_pylist()
        assert {row["account"]: row["total"] for row in rows} == totals
        shown = verb(done, "results", name, "--json", "--limit=3").lines
        assert [totals[row["account"]] for row in shown] == [row["total"] for row in shown]
        assert "account" in verb(done, "results", name).out
        target = tmp_path / "all.parquet"
        (told,) = verb(done, "results", name, "--json", f"--output={target}").lines
        assert told == {"rows": len(totals), "output": str(target)}
        assert pq.read_table(target).num_rows == len(totals)
        missing = mistake(done, "results", name, "--output=/none/such/all.parquet")
        assert "cannot write /none/such/all.parquet" in missing
        assert "no table entries beside" in mistake(done, "results", name, "--table=entries")

    def test_reports(self, done: Place, tmp_path: Path) -> None:
        name = f"counting/{DAY}"
        (uri,) = verb(done, "reports", name).out.split()
        assert uri.endswith("/attempt-1/report-total.txt")
        (told,) = verb(done, "reports", name, "--json", f"--output={tmp_path}/copies").lines
        assert told == {"report": f"{tmp_path}/copies/total.txt"}
        copy = (tmp_path / "copies" / "total.txt").read_text()
        assert copy == Path(uri).read_text()
        assert int(copy) == sum(n * n for n in range(4 * len(ACCOUNTS)) if n % len(ACCOUNTS))
        (tmp_path / "file").touch()
        in_the_way = mistake(done, "reports", name, f"--output={tmp_path}/file")
        assert f"cannot write {tmp_path}/file/total.txt" in in_the_way

    def test_audit(self, done: Place) -> None:
        events = verb(done, "audit", f"counting/{DAY}", "--json").lines
        types = [event["type"] for event in events]
        assert types == ["submitted", "attempt_started", "job", "attempt_ended"]
        moves = [event["to_status"] for event in events]
        assert moves == ["INITIATED", "EXECUTING", None, "SUCCESS"]
        assert all(event["who"] and event["at"] for event in events)
        text = verb(done, "audit", f"counting/{DAY}").out
        assert "new → INITIATED" in text
        assert "EXECUTING → SUCCESS" in text
        done.check_story()

    def test_nothing_to_reconcile(self, done: Place) -> None:
        assert verb(done, "reconcile", "--json") == (0, "", "")
        assert verb(done, "expire", "--json") == (0, "", "")

    def test_scrubbing_finds_what_differs_from_the_registry(self, done: Place) -> None:
        """Whatever became of a published file, a line names it, and other runs are seen to."""
        assert verb(done, "reconcile", "--scrub", "--json") == (0, "", "")
        run = done.run()
        manifest = load_manifest(run.uri)
        part, report = manifest.shards[0].part.name, manifest.reports[0].name
        for name in (part, report, "manifest.json"):
            path = Path(run.uri, name)
            kept = path.read_bytes()
            middle = len(kept) // 2
            flipped = kept[:middle] + bytes([kept[middle] ^ 1]) + kept[middle + 1 :]
            for damaged in (kept[:middle], flipped, None):
                path.unlink()
                if damaged is not None:
                    path.write_bytes(damaged)
                found = verb(done, "reconcile", "--scrub", "--json")
                assert (found.code, len(found.lines)) == (Exit.DIFFERENT, 1), found
                assert name.rpartition("/")[2] in found.lines[0]["difference"].replace(
                    "its manifest is gone", "manifest.json"
                )
                assert verb(done, "reconcile", "--scrub").out.startswith(f"{run.name} {run.id}: ")
            path.write_bytes(kept)
        note = Path(run.uri, "expired.json")
        note.write_text("{}")
        (line,) = verb(done, "reconcile", "--scrub", "--json").lines
        assert "deleted as expired, which the registry doesn't know" in line["difference"]
        note.unlink()
        assert verb(done, "reconcile", "--scrub", "--json") == (0, "", "")

    def test_waiting_for_it_ends_at_once(self, done: Place) -> None:
        waited = verb(done, "wait", done.run().id, "--json")
        assert (waited.code, waited.lines[0]["status"]) == (0, "SUCCESS")
        told: list[RunStatus] = []
        done.runs.wait(done.run().id, tracker=lambda view: told.append(view.run.status))
        assert told == [RunStatus.SUCCESS]


class TestFailed:
    def test_failures_are_grouped_by_error(self, failed: Place) -> None:
        (shown,) = verb(failed, "get", failed.run().id, "--json").lines
        (group,) = shown["failures"]
        assert (group["count"], group["status"]) == (2, "FAILURE")
        assert group["component"] in ("A1", "A4")
        text = verb(failed, "get", failed.run().id).out
        assert re.search(
            r"failed\tA\d and 1 more: RuntimeError: A\d can't be counted \(count", text
        )
        waited = verb(failed, "wait", failed.run().id, "--json")
        assert waited.lines[0]["failures"] == shown["failures"]

    def test_a_failed_component_has_its_traceback(self, failed: Place) -> None:
        found = verb(failed, "components", failed.run().id, "--status=FAILURE", "--json").lines
        assert [each["component"] for each in found] in (["A1", "A4"], ["A4", "A1"])
        for each in found:
            assert "in execute" in each["traceback"]
            assert each["traceback"].endswith(f"RuntimeError: {each['component']} can't be counted")
            assert "ledgerbeam" not in each["traceback"].replace(str(WORKLOADS), "")
            assert each["record"] is None

    def test_its_log_by_component(self, failed: Place) -> None:
        run = failed.run()
        whole = verb(failed, "logs", run.id).out.splitlines()
        assert whole == failed.settings.log_of(run.id).read_text().splitlines()
        for account in ("A1", "A4", "A10"):
            lines = verb(failed, "logs", run.id, f"--component={account}").out.splitlines()
            label = f"run={run.id} attempt=1 component={account}"
            own = [line for line in lines if line.endswith("being counted")]
            assert set(own) == {f"{label} | being counted"}
            assert sum(line.endswith("counting: the account is") for line in lines) == len(own)
            assert (
                not any(word == "A1" for line in lines for word in line.split()) or account == "A1"
            )
        lines = verb(failed, "logs", run.id, "--component=A4").out.splitlines()
        assert any("RuntimeError: A4 can't be counted" in line for line in lines)
        assert any(line.startswith('  File "') and "in execute" in line for line in lines)
        as_json = verb(failed, "logs", run.id, "--component=A4", "--json").lines
        assert [each["line"] for each in as_json] == lines
        assert "neither its log on this" in mistake(failed, "logs", run.id, "--component=A99")

    def test_a_log_that_is_not_here(self, fresh: Place) -> None:
        run = fresh.record()
        assert f"no launcher of run {run.name} has written a log" in mistake(fresh, "logs", run.id)

    @pytest.mark.parametrize("outcome", ["failed", "done"])
    def test_rejected_rows_are_listed_and_counted(
        self, outcome: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        place: Place = request.getfixturevalue(outcome)
        run = place.run()
        rows = verb(place, "rejects", run.id, "--json").lines
        last = 4 * len(ACCOUNTS) + 1
        assert sorted((row["row"], row["raw"]) for row in rows)[0] == (
            last + 1,
            "A1,not a number,1",
        )
        assert {row["file"] for row in rows} == {str(place.folder / "amounts.csv")}
        assert [row["row"] for row in rows if "comes 2 times" in row["reason"]] == [
            last + 2,
            last + 3,
        ]
        printed = verb(place, "rejects", run.id, "--csv").out
        read = list(csv.DictReader(StringIO(printed)))
        assert [{**row, "row": int(row["row"])} for row in read] == rows
        assert "A1,not a number,1" in verb(place, "rejects", run.id).out
        limited = verb(place, "rejects", run.id, "--limit=2")
        assert (len(limited.out.splitlines()), "--csv prints them all" in limited.err) == (3, True)
        assert verb(place, "get", run.id, "--json").lines[0]["rejected"] == 3
        assert re.search("^rejected\t3 rows", verb(place, "get", run.id).out, re.MULTILINE)
        assert verb(place, "wait", run.id, "--json").lines[0]["rejected"] == 3
        ends = [e for e in verb(place, "audit", run.id, "--json").lines if e["from_status"]]
        assert ends[-1]["detail"]["rejected"] == 3
        assert "rejected=3" in verb(place, "audit", run.id).out

    def test_of_more_than_may_be_all_are_listed(self, fresh: Place) -> None:
        run = fresh.record(max_rejects=0)
        assert fresh.launcher(run).wait() == 0
        assert fresh.run().status is RunStatus.FAILURE, fresh.told()
        assert len(verb(fresh, "rejects", run.id, "--json").lines) == 3
        assert verb(fresh, "get", run.id, "--json").lines[0]["rejected"] == 3
        damaged = next(Path(run.uri).glob("attempt-1/rejects-*.parquet"))
        damaged.write_bytes(b"PAR1")
        assert f"{damaged}: damaged: " in mistake(fresh, "rejects", run.id)


def test_chosen_components_are_retried(fresh: Place) -> None:
    """They alone, though what has failed beside them could be counted, too."""
    fresh.set("fail-A1", "fail-A4", "fail-A7")
    run = fresh.record()
    assert fresh.launcher(run).wait() == 0
    fresh.unset("fail-A1", "fail-A4", "fail-A7")
    for component in ("A2", "A99"):
        line = mistake(fresh, "retry", run.id, "--component=A1", f"--component={component}")
        assert f"no component {component} has failed" in line
    calls = len(fresh.calls())
    asked = ("--component=A1", "--component=A7", "--why=looked into")
    assert verb(fresh, "retry", run.id, *asked, "--json").lines[0]["status"] == "EXECUTING"
    assert verb(fresh, "wait", run.id).code == 1
    assert sorted(call.account for call in fresh.calls()[calls:]) == ["A1", "A7"]
    (left,) = verb(fresh, "components", run.id, "--status=FAILURE", "--json").lines
    assert (left["component"], left["tries"]) == ("A4", 3)
    moves = [e for e in fresh.runs.events(run.id) if e.why == "looked into"]
    assert [move.detail for move in moves] == [{"kind": "retry", "components": ["A1", "A7"]}]
    assert verb(fresh, "retry", run.id).code == 0
    assert verb(fresh, "wait", run.id).code == 0
    assert [call.account for call in fresh.calls()[calls + 2 :]] == ["A4"]
    fresh.check_story()


class TestRecorded:
    """Runs whose launcher hasn't come."""

    def test_list_by_page(self, fresh: Place) -> None:
        records = [fresh.record(business_date=f"2026-11-{day}") for day in range(10, 17)]
        fresh.runs.cancel(records[3].id)
        listed: list[str] = []
        while page := verb(
            fresh, "list", "--limit=3", "--json", *([f"--before={listed[-1]}"] if listed else [])
        ).lines:
            listed += [row["id"] for row in page]
        assert listed == [record.id for record in reversed(records)]
        (canceled,) = verb(fresh, "list", "--status=CANCELED", "--json").lines
        assert canceled["name"] == "counting/2026-11-13"
        assert verb(fresh, "list", "--process=none", "--json").lines == []
        assert len(verb(fresh, "list").out.splitlines()) == 8

    def test_canceled_before_it_begins_it_never_does(self, fresh: Place) -> None:
        run = fresh.record()
        (shown,) = verb(fresh, "cancel", run.id, "--why=a mistake", "--json").lines
        assert shown["status"] == "CANCELED"
        assert verb(fresh, "cancel", run.id).code == 1
        assert fresh.launcher(run).wait() == 0
        assert fresh.run().attempts == ()
        assert verb(fresh, "wait", run.id).code == 3
        (event,) = fresh.runs.events(run.id)[1:]
        assert (event.to_status, event.why) == (RunStatus.CANCELED, "a mistake")

    def test_a_damaged_run_keeps_nothing_from_others(
        self, fresh: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Neither its rows in the registry nor its records in storage."""
        runs = [fresh.record(business_date=f"2026-11-{day}") for day in range(10, 13)]
        with sqlite3.connect(fresh.url.removeprefix("sqlite:///")) as database:
            database.execute("UPDATE run SET options = 'no JSON' WHERE id = ?", [runs[0].id])
            database.execute(
                "UPDATE run SET submitted_at = '2026-01-01 00:00:00', must_finish_by = '2100-01-01'"
            )
        database.close()
        attempt = Path(runs[1].uri, "attempt-1", "attempt.json")
        attempt.parent.mkdir(parents=True)
        attempt.write_text("{}")
        with patch.object(reconcile, "start_launcher") as spawned:
            actions = reconcile.reconcile(fresh.settings, fresh.runs, utc_now())
        assert {action.run.id for action in actions} == {runs[1].id, runs[2].id}
        assert spawned.call_count == 2
        assert f"run {runs[0].id}: damaged in the registry: " in caplog.text
        damaged = mistake(fresh, "get", runs[0].id)
        assert damaged.startswith(f"run {runs[0].id}: damaged in the registry: ")
        assert "Traceback" not in caplog.text

    def test_pausing_twice_is_pausing(self, fresh: Place) -> None:
        run = fresh.record()
        for _ in range(2):
            (shown,) = verb(fresh, "pause", run.id, "--json").lines
            assert (shown["status"], shown["progress"]["steering"]["state"]) == ("PAUSED", "pause")
        (shown,) = verb(fresh, "resume", run.id, "--json").lines
        assert (shown["status"], shown["progress"]["steering"]["state"]) == ("EXECUTING", "run")

    def test_a_timeout(self, fresh: Place) -> None:
        run = fresh.record()
        waited = verb(fresh, "wait", run.id, "--timeout=0.1")
        assert (waited.code, waited.out) == (4, "")
        assert waited.err == f"ledgerbeam: run {run.id} is INITIATED after 0.1 s: it goes on\n"
        with pytest.raises(TimeoutError):
            fresh.runs.wait(run.id, timeout=0.1)

    def test_limits(self, fresh: Place) -> None:
        run = fresh.record()

        def limits(*arguments: str) -> Steering:
            (line,) = verb(fresh, arguments[0], run.id, *arguments[1:], "--json").lines
            return Steering.model_validate(line)

        assert limits("set-parallelism", "3").parallelism == 3
        assert limits("set-rate", "2.5").rate == 2.5
        ramped = limits("set-rate", "200", "--from=10", "--over=900")
        assert ramped.rate is None
        assert ramped.ramp is not None
        assert (ramped.ramp.from_rate, ramped.ramp.to_rate, ramped.ramp.seconds) == (10, 200, 900)
        assert ramped.parallelism == 3
        assert not limits("set-rate", "none").ramp
        assert limits("set-parallelism", "none").parallelism is None
        assert verb(fresh, "set-rate", run.id, "7").out == "7 a second\n"
        types = [event.type for event in fresh.runs.events(run.id)]
        assert types == ["submitted", "parallelism", *["rate"] * 3, "parallelism", "rate"]

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["set-parallelism", "0"], "parallelism: Input should be greater than or equal to 1"),
            (["set-parallelism", "many"], "give a whole number, or none"),
            (["set-parallelism", "9" * 5_000], "give a whole number, or none"),
            (["set-parallelism", "9" * 50], "Input should be less than or equal to 1000000"),
            (["set-rate", "fast"], "give a number of components a second, or none"),
            (["set-rate", "nan"], "rate: Input should be"),
            (["set-rate", "0"], "rate: Input should be greater than 0"),
            (["set-rate", "5", "--from=1"], "a ramp needs all three"),
            (["set-rate", "none", "--from=1", "--over=3"], "a ramp needs all three"),
            (["set-rate", "5", "--from=1", "--over=0"], "ramp: seconds"),
        ],
    )
    def test_values_out_of_range(self, fresh: Place, arguments: list[str], line: str) -> None:
        run = fresh.record()
        assert line in mistake(fresh, arguments[0], run.id, *arguments[1:])

    def test_runs_that_nobody_means(self, fresh: Place) -> None:
        run = fresh.record()
        fresh.record(business_date="2026-11-21")
        for text in ("ffffffff", "counting/2026-01-01", f"counting/{DAY}/3"):
            assert f"no run {text}" in mistake(fresh, "get", text)
        assert "6 or more characters" in mistake(fresh, "get", run.id[:3])
        assert "no run" in mistake(fresh, "list", "--before=ffffffff")

    def test_a_prefix_of_two_runs(self, fresh: Place) -> None:
        def submit(day: int) -> RunRecord:
            with patch("uuid.uuid4", return_value=UUID(f"abcdef00-0000-4000-8000-0000000000{day}")):
                return fresh.record(business_date=f"2026-11-{day}")

        submit(10)
        submit(11)
        assert "several runs begin with abcdef" in mistake(fresh, "get", "abcdef")

    def test_nothing_is_published_yet(self, fresh: Place) -> None:
        run = fresh.record()
        assert "nothing is published" in mistake(fresh, "results", run.id)
        assert verb(fresh, "components", run.id, "--json").lines == []
        assert "is INITIATED: wait for its end" in mistake(fresh, "retry", run.id)

    def test_parameters_that_do_not_fit(self, fresh: Place) -> None:
        flags = fresh.flags(business_date="some-day")
        assert "--business-date=some-day" in mistake(fresh, "submit", "counting", *flags)
        assert "no workload none" in mistake(fresh, "submit", "none")
        with pytest.raises(UserError, match="--shards=0"):
            fresh.record(shards=0)

    @pytest.mark.parametrize(
        ("url", "line"),
        [
            ("postgresql+psycopg://batch:hunter2@127.0.0.1:1/none", "check that the server runs"),
            ("sqlite:////none/such/registry.db", "check that its folder exists"),
            ("mysql://host/database", "no registry can be kept by mysql"),
            ("hunter2", "the registry's URL isn't one"),
        ],
    )
    def test_a_registry_out_of_reach(self, fresh: Place, url: str, line: str) -> None:
        said = mistake(Place(fresh.folder, url), "list")
        assert line in said
        assert "hunter2" not in said

    def test_runs_are_found_from_another_folder(
        self, fresh: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(fresh.folder)
        run = fresh.record(amounts="amounts.csv")
        monkeypatch.chdir("/")
        assert fresh.launcher(run).wait() == 0
        assert fresh.run().status is RunStatus.SUCCESS, fresh.told()
