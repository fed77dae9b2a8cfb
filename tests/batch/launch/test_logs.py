"""Every log line of launchers and workers names its run and attempt, and holds no secret."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.harness import pipeline

from ledgerbeam.batch import logs
from ledgerbeam.batch.execute.worker_control import WorkerControl
from ledgerbeam.batch.logs import bound, configure, configure_worker, correlation, current
from ledgerbeam.batch.plain_text import plain_text
from ledgerbeam.io import secrets
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.secrets import Secret
from ledgerbeam.transforms.concurrency.executor import Executor
from ledgerbeam.transforms.concurrency.retry import Retry
from ledgerbeam.transforms.concurrency.throttle import Limits

CANARY = "c4nary-in-the-coal-mine"
log = logging.getLogger("ledgerbeam.somewhere")


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_of_process", None)
    monkeypatch.setattr(secrets, "_remembered", secrets._Remembered())
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    root, beam = logging.getLogger(), logging.getLogger("apache_beam")
    before = root.handlers[:], root.level, beam.level, logging.getLogRecordFactory()
    yield
    root.handlers[:], root.level, beam.level = before[:3]
    root.setLevel(before[1])  # forgets which loggers are enabled
    logging.setLogRecordFactory(before[3])


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CANARY", CANARY)
    return Secret("env:CANARY").resolve()


def test_every_line_names_run_and_attempt_those_of_a_traceback_too(stream: io.StringIO) -> None:
    configure("8f3a", 2, stream=stream)
    log.info("64 shards\nforged run=0000 attempt=1 line")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("other.library").exception("failed")
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 6
    assert all("run=8f3a attempt=2 " in line for line in lines)
    time, _, rest = lines[0].partition(" ")
    assert time.endswith("Z")
    assert rest == "INFO run=8f3a attempt=2 ledgerbeam.somewhere: 64 shards"
    assert lines[1] == "run=8f3a attempt=2 | forged run=0000 attempt=1 line"
    assert lines[-1] == "run=8f3a attempt=2 | lines"


@pytest.mark.parametrize("time_limit", [None, 60.0])
@pytest.mark.parametrize("parallelism", [None, 3])
def test_what_a_component_logs_has_its_key(
    stream: io.StringIO, tmp_path: Path, time_limit: float | None, parallelism: int | None
) -> None:
    """In whichever thread it is called; a key doesn't forge lines."""

    def execute(unit: str) -> list[dict[str, str]]:
        log.info("of %r", unit)
        return []

    configure("8f3a", 2, stream=stream)
    control = WorkerControl(str(tmp_path), 2, "worker")  # never started, so it is set by hand
    control.throttle.set(Limits(parallelism=parallelism))
    keys = ["A1", "A2", "A3\nforged"]
    executor = Executor(Retry(time_limit=time_limit), control=control)
    executor.execute_each(keys, execute, keys, pa.schema([("value", pa.string())]))
    log.info("done")
    found = sorted(line.partition("run=")[2] for line in stream.getvalue().splitlines())
    assert found == [
        *(
            rf"8f3a attempt=2 component={plain_text(key)} ledgerbeam.somewhere: of {key!r}"
            for key in keys
        ),
        "8f3a attempt=2 ledgerbeam.somewhere: done",
    ]


def test_json_is_an_object_a_line(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    configure("8f3a", 2, stream=stream)
    log.info("%d\nshärds", 64)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed", stack_info=True)
    first, second = map(json.loads, stream.getvalue().splitlines())
    time = first.pop("time")
    assert time.endswith("Z")
    assert first == {
        "level": "INFO",
        "run": "8f3a",
        "attempt": 2,
        "logger": "ledgerbeam.somewhere",
        "message": "64\nshärds",
    }
    assert second["exception"].endswith("ValueError: two\nlines")
    assert "test_logs.py" in second["stack"]


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "xml")
    before = logging.getLogger().handlers[:]
    with pytest.raises(UserError, match="LEDGERBEAM_LOG=xml: no such format"):
        configure("8f3a")
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize("style", ["plain", "json"])
def test_no_line_holds_a_secret(stream: io.StringIO, canary: str, style: logs.Format) -> None:
    configure("8f3a", stream=stream, style=style)
    log.info("in %s", canary)
    log.info("in %s", {"key": canary})
    try:
        raise ValueError(canary)
    except ValueError:
        log.exception(canary)
    # Records that come from elsewhere, such as another process, weren't made by the factory.
    log.handle(logging.makeLogRecord({"msg": "in %s", "args": (canary,), "levelno": 40}))
    assert CANARY not in stream.getvalue()
    assert stream.getvalue().count("***") >= 5


def test_a_secret_that_is_resolved_later_is_taken_out_when_the_line_is_written(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("8f3a", stream=stream)
    record = log.makeRecord(log.name, logging.INFO, "f", 1, f"key {CANARY}", (), None)
    monkeypatch.setenv("CANARY", CANARY)
    Secret("env:CANARY").resolve()
    log.handle(record)
    assert stream.getvalue().endswith("key ***\n")


def test_setting_up_again_replaces_the_set_up(stream: io.StringIO) -> None:
    configure("first", 1, stream=stream)
    configure("second", 2, stream=stream)
    log.info("once")
    (line,) = stream.getvalue().splitlines()
    assert "run=second attempt=2" in line


def test_threads_belong_to_the_process_or_to_what_they_are_bound_to(stream: io.StringIO) -> None:
    configure("process", 1, stream=stream)
    with ThreadPoolExecutor(2) as threads:
        with correlation("inner", 3):
            log.info("here")
            with correlation("innermost"):
                log.info("deeper")
            unbound = threads.submit(log.info, "unbound")
            calls = [threads.submit(bound(log.info), f"bound {n}") for n in range(4)]
        log.info("after")
        for call in [unbound, *calls]:
            call.result()
    found = {line.rsplit(": ")[-1]: line.split(" ")[2:4] for line in stream.getvalue().splitlines()}
    assert found == {
        "here": ["run=inner", "attempt=3"],
        "deeper": ["run=innermost", "attempt=-"],
        "unbound": ["run=process", "attempt=1"],
        "after": ["run=process", "attempt=1"],
        **{f"bound {n}": ["run=inner", "attempt=3"] for n in range(4)},
    }
    assert str(current()) == "run=process attempt=1"


def test_pytest_sees_messages_as_they_were_logged(
    stream: io.StringIO, caplog: pytest.LogCaptureFixture, canary: str
) -> None:
    configure("8f3a", 1, stream=stream)
    configure_worker("8f3a", 1)
    with caplog.at_level(logging.INFO), correlation("inner"):
        # Names that a record's attributes of ours must not clash with.
        log.info("%d shards", 64, extra={"run": "theirs", "attempt": 7})
        log.info("key %s", canary)
    assert caplog.messages == ["64 shards", "key ***"]
    assert caplog.records[0].args == (64,)
    assert str(logs.correlation_of(caplog.records[0])) == "run=inner attempt=-"
    assert "run=" not in caplog.text


def test_a_record_factory_of_others_is_kept(stream: io.StringIO) -> None:
    theirs = logging.getLogRecordFactory()

    def marked(*args: object, **kwargs: object) -> logging.LogRecord:
        record = theirs(*args, **kwargs)
        record.msg = f"marked {record.msg}"
        return record

    logging.setLogRecordFactory(marked)
    configure("8f3a", 1, stream=stream)
    log.info("message")
    assert stream.getvalue().endswith("run=8f3a attempt=1 ledgerbeam.somewhere: marked message\n")


def test_handlers_of_a_worker_that_come_with_no_format_get_one_others_keep_theirs(
    stream: io.StringIO,
) -> None:
    bare, theirs, basic = (logging.StreamHandler(stream) for _ in range(3))
    theirs.setFormatter(logging.Formatter("theirs %(message)s"))
    basic.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    logging.getLogger().handlers += [bare, theirs, basic]
    for _ in range(3):
        configure_worker("8f3a", 1)
    log.error("shard 7")
    first, second, third = stream.getvalue().splitlines()
    assert first == "run=8f3a attempt=1 shard 7"
    assert second == "theirs shard 7"
    assert third.endswith("Z ERROR run=8f3a attempt=1 ledgerbeam.somewhere: shard 7")


def test_what_logging_set_up_by_itself_is_replaced(stream: io.StringIO) -> None:
    by_itself = logging.StreamHandler(stream)
    by_itself.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    logging.getLogger().addHandler(by_itself)
    configure("8f3a", 1, stream=stream)
    log.info("once")
    (line,) = stream.getvalue().splitlines()
    assert "run=8f3a attempt=1" in line


def work(number: int) -> int:
    """Stands for a component that is executed in a worker process."""
    configure_worker("8f3a", 1)
    key = Secret("env:CANARY").resolve()
    try:
        raise ValueError(f"key {key}")
    except ValueError:
        log.exception("element %d in process %d with %s", number, os.getpid(), key)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(log.warning, "from a pool").result()
    return number


def launch() -> None:
    """What a launcher does; run in a process of its own."""
    import apache_beam as beam

    configure("8f3a", 1)
    log.info("launcher %d", os.getpid())
    with pipeline(
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=1",
        "--default_sdk_harness_log_level=INFO",
    ) as root:
        _ = root | beam.Create([7]) | beam.Reshuffle() | beam.Map(work)


@pytest.mark.slow
def test_lines_of_worker_processes_name_the_run_and_hold_no_secret() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from tests.batch.launch.test_logs import launch; launch()"],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"CANARY": CANARY},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert CANARY not in ended.stderr + ended.stdout
    lines = ended.stderr.splitlines()
    (launcher,) = (line for line in lines if "somewhere: launcher" in line)
    assert "INFO run=8f3a attempt=1 " in launcher
    # The worker writes to its standard error, and sends to the launcher, which writes it again.
    for text in ("element 7 in process", "from a pool"):
        direct, sent = sorted((line for line in lines if text in line), key=len)
        assert f"run=8f3a attempt=1 ledgerbeam.somewhere: {text}" in direct
        assert f'message: "run=8f3a attempt=1 {text}' in sent
        assert "run=8f3a attempt=1 " in sent.partition("message: ")[0]
    (trace,) = (line for line in lines if line.endswith("ValueError: key ***"))
    assert trace.startswith("run=8f3a attempt=1 | ")
    assert f"in process {launcher.split()[-1]}" not in ended.stderr
