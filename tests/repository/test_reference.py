"""The reference page says what the code says: attributes, defaults, moves, verbs, variables."""

import datetime
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from tests.support.pages import ROOT

from ledgerbeam.batch import environments, interrupts, logs, settings
from ledgerbeam.batch.alerts import listeners
from ledgerbeam.batch.cli.verbs import app
from ledgerbeam.batch.define.expect import Expect
from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.process import BatchProcess, Retry
from ledgerbeam.batch.model.exits import EXITS_OF_ERRORS, Exit
from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.model.status import MOVES
from ledgerbeam.io import errors, machine, private
from ledgerbeam.io.errors import LedgerbeamError, UserError

PAGE = (ROOT / "docs" / "batch-processes.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()


def table(head: str, page: str = PAGE) -> Iterator[tuple[str, str]]:
    """The first two cells of each row of the table whose first row begins with `head`."""
    lines = page[page.index(f"| {head} |") :].splitlines()
    for line in lines[2:]:
        if not line.startswith("|"):
            return
        first, second = line.split("|")[1:3]
        yield first.strip(" `"), second.strip()


def shown(default: Any) -> str:
    match default:
        case None | ():
            return "none"
        case datetime.timedelta():
            return f"{default // datetime.timedelta(hours=1)} hours"
        case Retry():
            return "`Retry()`"
        case Expect():
            return f"`Expect(min_rows={default.min_rows})`"
        case QueuePolicy():
            return "`QueuePolicy()`"
    return f"`{default}`"


def test_every_attribute_is_there_with_its_default() -> None:
    attributes = [
        name
        for kind in (BatchProcess, KeyedProcess)
        for name, annotation in vars(kind)["__annotations__"].items()
        # These may be one instance's own.
        if "ClassVar" in str(annotation) or name in {"failure_limit", "expect"}
        # The base names it.
        if name != "parameters_type"
    ]
    expected = {
        name: shown(getattr(KeyedProcess, name)) if hasattr(KeyedProcess, name) else "required"
        for name in attributes
    }
    # These may depend on parameters: attributes or properties.
    expected |= {"key": "required", "optional": "none"}
    assert dict(table("attribute")) == expected


def test_so_is_every_attribute_of_retry() -> None:
    expected = {field.name: shown(field.default) for field in fields(Retry)}
    assert dict(table("attribute of `Retry`")) == expected | {"never": "mistakes"}


def test_the_moves_are_the_legal_ones() -> None:
    moves = {start: set(re.findall(r"`(\w+)`", ends)) for start, ends in table("from")}
    assert moves == {start.value: {end.value for end in ends} for start, ends in MOVES.items()}


def test_every_verb_is_shown_at_work() -> None:
    consoles = "".join(re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL))
    verbs = [
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback is not None
    ]
    assert len(verbs) > 10
    assert [verb for verb in verbs if f"ledgerbeam {verb}" not in consoles] == []


def test_every_variable_is_there() -> None:
    assert dict(table("variable")).keys() == {
        settings.REGISTRY,
        settings.STATE,
        environments.CONFIG,
        environments.NAME,
        settings.LEASE,
        private.VARIABLE,
        machine.HOST,
        listeners.CONFIG_VARIABLE,
        logs.FORMAT_VARIABLE,
    }


def test_every_code_of_an_error_is_there() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {
        (kind.code, f"`{kind.__name__}`", issubclass(kind, UserError))
        for kind in kinds
        if issubclass(kind, LedgerbeamError) and kind is not LedgerbeamError
    }
    shown = {(code, name, True) for code, name in table("code", ERRORS)}
    assert shown | {(code, name, False) for code, name in table("code of a call", ERRORS)} == codes


def test_so_is_every_exit_status_with_the_codes_that_end_in_it() -> None:
    rows = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \| (.*) \|$", ERRORS, re.MULTILINE)
    assert {name: int(status) for status, name, _ in rows} == Exit.__members__
    shown = {code: name for _, name, when in rows for code in re.findall(r"`([a-z][a-z-]+)`", when)}
    del shown["compare"]
    assert shown == {kind.code: status.name for kind, status in EXITS_OF_ERRORS.items()}
    assert interrupts.status_of(KeyboardInterrupt()) == Exit.INTERRUPTED
    assert interrupts.status_of(interrupts.Terminated()) == Exit.TERMINATED


def test_what_the_table_of_errors_calls_an_attribute_is_one() -> None:
    rows = re.findall(r"^\| `[\w-]+` \| `(\w+)` \| (.*)$", ERRORS, re.MULTILINE)
    assert len(rows) > 40
    for name, text in rows:
        attributes = {field.name for field in fields(getattr(errors, name))}
        assert set(re.findall(r"`([a-z_]+)`", text)) <= attributes, name
