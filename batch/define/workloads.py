"""Which workloads are installed: the entry points of the group `ledgerbeam.pipelines`."""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from ledgerbeam.io.errors import DefinitionError, WorkloadNotFoundError

if TYPE_CHECKING:
    from ledgerbeam.batch.define.process import BatchProcess

GROUP = "ledgerbeam.pipelines"


def workload_names() -> list[str]:
    """Names of the workloads, sorted."""
    return sorted(entry_points(group=GROUP).names)


def load_workload(name: str) -> "type[BatchProcess[Any]]":
    """The definition of a workload.

    Raises:
        WorkloadNotFoundError: no workload has that name.
        DefinitionError: its entry point doesn't name a batch process.
    """
    # This imports Beam, which `workload_names` doesn't need.
    from ledgerbeam.batch.define.process import BatchProcess

    found = entry_points(group=GROUP, name=name)
    if not found:
        raise WorkloadNotFoundError(
            f"no workload {name}: there are {', '.join(workload_names())}", workload=name
        )
    entry_point = next(iter(found))
    loaded = entry_point.load()
    if not (isinstance(loaded, type) and issubclass(loaded, BatchProcess)):
        raise DefinitionError(
            f"workload {name}: its entry point {entry_point.value} is no definition of a batch "
            "process: name the class, as in MODULE:CLASS"
        )
    return loaded
