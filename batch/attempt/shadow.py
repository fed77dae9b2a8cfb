"""A shadow of a published instance: the same input, a candidate's rules or code.

Its results are an instance of their own, in a folder where no reader of the process looks.
"""

from typing import Any

from pydantic import ValidationError

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.parameters import parameter_error
from ledgerbeam.batch.define.process import BatchProcess, RetryMode, instance_uri
from ledgerbeam.batch.model.rules import PlannedRules
from ledgerbeam.batch.model.shadow import Shadow
from ledgerbeam.io.commit.attempts import MANIFEST, digest_of, load_manifest
from ledgerbeam.io.commit.published import instance_of
from ledgerbeam.io.commit.records import damaged_record
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.storage import uris

_HOOKS = ("before", "after", "cleanup")


def shadow_of(
    uri: str, kind: type[BatchProcess[Any]], output: str, rule: int | None = None
) -> KeyedProcess[Any]:
    """The definition of a shadow, for `run`, which refuses it if the input has changed.

    Args:
        uri: of the published instance.
        kind: the candidate's definition.
        output: where the results of shadows go.
        rule: number of the rule that all components are executed by; None for the rules that they
            had.

    Raises:
        ParameterError: the process can't have a shadow, or has no such rule.
        UserError: nothing is published there.
    """
    of = instance_of(uris.absolute(uri))
    manifest = load_manifest(of)
    if not issubclass(kind, KeyedProcess):
        raise ParameterError(
            f"{kind.name} is no keyed process: only those have shadows, since what a page process "
            "writes can't be withheld",
            parameter="RUN",
            value=uri,
        )
    if kind.retry.mode is RetryMode.AT_MOST_ONCE:
        raise ParameterError(
            f"{kind.name}: its components may be called once only, and a shadow would call "
            f"{manifest.counts['components']:,} of them a second time: none is begun",
            parameter="RUN",
            value=uri,
        )
    rules = PlannedRules.of(manifest.attempt)
    if rule is not None:
        if rule not in kind.rules:
            known = ", ".join(map(str, sorted(kind.rules))) or "none"
            raise ParameterError(
                f"{kind.name} has no rule {rule}: it has {known}", parameter="--rule", value=rule
            )
        rules = PlannedRules.everybody(rule)
    elif rules is None and kind.rules:
        rules = PlannedRules.everybody(min(kind.rules))
    # As many rows as it had, since the input is the same.
    own = {"output": output, "min_rows": 0, "max_change": "none", "max_age": "none"}
    try:
        parameters = kind.parameters_type.model_validate(manifest.attempt.parameters | own)
    except ValidationError as error:
        raise damaged_record(of, str(parameter_error(error))) from error
    process: KeyedProcess[Any] = kind(parameters)
    if instance_uri(process) == of:
        raise ParameterError(
            f"--output={output} is where {kind.name} itself publishes: give shadows another folder",
            parameter="--output",
            value=output,
        )
    process.shadow = Shadow(
        of, digest_of(uris.join(of, MANIFEST)), tuple(manifest.attempt.inputs), rules
    )
    for hook in _HOOKS:
        setattr(process, hook, _withheld)
    return process


def _withheld(*_: object) -> None:
    """In place of a hook, which may have effects."""
