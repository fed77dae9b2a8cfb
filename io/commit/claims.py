"""Calls that may be made only once: who makes one, how it ended, and what a person found out.

    INSTANCE/claims/
      00007-DIGEST-0.json            a worker is about to make the call
      00007-DIGEST-0.settled.json    how it ended; missing if its worker died
      00007-DIGEST-0.decided.json    what a person found out if that was unknown

The number at the end of a name is how often the component was called before.
"""

import datetime
import hashlib
from typing import NamedTuple

from ledgerbeam.io.commit.records import Record, load_record
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.storage import stores, uris

_DECIDED = ".decided.json"


class Claim(Record):
    """A record that a call that may be made only once is about to be made.

    Attributes:
        component: the component's key, as text.
        attempt: number of the attempt that makes the call.
    """

    component: str
    attempt: int


class Resolution(Record):
    """How a call that may be made only once has ended.

    Attributes:
        status: the component's status.
        error: why the component failed.
        code: the code of that error, if it has one.
        results: the component's rows, as an Arrow IPC stream in base 64; empty if there are none.
        traceback: of that error, cut to the workload's own frames.
    """

    status: str
    error: str = ""
    code: str = ""
    results: str = ""
    traceback: str = ""


class Decision(Record):
    """How a call whose outcome was unknown has ended, as a person has found out.

    Attributes:
        component: the component's key, as text.
        resolution: `SUCCESS` with the rows that the call would have given, or `FAILURE` if the
            call had no effect, so that the component may be called again.
        who: the person who decided.
        why: the reason, for the record.
        at: time of the decision in UTC.
    """

    component: str
    resolution: Resolution
    who: str
    why: str
    at: datetime.datetime


class Call(NamedTuple):
    """A call of an instance that may be made only once.

    Attributes:
        instance_uri: the instance's folder.
        shard: number of the component's shard.
        component: the component's key, as text.
        tries: how often the component was called before; each repetition is a person's decision.
    """

    instance_uri: str
    shard: int
    component: str
    tries: int

    def claim(self, attempt: int) -> bool:
        """Claim the call.

        Args:
            attempt: number of the attempt that is about to make it.

        Returns:
            Whether the caller may make it. If not, it was claimed before, and perhaps made.
        """
        failpoint("claim: before")
        claim = Claim(component=self.component, attempt=attempt)
        made = stores.create(self._uri(".json"), claim.to_json())
        failpoint("claim: made")
        return made

    def resolve(self, resolution: Resolution) -> None:
        """Record how the claimed call has ended."""
        failpoint("resolve: before")
        stores.create(self._uri(".settled.json"), resolution.to_json())
        failpoint("resolve: made")

    def resolution(self) -> Resolution | None:
        """How the claimed call has ended; None if that is unknown."""
        uri = self._uri(".settled.json")
        return None if stores.stat_of(uri) is None else load_record(Resolution, uri)

    def decide(self, decision: Decision) -> Decision:
        """Record what a person has found out; return the decision in force, which is the first."""
        uri = self._uri(_DECIDED)
        stores.create(uri, decision.to_json())
        stores.persist([uri])
        return load_record(Decision, uri)

    def decision(self) -> Decision | None:
        """What a person has found out; None if there is no decision."""
        uri = self._uri(_DECIDED)
        return None if stores.stat_of(uri) is None else load_record(Decision, uri)

    def _uri(self, suffix: str) -> str:
        digest = hashlib.sha256(self.component.encode()).hexdigest()[:32]
        name = f"{self.shard:05d}-{digest}-{self.tries}{suffix}"
        return uris.inside(self.instance_uri, f"claims/{name}")


def decided_shards(instance_uri: str) -> set[int]:
    """Numbers of the shards with components for which there is a decision."""
    pattern = uris.join(uris.escape(instance_uri), "claims", f"*{_DECIDED}")
    shards = (uris.base_name(file.uri).partition("-")[0] for file in stores.find(pattern))
    return {int(shard) for shard in shards if shard.isdecimal() and shard.isascii()}
