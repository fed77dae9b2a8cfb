"""Who is notified of events: the log, a webhook, a command.

`LEDGERBEAM_ALERTS` names a file, TOML or JSON, with the listeners:

    [[listener]]
    name = "on-call"
    kind = "webhook"
    url = "https://alerts.example.com/batch"   # or a reference, where the URL itself is secret
    secret = "env:ALERTS_SECRET"               # or file:PATH; `webhook` says how to check it
    allow_private = true                       # where its address is none of the internet
    types = ["status"]                         # all types where it is left out; so are the next two
    to_status = ["FAILURE"]                    # only moves to these
    processes = ["delivery-marking"]

    [[listener]]
    name = "pager"
    kind = "command"
    command = ["/usr/local/bin/page", "--team=batch"]   # no shell; the event is on its input
    types = ["sla_breach"]

    [[listener]]
    name = "log"
    kind = "log"
"""

import datetime
import hashlib
import json
import logging
import os
import signal
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ledgerbeam.batch.alerts.address import Webhook
from ledgerbeam.batch.alerts.post import DeliveryError
from ledgerbeam.batch.clock import Clock
from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.io.parsing import parse_json, parse_toml

CONFIG_VARIABLE = "LEDGERBEAM_ALERTS"

logger = logging.getLogger(__name__)


class _Listener(BaseModel):
    """What all kinds have: a filter, and how they are tried.

    Attributes:
        name: unique; stands for the listener in results and in the record of what is done.
        processes: only events of these; empty for all.
        types: only events of these types; empty for all. `status` is every move of a run, those
            by which an attempt begins or ends included.
        to_status: only moves of a run to these; empty for all events, moves or not.
        attempts: tries in one call of `deliver`, with exponential back-off and jitter.
        backoff_seconds: before the second try, doubled before each later one, up to a minute;
            as much again at most is added at random.
        give_up_after_seconds: age of an event from which a try that fails is the last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    processes: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    to_status: tuple[RunStatus, ...] = ()
    attempts: int = Field(default=1, ge=1, le=20)
    backoff_seconds: float = Field(default=1.0, ge=0, le=60)
    give_up_after_seconds: float = Field(default=3600.0, ge=0)

    def wants(self, event: Event) -> bool:
        """Whether the event passes the filter."""
        return (
            (not self.processes or event.process in self.processes)
            and (
                not self.types
                or event.type in self.types
                or ("status" in self.types and event.to_status is not None)
            )
            and (not self.to_status or event.to_status in self.to_status)
        )

    @abstractmethod
    def notify(self, event: Event, clock: Clock) -> None:
        """Try once.

        Raises:
            DeliveryError: the listener didn't take it.
            SecretError: its secret can't be had.
        """


class LogListener(_Listener):
    """Writes events to the log, as JSON."""

    kind: Literal["log"]
    level: Literal["INFO", "WARNING", "ERROR"] = "INFO"

    def notify(self, event: Event, clock: Clock) -> None:
        """See `_Listener.notify`."""
        level = logging.getLevelNamesMapping()[self.level]
        logger.log(level, "event %s", event_body(event).decode())


class WebhookListener(_Listener, Webhook):
    """Posts events as JSON; see `ledgerbeam.batch.alerts.webhook`."""

    kind: Literal["webhook"]
    attempts: int = Field(default=4, ge=1, le=20)

    def notify(self, event: Event, clock: Clock) -> None:
        """See `_Listener.notify`. Each try is signed with its own time."""
        self.send(event_id(event), event_body(event), clock())


class CommandListener(_Listener):
    """Runs a command with the event as JSON on its standard input.

    It has the caller's environment and `LEDGERBEAM_EVENT_ID`, `_TYPE`, `_RUN`, `_PROCESS`,
    `_INSTANCE` and `_STATUS` (the run's new one, or empty). Exit status 0 means that it took the
    event. After its time limit it is killed with all that it started.
    """

    kind: Literal["command"]
    command: tuple[str, ...] = Field(min_length=1)
    timeout_seconds: float = Field(default=30.0, gt=0, le=3600)

    def notify(self, event: Event, clock: Clock) -> None:
        """See `_Listener.notify`. What the command prints goes to the log."""
        # Files, not pipes: what a command leaves running in the background may hold a pipe open.
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
            given.write(event_body(event))
            given.seek(0)
            try:
                status = self._run(event, given, output)
            finally:
                printed = _tail(output)
                if printed:
                    logger.info("alert command %s printed: %s", self.name, printed)
        if status != 0:
            said = f": {printed.splitlines()[-1]}" if printed else ""
            raise DeliveryError(f"{self.command[0]} ended with {status}{said}", passing=True)

    def _run(self, event: Event, given: IO[bytes], output: IO[bytes]) -> int:
        try:
            process = subprocess.Popen(
                self.command,
                stdin=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | _environment(event),
                start_new_session=True,
            )
        except OSError as error:
            reason = f"{self.command[0]}: {error.strerror}: check the command"
            raise DeliveryError(reason, passing=False) from None
        try:
            return process.wait(self.timeout_seconds)
        except subprocess.TimeoutExpired:
            raise DeliveryError(
                f"{self.command[0]} was killed after {self.timeout_seconds:g} s", passing=True
            ) from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


Listener = LogListener | WebhookListener | CommandListener


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")

    listener: list[Annotated[Listener, Field(discriminator="kind")]] = []


def load_listeners(path: str | None = None) -> list[Listener]:
    """The listeners of a file, or of the one that `LEDGERBEAM_ALERTS` names; else none.

    Raises:
        ParameterError: the file can't be read, or something in it isn't right.
    """
    path = path or os.environ.get(CONFIG_VARIABLE)
    if not path:
        return []
    try:
        text = Path(path).read_text(encoding="utf-8")
        given = parse_json(text) if path.endswith(".json") else parse_toml(text)
        listeners = _Config.model_validate(given).listener
    except OSError as error:
        raise ParameterError(
            f"{path}: cannot read the listeners: {error.strerror}",
            parameter=CONFIG_VARIABLE,
            value=str(path),
        ) from error
    except ValidationError as error:
        raise ParameterError(
            f"{path}: {'; '.join(map(_problem, error.errors()))}",
            parameter=CONFIG_VARIABLE,
            value=str(path),
        ) from None
    except (UserError, ValueError) as error:  # of a secret; of the syntax
        raise ParameterError(
            f"{path}: {error}", parameter=CONFIG_VARIABLE, value=str(path)
        ) from None
    names = [listener.name for listener in listeners]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ParameterError(
            f"{path}: more than one listener is named {', '.join(twice)}: rename one",
            parameter=CONFIG_VARIABLE,
            value=str(path),
        )
    return listeners


def _problem(entry: Any) -> str:
    """A line without the value, which may be a secret in a wrong place."""
    place = [str(part) for part in entry["loc"]]
    if len(place) > 1 and place[0] == "listener":
        # The number from 1, and without the kind that pydantic puts behind it.
        place = [f"listener {int(place[1]) + 1}", *place[3:]]
    if entry["type"] == "union_tag_not_found":
        message = "kind is missing: give log, webhook or command"
    elif entry["type"] == "union_tag_invalid":
        message = f"kind is none of {entry['ctx']['expected_tags']}"
    else:
        message = str(entry["msg"]).removeprefix("Value error, ")
    return ": ".join([*place, message])


def event_id(event: Event) -> str:
    """The same for the same event wherever it is computed: a hash of its content."""
    return hashlib.sha256(event_body(event)).hexdigest()[:32]


def event_body(event: Event) -> bytes:
    """The event as JSON, the same wherever it comes from: fields sorted, time in UTC."""
    fields = event.model_copy(update={"at": utc(event.at)}).model_dump(mode="json")
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def utc(at: datetime.datetime) -> datetime.datetime:
    """`at` in UTC; a time without a zone is UTC already, as SQLite gives it back."""
    if at.tzinfo is None:
        return at.replace(tzinfo=datetime.UTC)
    return at.astimezone(datetime.UTC)


def _environment(event: Event) -> dict[str, str]:
    facts = {
        "ID": event_id(event),
        "TYPE": event.type,
        "RUN": event.run,
        "PROCESS": event.process,
        "INSTANCE": event.instance,
        "STATUS": event.to_status or "",
    }
    return {f"LEDGERBEAM_EVENT_{name}": str(value) for name, value in facts.items()}


def _tail(output: IO[bytes], size: int = 2000) -> str:
    end = output.seek(0, os.SEEK_END)
    output.seek(max(0, end - size))
    return output.read().decode(errors="replace").strip()
