"""The rollouts of a batch process, on record beside its results.

    PROCESS/
      rollout/000001.json                       the first entry; the last one is in force
      rollout/000002.json                       the second one
      rollout/000002-runs/2026-11-20            an instance that was begun under it

The log only grows. An entry is made by reading the last one and creating the next number, if that
number isn't taken: a compare-and-set.
"""

import re
from typing import Any, NamedTuple

from pydantic import AwareDatetime, Field

from ledgerbeam.io.commit.records import Record, load_record
from ledgerbeam.io.storage import stores, uris

FOLDER = "rollout"
_ENTRY = re.compile(r"(\d{6})\.json")


class RolloutRecord(Record):
    """An entry; see `ledgerbeam.batch.model.rollout.RolloutEntry`.

    Attributes:
        plan: what the definition says of the rollout.
    """

    number: int = Field(ge=1, lt=1_000_000)
    at: AwareDatetime
    what: str
    rule: int
    old_rule: int
    stage: str
    asked: str | None = None
    who: str
    why: str = ""
    handled: int | None = None
    failed: int | None = None
    forced: bool = False
    plan: dict[str, Any]


class RolloutLog(NamedTuple):
    """The log of a process's rollouts.

    Attributes:
        output: where results of the process go.
        process: its name.
    """

    output: str
    process: str

    @property
    def uri(self) -> str:
        """Its folder."""
        return uris.inside(uris.absolute(self.output), f"{self.process}/{FOLDER}")

    def entries(self) -> list[RolloutRecord]:
        """All entries in their order.

        Raises:
            DamagedFileError: an entry is damaged.
        """
        found = stores.find(uris.join(uris.escape(self.uri), "*.json"))
        places = [file.uri for file in found if _ENTRY.fullmatch(uris.base_name(file.uri))]
        return [load_record(RolloutRecord, place) for place in sorted(places)]

    def append(self, entry: RolloutRecord) -> bool:
        """Write an entry, unless another one has its number."""
        return stores.create(uris.join(self.uri, f"{entry.number:06d}.json"), entry.to_json())

    def note_run(self, number: int, instance: str) -> None:
        """Note that an instance is begun under an entry; may be called again."""
        stores.create(uris.join(self._runs(number), instance), b"")

    def runs(self, number: int) -> list[str]:
        """Names of the instances that were begun under an entry."""
        found = stores.find(uris.join(uris.escape(self._runs(number)), "*"))
        return sorted(uris.base_name(file.uri) for file in found)

    def _runs(self, number: int) -> str:
        return uris.join(self.uri, f"{number:06d}-runs")
