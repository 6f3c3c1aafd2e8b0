"""What a deployer can do and report, and the errors it raises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.deployers.compose.recipe import Recipe
from infra.deployers.context import Context, Service
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address


@dataclass(frozen=True)
class Deployment:
    """A deployment's state as read at one moment."""

    services: Sequence[Service]
    version: str = ""  #: the label coop-cloud.<stack>.version, read back; empty when there is none
    web: bool = False  #: whether the recipe has a web port
    fingerprint: str = ""  #: changes with any service's spec, image included; the same for the same deployment
    ports: Mapping[str, int] = field(default_factory=dict)  #: published ports: "app:22/tcp" -> the port on this machine

    @property
    def settled(self) -> bool:
        return all(s.running == s.wanted and s.health in ("", "healthy") for s in self.services)

    def __str__(self) -> str:
        wanted = sum(service.wanted for service in self.services)
        running = sum(service.running for service in self.services)
        health = [f"{s.name} {s.health}" for s in self.services if s.health not in ("", "healthy")]
        return ", ".join([f"{running} of {wanted} replicas", *health])


@dataclass(frozen=True)
class BackupPart:
    """One path of a service that a recipe backs up: a folder or a single file."""

    service: str
    path: str  #: inside the container
    volume: str = ""  #: the volume's name in the compose file, when the path lies in one
    dump: bool = False  #: a file that a pre-hook writes (a database's dump), not the data itself


@dataclass
class BackupPlan:
    """What a recipe's `backupbot.*` labels back up, and what they leave out."""

    parts: list[BackupPart] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)  #: the services that ask for a backup
    problems: list[str] = field(default_factory=list)  #: labels that cannot be obeyed, and those that save nothing
    sources: dict[BackupPart, str] = field(default_factory=dict)  #: the label that asked for a path
    hooked: list[str] = field(default_factory=list)  #: the services that dump what they hold before they are backed up
    dumped: list[str] = field(default_factory=list)  #: those that load it again after a restore, too
    lost: list[str] = field(default_factory=list)  #: `service:path` where Docker makes a new, empty volume for each task
    databases: list[str] = field(default_factory=list)  #: the services whose image is a database's
    loading: list[str] = field(default_factory=list)  #: the services that do something after a restore
    left_out: list[str] = field(default_factory=list)  #: volumes that a label leaves out, and nothing saves: they may be lost
    unsaved: list[str] = field(default_factory=list)  #: volumes that are in no backup, and are not left out by a label
    unknown: list[str] = field(default_factory=list)  #: labels `backupbot.*` that nobody obeys, each with its service


@dataclass(frozen=True)
class Backup:
    """A finished backup: a folder with one tar file per part.

    The tar of a folder holds its content (`./…`), that of a file holds the file under its own name.
    """

    folder: Path
    parts: Sequence[BackupPart]
    written: Sequence[BackupPart] = ()  #: those that were not there before the pre-hooks ran
    printed: Mapping[str, str] = field(default_factory=dict)  #: by service: the end of what its pre-hook printed

    def file(self, part: BackupPart) -> Path:
        """The tar file of one part."""
        number = list(self.parts).index(part)
        return self.folder / f"{number:02}-{part.service}.tar"


@dataclass(frozen=True)
class SavedVolume:
    """A volume's content, as it was saved: a tar file."""

    name: str  #: in Docker
    file: str  #: in the folder of the saved data
    sha256: str  #: of its manifest
    bytes: int  #: of the tar


@dataclass(frozen=True)
class SavedData:
    """What a deployment leaves for a later one under the same stack name. `secrets`: the values by their names in the Swarm."""

    folder: Path
    volumes: Sequence[SavedVolume]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Deployer(ABC):
    """Deploys one recipe on a machine and removes it again.

    All calls except `teardown` raise DeployError. The kind is `not_applicable`, with the deployer's name and the reason, for
    what this kind of deployer cannot do. One object serves one deployment from `new` to `teardown`.
    """

    name: str
    #: What this kind can do beside deploying: "upgrade", "backup", "execute", "save".
    abilities: frozenset[str] = frozenset()

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def deployments(self) -> int:
        """How many deployments started from nothing. Upgrades do not count."""
        raise NotImplementedError

    @property
    def secrets(self) -> Sequence[str]:
        """The values of the secrets created for this deployment, to be kept out of every log."""
        return ()

    def recipe(self, checkout: Path) -> Recipe:
        """Read the recipe in `checkout` as it would be deployed. Raises DeployError for what is not allowed."""
        raise self.cannot("read a recipe")

    def refused(self, checkout: Path, names: Sequence[str]) -> Mapping[str, DeployError] | None:
        """The error for each of these compose files that cannot be read on its own; None if that cannot be determined."""
        return None

    def new(self, checkout: Path | None = None) -> None:  # noqa: B027 - many kinds have nothing to prepare
        """Create what a deployment of `checkout` needs beforehand: new secrets. Can be called repeatedly."""

    @abstractmethod
    def deploy(self, checkout: Path | None = None) -> None:
        """Deploy the recipe in `checkout` (by default the context's own), replacing an older version if one runs.

        Refuses what a recipe may not ask for before anything is changed. Creates new secrets first. `settle` then tells whether
        the deployment succeeded.
        """

    @abstractmethod
    def settle(self) -> Deployment:
        """Wait up to `settle_seconds` until everything runs as requested. Fails early if it never will."""

    def still_up(self) -> Sequence[str]:
        """What failed since `settle` and came up again, a sentence each. Raises DeployError if it does not stay up now."""
        return ()

    def settle_again(self) -> Sequence[str]:
        """Wait until what a hook of the recipe restarted is up again. Raises DeployError if it does not come up.

        Returns a sentence for each service that failed by itself meanwhile.
        """
        self.settle()
        return ()

    @abstractmethod
    def state(self) -> Deployment:
        """The deployment's current state."""

    @abstractmethod
    def address(self) -> Address | None:
        """The app's address; None for a recipe without a web port."""

    @abstractmethod
    def logs(self, service: str = "", lines: int = 50) -> str:
        """The last lines of one service's log, or of all services."""

    @abstractmethod
    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        """Run a command inside a service. Returns exit code and output."""

    def read(self, service: str, path: str, most: int = 1 << 20) -> bytes | None:
        """The first `most` bytes of a file in a service's container; None if it does not exist."""
        raise self.cannot("read")

    def write(self, service: str, path: str, data: bytes) -> None:
        """Write a file into a service's container, whatever its image contains."""
        raise self.cannot("write")

    def mounts(self) -> Sequence[BackupPart]:
        """Every volume of the running services, backed up or not. `path` is where it is mounted."""
        return ()

    def backups(self) -> BackupPlan:
        """What the recipe's labels back up; `wanted` is empty when it declares no backups."""
        return BackupPlan()

    def backup(self, folder: Path) -> Backup:
        """Run the pre-hooks, copy every part into `folder`, run the post-hooks."""
        raise self.cannot("backup")

    def restore(self, backup: Backup) -> None:
        """Restore a backup's parts, then run the restore hooks."""
        raise self.cannot("restore")

    def restart(self, backup: Backup) -> list[str]:
        """Restart the services that own the restored data. `settle` then tells whether they came up.

        Returns the files that differ from the backup while the services are down, as `service:path`: those that the services
        overwrote after the restore.
        """
        raise self.cannot("restart")

    def save(self, folder: Path, most: int) -> SavedData:
        """Stop the app for good and copy its volumes into `folder`, at most `most` bytes. `teardown` has to follow.

        Raises DeployError and OSError, also for volumes that cannot be recreated from their content.
        """
        raise self.cannot("save an app's data")

    def start_on(self, data: SavedData) -> None:
        """Have the first `deploy` start on this data, which is only read. The context has the stack name of back then."""
        raise self.cannot("start on saved data")

    def events(self) -> Sequence[str]:
        """The machine's events about this deployment since it began, one per line (Docker's events)."""
        return ()

    def cannot(self, what: str) -> DeployError:
        return DeployError("not_applicable", f"The {self.name} deployer cannot {what}.", "Use the swarm deployer.")

    def exceeded(self) -> str:
        """Why the run must end because its app exceeds a limit; empty while it does not. Called often."""
        return ""

    def keep(self) -> str:
        """Keep the deployment for a person to look at, if it can outlive the harness. Returns how to remove it."""
        self.teardown()
        return "nothing: apps of this deployer end with their run."

    def dropped(self) -> Sequence[str]:
        """Services that still run although the recipe deployed last no longer has them: nothing removes them."""
        return ()

    def start_over(self) -> None:
        """Remove what runs, including data, so that the next `deploy` starts from nothing."""
        raise self.cannot("start over")

    def undeploy(self) -> None:
        """Stop everything and wait until it is gone; volumes, secrets and configs are kept for the next `deploy`."""
        raise self.cannot("undeploy")

    @abstractmethod
    def teardown(self) -> list[str]:
        """Remove everything, including data, in any state. Can be called repeatedly. Returns what is left. Never raises."""
