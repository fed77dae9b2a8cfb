"""Executing one side of a shadow run: in this process, or by the code of another environment.

The other environment's Python runs this module: it reads a request, a line of JSON on its standard
input, and answers with a line of JSON on its standard output.
"""

import json
import os
import subprocess
import sys
import traceback
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.shadow import shadow_of
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.define.workloads import load_workload
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.errors import DefinitionError, ParameterError, RunFailedError, UserError
from ledgerbeam.io.secrets import redact
from ledgerbeam.io.storage import stores, uris

_FROM_OTHERS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables by which the candidate would find this environment's code."""


class Candidate(BaseModel):
    """What is to be executed.

    Attributes:
        kind: `process`, or `handler` for messages.
        of: URI of the published instance; or the handler, as `load_handler` takes it.
        output: folder of the results.
        rule: number of the rule by which all are executed; None for the rules that they had.
        definition: MODULE:CLASS of the process; empty for the installed one.
        database: of the messages.
        first: messages posted from this moment on, in microseconds.
        end: and before this one.
        beam_flags: for Beam, of a process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["process", "handler"] = "process"
    of: str
    output: str
    rule: int | None = None
    definition: str = ""
    database: str = ""
    first: int = 0
    end: int = 0
    beam_flags: tuple[str, ...] = ()


def execute(candidate: Candidate, python: str = "") -> str:
    """Execute a candidate; gives where its results are.

    Args:
        candidate: what is executed.
        python: the Python of another environment; empty for this process.

    Raises:
        UserError: it can't be executed, or has failed.
    """
    if not python:
        return _execute_here(candidate)
    environment = {name: value for name, value in os.environ.items() if name not in _FROM_OTHERS}
    # Without the current folder in front: its modules are this environment's.
    command = [python, "-P", "-m", "ledgerbeam.pipelines.comparison.candidate"]
    try:
        done = subprocess.run(
            command,
            input=candidate.model_dump_json(),
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise ParameterError(
            f"--candidate-python={python}: {error.strerror}: give the interpreter of an "
            "environment in which ledgerbeam and the candidate's code are installed",
            parameter="--candidate-python",
            value=python,
        ) from error
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise RunFailedError(
            f"the candidate in {python} has ended with status {done.returncode} and no results: "
            "what it has printed stands above"
        ) from None
    if "error" in answer:
        raise RunFailedError(f"the candidate in {python}: {answer['error']}")
    return str(answer["published"])


def _execute_here(candidate: Candidate) -> str:
    if candidate.kind == "handler":
        return _capture(candidate)
    manifest = load_manifest(candidate.of)
    kind = definition_of(candidate.definition, manifest.attempt.process)
    process = shadow_of(candidate.of, kind, candidate.output, candidate.rule)
    run(process, candidate.beam_flags)
    # As it was named, and not where that is on this machine: it is part of the comparison's name.
    return f"{candidate.output}/{process.name}/{process.instance}"


def definition_of(named: str, process: str) -> type[BatchProcess[Any]]:
    """A process's definition.

    Args:
        named: MODULE:CLASS; empty for the installed one.
        process: its name.

    Raises:
        UserError: there is no such definition.
    """
    if not named:
        return load_workload(process)
    from ledgerbeam.messages.define.handlers import import_named

    loaded = import_named(named, "definition")
    if not (isinstance(loaded, type) and issubclass(loaded, BatchProcess)):
        raise DefinitionError(f"{named} is no definition of a batch process: name the class")
    if loaded.name != process:
        raise ParameterError(
            f"{named} is the process {loaded.name}, and the run is one of {process}",
            parameter="--definition",
            value=named,
        )
    return loaded


def _capture(candidate: Candidate) -> str:
    """Write what a handler would do to a file of Parquet."""
    # Database clients are imported only where messages are handled.
    from ledgerbeam.io.commit.parquet import to_parquet
    from ledgerbeam.messages.consumer.shadow import CAPTURED, StreamRange, capture
    from ledgerbeam.messages.define.handlers import load_handler
    from ledgerbeam.messages.model.message import to_datetime
    from ledgerbeam.messages.store.database import MessageDatabase

    handler = load_handler(candidate.of)()
    posted = StreamRange(candidate.first, candidate.end)
    with MessageDatabase.open(candidate.database) as database:
        tables = [*capture(database, handler, candidate.rule, posted, to_datetime(candidate.end))]
    table = pa.concat_tables(tables) if tables else CAPTURED.empty_table()
    stores.create(uris.absolute(candidate.output), to_parquet(table))
    return candidate.output


def main() -> int:
    """Execute the request that standard input has; 0 if that went well."""
    candidate = Candidate.model_validate_json(sys.stdin.read())
    # What the candidate's code prints must not be taken for the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer = {"published": _execute_here(candidate)}
    except UserError as error:
        answer = {"error": redact(str(error))}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": redact(f"{type(error).__name__}: {error}")}
    print(json.dumps(answer), file=answers, flush=True)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    from ledgerbeam.pipelines.comparison.candidate import main as importable_main

    sys.exit(importable_main())
