"""Which workloads are installed: the entry points of the group `ledgerbeam.pipelines`."""

import difflib
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from ledgerbeam.io.errors import DefinitionError, UserError, WorkloadNotFoundError
from ledgerbeam.transforms.concurrency.retry import error_line

if TYPE_CHECKING:
    from ledgerbeam.batch.define.process import BatchProcess

GROUP = "ledgerbeam.pipelines"

ADAPTERS = "ledgerbeam.adapters"
"""Entry points that make workloads of what isn't written as one, such as handlers of messages.

The name of each is the group of entry points that it makes workloads of; called with the name of
one of these, or with MODULE:CLASS, it gives the definition.
"""


def workload_names() -> list[str]:
    """Names of the workloads, sorted."""
    groups = [GROUP, *entry_points(group=ADAPTERS).names]
    return sorted({name for group in groups for name in entry_points(group=group).names})


def descriptions() -> dict[str, str]:
    """The first line of each workload's `--help`, which is its module's, by the workload's name."""
    found = {}
    for name in workload_names():
        try:
            says = sys.modules[load_workload(name).__module__].__doc__ or ""
        except Exception as error:  # what one package does wrong hides no other workload
            says = f"can't be used: {type(error).__name__}: {error}"
        found[name] = next(iter(says.strip().splitlines()), "")
    return found


def load_workload(name: str) -> "type[BatchProcess[Any]]":
    """The definition of a workload.

    Raises:
        WorkloadNotFoundError: no workload has that name.
        DefinitionError: its entry point doesn't name a batch process.
    """
    # This imports Beam, which `workload_names` doesn't need.
    from ledgerbeam.batch.define.process import BatchProcess

    found = entry_points(group=GROUP, name=name)
    if not found and (adapted := _adapted(name)) is not None:
        return adapted
    if not found:
        similar = difflib.get_close_matches(name, workload_names(), 1, 0.8)
        advice = f"did you mean {similar[0]}? There" if similar else "there"
        raise WorkloadNotFoundError(
            f"no workload {name}: {advice} are {', '.join(workload_names())}", workload=name
        )
    entry_point = next(iter(found))
    try:
        loaded = entry_point.load()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        what = "ends the program" if isinstance(error, SystemExit) else error_line(error)
        raise DefinitionError(
            f"workload {name}: {entry_point.value} can't be imported: {what}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, BatchProcess)):
        raise DefinitionError(
            f"workload {name}: its entry point {entry_point.value} is no definition of a batch "
            "process: name the class, as in MODULE:CLASS"
        )
    return loaded


def _adapted(name: str) -> "type[BatchProcess[Any]] | None":
    """The definition that an adapter makes of what has the name; None if none of them has it."""
    for adapter in entry_points(group=ADAPTERS):
        if ":" in name or entry_points(group=adapter.name, name=name):
            made: type[BatchProcess[Any]] = adapter.load()(name)
            return made
    return None
