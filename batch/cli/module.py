"""A batch process as a program: from its command line to an exit status."""

import ledgerbeam.batch.import_beam  # noqa: F401, I001 - in front of all that imports Beam

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ledgerbeam.batch import interrupts
from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.cli.arguments import parse_arguments
from ledgerbeam.batch.cli.errors import print_error
from ledgerbeam.batch.cli.summary import print_plan, print_summary
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.process import BatchProcess, instance_uri
from ledgerbeam.batch.define.workloads import load_workload, workload_names
from ledgerbeam.batch.interrupts import interruption_in
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.batch.logs import redacted_output
from ledgerbeam.batch.model.exits import Exit, exit_of
from ledgerbeam.io.commit.amounts import totals_json
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import DefinitionError, UserError, WorkloadNotFoundError


def main(process_type: type[BatchProcess[Any]], arguments: Sequence[str] | None = None) -> int:
    """Run a batch process from the command line, as the last lines of its module do.

        if __name__ == "__main__":
            sys.exit(main(SavingsInterest))

    Args:
        process_type: the definition. `--help` prints the docstring of its module.
        arguments: the command line; by default that of this process.

    Returns:
        The exit status: 0, or what the definition's `exit_status` gives; that of `Exit` after an
        error, an interruption or SIGTERM, with one line on stderr. A second signal ends the process
        at once.
    """
    return run_command(process_type, sys.argv[1:] if arguments is None else arguments)


@redacted_output()
def run_command(
    process_type: type[BatchProcess[Any]],
    arguments: Sequence[str],
    driver: "subprocess.Popen[bytes] | None" = None,
) -> int:
    """What `main` does.

    Args:
        process_type: the definition.
        arguments: the command line.
        driver: a process that was started ahead, for a run that is recorded.
    """
    again = "the same command again goes on from what is committed"
    interrupts.begin(f"{process_type.name}: interrupted: {again}")
    # Arrow would catch signals itself, and not be interrupted while it waits for a pipe.
    pa.enable_signal_handlers(False)
    try:
        return interrupts.end(_run(process_type, arguments, driver))
    except BaseException as error:
        interruption = interruption_in(error)
        if interruption is None:
            if isinstance(error, Exception):
                interrupts.end(Exit.FAILURE)
            raise
        interrupts.tell()
        return interrupts.end(interrupts.status_of(interruption))


def _run(
    process_type: type[BatchProcess[Any]],
    arguments: Sequence[str],
    driver: "subprocess.Popen[bytes] | None",
) -> int:
    began, started = utc_now(), time.monotonic()
    try:
        process_type = _importable(process_type)
        parsed = parse_arguments(process_type, arguments)
        process = process_type(parsed.parameters)
        if parsed.plan:
            print_plan(process, parsed.json)
            return 0
        if parsed.registry is not None:
            _check_installed(process_type)
            # This imports a database client, which a run without a registry doesn't need.
            from ledgerbeam.batch.runs.foreground import run_recorded

            run_recorded(process, parsed.beam_flags, parsed.registry, driver)
            manifest = load_manifest(instance_uri(process))
        else:
            manifest = run(process, parsed.beam_flags)
    except UserError as error:
        if interruption_in(error) is not None:
            raise
        print_error(process_type.name, error, "--json" in arguments)
        return exit_of(error)
    seconds = time.monotonic() - started
    if parsed.json:
        print_record("published", _result(manifest, instance_uri(process), seconds))
    else:
        was_there = manifest.published_at < began
        print_summary(manifest, process, instance_uri(process), None if was_there else seconds)
    return process.exit_status(manifest)


def _importable(process_type: type[BatchProcess[Any]]) -> type[BatchProcess[Any]]:
    """The class as worker processes import it, since they have a `__main__` of their own.

    Raises:
        DefinitionError: the class can't be imported.
    """
    if process_type.__module__ != "__main__":
        return process_type
    program = sys.modules["__main__"]
    script = Path(getattr(program, "__file__", None) or "").resolve()
    if program.__spec__ is not None:
        name = program.__spec__.name
    elif not script.is_file():
        raise DefinitionError(
            "workers can't import a class that is in no file: write it to a module"
        )
    else:
        name = script.stem
        if not name.isidentifier():
            raise DefinitionError(
                f"{script}: workers import it, and {name} is no name of a module: rename it, to "
                "letters, digits and underscores"
            )
        # Workers must find the module where this process finds it.
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(script.parent), *filter(None, paths)])
    module = importlib.import_module(name)
    found: type[BatchProcess[Any]] | None = getattr(module, process_type.__qualname__, None)
    if found is None:
        where = getattr(module, "__file__", "built in")
        raise DefinitionError(
            f"{script}: workers import {process_type.__qualname__} from the module "
            f"{name}, which is {where} and has no such class: write it at the top of a file whose "
            "name no other module has"
        )
    return found


def _check_installed(process_type: type[BatchProcess[Any]]) -> None:
    """Refuse to record a run that nobody could launch again.

    Raises:
        WorkloadNotFoundError: no installed workload has the name.
        DefinitionError: the name is that of another definition.
    """
    name = process_type.name
    where = f"{process_type.__module__}:{process_type.__qualname__}"
    if name not in workload_names():
        raise WorkloadNotFoundError(
            f"recorded runs are launched by the name of an installed workload, and {name} is none: "
            f'add the entry point {name} = "{where}" of the group ledgerbeam.pipelines to a '
            "package, or run it without --registry",
            workload=name,
        )
    installed = load_workload(name)
    if installed is not process_type:
        raise DefinitionError(
            f"recorded runs are launched by the name of an installed workload, and {name} is "
            f"{installed.__module__}:{installed.__qualname__}, not {where}: give the definition "
            "another name, or run it without --registry"
        )


def _result(manifest: Manifest, published: str, seconds: float) -> dict[str, Any]:
    return {
        "published": published,
        "attempt": manifest.attempt.number,
        "counts": manifest.counts,
        "totals": totals_json(manifest.totals, manifest.attempt.total_decimals),
        "seconds": round(seconds, 3),
    }
