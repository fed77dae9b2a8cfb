"""Secrets are given by reference, resolved where they are used, and shown nowhere."""

import json
import logging
import pickle
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter
from sqlalchemy import make_url

from ledgerbeam.io import secrets
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.secrets import DatabaseUrl, RedactSecrets, Secret, redact, resolve_url

CANARY = 'c4n@ry/ with ümläut&"quotes"\'%\\'


class Prices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    date: str
    api_key: Secret
    spare_key: Secret | None = None
    database: DatabaseUrl = "sqlite://"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", secrets._Remembered())


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Secret:
    monkeypatch.setenv("CANARY", CANARY)
    return Secret("env:CANARY")


def test_a_parameter_shows_stores_and_pickles_its_reference_only(canary: Secret) -> None:
    prices = Prices(date="2026-11-20", api_key=canary)
    assert prices.api_key.resolve() == CANARY
    for shown in (
        str(canary),
        f"{canary}",
        repr(prices),
        prices.model_dump_json(),
        json.dumps(prices.model_dump(mode="json")),
        repr(pickle.dumps(prices)),
    ):
        assert "env:CANARY" in shown
        assert "c4n" not in shown
    assert pickle.loads(pickle.dumps(prices)) == prices
    assert Prices.model_validate_json(prices.model_dump_json()) == prices
    assert Prices.model_json_schema()["properties"]["api_key"]["type"] == "string"


@pytest.mark.parametrize(
    "ending", ["", "\n", "\r\n"], ids=["bare", "line feed", "carriage return and line feed"]
)
def test_a_file_gives_its_content_without_the_last_line_break(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(f" two\n lines {ending}".encode())
    assert Secret(f"file:{file}").resolve() == " two\n lines "


def test_a_secret_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "key"
    secret = Secret(f"file:{file}")
    for value in ("first", "second"):
        file.write_text(value)
        assert secret.resolve() == value
    assert redact("first second third") == "*** *** third"


def test_what_cannot_be_resolved_is_one_line_that_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for reference, why in {
        "env:ABSENT": "not set",
        "env:EMPTY": "empty",
        f"file:{tmp_path}/absent": "No such file",
        f"file:{tmp_path}/empty": "empty",
        f"file:{tmp_path}/binary": "not UTF-8",
        f"file:{tmp_path}": "Is a directory",
    }.items():
        with pytest.raises(UserError, match=why) as raised:
            Secret(reference).resolve()
        assert str(raised.value).startswith(reference)


@pytest.mark.parametrize("literal", ["c4nary", "env:c4nary!", "env:", "file:", 4711, {"c4nary": 1}])
@pytest.mark.parametrize("field", ["api_key", "spare_key"])
def test_a_literal_is_refused_and_not_repeated(field: str, literal: Any) -> None:
    given_keys = {"api_key": "env:X", "date": "2026-11-20", field: literal}
    # A second mistake must not make pydantic tell the whole input.
    for data in (given_keys, {**given_keys, "date": 1}, {field: literal}):
        with pytest.raises(UserError) as raised:
            Prices.model_validate(data)
        message = str(raised.value)
        assert message.startswith(f"{field}: ")
        assert "give env:NAME or file:PATH" in message
        assert "c4n" not in message
        assert "4711" not in message


def test_a_literal_is_refused_without_a_model_too() -> None:
    for make in (Secret, TypeAdapter(Secret).validate_python):
        with pytest.raises(UserError, match="give env:NAME or file:PATH") as raised:
            make("c4nary")
        assert "c4nary" not in str(raised.value)


PASSWORDS = st.text(min_size=1, max_size=12).filter(lambda text: "\0" not in text)


@given(PASSWORDS)
@example(CANARY)
@example("a/b@c:d?e#f")
def test_references_in_a_url_become_the_values_that_the_driver_sees(password: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "_remembered", secrets._Remembered())
        patch.setenv("PW", password)
        url = make_url(resolve_url("postgresql+psycopg://batch:${env:PW}@db:5432/prices?a=b"))
    assert (url.username, url.password, url.host, url.port) == ("batch", password, "db", 5432)
    assert url.database == "prices"


@given(PASSWORDS)
def test_whatever_sqlalchemy_takes_for_a_password_is_refused(password: str) -> None:
    url = f"postgresql://batch:{password}@db/prices"
    try:
        seen = make_url(url).password
    except Exception:
        seen = None
    if seen and not secrets._EMBEDDED.search(url):
        with pytest.raises(UserError):
            resolve_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://batch:c4nary@db/prices",
        "postgresql://batch:c4n%41ry@db/prices",
        "postgresql://batch:c4nary${env:PW}@db/prices",
        "postgresql://batch@db/prices?password=c4nary",
        "postgresql://db/prices?sslmode=require&sslpassword=c4nary",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Du%3BPWD%3Dc4nary",
        "postgresql://batch:${c4nary}@db/prices",
        "c4nary",
        4711,
    ],
)
def test_a_literal_password_in_a_url_is_refused_and_not_repeated(url: Any) -> None:
    for refuse in (
        lambda: resolve_url(url),
        lambda: Prices(date="2026-11-20", api_key=Secret("env:X"), database=url),
    ):
        with pytest.raises(UserError) as raised:
            refuse()
        assert "c4n" not in str(raised.value)
        assert "{env:NAME}" in str(raised.value) or "give URL" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////data/registry.db",
        "postgresql://db/prices",
        "postgresql://batch@db/prices?sslmode=require&passfile=/etc/pgpass",
        "postgresql://batch:@db/prices",
    ],
)
def test_urls_without_a_password_are_taken_as_they_are(url: str) -> None:
    prices = Prices(date="2026-11-20", api_key=Secret("env:X"), database=url)
    assert prices.database == resolve_url(url) == url


def test_a_url_can_be_a_reference_as_a_whole_and_its_password_is_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "postgresql://batch:c4n%40ry@db/prices?sslpassword=hidden"
    monkeypatch.setenv("DATABASE_URL", url)
    assert resolve_url("env:DATABASE_URL") == url
    assert redact(f"cannot connect to {url}") == "cannot connect to ***"
    assert redact("password c4n@ry is wrong, or hidden") == "password *** is wrong, or ***"


def test_files_can_stand_in_a_url(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("batch\n")
    (tmp_path / "pass@word").write_text("a/b\n")
    url = f"postgresql://${{file:{tmp_path}/user}}:${{file:{tmp_path}/pass@word}}@db/prices"
    assert resolve_url(url) == "postgresql://batch:a%2Fb@db/prices"


@pytest.mark.parametrize("secret", [CANARY, "a  b\tc", "-----BEGIN-----\n" + "x" * 64 + "\n---"])
def test_a_secret_is_redacted_in_the_forms_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("KEY", secret)
    text = f"unknown: {secret}"
    assert redact(text) == text
    Secret("env:KEY").resolve()
    for form in (
        secret,
        quote(secret),
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        str(UserError(secret)),
        str(make_url("p://h").set(username="u", password=secret).render_as_string(False))[6:-2],
    ):
        assert redact(f"<{form}>") == "<***>"
    if "x" * 64 in secret:
        assert redact(f"bad line {'x' * 64}") == "bad line ***"


@given(st.lists(st.text(min_size=4), min_size=1, max_size=4), st.text(), st.text())
def test_no_secret_is_left_however_they_overlap(values: list[str], before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "_remembered", secrets._Remembered())
        for value in values:
            secrets.remember(value)
        for value in values:
            left = redact(before + value + after).split("***")
            assert not any(value in part for part in left)


def test_words_are_left_by_a_secret_that_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, redacted in (("x", "execute"), ("exe", "execute"), ("exec", "***ute")):
        with monkeypatch.context() as patch:
            patch.setattr(secrets, "_remembered", secrets._Remembered())
            patch.setenv("KEY", value)
            assert Secret("env:KEY").resolve() == value
            assert redact("execute") == redacted


class Recorder(logging.Handler):
    """Keeps the records that pass its filters."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


def logged(*handlers: logging.Handler) -> logging.Logger:
    log = logging.Logger("test")
    for handler in handlers:
        log.addHandler(handler)
    return log


def test_log_records_lose_secrets_in_message_arguments_exception_and_stack(canary: Secret) -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactSecrets())
    log = logged(handler)
    value = canary.resolve()
    log.error("in the message: " + value)
    log.error("in the arguments: %s and %r", value, {"key": value})
    log.error("arguments that don't fit: %d", value)
    log.error(value, stack_info=True)
    try:
        try:
            raise ValueError(f"cause {value}")
        except ValueError as error:
            raise RuntimeError(f"in the exception {value}") from error
    except RuntimeError:
        log.exception("raised")
    text = stream.getvalue()
    assert "c4n" not in text
    assert text.count("***") >= 7
    assert "RuntimeError: in the exception ***" in text
    assert "ValueError: cause ***" in text


def test_records_without_secrets_pass_untouched(canary: Secret) -> None:
    canary.resolve()
    records: list[logging.LogRecord] = []
    handler = Recorder(records)
    handler.addFilter(RedactSecrets())
    try:
        raise ValueError("harmless")
    except ValueError:
        logged(handler).exception("%d of %d", 1, 2)
    (record,) = records
    assert record.msg == "%d of %d"
    assert record.args == (1, 2)
    assert record.exc_info is not None


def test_formatting_the_exception_again_brings_nothing_back(canary: Secret) -> None:
    records: list[logging.LogRecord] = []
    handler = Recorder(records)
    handler.addFilter(RedactSecrets())
    try:
        raise ValueError(canary.resolve())
    except ValueError:
        logged(handler).exception("failed")
    assert records[0].exc_info is None
    assert "ValueError: ***" in logging.Formatter().format(records[0])
