"""Parameters that were wrong, and are corrected before anything is published."""

import contextlib
import datetime
import os
from collections.abc import Mapping
from typing import Any

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.runs.draft import draft_run
from ledgerbeam.io.errors import ParameterError


def corrected(
    record: RunRecord, given: Mapping[str, Any], who: str, at: datetime.datetime
) -> dict[str, Any]:
    """The parameters of a run that change, with their new values as they are recorded.

    The input is inspected as it will be read, in the folder that the run was submitted from.

    Args:
        record: the run.
        given: new values by name.
        who: corrects them.
        at: time in UTC.

    Raises:
        ParameterError: a parameter is unknown, doesn't fit, has that value already, or says which
            instance the run is of.
        UserError: the input can't be read with them.
    """
    # Imports Beam, which the other verbs do without.
    from ledgerbeam.batch.attempt.plan import check_input

    flags = ", ".join(f"--set {name}" for name in given)
    fixed = next((name for name in given if name in ("output", "run_number", "reason")), None)
    is_there = os.path.isdir(record.options.folder)
    with contextlib.chdir(record.options.folder) if is_there else contextlib.nullcontext():
        drafted = draft_run(
            record.process, {**record.all_parameters, **given}, record.beam_flags, who, at
        )
        draft = drafted.run
        if fixed or (draft.instance, draft.uri) != (record.instance, record.uri):
            raise ParameterError(
                f"{flags}: {fixed or 'one of them'} says which instance run {record.name} is of, "
                "and so can't be changed: cancel the run, and submit the right instance",
                parameter=fixed,
            )
        changed = {
            name: value
            for name, value in draft.parameters.items()
            if name not in record.parameters or record.parameters[name] != value
        }
        if not changed.keys() & given.keys():
            raise ParameterError(f"{flags}: run {record.name} has these values already")
        check_input(drafted.process)
    return changed
