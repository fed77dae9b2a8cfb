"""Finding the kind of a process: keyed or by page."""

from typing import Any

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.execute.kind import Kind
from ledgerbeam.batch.keyed.kind import KeyedKind


def kind_of(process: BatchProcess[Any]) -> Kind[Any]:
    """The kind of a process, which prepares and checks it.

    Raises:
        TypeError: the process is of neither kind.
    """
    if isinstance(process, KeyedProcess):
        return KeyedKind()
    # Database clients are imported only if needed, since that takes a fifth of a second.
    from ledgerbeam.batch.define.page_process import PageProcess
    from ledgerbeam.batch.pages.kind import PageKind

    if isinstance(process, PageProcess):
        return PageKind()
    raise TypeError(f"{type(process).__name__} is neither a KeyedProcess nor a PageProcess")
