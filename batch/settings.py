"""Where things are that no command line names, from the environment."""

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from ledgerbeam.io.errors import UserError

REGISTRY = "LEDGERBEAM_REGISTRY"
STATE = "LEDGERBEAM_STATE"
LEASE = "LEDGERBEAM_LEASE_SECONDS"


@dataclass(frozen=True)
class Settings:
    """What launchers and verbs are told by the environment.

    Attributes:
        registry_url: of the registry's database (`LEDGERBEAM_REGISTRY`); by default a SQLite file
            in the state folder.
        state: folder of this user for the default registry and for logs (`LEDGERBEAM_STATE`).
        lease_seconds: how long a launcher may be silent before another takes its place
            (`LEDGERBEAM_LEASE_SECONDS`).
    """

    registry_url: str
    state: Path
    lease_seconds: float

    @classmethod
    def from_environment(cls, registry: str | None = None) -> "Settings":
        """Read the environment; a URL that is given goes before it.

        Raises:
            UserError: a variable's value doesn't fit.
        """
        home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        state = Path(os.environ.get(STATE) or Path(home, "ledgerbeam")).absolute()
        url = registry or os.environ.get(REGISTRY)
        if not url:
            try:
                state.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot make {state} for the registry: {error.strerror}: name another folder "
                    f"by {STATE}, or a database by --registry"
                ) from error
            url = f"sqlite:///{state}/registry.db"
        try:
            lease = float(os.environ.get(LEASE, "30"))
        except ValueError:
            lease = 0
        if not lease > 0:
            raise UserError(f"{LEASE}={os.environ.get(LEASE)}: give seconds, more than 0")
        return cls(url, state, lease)

    def environment_of_workers(self) -> dict[str, str]:
        """This process's environment, less what leads to the registry."""
        return {name: value for name, value in os.environ.items() if name != REGISTRY}

    def log_of(self, run_id: str) -> Path:
        """The file that the launchers of a run on this machine write their log to."""
        return self.state / "logs" / f"{run_id}.log"


def whoami(role: str = "") -> str:
    """`user@host`, or `role@host`, as events are signed."""
    try:
        name = role or getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
