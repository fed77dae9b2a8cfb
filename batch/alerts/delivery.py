"""Alerts: listeners are notified of events, of each event at least once.

What a listener doesn't take is tried again in later calls of `deliver`, and given up for an hour
after the event. The caller keeps which pairs of event and listener are done, and is done with
an event when all of its pairs are:

    deliveries = deliver(events, listeners, done, clock)
    done |= {delivery.key for delivery in deliveries if delivery.is_done}
    waiting = {delivery.event for delivery in deliveries if not delivery.is_done}
    mark([event for event in events if event_id(event) not in waiting])
"""

import datetime
import logging
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import NamedTuple

import tenacity

from ledgerbeam.batch.alerts.listeners import Listener, event_id, utc
from ledgerbeam.batch.alerts.post import DeliveryError
from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.logs import correlation
from ledgerbeam.batch.model.events import Event
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.secrets import redact

TIMEOUT = datetime.timedelta(minutes=1)
"""How long a call begins new tries with a listener."""

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How the delivery of an event to a listener stands."""

    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    GAVE_UP = "GAVE_UP"


class Delivery(NamedTuple):
    """What became of an event at a listener.

    Attributes:
        event: its id.
        listener: its name.
        outcome: `FAILED` is to be tried again in a later call.
        tries: in this call; 0 where the listener's time was up.
        why: the reason in one line, unless it was delivered.
    """

    event: str
    listener: str
    outcome: Outcome
    tries: int
    why: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the listener has the event, or will never be notified of it again."""
        return self.outcome != Outcome.FAILED

    @property
    def key(self) -> tuple[str, str]:
        """Event and listener, for the caller's collection of what is done."""
        return self.event, self.listener


def deliver(
    events: Sequence[Event],
    listeners: Sequence[Listener],
    done: Collection[tuple[str, str]] = (),
    clock: Clock = utc_now,
) -> list[Delivery]:
    """Tell each listener, side by side, of each event that it wants.

    Never raises for what a listener does. Events come in their order, except those that a listener
    didn't take before. A listener that fails at an event gets one try at each later one, and after
    `TIMEOUT` the rest has to wait for the next call: who is down doesn't hold up the caller.

    Args:
        events: in the order of time.
        listeners: whom to notify.
        done: keys of deliveries that need no more, from earlier calls.
        clock: the time in UTC.

    Returns:
        A delivery for each event and listener that wants it and isn't done.
    """
    if not listeners:
        return []
    with ThreadPoolExecutor(len(listeners), "alerts") as threads:
        made = threads.map(lambda each: list(_notify_all(each, events, done, clock)), listeners)
        return [delivery for deliveries in made for delivery in deliveries]


def _notify_all(
    listener: Listener,
    events: Sequence[Event],
    done: Collection[tuple[str, str]],
    clock: Clock,
) -> Iterator[Delivery]:
    began = clock()
    attempts = listener.attempts
    for event in events:
        key = event_id(event), listener.name
        if key in done or not listener.wants(event):
            continue
        if clock() - began >= TIMEOUT:
            yield Delivery(*key, Outcome.FAILED, 0, "no time was left for it")
            continue
        tries, why = _try(listener, event, attempts, clock)
        if not why:
            yield Delivery(*key, Outcome.DELIVERED, tries)
            continue
        attempts = 1
        age = (clock() - utc(event.at)).total_seconds()
        gave_up = age >= listener.give_up_after_seconds
        yield Delivery(*key, Outcome.GAVE_UP if gave_up else Outcome.FAILED, tries, why)


def _try(listener: Listener, event: Event, attempts: int, clock: Clock) -> tuple[int, str]:
    """How often a listener was tried, and why it didn't take the event; empty if it did."""
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential(listener.backoff_seconds, max=60)
        + tenacity.wait_random(0, listener.backoff_seconds),
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, DeliveryError) and error.passing
        ),
        reraise=True,
    )
    why = ""
    with correlation(event.run, event.attempt):
        try:
            retrying(listener.notify, event, clock)
        except (DeliveryError, UserError) as error:
            why = redact(str(error))
            logger.warning("listener %s didn't take event %s: %s", listener.name, event.type, why)
        except Exception as error:  # a bug of ours must not cost other listeners their events
            why = redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
            logger.exception("listener %s failed at event %s", listener.name, event.type)
    return int(retrying.statistics["attempt_number"]), why
