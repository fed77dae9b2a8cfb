"""The control log of a run and the signs of life of its workers."""

import datetime
import subprocess
import sys
import threading
from datetime import UTC, timedelta

import pytest
from pydantic import ValidationError

from ledgerbeam.io.commit.control_log import (
    Changes,
    Executing,
    Heartbeat,
    Ramp,
    Steering,
    beat,
    heartbeats,
    latest,
    live_workers,
    newer,
    steer,
)
from ledgerbeam.io.commit.records import load_record
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.io.storage.base import FileInfo

AT = datetime.datetime(2026, 11, 20, 22, 0, tzinfo=UTC)
RAMP = Ramp(from_rate=10, to_rate=200, seconds=900, started_at=AT)


def names_below(folder: str) -> list[str]:
    return [uris.base_name(file.uri) for file in stores.find(f"{folder}/*")]


def change(run_uri: str, **changes: object) -> Steering:
    return steer(run_uri, AT, "ann@desk", "a reason", **changes)  # type: ignore[arg-type]


class TestControlLog:
    def test_nobody_has_said_anything(self, root: str) -> None:
        assert latest(root) == Steering(number=0, state="run")
        assert newer(root, 0) is None

    def test_a_change_leaves_the_rest_as_it_is(self, root: str) -> None:
        change(root, parallelism=8)
        change(root, rate=50.0)
        last = change(root, state="pause")
        assert last == latest(root) == newer(root, 0) == newer(root, 2)
        assert newer(root, 3) is None
        assert last == Steering(
            number=3,
            at=AT,
            who="ann@desk",
            why="a reason",
            state="pause",
            parallelism=8,
            rate=50.0,
        )
        assert change(root, parallelism=None).parallelism is None

    def test_every_change_is_kept(self, root: str) -> None:
        for rate in range(1, 12):
            change(root, rate=float(rate))
        names = [f"{number:06d}.json" for number in range(1, 12)]
        assert names_below(f"{root}/control") == names
        assert latest(root).rate == 11

    def test_it_goes_on_beyond_six_digits(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        run = str(tmp_path_factory.mktemp("run"))
        for number in (999_999, 1_000_000):
            record = Steering(number=number, at=AT, parallelism=number)
            stores.create(f"{run}/control/{number:06d}.json", record.to_json())
        assert change(run, state="pause").number == 1_000_001
        assert latest(run).parallelism == 1_000_000

    def test_a_rate_ends_a_ramp_and_the_other_way_round(self, root: str) -> None:
        assert change(root, rate=5.0).ramp is None
        ramped = change(root, ramp=RAMP)
        assert (ramped.rate, ramped.ramp) == (None, RAMP)
        assert change(root, parallelism=3).ramp == RAMP
        again = change(root, rate=7.0)
        assert (again.rate, again.ramp) == (7.0, None)
        assert change(root, rate=None).rate_at(AT) is None

    def test_a_canceled_run_goes_on_as_another_attempt_only(self, root: str) -> None:
        change(root, state="cancel", parallelism=4)
        for state in ("run", "pause"):
            with pytest.raises(UserError, match="ann@desk has canceled it at 2026-11-20 22:00:00"):
                change(root, state=state)
        assert change(root, state="cancel").number == 2
        restarted = change(root, state="run", earliest_attempt=2)
        assert (restarted.number, restarted.state, restarted.parallelism) == (3, "run", 4)
        assert restarted.cancels(1)
        assert not restarted.cancels(2)
        with pytest.raises(ValueError, match="before 2"):
            change(root, earliest_attempt=1)

    @pytest.mark.parametrize(
        ("changes", "place"),
        [
            ({"parallelism": 0}, "parallelism"),
            ({"rate": 0.0}, "rate"),
            ({"rate": float("inf")}, "rate"),
            ({"state": "stop"}, "state"),
            ({"rate": 1.0, "ramp": RAMP}, "exclude each other"),
            ({"speed": 1}, "speed"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, changes: Changes, place: str
    ) -> None:
        run = str(tmp_path_factory.mktemp("run"))
        with pytest.raises(UserError, match=place) as refused:
            change(run, **changes)
        assert "\n" not in str(refused.value)
        assert latest(run).number == 0

    def test_times_without_a_zone_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="timezone"):
            Steering(number=1, at=datetime.datetime(2026, 11, 20))  # noqa: DTZ001

    def test_a_damaged_entry_is_named(self, root: str) -> None:
        stores.create(f"{root}/control/000001.json", b"{")
        with pytest.raises(UserError, match=r"000001\.json: damaged record"):
            newer(root, 0)

    def test_a_look_at_what_is_not_new_costs_one_stat(
        self, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        change(root, parallelism=2)
        asked = []
        stat_of = stores.stat_of

        def noted(uri: str) -> FileInfo | None:
            asked.append(uri)
            return stat_of(uri)

        monkeypatch.setattr(stores, "stat_of", noted)
        monkeypatch.delattr(stores, "find")
        monkeypatch.delattr(stores, "read_bytes")
        assert newer(root, 1) is None
        assert asked == [f"{root}/control/000002.json"]

    def test_of_changes_at_the_same_time_none_is_lost(self, root: str) -> None:
        each = 15 if uris.is_local(root) else 5
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, root, field, str(each)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for field in RACED
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.close()
        for racer in racers:
            assert racer.stdout is not None
            racer.stdout.close()
            assert racer.wait(120) == 0
        entries = [
            load_record(Steering, file.uri) for file in stores.find(f"{root}/control/*.json")
        ]
        assert [entry.number for entry in entries] == list(range(1, 3 * each + 1))
        last = entries[-1]
        assert (last.parallelism, last.rate, last.earliest_attempt) == (each + 1,) * 3
        for before, after in zip([Steering(), *entries], entries, strict=False):
            old, new = before.model_dump(), after.model_dump()
            assert [field for field in RACED if old[field] != new[field]] == [after.why]


RACED = ("parallelism", "rate", "earliest_attempt")
RACER = """
import datetime, sys
from ledgerbeam.io.commit.control_log import latest, steer

run, field, each = sys.argv[1:]
latest(run)
print("ready", flush=True)
sys.stdin.read()
at = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
for value in range(2, int(each) + 2):
    steer(run, at, "racer", field, **{field: value})
"""


class TestRamp:
    @pytest.mark.parametrize(
        ("seconds", "rate"), [(-60, 10), (0, 10), (450, 105), (900, 200), (1e6, 200)]
    )
    def test_it_goes_evenly_and_then_stays(self, seconds: float, rate: float) -> None:
        at = AT + timedelta(seconds=seconds)
        assert RAMP.rate_at(at) == Steering(ramp=RAMP).rate_at(at) == pytest.approx(rate)

    def test_it_may_go_down(self) -> None:
        ramp = Ramp(from_rate=100, to_rate=1, seconds=9, started_at=AT)
        assert ramp.rate_at(AT + timedelta(seconds=3)) == pytest.approx(67)

    @pytest.mark.parametrize("field", ["from_rate", "to_rate", "seconds"])
    def test_values_out_of_range_are_refused(self, field: str) -> None:
        with pytest.raises(ValidationError, match=field):
            Ramp.model_validate({**RAMP.model_dump(), field: -1})


class TestSignsOfLife:
    def test_a_worker_has_one_sign_the_latest(self, root: str) -> None:
        sign = None
        for seconds in range(3):
            at = AT + timedelta(seconds=3 * seconds)
            done = {"SUCCESS": seconds}
            sign = beat(root, Heartbeat(worker="host-1-ab", at=at, done=done), sign)
        assert names_below(f"{root}/workers") == ["host-1-ab-1795212006000.json"]
        assert [sign.done for sign in heartbeats(root, at)] == [{"SUCCESS": 2}]
        assert sign is not None
        stores.delete(sign)
        assert live_workers(root, at) == []
        assert heartbeats(root, at) == []

    def test_a_worker_that_has_missed_three_is_not_counted(self, root: str) -> None:
        for worker, age in (("a", 0.0), ("b-1", 8.9), ("b", 9.1), ("c", -1.0)):
            beat(root, Heartbeat(worker=worker, at=AT - timedelta(seconds=age)))
        assert live_workers(root, AT) == ["a", "b-1", "c"]
        assert live_workers(root, AT, period=30) == ["a", "b", "b-1", "c"]
        assert [sign.worker for sign in heartbeats(root, AT)] == ["a", "b-1", "c"]

    def test_it_tells_what_is_being_executed(self, root: str) -> None:
        executing = [Executing(shard=7, component="C1/UPL", tries=3, error="no answer")]
        said = Heartbeat(worker="w", at=AT, in_flight=2, executing=executing, done={"FAILURE": 1})
        beat(root, said)
        assert heartbeats(root, AT) == [said]

    def test_signs_can_be_read_while_workers_give_others(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        attempt = str(tmp_path_factory.mktemp("attempt"))
        ended = threading.Event()

        def live(worker: str) -> None:
            sign, number = None, 0
            while not ended.is_set():
                number += 1
                at = AT + timedelta(milliseconds=number)
                sign = beat(attempt, Heartbeat(worker=worker, at=at), sign)

        workers = [threading.Thread(target=live, args=(name,)) for name in ("a", "b")]
        for worker in workers:
            worker.start()
        try:
            while len(live_workers(attempt, AT)) < 2:
                pass
            for _ in range(100):
                assert {sign.worker for sign in heartbeats(attempt, AT)} <= {"a", "b"}
        finally:
            ended.set()
            for worker in workers:
                worker.join()
