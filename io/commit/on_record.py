"""The mark of an instance that is on record: only runs of its registry publish it from then on.

    INSTANCE/on-record.json     which run of which submitter has put it on record

Who marks an instance gives up its attempts without a record. Who begins such an attempt looks for
the mark once the attempt is there. So whichever comes first, one of the two sees the other.
"""

import datetime

from pydantic import AwareDatetime

from ledgerbeam.io.commit.attempts import Attempt, attempts, ending_of, fence
from ledgerbeam.io.commit.records import Fence, Record, load_record
from ledgerbeam.io.errors import OnRecordError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.storage import stores, uris

MARK = "on-record.json"


class OnRecord(Record):
    """What the mark says.

    Attributes:
        run: id of the run that was recorded first; one that replaced it later has another.
        name: of the run, as people call it, whatever replaces it.
        who: submitted it.
        at: time in UTC.
    """

    run: str
    name: str
    who: str
    at: AwareDatetime


def find_mark(instance_uri: str) -> OnRecord | None:
    """The mark of an instance; None where it isn't on record."""
    uri = uris.inside(instance_uri, MARK)
    return None if stores.stat_of(uri) is None else load_record(OnRecord, uri)


def put_on_record(instance_uri: str, run: str, name: str, who: str, at: datetime.datetime) -> None:
    """Mark an instance, unless it is marked, and give up its attempts without a record.

    Shards that these have committed are kept. One that has published has won.

    Args:
        instance_uri: URI of the instance.
        run: id of the run that is recorded.
        name: of that run.
        who: submitted it.
        at: the present time in UTC.
    """
    uri = uris.inside(instance_uri, MARK)
    if stores.create(uri, OnRecord(run=run, name=name, who=who, at=at).to_json()):
        stores.persist([uri])
    failpoint("record: marked")
    why = f"the instance is on record as {name} (run {run})"
    for record in attempts(instance_uri):
        if not record.run and ending_of(Attempt(instance_uri, record).uri) is None:
            fence(instance_uri, record, Fence(fenced_at=at, who=who, why=why))


def refuse_if_on_record(instance_uri: str) -> None:
    """Let nobody publish an instance that is on record without its registry knowing.

    Raises:
        OnRecordError: it is on record.
    """
    mark = find_mark(instance_uri)
    if mark is not None:
        raise OnRecordError(
            f"{instance_uri}: on record as {mark.name} (run {mark.run}, submitted by {mark.who}), "
            f"so only its registry's runs publish it: see `ledgerbeam get {mark.name}`, go on with "
            f"it by `ledgerbeam retry {mark.name}`, or name that registry by --registry",
            uri=instance_uri,
            run=mark.run,
        )
