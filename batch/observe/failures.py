"""The event that lists components that failed in a run that has published all the same."""

import datetime
import itertools

from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.observe.components import components_of
from ledgerbeam.io.commit.attempts import load_manifest

_LISTED = 1_000


def failure_event(run: RunRecord, attempt: int, who: str, at: datetime.datetime) -> Event | None:
    """The event of a published run; None where no component has failed.

    Args:
        run: that has published.
        attempt: its last one, by the registry's number.
        who: signs the event.
        at: time in UTC.
    """
    counts = load_manifest(run.uri).counts
    failed = counts.get("failed", 0)
    if not failed:
        return None
    listed = list(itertools.islice(components_of(run.uri, ComponentStatus.FAILURE), _LISTED))
    return Event(
        run=run.id,
        process=run.process,
        instance=run.instance,
        attempt=attempt,
        at=at,
        who=who,
        type=run.options.failure_event,
        why=f"{failed:,} of {counts['components']:,} components failed",
        detail={
            "components": {outcome.component: outcome.error for outcome in listed},
            "codes": {outcome.component: outcome.code for outcome in listed if outcome.code},
        },
    )
