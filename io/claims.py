"""Calls that may be made once only: who makes one, how it ended, and what a person found out.

    INSTANCE/claims/
      00007-DIGEST-0.json            somebody is about to make the call
      00007-DIGEST-0.settled.json    how it ended; missing where its worker died
      00007-DIGEST-0.decided.json    what a person found out where nobody knew

The number at the end of a name is how often the component was called before.
"""

import datetime
import hashlib
from typing import NamedTuple

from ledgerbeam.io import storage
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.records import Record, load_record

_DECIDED = ".decided.json"


class Claim(Record):
    """A call that may be made once only, and was about to be made.

    Attributes:
        component: its key, as text.
        attempt: that made the call.
    """

    component: str
    attempt: int


class Settlement(Record):
    """How a call that may be made once only has ended.

    Attributes:
        status: of the component.
        error: why it failed.
        results: its rows, as an Arrow IPC stream in base 64; empty for none.
    """

    status: str
    error: str = ""
    results: str = ""


class Decision(Record):
    """How a call has ended of which nobody knew, as a person has found out.

    Attributes:
        component: its key, as text.
        settlement: `SUCCESS` with the rows that it would have given, or `FAILURE` where it had
            no effect, so that the component may be called again.
        who: decided.
        why: for the record.
        at: time in UTC.
    """

    component: str
    settlement: Settlement
    who: str
    why: str
    at: datetime.datetime


class Call(NamedTuple):
    """A call of an instance that may be made once only.

    Attributes:
        instance_uri: the instance's folder.
        shard: of the component.
        component: its key, as text.
        tries: how often it was called before, by a person's decision.
    """

    instance_uri: str
    shard: int
    component: str
    tries: int

    def claim(self, attempt: int) -> bool:
        """Make the claim to the call.

        Args:
            attempt: that is about to make it.

        Returns:
            Whether it is this one's to make. Else it was made before, or was about to be.
        """
        failpoint("claim: before")
        claim = Claim(component=self.component, attempt=attempt)
        made = storage.create(self._uri(".json"), claim.to_json())
        failpoint("claim: made")
        return made

    def settle(self, settlement: Settlement) -> None:
        """Record how the claimed call has ended."""
        failpoint("settle: before")
        storage.create(self._uri(".settled.json"), settlement.to_json())
        failpoint("settle: made")

    def settlement(self) -> Settlement | None:
        """How the claimed call has ended; None where nobody knows."""
        uri = self._uri(".settled.json")
        return None if storage.stat_of(uri) is None else load_record(Settlement, uri)

    def decide(self, decision: Decision) -> Decision:
        """Record what a person has found out, and give what stands: the first decision does."""
        uri = self._uri(_DECIDED)
        storage.create(uri, decision.to_json())
        storage.persist([uri])
        return load_record(Decision, uri)

    def decision(self) -> Decision | None:
        """What a person has found out; None where nobody has."""
        uri = self._uri(_DECIDED)
        return None if storage.stat_of(uri) is None else load_record(Decision, uri)

    def _uri(self, suffix: str) -> str:
        digest = hashlib.sha256(self.component.encode()).hexdigest()[:32]
        name = f"{self.shard:05d}-{digest}-{self.tries}{suffix}"
        return storage.join(self.instance_uri, "claims", name)


def decided_shards(instance_uri: str) -> set[int]:
    """Numbers of the shards with components that somebody has decided about."""
    pattern = storage.join(storage.escape(instance_uri), "claims", f"*{_DECIDED}")
    return {int(file.uri.rpartition("/")[2].partition("-")[0]) for file in storage.find(pattern)}
