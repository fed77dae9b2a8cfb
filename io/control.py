"""Steering a run and hearing of its workers, by nothing but objects that are made once.

    RUN/
      control/000001.json                      the first change to how the run goes
      control/000002.json                      the second one; the latest is in force
      attempt-1/workers/WORKER-1795158000000.json   a worker's latest sign of life

The control log only grows. A change is read, altered and made under the next number, and only if
that number isn't taken (`storage.create`): a compare-and-set. Whoever comes second reads again, so
no change is lost and numbers have no gaps. That is why a look at the one next number tells a
worker that nothing is new.

A worker's signs of life carry its id and the time (milliseconds since 1970, by its own clock) in
their names: one listing tells who is alive, and nothing has to be read for that.
"""

import datetime
from collections.abc import Iterator
from typing import Literal, TypedDict, Unpack

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from ledgerbeam.io import storage
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.records import Record, load_record

HEARTBEAT_SECONDS = 3.0
"""How often a worker gives a sign of life."""

MISSED_HEARTBEATS = 3
"""After so many periods without a sign of life a worker isn't counted any more."""

State = Literal["run", "pause", "cancel"]


class Ramp(Record):
    """A rate that changes evenly, and then stays.

    Attributes:
        from_rate: components per second at the beginning.
        to_rate: components per second at the end and ever after.
        seconds: how long that takes.
        started_at: when it began, in UTC.
    """

    from_rate: float = Field(ge=0, allow_inf_nan=False)
    to_rate: float = Field(gt=0, allow_inf_nan=False)
    seconds: float = Field(gt=0, allow_inf_nan=False)
    started_at: AwareDatetime

    def elapsed(self, now: datetime.datetime) -> float:
        """Seconds of the ramp that are over, from 0 to all of them."""
        return min(max((now - self.started_at).total_seconds(), 0.0), self.seconds)

    def rate_at(self, now: datetime.datetime) -> float:
        """Components per second."""
        return self.from_rate + (self.to_rate - self.from_rate) * self.elapsed(now) / self.seconds


class Steering(Record):
    """How a run is to go: an entry of its control log.

    Attributes:
        number: of the entry, from 1; 0 where nobody has steered the run yet.
        at: when it was made, in UTC; None for number 0.
        who: made it, as `user@host`.
        why: a reason that people read.
        state: `run`; `pause`: nothing new is begun, what is in flight goes on; `cancel`: nothing
            new is begun for good.
        earliest_attempt: attempts before this one are canceled, whatever `state` says. So a run
            can be restarted without waking the workers of an attempt that was canceled.
        parallelism: components or pages in flight over the whole run; None for no limit.
        rate: components per second over the whole run; None for no limit, or where a ramp says it.
        ramp: a rate that changes with time.
    """

    number: int = Field(default=0, ge=0)
    at: AwareDatetime | None = None
    who: str = ""
    why: str = ""
    state: State = "run"
    earliest_attempt: int = Field(default=1, ge=1)
    parallelism: int | None = Field(default=None, ge=1)
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ramp: Ramp | None = None

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
    """What can be changed; see `Steering`. What isn't given stays."""

    state: State
    earliest_attempt: int
    parallelism: int | None
    rate: float | None
    ramp: Ramp | None


def steer(
    run_uri: str, at: datetime.datetime, who: str, why: str, **changes: Unpack[Changes]
) -> Steering:
    """Change how a run goes. Of several who do at once, each change is made on top of the others.

    A rate ends a ramp, and a ramp takes the place of a rate.

    Args:
        run_uri: the run's folder.
        at: the present time, in UTC.
        who: makes the change.
        why: a reason that people read.
        **changes: see `Changes`.

    Returns:
        What is in force now.

    Raises:
        UserError: a value is out of range; the run is canceled, and this is no restart, which
            gives the `earliest_attempt` that may work again; or the store failed. In that case
            the change may have been made; to make it again does no harm.
    """
    while True:
        before = latest(run_uri)
        after = _changed(run_uri, before, changes, at, who, why)
        uri = _uri(run_uri, after.number)
        failpoint("steer: before")
        if storage.create(uri, after.to_json()):
            failpoint("steer: made")
            storage.persist([uri])
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
        raise UserError(
            f"cannot steer {run_uri}: {place}: {problem['msg']}: give another value"
        ) from error
    if after.earliest_attempt < before.earliest_attempt:
        raise ValueError(f"attempts before {before.earliest_attempt} were canceled for good")
    restarted = "earliest_attempt" in changes
    if before.state == "cancel" and after.state != "cancel" and not restarted:
        raise UserError(
            f"cannot {after.state} {run_uri}: {before.who} has canceled it at "
            f"{before.at:%Y-%m-%d %H:%M:%S} UTC: restart it"
        )
    return after


def latest(run_uri: str) -> Steering:
    """What is in force: the last entry of the control log, or `Steering()` where there is none."""
    folder = storage.join(storage.escape(run_uri), "control")
    found = storage.find(storage.join(folder, "[0-9]*.json"))
    if not found:
        return Steering()
    return load_record(Steering, max((file.uri for file in found), key=_number))


def newer(run_uri: str, number: int) -> Steering | None:
    """What is in force, or None where that still is the entry of that number.

    Costs a look at one name as long as nothing has changed.
    """
    if storage.stat_of(_uri(run_uri, number + 1)) is None:
        return None
    return latest(run_uri)


def _uri(run_uri: str, number: int) -> str:
    return storage.join(run_uri, "control", f"{number:06d}.json")


def _number(uri: str) -> int:
    return int(storage.base_name(uri).removesuffix(".json"))


class Executing(Record):
    """A component that is being executed.

    Attributes:
        shard: its number.
        component: its key, as text.
        tries: how often it has been tried, this time included.
        error: of the try before, or None.
    """

    shard: int
    component: str
    tries: int = 1
    error: str | None = None


class Heartbeat(Record):
    """A worker's sign of life.

    Attributes:
        worker: its id, unique within the attempt; no slashes.
        at: when it was given, in UTC, by the worker's clock.
        in_flight: components or pages in flight.
        executing: components being executed, those tried most often first; not all where there
            are many, and none where components are executed too fast to be followed one by one.
        done: components done by status, of shards that aren't committed yet.
    """

    worker: str
    at: AwareDatetime
    in_flight: int = 0
    executing: list[Executing] = Field(default_factory=list)
    done: dict[str, int] = Field(default_factory=dict)


def beat(attempt_uri: str, heartbeat: Heartbeat, before: str | None = None) -> str:
    """Give a sign of life, and remove the one before.

    Args:
        attempt_uri: the attempt's folder.
        heartbeat: what to say.
        before: what this function gave when it was called before.

    Returns:
        The URI of the sign, to be deleted when the worker stops.
    """
    milliseconds = round(heartbeat.at.timestamp() * 1000)
    uri = storage.join(attempt_uri, "workers", f"{heartbeat.worker}-{milliseconds}.json")
    storage.create(uri, heartbeat.to_json())
    if before is not None and before != uri:
        storage.delete(before)
    return uri


def live_workers(
    attempt_uri: str, now: datetime.datetime, period: float = HEARTBEAT_SECONDS
) -> list[str]:
    """Ids of the workers that are alive, sorted; from one listing.

    Clocks of workers may differ by less than the periods that may be missed.

    Args:
        attempt_uri: the attempt's folder.
        now: the present time.
        period: seconds between two signs of life.
    """
    oldest = now.timestamp() - MISSED_HEARTBEATS * period
    return sorted({worker for worker, at, _ in _signs(attempt_uri) if at >= oldest})


def heartbeats(
    attempt_uri: str, now: datetime.datetime, period: float = HEARTBEAT_SECONDS
) -> list[Heartbeat]:
    """The latest sign of each worker that is alive, by worker; reads one object a worker."""
    found = (_newest(attempt_uri, worker) for worker in live_workers(attempt_uri, now, period))
    return [heartbeat for heartbeat in found if heartbeat is not None]


def _newest(attempt_uri: str, worker: str) -> Heartbeat | None:
    """The worker's latest sign, or None if it has stopped."""
    while True:
        signs = [(at, uri) for name, at, uri in _signs(attempt_uri, worker) if name == worker]
        if not signs:
            return None
        _, uri = max(signs)
        try:
            return load_record(Heartbeat, uri)
        except UserError:
            if storage.stat_of(uri) is not None:
                raise
            # The worker has given another one in the meantime.


def _signs(attempt_uri: str, worker: str | None = None) -> Iterator[tuple[str, float, str]]:
    """(worker, seconds since 1970, URI) of all signs of life."""
    folder = storage.join(storage.escape(attempt_uri), "workers")
    name = "*" if worker is None else storage.escape(worker)
    for file in storage.find(storage.join(folder, f"{name}-*.json")):
        found, _, milliseconds = storage.base_name(file.uri).removesuffix(".json").rpartition("-")
        yield found, int(milliseconds) / 1000, file.uri
