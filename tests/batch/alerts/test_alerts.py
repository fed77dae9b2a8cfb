"""Events reach every listener at least once, whatever another listener does."""

import datetime
import json
import logging
import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from datetime import UTC, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.batch import logs
from ledgerbeam.batch.alerts.delivery import Delivery, Outcome, deliver
from ledgerbeam.batch.alerts.listeners import (
    CommandListener,
    Listener,
    LogListener,
    WebhookListener,
    event_body,
    event_id,
)
from ledgerbeam.batch.alerts.post import is_public
from ledgerbeam.batch.alerts.webhook import EVENT_HEADER, SIGNATURE_HEADER, verify_signature
from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io import secrets

NOW = datetime.datetime(2026, 11, 20, 22, tzinfo=UTC)
SECRET = "c4nary-shared-secret"


def event(number: int = 1, **fields: Any) -> Event:
    return Event(
        **{
            "run": "8f3a",
            "process": "delivery-marking",
            "instance": "2026-11-20",
            "attempt": 1,
            "at": NOW,
            "who": "launcher@host",
            "type": "status",
            "from_status": RunStatus.EXECUTING,
            "to_status": RunStatus.FAILURE,
            "why": "shärd 7 failed",
            "detail": {"number": number},
            **fields,
        }
    )


class Receiver:
    """An HTTP server on loopback that answers as it is told, and keeps what it got."""

    def __init__(self, *answers: int, otherwise: int = 200) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.hangs = threading.Event()
        self.location = ""
        self._answers = list(answers)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers.items()), body))
                answer = receiver._answers.pop(0) if receiver._answers else otherwise
                if answer == 0:  # never, as far as the client can wait
                    receiver.hangs.wait(60)
                    return
                self.send_response(answer)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.hangs.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", secrets._Remembered())
    monkeypatch.setenv("ALERTS_SECRET", SECRET)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("LEDGERBEAM_ALERTS", raising=False)


def webhook(url: str, **fields: Any) -> WebhookListener:
    given = {
        "name": "webhook",
        "kind": "webhook",
        "url": url,
        "secret": "env:ALERTS_SECRET",
        "backoff_seconds": 0.001,
        "timeout_seconds": 20,
        "allow_private": True,
        **fields,
    }
    return WebhookListener.model_validate(given)


def command(*words: str, **fields: Any) -> CommandListener:
    return CommandListener.model_validate(
        {"name": "command", "kind": "command", "command": words, **fields}
    )


def python(code: str, **fields: Any) -> CommandListener:
    return command(sys.executable, "-c", code, **fields)


def at(now: datetime.datetime) -> Callable[[], datetime.datetime]:
    return lambda: now


def test_a_webhook_that_fails_twice_gets_the_event_the_third_time() -> None:
    with Receiver(503, 429) as receiver:
        (delivery,) = deliver([event()], [webhook(receiver.url)], clock=at(NOW))
    assert delivery == Delivery(event_id(event()), "webhook", Outcome.DELIVERED, 3)
    assert delivery.is_done
    assert len(receiver.requests) == 3
    for headers, body in receiver.requests:
        assert headers[EVENT_HEADER] == event_id(event())
        assert headers["Content-Type"] == "application/json"
        assert Event.model_validate_json(body) == event()
        signature, id_ = headers[SIGNATURE_HEADER], headers[EVENT_HEADER]
        assert verify_signature(SECRET, signature, id_, body, NOW)
        # A replay as another event.
        assert not verify_signature(SECRET, signature, "0" * 32, body, NOW)
        assert SECRET not in str(headers) + body.decode()


def test_each_try_is_signed_with_its_own_time() -> None:
    times = iter(NOW + n * timedelta(seconds=1) for n in range(100))
    with Receiver(500) as receiver:
        deliver([event()], [webhook(receiver.url)], clock=lambda: next(times))
    first, second = (headers[SIGNATURE_HEADER] for headers, _ in receiver.requests)
    assert first.split(",")[0] < second.split(",")[0]


def test_tries_are_bounded_and_the_event_waits_for_another_call() -> None:
    with Receiver(otherwise=500) as receiver:
        listener = webhook(receiver.url, attempts=3)
        (delivery,) = deliver([event()], [listener], clock=at(NOW))
        assert len(receiver.requests) == 3
    assert delivery[2:] == (Outcome.FAILED, 3, "answered 500 Internal Server Error")
    assert not delivery.is_done


def test_a_refusal_is_not_tried_again_at_once() -> None:
    with Receiver(otherwise=401) as receiver:
        (delivery,) = deliver([event()], [webhook(receiver.url)], clock=at(NOW))
    assert delivery[2:] == (Outcome.FAILED, 1, "answered 401 Unauthorized")
    assert len(receiver.requests) == 1


def test_a_webhook_that_never_answers_ends_by_its_time_limit() -> None:
    with Receiver(otherwise=0) as receiver:
        listener = webhook(receiver.url, attempts=2, timeout_seconds=0.2)
        (delivery,) = deliver([event()], [listener], clock=at(NOW))
    assert delivery[2:] == (Outcome.FAILED, 2, "no answer within 0.2 s")


def test_an_answer_that_comes_drop_by_drop_ends_by_the_time_limit_too() -> None:
    """Each byte is in time for the socket; the answer would take some minutes."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not stop.wait(0.05):
                    try:
                        connection.send(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        listener = webhook(url, attempts=1, timeout_seconds=0.5)
        (delivery,) = deliver([event()], [listener], clock=at(NOW))
        stop.set()
        thread.join()
    assert delivery[2:] == (Outcome.FAILED, 1, "no answer within 0.5 s")


def test_nobody_at_the_address_is_a_reason_without_the_address() -> None:
    with Receiver() as receiver:
        pass
    (delivery,) = deliver([event()], [webhook(receiver.url, attempts=2)], clock=at(NOW))
    assert delivery.tries == 2
    assert "Connection refused" in delivery.why
    assert "127.0.0.1" not in delivery.why


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with Receiver() as other, Receiver(otherwise=status) as receiver:
        receiver.location = other.url
        (delivery,) = deliver([event()], [webhook(receiver.url)], clock=at(NOW))
    assert delivery.outcome == Outcome.FAILED
    assert "redirects are not followed" in delivery.why
    assert (len(receiver.requests), other.requests) == (1, [])


def test_an_address_can_be_secret_and_only_web_addresses_are_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text("file:///etc/passwd\n")
    with Receiver() as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        listeners = [
            webhook("env:HOOK", name="good"),
            webhook(f"file:{tmp_path}/url", name="scheme"),
            webhook("env:ABSENT_HOOK", name="absent"),
        ]
        good, scheme, absent = deliver([event()], listeners, clock=at(NOW))
    assert good.outcome == Outcome.DELIVERED
    assert scheme.why == "the URL is neither http:// nor https://"
    assert absent.why.startswith("env:ABSENT_HOOK: the variable is not set")
    assert "HOOK" in repr(listeners[0])
    assert receiver.url not in repr(listeners[0])


def test_a_listener_that_fails_stops_no_other_one() -> None:
    with Receiver(otherwise=500) as down, Receiver() as up:
        listeners: list[Listener] = [
            webhook(down.url, name="down", attempts=2),
            webhook(up.url, name="no secret", secret="env:ABSENT_SECRET"),
            command("/no/such/command", name="no command"),
            command("nul\0byte", name="defect"),
            python("raise SystemExit(1)", name="exit 1"),
            webhook(up.url, name="up"),
        ]
        events = [event(1), event(2)]
        found = deliver(events, listeners, clock=at(NOW))
    outcomes = {(d.listener, d.event): (d.outcome, d.tries) for d in found}
    assert len(outcomes) == 12
    for number in events:
        id_ = event_id(number)
        assert outcomes["up", id_] == (Outcome.DELIVERED, 1)
        for name in ("no secret", "no command", "defect", "exit 1"):
            assert outcomes[name, id_] == (Outcome.FAILED, 1)
    # Who failed gets a single try at the next event.
    assert [outcomes["down", event_id(number)][1] for number in events] == [2, 1]
    why = {d.listener: d.why for d in found}
    assert why["no command"].startswith("/no/such/command: No such file or directory")
    assert "null byte" in why["defect"]


def test_a_call_begins_no_new_tries_when_the_time_of_a_listener_is_up() -> None:
    times = iter(NOW + n * timedelta(seconds=25) for n in range(100))
    with Receiver() as receiver:
        found = deliver(
            [event(n) for n in range(5)], [webhook(receiver.url)], clock=lambda: next(times)
        )
    outcomes = [d.outcome for d in found]
    count = outcomes.count(Outcome.DELIVERED)
    assert count == len(receiver.requests) >= 1
    assert outcomes == [Outcome.DELIVERED] * count + [Outcome.FAILED] * (5 - count)
    assert found[-1].tries == 0
    assert not found[-1].is_done


def test_the_caller_repeats_what_is_not_done_until_it_is_given_up() -> None:
    """As the documentation of `alerts` says it: each event is marked when all have done."""
    events = [event(1), event(2, to_status=RunStatus.SUCCESS)]
    done: set[tuple[str, str]] = set()
    marked: list[list[int]] = []
    with Receiver() as up, Receiver(otherwise=503) as down:
        listeners = [
            webhook(up.url, name="up"),
            webhook(down.url, name="down", attempts=1, to_status=["FAILURE"]),
        ]
        for minutes in (0, 30, 60):
            deliveries = deliver(events, listeners, done, at(NOW + timedelta(minutes=minutes)))
            done |= {delivery.key for delivery in deliveries if delivery.is_done}
            waiting = {delivery.event for delivery in deliveries if not delivery.is_done}
            finished = [each for each in events if event_id(each) not in waiting]
            marked.append([each.detail["number"] for each in finished])
            events = [each for each in events if each not in finished]
    assert marked == [[2], [], [1]]
    assert deliveries[0].outcome == Outcome.GAVE_UP
    assert len(up.requests) == 2  # never again, while the other one was down
    assert len(down.requests) == 3


def test_only_events_that_pass_the_whole_filter_are_told() -> None:
    listener = python(
        "", processes=["delivery-marking"], types=["status"], to_status=["FAILURE", "CANCELED"]
    )
    wanted = event()
    others = [
        event(process="loans"),
        event(type="sla_breach", to_status=None),
        event(to_status=RunStatus.SUCCESS),
        event(to_status=None),
    ]
    found = deliver([*others, wanted], [listener], clock=at(NOW))
    assert [d.event for d in found] == [event_id(wanted)]
    assert deliver([wanted], [], clock=at(NOW)) == []


def test_status_is_every_move_also_one_by_the_end_of_an_attempt() -> None:
    listener = python("", types=["status"], to_status=["FAILURE"])
    failed = event(type="attempt_ended")
    found = deliver([failed, event(type="attempt_ended", to_status=None)], [listener])
    assert [d.event for d in found] == [event_id(failed)]


def test_a_command_gets_the_event_and_no_shell(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import json, os, sys; json.dump([json.load(sys.stdin), sys.argv[1:],"
        "{k: v for k, v in os.environ.items() if k.startswith('LEDGERBEAM_EVENT')}],"
        f"open({str(out)!r}, 'w'))"
    )
    listener = command(sys.executable, "-c", code, "$HOME; `x` *")
    (delivery,) = deliver([event(why="$(touch x); é\n")], [listener], clock=at(NOW))
    assert delivery.outcome == Outcome.DELIVERED
    given, arguments, environment = json.loads(out.read_text())
    assert Event.model_validate(given) == event(why="$(touch x); é\n")
    assert arguments == ["$HOME; `x` *"]
    assert environment == {
        "LEDGERBEAM_EVENT_ID": delivery.event,
        "LEDGERBEAM_EVENT_TYPE": "status",
        "LEDGERBEAM_EVENT_RUN": "8f3a",
        "LEDGERBEAM_EVENT_PROCESS": "delivery-marking",
        "LEDGERBEAM_EVENT_INSTANCE": "2026-11-20",
        "LEDGERBEAM_EVENT_STATUS": "FAILURE",
    }


def test_what_a_command_says_is_in_the_log_and_its_last_line_in_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    code = "import sys; print('first'); sys.exit('nobody is on call')"
    with caplog.at_level(logging.INFO):
        (delivery,) = deliver(
            [event()], [python(code, attempts=2, backoff_seconds=0)], clock=at(NOW)
        )
    assert delivery.tries == 2
    assert delivery.why == f"{sys.executable} ended with 1: nobody is on call"
    assert "first\nnobody is on call" in caplog.text


def test_a_secret_in_the_output_of_a_command_is_in_no_reason() -> None:
    with Receiver() as receiver:  # resolves the secret in this process
        deliver([event()], [webhook(receiver.url)], clock=at(NOW))
    code = "import os, sys; sys.exit('bad key ' + os.environ['ALERTS_SECRET'])"
    (delivery,) = deliver([event()], [python(code)], clock=at(NOW))
    assert delivery.why.endswith("bad key ***")


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    """Even where a child of it has taken over its output."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = f"(exec 3>'{fifo}'; echo alive >&3; sleep 600) & echo waiting; sleep 600"
    listener = command("sh", "-c", script, timeout_seconds=3)
    (delivery,) = deliver([event()], [listener], clock=at(NOW))
    assert delivery[2:] == (Outcome.FAILED, 1, "sh was killed after 3 s")
    assert os.read(reader, 100) == b"alive\n"
    poll = select.poll()
    poll.register(reader, 0)
    assert poll.poll(30_000) == [(reader, select.POLLHUP)]  # nobody is left who has it open
    os.close(reader)


def test_a_command_may_leave_something_in_the_background(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    child = f"import os, time\nwhile not os.path.exists({str(stop)!r}): time.sleep(0.05)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    (delivery,) = deliver([event()], [python(parent, timeout_seconds=60)], clock=at(NOW))
    stop.touch()
    assert delivery.outcome == Outcome.DELIVERED


def test_the_log_is_a_listener(caplog: pytest.LogCaptureFixture) -> None:
    listener = LogListener(name="log", kind="log", level="WARNING")
    factory = logging.getLogRecordFactory()
    logs._attach("other", 9)
    try:
        (delivery,) = deliver([event()], [listener], clock=at(NOW))
    finally:
        logging.setLogRecordFactory(factory)
        logs._of_process = None
    assert delivery.outcome == Outcome.DELIVERED
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert Event.model_validate_json(record.getMessage().removeprefix("event ")) == event()
    assert str(logs.correlation_of(record)) == "run=8f3a attempt=1"


@given(
    st.timezones(),
    st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none()), max_size=4),
)
def test_an_event_has_one_body_and_one_id_wherever_it_was_stored(
    zone: datetime.tzinfo, detail: dict[str, Any]
) -> None:
    original = event(detail=detail)
    reordered = dict(reversed(detail.items()))
    for stored in (
        event(detail=reordered, at=NOW.astimezone(zone)),
        event(detail=reordered, at=NOW.replace(tzinfo=None)),
        Event.model_validate_json(event_body(original)),
    ):
        assert event_body(stored) == event_body(original)
        assert event_id(stored) == event_id(original)
    assert event_id(event(detail=detail, why="other")) != event_id(original)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - an address that is refused
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_none_of_the_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0"]
)
def test_a_private_address_is_refused_unless_it_is_allowed(host: str) -> None:
    """However it is written: what counts is the address that would be connected to."""
    with Receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", host)
        (delivery,) = deliver([event()], [webhook(url, allow_private=False)], clock=at(NOW))
        assert receiver.requests == []
    assert delivery[2:] == (
        Outcome.FAILED,
        1,
        "the URL's host has a private address: set allow_private = true if it is meant",
    )


def test_an_answer_without_an_end_is_not_read() -> None:
    """Its status is all that counts; what follows costs neither time nor memory."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pour() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    while True:
                        connection.sendall(b"x" * 65536)
                except OSError:
                    ended.set()

        thread = threading.Thread(target=pour)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        (delivery,) = deliver([event()], [webhook(url, attempts=1)], clock=at(NOW))
        assert ended.wait(20)
        thread.join()
    assert delivery.outcome == Outcome.DELIVERED


@pytest.mark.parametrize(
    ("answer", "more"),
    [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (b"HTTP/1.1 200 OK\r\nA: b", b"b")],
)
def test_headers_that_never_end_are_given_up_with_their_connection(
    answer: bytes, more: bytes
) -> None:
    """Also those that come as fast as they can: neither thread nor connection is left."""
    hung_up = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pour() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(answer)
                    while not hung_up.wait(0.01):
                        connection.sendall(more)
                except OSError:
                    hung_up.set()

        thread = threading.Thread(target=pour)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        listener = webhook(url, attempts=1, timeout_seconds=0.5)
        (delivery,) = deliver([event()], [listener], clock=at(NOW))
        assert hung_up.wait(20)
        thread.join()
    assert delivery.outcome == Outcome.FAILED
