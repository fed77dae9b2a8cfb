"""How far a run is, from what is in object storage: the same on every runner."""

import datetime
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator

from ledgerbeam.batch.json_schemas import Money, TotalsJson
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.amounts import read_totals, totals_json
from ledgerbeam.io.commit.attempts import Attempt, attempts, commits, find_manifest
from ledgerbeam.io.commit.control_log import Executing, Steering
from ledgerbeam.io.commit.records import AttemptRecord, Fence, ShardCommit, Totals

_DONE = (ComponentStatus.SUCCESS, ComponentStatus.FAILURE, ComponentStatus.UNKNOWN)
_COUNTS = ("components", "failed", "unknown", "retries")


class Progress(BaseModel):
    """How far a run is.

    In JSON, totals that are money are amounts with their currency.

    Attributes:
        at: time in UTC of this progress.
        shards_done: how many shards are committed.
        shards_before: how many of them were committed by earlier attempts.
        shards_total: how many shards there are; None where that is known only at the end.
        components: how many components have each status: those of committed shards, and those that
            workers report. Components that wait are counted only by their shards.
        tries: how often the components that are done were called, over all attempts. Components of
            shards that aren't committed yet count once.
        totals: rows and amounts of the committed shards, by name.
        total_decimals: decimals of totals that are money and whose name has no currency.
        executing: components that are being executed, as far as workers report them.
        stuck: those of them that were called more than once.
        workers: how many workers are alive.
        rate: components a second since the attempt began; None before the first one is done.
        estimated_end: time in UTC at which all shards are done if they go on at the same rate; None
            if that can't be said yet.
        steering: the limits and the state that workers follow.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_serialization_defaults_required=True
    )

    at: datetime.datetime
    shards_done: int = 0
    shards_before: int = 0
    shards_total: int | None = None
    components: dict[ComponentStatus, int] = {}
    tries: int = 0
    totals: Totals = {}
    total_decimals: dict[str, int] = Field(default={}, exclude=True)  # what is shown needs it
    executing: list[Executing] = []
    stuck: list[Executing] = []
    workers: int = 0
    rate: float | None = None
    estimated_end: datetime.datetime | None = None
    steering: Steering = Steering()

    @field_serializer("totals", when_used="json")
    def _totals_json(self, totals: Totals) -> TotalsJson:
        read = totals_json(totals, self.total_decimals)
        return {n: Money(**v) if isinstance(v, Mapping) else v for n, v in read.items()}

    @model_validator(mode="before")
    @classmethod
    def _read_json(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "total_decimals" not in given:
            totals, decimals = read_totals(given.get("totals", {}))
            return {**given, "totals": totals, "total_decimals": decimals}
        return given


class ProgressReader:
    """Looks at a run time after time; what can't change any more is read once.

    Attributes:
        seen: the marker of each committed shard, by the shard's number and in that order, as the
            last look has found them.
    """

    def __init__(self, run_uri: str) -> None:
        """Look at the run of that folder."""
        self._uri = run_uri
        self.seen: Mapping[int, ShardCommit] = {}
        self._markers: dict[str, ShardCommit | Fence] = {}
        self._began: datetime.datetime | None = None

    def _look(self) -> AttemptRecord | None:
        """See which shards are committed; gives the last attempt, or None where there was none yet.

        What earlier attempts have committed on the same input counts. Of an instance that has
        published, both are those of its manifest.
        """
        manifest = find_manifest(self._uri)
        if manifest is not None:
            self.seen = {commit.shard: commit for commit in manifest.shards}
            self._markers.clear()  # read no more
            return manifest.attempt
        records = attempts(self._uri)
        began = records[0].started_at if records else None
        if began != self._began:
            # Somebody has emptied the folder: names of files that were read may come again.
            self._markers.clear()
            self._began = began
        if not records:
            self.seen = {}
            return None
        last = records[-1]
        current = [r.number for r in records if r.fingerprint == last.fingerprint]
        self.seen = dict(sorted(commits(self._uri, current, self._markers).items()))
        return last

    def read(self, now: datetime.datetime, is_live: bool = True) -> Progress:
        """How far the run is.

        Args:
            now: the present time, or when the last attempt ended.
            is_live: whether an attempt is under way; workers of one that was killed may have
                left heartbeats.
        """
        last = self._look()
        if last is None:
            return Progress(at=now, steering=control_log.latest(self._uri))
        found = self.seen
        totals = Counter[str]()
        for commit in found.values():
            for name, total in commit.totals.items():  # `update` takes 40 ms of 10,000 shards
                totals[name] += total
        beats = control_log.heartbeats(Attempt(self._uri, last).uri, now) if is_live else []
        executing = [each for beat in beats for each in beat.executing]
        components = Counter(
            {
                ComponentStatus.SUCCESS: totals.get("components", 0)
                - totals.get("failed", 0)
                - totals.get("unknown", 0),
                ComponentStatus.FAILURE: totals.get("failed", 0),
                ComponentStatus.UNKNOWN: totals.get("unknown", 0),
                ComponentStatus.EXECUTING: sum(beat.in_flight for beat in beats),
            }
        )
        for beat in beats:
            components.update({ComponentStatus(name): n for name, n in beat.done.items()})
        of_last = [commit for commit in found.values() if commit.attempt == last.number]
        done_now = sum(commit.totals.get("components", 0) for commit in of_last)
        done_now += sum(sum(beat.done.values()) for beat in beats)
        seconds = (now - last.started_at).total_seconds()
        end = None
        shards = last.shards
        if shards is None and find_manifest(self._uri) is not None:
            shards = len(found)
        if shards is not None and of_last and seconds > 0:
            left = shards - len(found)
            end = now + datetime.timedelta(seconds=seconds / len(of_last) * left)
        return Progress(
            at=now,
            shards_done=len(found),
            shards_before=len(found) - len(of_last),
            shards_total=shards,
            components={status: n for status, n in components.items() if n},
            tries=sum(components[status] for status in _DONE) + totals.get("retries", 0),
            totals={n: v for n, v in totals.items() if n not in _COUNTS and n[-5:] != "_hash"},
            total_decimals=last.total_decimals,
            executing=executing,
            stuck=[each for each in executing if each.tries > 1],
            workers=len(beats),
            rate=done_now / seconds if done_now and seconds > 0 else None,
            estimated_end=end,
            steering=control_log.latest(self._uri),
        )
