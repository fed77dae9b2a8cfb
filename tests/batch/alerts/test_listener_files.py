"""Listeners are read from TOML, JSON or a variable; a mistake in it is one line."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledgerbeam.batch.alerts.listeners import (
    CommandListener,
    LogListener,
    WebhookListener,
    load_listeners,
)
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.errors import UserError

TOML = """
[[listener]]
name = "on-call"
kind = "webhook"
url = "https://alerts.example.com/batch"
secret = "env:ALERTS_SECRET"
types = ["status", "sla_breach"]
to_status = ["FAILURE"]
processes = ["delivery-marking"]

[[listener]]
name = "pager"
kind = "command"
command = ["/usr/local/bin/page", "--team=batch"]

[[listener]]
name = "log"
kind = "log"
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def loads(text: str, name: str = "alerts.toml") -> Any:
        path = tmp_path / name
        path.write_text(text)
        return load_listeners(str(path))

    return loads


def test_listeners_are_read_from_toml_json_or_the_variable(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    listeners = load(TOML)
    assert [type(each) for each in listeners] == [WebhookListener, CommandListener, LogListener]
    assert listeners[0].to_status == (RunStatus.FAILURE,)
    assert load(json.dumps(tomllib.loads(TOML)), "alerts.json") == listeners
    assert load_listeners() == []
    monkeypatch.setenv("LEDGERBEAM_ALERTS", str(tmp_path / "alerts.json"))
    assert load_listeners() == listeners


HOOK = '[[listener]]\nname="a"\nkind="webhook"\nurl="https://x"\nsecret="env:X"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x", "Expected '=' after a key"),
        ("listeners = 1", "listeners: Extra inputs"),
        ("listener = 1", "listener: Input should be a valid list"),
        ("[[listener]]\nname='a'", "listener 1: kind is missing"),
        ("[[listener]]\nname='a'\nkind='fax'", "listener 1: kind is none of 'log', 'webhook'"),
        (HOOK + HOOK.replace('"a"', '""'), "listener 2: name: String should have"),
        (HOOK + HOOK, "more than one listener is named a"),
        (HOOK.replace("https:", "ftp:"), "listener 1: url: give http"),
        (HOOK.replace("https://x", "http://u:c4nary@x"), "listener 1: url: no user or password"),
        (HOOK.replace("https://x", "env:c4nary key"), "give env:NAME or file:PATH"),
        (HOOK.replace("env:X", "c4nary"), "secret: a secret is given by reference"),
        (HOOK + "password='c4nary'", "listener 1: password: Extra inputs"),
        (HOOK + "attempts=0", "listener 1: attempts: Input should be greater"),
        (HOOK + "timeout_seconds='c4nary'", "listener 1: timeout_seconds: Input should be a valid"),
        (HOOK + "to_status=['LOST']", "listener 1: to_status: 0: Input should be 'INITIATED'"),
        ("[[listener]]\nname='a'\nkind='command'\ncommand=[]", "listener 1: command: "),
        ("[[listener]]\nname='a'\nkind='command'\ncommand='page now'", "listener 1: command: "),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_its_place(
    load: Callable[..., Any], text: str, why: str
) -> None:
    with pytest.raises(UserError) as raised:
        load(text)
    message = str(raised.value)
    assert "alerts.toml: " in message
    assert why in message
    assert "\n" not in message
    assert "c4nary" not in message.replace("alerts.toml", "")


def test_files_that_cannot_be_read_are_named(load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.toml: cannot read the listeners: No such file"):
        load_listeners(str(tmp_path / "absent.toml"))
    for text in ("[", "[]", '"x"'):
        with pytest.raises(UserError, match=r"alerts\.json: "):
            load(text, "alerts.json")
