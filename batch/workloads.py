"""Which workloads are installed: the entry points of the group `ledgerbeam.pipelines`."""

from importlib.metadata import entry_points
from types import ModuleType

from ledgerbeam.io.errors import UserError

GROUP = "ledgerbeam.pipelines"


def workload_names() -> list[str]:
    """Names of the workloads, sorted."""
    return sorted(entry_points(group=GROUP).names)


def load_workload(name: str) -> ModuleType:
    """The module of a workload, whose `PROCESS` is its definition.

    Raises:
        UserError: no workload has that name.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise UserError(f"no workload {name}: there are {', '.join(workload_names())}")
    module: ModuleType = next(iter(found)).load()
    return module
