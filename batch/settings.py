"""Settings from the environment: the registry, the state folder, the lease."""

import getpass
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ledgerbeam.batch.environments import chosen_environment
from ledgerbeam.batch.traces import TRACEPARENT
from ledgerbeam.io import private
from ledgerbeam.io.errors import ParameterError, StorageError
from ledgerbeam.io.machine import host_name

REGISTRY = "LEDGERBEAM_REGISTRY"
SERVER = "LEDGERBEAM_SERVER"
STATE = "LEDGERBEAM_STATE"
LEASE = "LEDGERBEAM_LEASE_SECONDS"


@dataclass(frozen=True)
class Settings:
    """Settings that launchers and commands take from the environment.

    Attributes:
        registry_url: URL of the registry's database (`LEDGERBEAM_REGISTRY`, or that of the
            environment in `ledgerbeam.toml`); by default a SQLite file in the state folder.
        state: folder of this user for the default registry and for logs (`LEDGERBEAM_STATE`).
        lease_seconds: seconds without a heartbeat after which a launcher is replaced by another
            (`LEDGERBEAM_LEASE_SECONDS`).
        traceparent: the trace that launchers are to belong to (`TRACEPARENT`); empty for none.
    """

    registry_url: str
    state: Path
    lease_seconds: float
    traceparent: str = ""

    @classmethod
    def from_environment(cls, registry: str | None = None) -> "Settings":
        """Read the environment; a registry's URL that is given takes precedence.

        Raises:
            ParameterError: a variable's value is invalid.
            StorageError: the state folder can't be made, or is somebody else's.
        """
        home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        state = Path(os.environ.get(STATE) or Path(home, "ledgerbeam")).absolute()
        url = registry or os.environ.get(REGISTRY) or chosen_environment().registry
        umask = os.environ.get(private.VARIABLE)
        if umask and not private.is_valid(umask):
            raise ParameterError(
                f"{private.VARIABLE}={umask}: give it in octal digits, such as 077 or 027",
                parameter=private.VARIABLE,
                value=umask,
            )
        if foreign := private.foreign_part(state):
            raise StorageError(
                f"{foreign} belongs to somebody else, in a folder where everybody may make files: "
                f"name another folder by {STATE}",
                uri=str(state),
            )
        if not url:
            try:
                private.make_folder(state)
            except OSError as error:
                raise StorageError(
                    f"cannot make {state} for the registry: {error.strerror}: name another folder "
                    f"by {STATE}, or a database by --registry",
                    uri=str(state),
                ) from error
            url = f"sqlite:///{state}/registry.db"
        try:
            lease = float(os.environ.get(LEASE, "30"))
        except ValueError:
            lease = 0
        if not lease > 0:
            raise ParameterError(
                f"{LEASE}={os.environ.get(LEASE)}: give seconds, more than 0",
                parameter=LEASE,
                value=os.environ.get(LEASE),
            )
        return cls(url, state, lease, os.environ.get(TRACEPARENT, ""))

    @staticmethod
    def environment_of_workers() -> dict[str, str]:
        """This process's environment without the registry's URL."""
        return {name: value for name, value in os.environ.items() if name != REGISTRY}

    def log_of(self, run_id: str) -> Path:
        """The log file of a run's launchers on this machine."""
        return self.state / "logs" / f"{run_id}.log"

    def open_log(self, run_id: str) -> IO[bytes]:
        """That file, for its end; for this user alone where it is made."""
        path = self.log_of(run_id)
        private.make_folder(self.state)
        private.make_folder(path.parent)
        return os.fdopen(private.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def server_of(url: str | None) -> str | None:
    """The URL of the service that commands are to use; None where it is a registry.

    Args:
        url: that was given; None for what the environment says.

    Raises:
        ParameterError: the configuration of environments isn't right.
    """
    found = url or os.environ.get(REGISTRY) or os.environ.get(SERVER)
    found = found or chosen_environment().registry
    return found if found.startswith(("http://", "https://")) else None


def names_registry(given: str | None) -> bool:
    """Whether a registry is named, by a command's flag or by the environment.

    Args:
        given: what the flag says; None for nothing.

    Raises:
        ParameterError: the configuration of environments isn't right.
    """
    found = given or os.environ.get(REGISTRY) or chosen_environment().registry
    return bool(found) and server_of(given) is None


def whoami(role: str = "") -> str:
    """`user@host`, or `role@host` if there is a role, for the signature of events."""
    try:
        name = role or getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{host_name()}"
