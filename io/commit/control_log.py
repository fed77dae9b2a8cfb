"""Steering a run and following its workers, using only objects that are created once.

    RUN/
      control/000001.json                      the first change to how the run proceeds
      control/000002.json                      the second one; the latest is in force
      attempt-1/workers/WORKER-1795158000000.json   a worker's latest heartbeat

The control log only grows. A change is made by reading the latest entry, altering it and creating
it under the next number, if that number isn't taken (`storage.create`): a compare-and-set. The
writer that comes second reads again, so no change is lost and numbers have no gaps. A worker
therefore only has to check for the next number to know whether anything has changed.

A worker's heartbeats have its id and the time (milliseconds since 1970, by its own clock) in their
names: one listing shows which workers are alive, and no object has to be read.
"""

import datetime
import re
from collections.abc import Iterator
from typing import ClassVar, Literal, TypedDict, Unpack

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from ledgerbeam.io.commit.records import Record, damaged_record, load_record
from ledgerbeam.io.errors import IllegalMoveError, ParameterError, UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.storage import stores, uris

HEARTBEAT_SECONDS = 3.0
"""How often a worker writes a heartbeat."""

MISSED_HEARTBEATS = 3
"""After this many periods without a heartbeat a worker isn't counted any more."""

State = Literal["run", "pause", "cancel"]


class Ramp(Record):
    """A rate that changes evenly, and then stays constant.

    Attributes:
        from_rate: components per second at the beginning.
        to_rate: components per second at the end and from then on.
        seconds: how long the change takes.
        started_at: when it began, in UTC.
    """

    from_rate: float = Field(ge=0, allow_inf_nan=False)
    to_rate: float = Field(gt=0, allow_inf_nan=False)
    seconds: float = Field(gt=0, allow_inf_nan=False)
    started_at: AwareDatetime

    def elapsed(self, now: datetime.datetime) -> float:
        """Seconds of the ramp that have passed, from 0 to `seconds`."""
        return min(max((now - self.started_at).total_seconds(), 0.0), self.seconds)

    def rate_at(self, now: datetime.datetime) -> float:
        """Components per second."""
        return self.from_rate + (self.to_rate - self.from_rate) * self.elapsed(now) / self.seconds


class Hold(Record):
    """A time in which no component begins.

    Attributes:
        seconds: how long it is; more than that it holds nobody up, whatever clocks say.
        until: its end, in UTC.
    """

    seconds: float = Field(gt=0, allow_inf_nan=False)
    until: AwareDatetime

    def left(self, now: datetime.datetime) -> float:
        """Seconds of it that are left, at most all of them."""
        return min(max((self.until - now).total_seconds(), 0.0), self.seconds)


class Steering(Record):
    """How a run is to proceed: an entry of its control log.

    Attributes:
        number: number of the entry, from 1; 0 if the run hasn't been steered yet.
        at: when the entry was made, in UTC; None for number 0.
        who: who made it, as `user@host`.
        why: the reason, for people.
        state: `run`; `pause`: no component begins, those in flight go on; `cancel`: no component
            begins any more.
        earliest_attempt: attempts before this one are canceled, whatever `state` says. So a run
            can be restarted while the workers of its canceled attempt stay stopped.
        parallelism: components or pages in flight over the whole run; None for no limit.
        rate: components per second over the whole run; None for no limit, or if a ramp sets it.
        ramp: a rate that changes with time.
        hold: for how long no component begins, as one of them has asked.
    """

    later_fields: ClassVar[frozenset[str]] = frozenset({"hold"})

    number: int = Field(default=0, ge=0)
    at: AwareDatetime | None = None
    who: str = ""
    why: str = ""
    state: State = "run"
    earliest_attempt: int = Field(default=1, ge=1)
    parallelism: int | None = Field(default=None, ge=1, le=1_000_000)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ramp: Ramp | None = None
    hold: Hold | None = None

    @model_validator(mode="after")
    def _one_rate(self) -> "Steering":
        if self.rate is not None and self.ramp is not None:
            raise ValueError("rate and ramp exclude each other, give one of them")
        return self

    @property
    def limits_flow(self) -> bool:
        """Whether there is a limit that the run's workers share."""
        return (self.parallelism, self.rate, self.ramp) != (None, None, None)

    def rate_at(self, now: datetime.datetime) -> float | None:
        """Components per second over the whole run, or None for no limit."""
        return self.rate if self.ramp is None else self.ramp.rate_at(now)

    def cancels(self, attempt: int) -> bool:
        """Whether the attempt of that number has to stop for good."""
        return self.state == "cancel" or attempt < self.earliest_attempt


class Changes(TypedDict, total=False):
    """The values that can be changed; see `Steering`. Those that aren't given stay unchanged."""

    state: State
    earliest_attempt: int
    parallelism: int | None
    rate: float | None
    ramp: Ramp | None
    hold: Hold | None


def steer(
    run_uri: str, at: datetime.datetime, who: str, why: str, **changes: Unpack[Changes]
) -> Steering:
    """Change how a run proceeds. Of several changes at once, each is made on top of the others.

    A rate ends a ramp, and a ramp takes the place of a rate.

    Args:
        run_uri: the run's folder.
        at: the present time, in UTC.
        who: who makes the change.
        why: the reason, for people.
        **changes: the new values; see `Changes`.

    Returns:
        The entry that is in force now.

    Raises:
        UserError: a value is out of range; the run is canceled, and this is no restart (one that
            gives the `earliest_attempt` that may work again); or the store failed. If the store
            failed, the change may have been made; making it again does no harm.
    """
    while True:
        before = latest(run_uri)
        after = _changed(run_uri, before, changes, at, who, why)
        uri = _uri(run_uri, after.number)
        failpoint("steer: before")
        if stores.create(uri, after.to_json(), is_private=True):
            failpoint("steer: made")
            stores.persist([uri])
            return after


def _changed(
    run_uri: str, before: Steering, changes: Changes, at: datetime.datetime, who: str, why: str
) -> Steering:
    values = {**before.model_dump(), **changes}
    if changes.get("ramp") is not None and "rate" not in changes:
        values["rate"] = None
    if changes.get("rate") is not None and "ramp" not in changes:
        values["ramp"] = None
    values |= {"number": before.number + 1, "at": at, "who": who, "why": why}
    try:
        after = Steering.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "limits"
        raise ParameterError(
            f"cannot steer {run_uri}: {place}: {problem['msg']}: give another value",
            parameter=place,
            value=problem["input"],
        ) from error
    if after.earliest_attempt < before.earliest_attempt:
        raise ValueError(f"attempts before {before.earliest_attempt} were canceled for good")
    restarted = "earliest_attempt" in changes
    if before.state == "cancel" and after.state != "cancel" and not restarted:
        raise IllegalMoveError(
            f"cannot {after.state} {run_uri}: {before.who} has canceled it at "
            f"{before.at:%Y-%m-%d %H:%M:%S} UTC: restart it",
            run=run_uri,
            from_status=before.state,
            to_status=after.state,
        )
    return after


def latest(run_uri: str) -> Steering:
    """The entry in force: the last one of the control log, or `Steering()` if it is empty."""
    folder = uris.join(uris.escape(run_uri), "control")
    found = stores.find(uris.join(folder, "[0-9]*.json"))
    numbers = [number for file in found if (number := _number(file.uri)) is not None]
    if not numbers:
        return Steering()
    uri = _uri(run_uri, max(numbers))
    entry = load_record(Steering, uri)
    if entry.number != max(numbers):
        raise damaged_record(uri, f"it says that it is entry {entry.number}")
    return entry


def newer(run_uri: str, number: int) -> Steering | None:
    """The entry in force, or None if that still is the entry of the given number.

    As long as nothing has changed, it costs a check for one object.
    """
    if stores.stat_of(_uri(run_uri, number + 1)) is None:
        return None
    return latest(run_uri)


def _uri(run_uri: str, number: int) -> str:
    return uris.inside(run_uri, f"control/{number:06d}.json")


def _number(uri: str) -> int | None:
    """The number of an entry; None for other files."""
    text = uris.base_name(uri).removesuffix(".json")
    number = int(text) if re.fullmatch("[0-9]{6,12}", text) else None
    return number if number is not None and f"{number:06d}" == text else None


class Executing(Record):
    """A component that is being executed.

    Attributes:
        shard: number of the component's shard.
        component: the component's key, as text.
        tries: how often it has been tried, this time included.
        error: the error of the previous try, or None.
    """

    shard: int
    component: str
    tries: int = 1
    error: str | None = None


class Heartbeat(Record):
    """A message by which a worker shows that it is alive.

    Attributes:
        worker: the worker's id, unique within the attempt; no slashes.
        at: when the heartbeat was written, in UTC, by the worker's clock.
        in_flight: number of components or pages in flight.
        executing: components being executed, those tried most often first; not all where there
            are many, and none where components are executed too fast to be followed one by one.
        done: number of components done by status, of shards that aren't committed yet.
    """

    worker: str
    at: AwareDatetime
    in_flight: int = 0
    executing: list[Executing] = Field(default_factory=list)
    done: dict[str, int] = Field(default_factory=dict)


def beat(attempt_uri: str, heartbeat: Heartbeat, before: str | None = None) -> str:
    """Write a heartbeat, and remove the previous one.

    Args:
        attempt_uri: the attempt's folder.
        heartbeat: the heartbeat to write.
        before: the URI that the previous call returned, if any.

    Returns:
        The heartbeat's URI, to be deleted when the worker stops.
    """
    milliseconds = round(heartbeat.at.timestamp() * 1000)
    uri = uris.inside(attempt_uri, f"workers/{heartbeat.worker}-{milliseconds}.json")
    stores.create(uri, heartbeat.to_json(), is_private=True)
    if before is not None and before != uri:
        stores.delete(before)
    return uri


def live_workers(
    attempt_uri: str, now: datetime.datetime, period: float = HEARTBEAT_SECONDS
) -> list[str]:
    """Ids of the workers that are alive, sorted, found by one listing.

    Clocks of workers must differ by less than the time after which a worker isn't counted.

    Args:
        attempt_uri: the attempt's folder.
        now: the present time.
        period: seconds between two heartbeats.
    """
    oldest = now.timestamp() - MISSED_HEARTBEATS * period
    return sorted({worker for worker, at, _ in _signs(attempt_uri) if at >= oldest})


def heartbeats(
    attempt_uri: str, now: datetime.datetime, period: float = HEARTBEAT_SECONDS
) -> list[Heartbeat]:
    """The latest heartbeat of each live worker, sorted by worker; reads one object per worker."""
    found = (_newest(attempt_uri, worker) for worker in live_workers(attempt_uri, now, period))
    return [heartbeat for heartbeat in found if heartbeat is not None]


def forget_workers(attempt_uri: str, now: datetime.datetime, *, only_silent: bool = False) -> None:
    """Delete heartbeats of workers that didn't live to do so.

    Args:
        attempt_uri: the attempt's folder.
        now: the present time.
        only_silent: whether workers may be alive, so that only heartbeats of those are deleted that
            have sent none for long.
    """
    oldest = now.timestamp() - MISSED_HEARTBEATS * HEARTBEAT_SECONDS
    for _, at, uri in _signs(attempt_uri):
        if not only_silent or at < oldest:
            stores.delete(uri)


def _newest(attempt_uri: str, worker: str) -> Heartbeat | None:
    """The worker's latest heartbeat, or None if it has stopped."""
    while True:
        signs = [(at, uri) for name, at, uri in _signs(attempt_uri, worker) if name == worker]
        if not signs:
            return None
        _, uri = max(signs)
        try:
            return load_record(Heartbeat, uri)
        except UserError:
            if stores.stat_of(uri) is not None:
                raise
            # The worker has written another one in the meantime.


def _signs(attempt_uri: str, worker: str | None = None) -> Iterator[tuple[str, float, str]]:
    """(worker, seconds since 1970, URI) of all heartbeats."""
    folder = uris.join(uris.escape(attempt_uri), "workers")
    name = "*" if worker is None else uris.escape(worker)
    for file in stores.find(uris.join(folder, f"{name}-*.json")):
        found, _, milliseconds = uris.base_name(file.uri).removesuffix(".json").rpartition("-")
        if re.fullmatch("[0-9]{1,15}", milliseconds):
            yield found, int(milliseconds) / 1000, file.uri
