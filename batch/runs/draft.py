"""What a submission puts on record, from a workload's name and parameters."""

import datetime
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from ledgerbeam import __version__
from ledgerbeam.batch.model.run import RunDraft, RunOptions
from ledgerbeam.io.errors import WorkloadNotFoundError
from ledgerbeam.io.storage import uris

if TYPE_CHECKING:
    from ledgerbeam.batch.define.process import BatchProcess


class Drafted(NamedTuple):
    """A run that is to be submitted.

    Attributes:
        run: what goes on record.
        schema: JSON schema of the workload's parameters.
        process: the definition with its parameters.
    """

    run: RunDraft
    schema: dict[str, Any]
    process: "BatchProcess[Any]"


def draft_run(
    process_name: str,
    parameters: Mapping[str, Any],
    beam_flags: Sequence[str],
    who: str,
    at: datetime.datetime,
) -> Drafted:
    """What a submission puts on record.

    Args:
        process_name: of the workload.
        parameters: as the submitter gave them.
        beam_flags: for the runner.
        who: submits.
        at: time in UTC.

    Raises:
        UserError: there is no such workload, or a parameter doesn't fit it.
    """
    # Imports Beam, which the other verbs do without.
    from ledgerbeam.batch.define.parameters import parameter_error
    from ledgerbeam.batch.define.process import BatchProcess, instance_uri, is_overridden
    from ledgerbeam.batch.define.workloads import load_workload
    from ledgerbeam.batch.runners.jobs import refuse_secrets, runner_of

    refuse_secrets(beam_flags)
    if ":" in process_name:
        raise WorkloadNotFoundError(
            f"recorded runs are launched by the name of an installed workload, and {process_name} "
            "is a class: give it an entry point in a package, or run it without a registry",
            workload=process_name,
        )
    kind = load_workload(process_name)
    try:
        model = kind.parameters_type.model_validate(dict(parameters))
    except ValidationError as error:
        raise parameter_error(error, kind.parameters_type.model_fields) from error
    # A launcher runs in another folder.
    model = model.model_copy(update={"output": uris.absolute(model.output)})
    process = kind(model)
    # Of one component nobody expects that it is ready by the day's deadline.
    has_sla = kind.sla is not None and not getattr(model, "only_key", "")
    deadlines = kind.sla.deadlines(process.business_date) if kind.sla and has_sla else None
    expire_after = kind.results_expire_after
    draft = RunDraft(
        id=str(uuid.uuid4()),
        process=kind.name,
        code_version=__version__,
        instance=process.instance_name,
        identity={name: str(getattr(model, name)) for name in kind.identity},
        business_date=process.business_date,
        run_number=model.run_number,
        # Another reason makes no other run.
        parameters=model.model_dump(mode="json", exclude={"run_number", "reason"}),
        output=model.output,
        uri=instance_uri(process),
        beam_flags=list(beam_flags),
        reason=model.reason,
        submitted_by=who,
        submitted_at=at,
        must_start_by=deadlines.start_by if deadlines else None,
        must_finish_by=deadlines.finish_by if deadlines else None,
        options=RunOptions(
            runner=runner_of(beam_flags) or "local",
            attempt_deadline_seconds=kind.attempt_deadline.total_seconds(),
            lost_attempts=kind.lost_attempts,
            failure_event=kind.failure_event,
            has_cleanup=is_overridden(kind, BatchProcess, "cleanup"),
            results_expire_after_seconds=(
                None if expire_after is None else expire_after.total_seconds()
            ),
            folder=os.getcwd(),
        ),
    )
    return Drafted(draft, kind.parameters_type.model_json_schema(), process)
