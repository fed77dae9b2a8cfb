"""Executing one component at once, in a process of its own that has Beam imported.

The process is the node's. It reads what is to be executed from its standard input, a line of JSON
each, and writes a line for the answer. It is killed where one takes too long, and lives on where
none does: the next call needn't wait for imports.

What is executed is a whole run of an instance that has that component only, by `batch/attempt`,
like any other run, in a folder that is deleted afterwards.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.parameters import parameter_error
from ledgerbeam.batch.define.process import BatchProcess, RetryMode, instance_uri
from ledgerbeam.batch.define.workloads import load_workload
from ledgerbeam.batch.json_lines import text_of
from ledgerbeam.batch.runs.body import Failure
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.errors import (
    AttemptLostError,
    ComponentNotFoundError,
    ParameterError,
    UserError,
)
from ledgerbeam.io.secrets import redact
from ledgerbeam.service.errors import AnswerTimeoutError
from ledgerbeam.service.model import MAX_ANSWER

_ROWS = 1000
"""Of each kind, at most: an answer is read by a person, or by a program that asks for one loan."""


class InlineWorker:
    """A process that executes one component after the other; for one thread."""

    def __init__(self, settings: Settings) -> None:
        """Start none yet.

        Args:
            settings: for its environment, which has no registry.
        """
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, given: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Execute a component, and give the answer.

        Args:
            given: `kind`, `key` and `parameters`.
            seconds: that it may take.

        Raises:
            UserError: it can't be executed with these parameters, or there is no such component.
            AnswerTimeoutError: it took too long, and was ended.
            AttemptLostError: its process died.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ledgerbeam.service.at_once.inline"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._settings.environment_of_workers(),
                start_new_session=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(dict(given)).encode() + b"\n")
            process.stdin.flush()
        line = _read_line(process.stdout.fileno(), time.monotonic() + seconds)
        if line is None:
            self.close()
            raise AnswerTimeoutError(
                f"it took more than {seconds:g} s, and was ended: give it more, or submit the run"
            )
        if not line:
            status = process.wait()
            raise AttemptLostError(f"the process that executed it died, with status {status}")
        answer: dict[str, Any] = json.loads(line)
        if "raised" in answer:
            from ledgerbeam.service.problems import error_of

            raise error_of(answer["raised"])
        return answer

    def close(self) -> None:
        """End the process, and what it executes."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _read_line(file: int, deadline: float) -> bytes | None:
    """A line, without its end; empty where the other side has closed, None where time is up."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([file], [], [], left)[0]:
            return None
        part = os.read(file, 1 << 16)
        if not part:
            return b""
        line += part
    return line[:-1]


def definition_of(given: Mapping[str, Any], output: str | None = None) -> BatchProcess[Any]:
    """The definition of the instance that has one component only.

    Args:
        given: `kind`, `key` and `parameters`.
        output: where its results go; None for what the parameters say.

    Raises:
        UserError: there is no such workload, a parameter doesn't fit, or it isn't one whose
            components can be executed by themselves.
    """
    from pydantic import ValidationError

    kind = load_workload(given["kind"])
    if not issubclass(kind, KeyedProcess) or "only_key" not in kind.parameters_type.model_fields:
        raise ParameterError(
            f"{kind.name} reads pages, and none of its components by its key: submit it",
            parameter="kind",
        )
    if kind.retry.mode is RetryMode.AT_MOST_ONCE:
        raise ParameterError(
            f"{kind.name}: its components may be called once only, and the day's run would call "
            "this one again: submit that",
            parameter="kind",
        )
    place = {} if output is None else {"output": output}
    values = {**given["parameters"], **place, "only_key": given["key"]}
    try:
        parameters = kind.parameters_type.model_validate(values)
    except ValidationError as error:
        raise parameter_error(error, kind.parameters_type.model_fields) from error
    process = kind(parameters)
    assert process.only
    return process


def execute(given: Mapping[str, Any]) -> dict[str, Any]:
    """Execute a component in this process; see `InlineWorker.execute`."""
    from ledgerbeam.batch.attempt.run import run
    from ledgerbeam.io.temporary import temporary_folder

    with temporary_folder(), tempfile.TemporaryDirectory() as folder:
        process = definition_of(given, folder)
        failure: UserError | None = None
        try:
            run(process)
        except ComponentNotFoundError:
            raise
        except UserError as error:
            failure = error
        uri = instance_uri(process)
        facts = answer_of(uri, process, published=failure is None, hidden=folder)
        if failure is not None:
            told = redact(str(failure)).replace(folder, "")
            facts |= {"code": failure.code, "error": told}
        return facts


def answer_of(
    uri: str, process: BatchProcess[Any], *, published: bool, hidden: str = ""
) -> dict[str, Any]:
    """What has become of an instance of one component: rows, refusals, failures.

    Args:
        uri: of the instance.
        process: its definition.
        published: whether there are results.
        hidden: a folder that isn't there any more when the answer is read.
    """
    from ledgerbeam.batch.observe.components import commits_of, failures_of
    from ledgerbeam.batch.observe.rejections import rejected_tables
    from ledgerbeam.io.commit.published import read_published

    tables = getattr(process, "tables", ())
    failures = [
        Failure(count=group.size, **{**group.first._asdict(), "status": group.status})
        for group in failures_of(uri, commits_of(uri))
    ]
    facts = {
        "state": "SUCCESS" if published else "FAILURE",
        "results": read_published(uri).head(_ROWS).to_pylist() if published else [],
        "tables": {
            name: read_published(uri, name).head(_ROWS).to_pylist() if published else []
            for name in tables
        },
        "rejects": [row for table in rejected_tables(uri) for row in table.to_pylist()][:_ROWS],
        "failures": [failure.model_dump(mode="json") for failure in failures],
    }
    text = json.dumps(facts, default=text_of)
    if len(text) > MAX_ANSWER:
        raise ParameterError(
            f"the answer has more than {MAX_ANSWER >> 20} MiB: submit the run, and read its results"
        )
    found: dict[str, Any] = json.loads(text.replace(hidden, "") if hidden else text)
    return found


def main() -> int:
    """Execute what standard input says, until it ends."""
    from ledgerbeam.batch.attempt import run as _  # noqa: F401 - imports Beam, ahead of the first
    from ledgerbeam.service.problems import problem_of

    answers = os.fdopen(os.dup(1), "wb")
    # What a workload prints is no answer.
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        try:
            answer = execute(json.loads(line))
        except UserError as error:
            answer = {"raised": problem_of(error)}
        except Exception as bug:
            told = redact(f"{type(bug).__name__}: {bug}")
            answer = {"raised": {"code": "bug", "detail": told}}
        answers.write(json.dumps(answer, default=text_of).encode() + b"\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    from ledgerbeam.service.at_once.inline import main as importable_main

    sys.exit(importable_main())
