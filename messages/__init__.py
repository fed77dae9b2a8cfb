"""Messages to the future: sent now, in the sender's transaction, and handled when they are due.

| name | what it is |
| --- | --- |
| `Message` | base of messages |
| `MessageHandler`, `Work` | what is done with each message of a topic, and what that is given |
| `schedule`, `schedule_many`, `Outgoing` | send messages to the moments at which they are due |
| `cancel`, `reschedule` | withdraw or move what hasn't been posted |
| `LocalTime`, `Gap`, `Overlap` | moments by clocks and calendars of a place |
| `Recurrence` | times that come again |
| `Rollout` | the stages in which customers get a new rule of a handler |
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ledgerbeam.messages.define.handler import MessageHandler as MessageHandler
    from ledgerbeam.messages.define.handler import Work as Work
    from ledgerbeam.messages.model.local_time import Gap as Gap
    from ledgerbeam.messages.model.local_time import LocalTime as LocalTime
    from ledgerbeam.messages.model.local_time import Overlap as Overlap
    from ledgerbeam.messages.model.local_time import Recurrence as Recurrence
    from ledgerbeam.messages.model.message import Message as Message
    from ledgerbeam.messages.store.send import Outgoing as Outgoing
    from ledgerbeam.messages.store.send import cancel as cancel
    from ledgerbeam.messages.store.send import reschedule as reschedule
    from ledgerbeam.messages.store.send import schedule as schedule
    from ledgerbeam.messages.store.send import schedule_many as schedule_many
    from ledgerbeam.rules.rollout import Rollout as Rollout

# Imported on first use: a sender needs neither handlers nor calendars.
_MODULES = {
    "Gap": "messages.model.local_time",
    "LocalTime": "messages.model.local_time",
    "Message": "messages.model.message",
    "MessageHandler": "messages.define.handler",
    "Outgoing": "messages.store.send",
    "Overlap": "messages.model.local_time",
    "Recurrence": "messages.model.local_time",
    "Rollout": "rules.rollout",
    "Work": "messages.define.handler",
    "cancel": "messages.store.send",
    "reschedule": "messages.store.send",
    "schedule": "messages.store.send",
    "schedule_many": "messages.store.send",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ledgerbeam.{_MODULES[name]}"), name)
