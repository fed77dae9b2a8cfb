"""The baseline of a comparison: what differs when the first side is only repeated."""

from typing import NamedTuple

from ledgerbeam.io.commit.attempts import MANIFEST, digest_of, load_manifest
from ledgerbeam.io.commit.published import instance_of
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.storage import uris
from ledgerbeam.transforms.columnar.differences import RowStatus


class Noise(NamedTuple):
    """What the baseline has shown.

    Attributes:
        rows: those that differ between the first side and its repetition.
        of: all rows that were compared there.
        uri: of that comparison.
        sha256: of its manifest.
    """

    rows: int
    of: int
    uri: str
    sha256: str


def read_noise(baseline: str, before: str) -> Noise | None:
    """What a baseline has shown; None if there is none.

    Args:
        baseline: URI of a comparison; empty for none.
        before: the first side, which must be that of the baseline too.

    Raises:
        ParameterError: it is no comparison, or one of something else.
        UserError: nothing is published there.
    """
    if not baseline:
        return None
    uri = instance_of(uris.absolute(baseline))
    manifest = load_manifest(uri)
    of = manifest.attempt.parameters.get("before", "")
    if manifest.attempt.process != "compare" or uris.absolute(of) != uris.absolute(before):
        raise ParameterError(
            f"--baseline={baseline} is no comparison of {before}: compare that with its own "
            "repetition",
            parameter="--baseline",
            value=baseline,
        )
    digest = digest_of(uris.join(uri, MANIFEST))
    return Noise(unknown_rows(manifest), manifest.counts["components"], uri, digest)


def unknown_rows(manifest: Manifest) -> int:
    """How many rows of a comparison differ in a way that nobody knows of."""
    unknown = (RowStatus.CHANGED, RowStatus.ONLY_BEFORE, RowStatus.ONLY_AFTER)
    return sum(manifest.totals[f"keys_{status}"] for status in unknown)
