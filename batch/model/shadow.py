"""A run that is the shadow of another one: on the same input, without effects of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ledgerbeam.batch.model.rules import PlannedRules
from ledgerbeam.io.errors import InputChangedError
from ledgerbeam.io.storage.base import FileInfo


class Shadow(NamedTuple):
    """What a shadow run is a shadow of.

    Attributes:
        of: URI of the published instance.
        sha256: of that instance's manifest.
        inputs: the files that it has read, with their versions.
        rules: by which components are executed; None for a process without rules.
    """

    of: str
    sha256: str
    inputs: tuple[FileInfo, ...]
    rules: PlannedRules | None

    def check(self, files: Sequence[FileInfo]) -> None:
        """Check that an input is the one that the first run has read.

        Raises:
            InputChangedError: a file has changed since, is gone, or is new.
        """
        before = {file.uri: file for file in self.inputs}
        now = {file.uri: file for file in files}
        for uri in sorted(before | now):
            if before.get(uri) != now.get(uri):
                how = "is gone" if uri not in now else "is new" if uri not in before else "changed"
                raise InputChangedError(
                    f"{uri} {how} since {self.of} has read its input, and a shadow needs the same: "
                    "restore it, or run the process again and take a shadow of that"
                )

    def record(self) -> dict[str, Any]:
        """What is put on record with the attempt."""
        return {"of": self.of, "sha256": self.sha256}
