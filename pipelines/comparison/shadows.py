"""Shadow runs: which sides are compared, what makes them, and by which columns."""

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.parameters import parameter_error
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.batch.model.rules import RULE
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.records import Manifest, damaged_record
from ledgerbeam.io.errors import ParameterError, TooManyRejectionsError, UserError
from ledgerbeam.io.storage import uris
from ledgerbeam.pipelines.comparison.candidate import Candidate, definition_of, execute
from ledgerbeam.pipelines.comparison.compare import Compare, CompareParameters

FOLDER = "shadow"
"""Folder of shadows, beside those of processes."""


class ShadowPlan(NamedTuple):
    """What a shadow run compares.

    Attributes:
        before: where the present results are; or what makes them.
        again: what makes them once more, for a baseline.
        candidate: what makes those that are compared with them.
        columns: the flags of the comparison that say what its columns are.
        folder: of all that is written.
        date: of the comparison.
        reason: of the comparison, for the record.
    """

    before: str | Candidate
    again: Candidate
    candidate: Candidate
    columns: Mapping[str, str]
    folder: str
    date: datetime.date
    reason: str


class ShadowResult(NamedTuple):
    """A comparison that was made.

    Attributes:
        definition: of the comparison.
        manifest: of its instance.
    """

    definition: Compare
    manifest: Manifest

    @property
    def uri(self) -> str:
        """Where it is published."""
        return instance_uri(self.definition)

    @property
    def page(self) -> str:
        """Where its page for people is."""
        (page,) = (file.name for file in self.manifest.reports if file.name.endswith(".html"))
        return uris.join(self.uri, page)


def plan_process(of: str, rule: int | None, definition: str, output: str | None) -> ShadowPlan:
    """The shadow of a published instance.

    Args:
        of: its URI.
        rule: by which the candidate executes all components; None for the rules that they had.
        definition: MODULE:CLASS; empty for the installed one.
        output: a new folder; None for one in that of the process's results.

    Raises:
        UserError: nothing is published there, or its definition isn't there.
    """
    manifest = load_manifest(of)
    kind = definition_of(definition, manifest.attempt.process)
    try:
        process = kind(kind.parameters_type.model_validate(manifest.attempt.parameters))
    except ValidationError as error:
        raise damaged_record(of, str(parameter_error(error))) from error
    folder = _folder(output, str(manifest.attempt.parameters["output"]))
    columns = _columns(process, manifest) if isinstance(process, KeyedProcess) else {}
    again = Candidate(of=of, output=uris.join(folder, "baseline"), definition=definition)
    changed = {"output": uris.join(folder, "candidate"), "rule": rule}
    candidate = again.model_copy(update=changed)
    reason = f"shadow of {uris.absolute(of)}"
    return ShadowPlan(of, again, candidate, columns, folder, process.business_date, reason)


def plan_handler(
    name: str,
    rule: int | None,
    database: str,
    first: datetime.datetime,
    end: datetime.datetime,
    output: str,
) -> ShadowPlan:
    """The shadow of a handler over a range of the stream.

    Args:
        name: of the handler, or MODULE:CLASS.
        rule: the candidate; None for the newest one.
        database: URL of the database of messages.
        first: messages posted from this moment on.
        end: and before this one.
        output: a new folder.

    Raises:
        UserError: there is no such handler.
    """
    from ledgerbeam.messages.define.handlers import load_handler
    from ledgerbeam.messages.model.message import to_microseconds

    handler = load_handler(name)
    # It is also what handlers are told as the present time, on both sides.
    end = min(end, utc_now())
    present = Candidate(
        kind="handler",
        of=name,
        output=uris.join(output, "present.parquet"),
        rule=min(handler.rules, default=None),
        database=database,
        first=to_microseconds(first),
        end=to_microseconds(end),
    )
    again = present.model_copy(update={"output": uris.join(output, "baseline.parquet")})
    newest = max(handler.rules, default=None) if rule is None else rule
    changed = {"output": uris.join(output, "candidate.parquet"), "rule": newest}
    columns = {"keys": "message_id,number", "customer": "customer"}
    candidate = present.model_copy(update=changed)
    reason = f"shadow of {handler.name}"
    return ShadowPlan(present, again, candidate, columns, output, end.date(), reason)


def compare_shadow(
    plan: ShadowPlan,
    python: str,
    has_baseline: bool,
    flags: Mapping[str, str],
    beam_flags: Sequence[str] = (),
    registry: str | None = None,
) -> ShadowResult:
    """Execute what a plan needs, and compare.

    Args:
        plan: what is compared.
        python: the candidate's interpreter; empty for this one.
        has_baseline: whether the present results are first compared with their repetition.
        flags: of the comparison, in place of those of the plan.
        beam_flags: for Beam, of all that is executed.
        registry: where the comparison is put on record, empty for where the environment says; None
            for nowhere.

    Raises:
        UserError: something can't be executed or compared.
    """

    def made(candidate: Candidate, python: str = "") -> str:
        return execute(candidate.model_copy(update={"beam_flags": tuple(beam_flags)}), python)

    before = plan.before if isinstance(plan.before, str) else made(plan.before)
    noise = ""
    if has_baseline:
        repeated = made(plan.again)
        # Beside what was repeated, so that the folder itself has one comparison.
        baseline = _comparison(plan, f"{plan.folder}/baseline", before, repeated, flags)
        noise = _compared(baseline, flags, beam_flags, None).uri
    after = made(plan.candidate, python)
    definition = _comparison(plan, plan.folder, before, after, {**flags, "baseline": noise})
    return _compared(definition, flags, beam_flags, registry)


def _comparison(
    plan: ShadowPlan, output: str, before: str, after: str, flags: Mapping[str, str]
) -> Compare:
    given = {name: value for name, value in flags.items() if value}
    sides = {"before": before, "after": after}
    fixed = {"business_date": plan.date, "output": output, "reason": plan.reason}
    # Results that are empty on both sides agree.
    values = {"ignore": RULE, "min_rows": 0, **plan.columns, **given, **sides, **fixed}
    try:
        return Compare(CompareParameters.model_validate(values))
    except ValidationError as error:
        raise parameter_error(error, CompareParameters.model_fields) from error


def _compared(
    definition: Compare, flags: Mapping[str, str], beam_flags: Sequence[str], registry: str | None
) -> ShadowResult:
    try:
        if registry is None:
            return ShadowResult(definition, run(definition, beam_flags))
        # This imports a database client, which a shadow that isn't recorded doesn't need.
        from ledgerbeam.batch.runs.foreground import run_recorded

        run_recorded(definition, beam_flags, registry)
        return ShadowResult(definition, load_manifest(instance_uri(definition)))
    except UserError as error:
        is_rejected = TooManyRejectionsError.code in (error.code, getattr(error, "cause", None))
        if flags.get("keys") or not is_rejected:
            raise
        keys = definition.parameters.keys
        raise ParameterError(
            f"--keys: {keys} doesn't tell the rows of results apart: name the columns that do, of "
            f"{', '.join(definition.columns.before)}",
            parameter="--keys",
            value=keys,
        ) from error


def _columns(process: KeyedProcess[Any], manifest: Manifest) -> dict[str, str]:
    """What of the results identifies a row, and which columns are money."""
    rows, there = process.inputs[0], manifest.columns
    keys = [*process.key, *(n for n in rows.identity(process.key) if n not in process.key)]
    currency = rows.currency if rows.currency in there else ""
    # With currencies, decimals may be rates, which have more digits than money.
    amounts = rows.amounts if currency else [n for n in there if there[n].startswith("decimal")]
    return {
        "keys": ",".join(name for name in keys if name in there),
        "customer": process.customer,
        "amounts": ",".join(name for name in amounts if name in there),
        "currency": currency,
    }


def _folder(output: str | None, beside: str) -> str:
    if output is not None:
        return output
    name = f"{utc_now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    return uris.join(uris.absolute(beside), FOLDER, name)


def check_time(text: str | None, flag: str) -> datetime.datetime:
    """A moment that must be given.

    Raises:
        ParameterError: it isn't, or isn't one.
    """
    from ledgerbeam.batch.cli.filters import read_since

    if text is None:
        raise ParameterError(
            f"{flag} is missing: a handler's shadow needs --from and --to", parameter=flag
        )
    return read_since(text)
