"""The rows of an instance that were rejected, whether it has published or not."""

from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, TypeVar

from ledgerbeam.io.commit.attempts import Attempt, attempts, find_manifest
from ledgerbeam.io.errors import DamagedFileError
from ledgerbeam.io.storage import stores, uris

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


def rejected_tables(uri: str) -> Iterator["pa.Table"]:
    """The rejected rows, with the columns `file`, `row`, `raw` and `reason`.

    Where nothing is published, they are those that were found on the last attempt's input so far.

    Args:
        uri: of the instance.

    Raises:
        DamagedFileError: a file isn't what was written.
    """
    # Verbs that only count need no Arrow.
    from ledgerbeam.io.commit.parquet import read_parquet
    from ledgerbeam.io.commit.published import read_part

    manifest = find_manifest(uri)
    if manifest is not None:
        of_shards = [commit.rejects for commit in manifest.shards]
        for file in [*manifest.rejects, *(file for file in of_shards if file is not None)]:
            yield read_part(uri, file)
        return
    for place in _unpublished(uri):
        yield _read(place, read_parquet)


def rejected_rows(uri: str) -> int:
    """How many rows were rejected, as far as is known.

    Args:
        uri: of the instance.

    Raises:
        DamagedFileError: a file isn't what was written.
    """
    manifest = find_manifest(uri)
    if manifest is not None:
        return manifest.counts.get("rejected", 0)
    return sum(_read(place, _count) for place in _unpublished(uri))


def _count(source: IO[bytes]) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(source).num_rows)


def _read(place: str, read: Callable[[IO[bytes]], T]) -> T:
    import pyarrow as pa

    try:
        with stores.open_input(place) as source:
            return read(source)
    except pa.ArrowException as error:
        how = " ".join(str(error).split())
        raise DamagedFileError(
            f"{place}: damaged: {how}: restore it from a copy", uri=place
        ) from error


def _unpublished(uri: str) -> list[str]:
    """The files of attempts on the same input; what two of them have written is the same rows."""
    records = attempts(uri)
    newest: dict[str, str] = {}
    for record in records:
        if record.fingerprint != records[-1].fingerprint:
            continue
        folder = Attempt(uri, record).uri
        for file in stores.find(uris.join(uris.escape(folder), "rejects-*.parquet")):
            name = uris.base_name(file.uri)
            newest[name.partition(".")[0]] = uris.inside(folder, name)
    return [newest[name] for name in sorted(newest)]
