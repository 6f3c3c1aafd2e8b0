"""What a deployer can do, what it can say about a deployment, and the errors it raises, in words for people."""

from __future__ import annotations

import http.client
import os
import secrets as random
import socket
import ssl
import string
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from infra.deployers.compose.recipe import Recipe

Kind = Literal[
    "image_missing",
    "pull_failed",
    "out_of_memory",
    "not_applicable",
    "never_healthy",
    "never_answered",
    "exits",
    "rolled_back",
    "port_taken",
    "no_node",
    "invalid_recipe",
    "forbidden",
    "config_immutable",
    "backup_failed",
    "restore_failed",
    "tool_missing",
    "tool_failed",
    "not_as_judged",
]

#: Kinds that say the recipe is at fault. The others are ours: the run is then *errored*, not *failed*.
RECIPES_FAULT: frozenset[str] = frozenset(
    {
        "image_missing",
        "out_of_memory",
        "never_healthy",
        "never_answered",
        "exits",
        "rolled_back",
        "invalid_recipe",
        "forbidden",
        "config_immutable",
        "backup_failed",
        "restore_failed",
    }
)


class DeployError(Exception):
    """A deployment that did not come about.

    `message` says what happened in one sentence, `fix` what the reader can do. `recipes_fault` decides between *failed*
    and *errored*.
    """

    def __init__(self, kind: Kind, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fix = fix

    @property
    def recipes_fault(self) -> bool:
        return self.kind in RECIPES_FAULT

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


@dataclass(frozen=True)
class Address:
    """Where the harness itself reaches the app: a unix socket, or a TCP host and port, with TLS or without."""

    host: str = ""
    port: int = 0
    unix: str = ""
    tls: bool = False
    proxied: bool = False

    def connect(self, timeout: float, server_name: str = "") -> socket.socket:
        """A connected stream. Raises OSError.

        The certificate is not checked: the proxy is our own, reached by its address, and on a test server it shows the
        self-signed default one.
        """
        if self.unix:
            return connect_unix(self.unix, timeout)
        stream = socket.create_connection((self.host, self.port), timeout=timeout)
        if not self.tls:
            return stream
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            return context.wrap_socket(stream, server_hostname=server_name or self.host)
        except OSError:
            stream.close()
            raise

    def way(self) -> str:
        """The address of ours from which this one is reached; empty where that cannot be told.

        When a deployment's own network is gone, the same address leads elsewhere, to whoever has it there.
        """
        if self.unix or not self.host:
            return ""
        try:
            with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_DGRAM) as stream:
                stream.connect((self.host, self.port))  # sends nothing
                return str(stream.getsockname()[0])
        except (OSError, OverflowError):  # of a port that is none
            return ""

    def __str__(self) -> str:
        if self.unix:
            return "the sandbox's socket"
        return f"{self.host}:{self.port}"


def connect_unix(path: str, timeout: float) -> socket.socket:
    """Connect to the unix socket at `path`, which may be longer than the 107 bytes that an address holds."""
    folder = os.open(Path(path).parent, os.O_PATH | os.O_CLOEXEC)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout)
        stream.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
    except OSError:
        stream.close()
        raise
    finally:
        os.close(folder)
    return stream


def listen_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening unix socket at `path`, of any length. Who may connect is decided by `mode` and the folders above."""
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(mode)
    listener.listen(64)
    return listener


@dataclass(frozen=True)
class Answer:
    """What the app said to one GET."""

    status: int
    body: str = ""
    location: str = ""  #: where a redirection leads
    domain: str = ""  #: the host that was asked for

    def only_to_https(self, address: Address) -> bool:
        """Whether a proxy without TLS leads to https under the same name, as it does for every host, known or not."""
        if not address.proxied or address.tls or self.status not in (301, 302, 303, 307, 308):
            return False
        try:
            parts = urlsplit(self.location)
            return parts.scheme == "https" and (parts.hostname or "") == self.domain.lower()
        except ValueError:
            return False

    def from_proxy(self, address: Address) -> bool:
        """Whether the proxy says this for a host that it does not know.

        Traefik's words are `404 page not found`; one that leads everything to https says that of unknown hosts as well.
        """
        unknown = address.proxied and self.status == 404 and self.body.strip() == "404 page not found"
        return unknown or self.only_to_https(address)

    def from_app(self, address: Address) -> bool:
        """Whether this is the app's own word, and not an error of the app or of the proxy before it."""
        return self.status < 500 and not self.from_proxy(address)


class TimedConnection(http.client.HTTPConnection):
    """HTTP over a stream that `opened` connects: in a `with` block, for at most `timeout` seconds, however it drips."""

    def __init__(self, host: str, opened: Callable[[float], socket.socket], timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self.late = False  #: whether its time was up
        self._opened, self._seconds = opened, timeout
        self._stream: socket.socket | None = None  # `sock` is None while the last answer is read
        self._watchdog = threading.Timer(timeout, self._end)
        self._watchdog.daemon = True

    def connect(self) -> None:
        self.sock = self._stream = self._opened(self._seconds)
        if self.late:
            self._end()

    def _end(self) -> None:
        self.late = True
        if self._stream is not None:
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.close()


def probe(address: Address, domain: str = "", path: str = "/", timeout: float = 5.0) -> Answer | None:
    """GET `path` with the Host header `domain`, in at most `timeout` seconds. None when nobody there speaks HTTP."""
    with TimedConnection(domain or "localhost", partial(address.connect, server_name=domain), timeout) as connection:
        try:
            connection.request("GET", path, headers={"Connection": "close", "User-Agent": "cc-ci"})
            response = connection.getresponse()
            body = response.read(4096).decode(errors="replace")
            return Answer(response.status, body, response.headers.get("Location", ""), domain)
        except (OSError, ValueError, http.client.HTTPException):
            return None


@dataclass(frozen=True)
class Service:
    """One service of a deployment, as it is now."""

    name: str
    wanted: int
    running: int
    restarts: int = 0
    health: Literal["", "starting", "healthy", "unhealthy"] = ""  #: empty: the service has no health check
    image: str = ""
    problem: str = ""  #: the last failure, in the deployer's own words


@dataclass(frozen=True)
class Deployment:
    """What is known of a deployment: taken at one moment, never from memory."""

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


def _silent(text: str) -> None:
    pass


def _go_on() -> None:
    pass


@dataclass(frozen=True)
class Secret:
    """A secret that a recipe expects to be there, and what its value should be."""

    name: str  #: in the Swarm
    key: str  #: in the recipe
    length: int = 32
    characters: str = string.ascii_letters + string.digits
    generate: bool = True  #: False: a person has to give it


def random_secret(secret: Secret) -> str:
    """A value for a secret. Raises DeployError for one that is not to be made up."""
    if not secret.generate:
        raise DeployError(
            "invalid_recipe",
            f"The secret {secret.key} has generate=false in .env.sample, so it is not made up, and there is no value for it.",
            f'Write one for tests into cc-ci.toml, under [secrets]: {secret.key} = "…"',
        )
    return "".join(random.choice(secret.characters) for _ in range(secret.length))


def _untimed(_step: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Bounds:
    """What each service of a run may have (`memory_mb` … `log_mb`), and how much there may be in all."""

    memory_mb: int = 2048
    cpus: float = 1.0
    processes: int = 1024
    log_mb: int = 20
    tasks: int = 20
    services: int = 20
    secrets: int = 50
    configs: int = 50
    networks: int = 20
    volumes_mb: int = 8192


@dataclass
class Context:
    """What a deployer is given for one run."""

    run_id: str
    installation: str
    recipe: str
    checkout: Path
    work: Path  #: a folder of the run's own, only ours, for sockets and generated files
    domain: str = ""
    proxy_url: str = ""
    trusted: bool = True
    keep: bool = False
    settle_seconds: int = 300
    memory_mb: int = 2048
    processes: int = 512
    disk_mb: int = 2048
    bounds: Bounds = Bounds()
    allow: Sequence[str] = ()  #: refusals of `admission` that are allowed for this recipe, word for word without the place
    withheld: Sequence[str] = ()  #: those that are allowed for it, but not to a stranger's commit, which this one is
    env: Mapping[str, str] = field(default_factory=dict)  #: added to the app's `.env` (from the recipe's cc-ci.toml)
    env_upgrade: Mapping[str, str] = field(default_factory=dict)  #: the same, for the files in `checkout` alone
    secret_values: Mapping[str, str] = field(default_factory=dict)  #: by name in the recipe, for tests (from its cc-ci.toml)
    lent: Mapping[str, str] = field(default_factory=dict)  #: what the server lends, for recipe and tests (an OIDC realm)
    exclusive_ports: Sequence[int] = ()  #: published as they are, leased by a lock in `locks`; others get free ones
    locks: Path | None = None
    mirror: str = ""  #: a registry that is asked first for images of Docker Hub
    registries: Sequence[str] = ()  #: those that a run may pull from, as `host` or `host:port`; empty: any public one
    registry_auth: str = ""  #: a Docker config.json with logins, as text; never in an environment or on a command line
    image_ledger: Path | None = None  #: where this machine notes when an image was used last
    image_gb: float = 0.0
    health_path: str = "/"  #: what is asked to see whether the app answers
    health_status: Sequence[int] = ()  #: the answers that count; empty: any below 500 that is the app's own
    app: str = ""  #: the name of a long-lived app of the server; empty for a run
    app_stack: str = ""  #: the stack of such an app
    mark: str = ""  #: the number of its deployment, that tells its services from those of another
    secret: Callable[[Secret], str] = random_secret  #: the value for a secret that nobody else gives
    ephemeral: bool = True  #: thrown away after its run: an earlier attempt's rest goes first, nothing gets time to stop
    report: Callable[[str], None] = field(default=_silent)  #: a step, for the events
    warn: Callable[[str], None] = field(default=_silent)  #: a line, for the report
    log: Callable[[str], None] = field(default=_silent)  #: a line, for the log
    timed: Callable[[str], AbstractContextManager[None]] = field(default=_untimed)  #: notes how long a step took
    check: Callable[[], None] = field(default=_go_on)  #: raises when the run shall stop; called in every wait

    @property
    def stack(self) -> str:
        """The stack's name: the app's own, or `ccci-` and the first 12 hex digits of the run's id."""
        return self.app_stack or stack_name(self.run_id)

    def accepts(self, answer: Answer, address: Address) -> bool:
        """Whether an answer to GET `health_path` shows that the app is well."""
        if self.health_status:
            return answer.status in self.health_status and not answer.from_proxy(address)
        return answer.from_app(address)


def stack_name(run_id: str) -> str:
    return "ccci-" + "".join(c for c in run_id.lower() if c in "0123456789abcdef")[:12]


@dataclass(frozen=True)
class BackupPart:
    """One thing that a recipe has backed up: a path of a service, whole or a single file."""

    service: str
    path: str  #: inside the container
    volume: str = ""  #: the volume's name in the compose file, when the path lies in one
    dump: bool = False  #: a file that a pre-hook writes (a database's dump), not the data itself


@dataclass(frozen=True)
class Backup:
    """A backup that was made: the folder with its parts, one tar file for each.

    A folder's tar holds what lies in it (`./…`), a file's the one file under its own name.
    """

    folder: Path
    parts: Sequence[BackupPart]

    def file(self, part: BackupPart) -> Path:
        """The tar file of one part."""
        number = list(self.parts).index(part)
        return self.folder / f"{number:02}-{part.service}.tar"


class Deployer(ABC):
    """Puts one recipe on a machine, and takes it away again.

    All calls but `teardown` raise DeployError; what a kind of deployer cannot do at all raises the kind `not_applicable`,
    with the deployer's name and the reason. The same object serves one deployment from `new` to `teardown`.
    """

    name: str
    #: What this kind can do beside deploying: "upgrade", "backup", "execute".
    abilities: frozenset[str] = frozenset()

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    def deployments(self) -> int:
        """How often something was put there where nothing was before. An upgrade is not one more."""
        raise NotImplementedError

    @property
    def secrets(self) -> Sequence[str]:
        """The values of the secrets that were made for this deployment, so that they can be kept out of every log."""
        return ()

    def recipe(self, checkout: Path) -> Recipe:
        """Read the recipe in `checkout` as it would be deployed; refuses what may not be."""
        raise self.cannot("read a recipe")

    def refused(self, checkout: Path, names: Sequence[str]) -> Mapping[str, DeployError] | None:
        """Which of these compose files cannot be read, each by itself, and why; None where nobody can say."""
        return None

    def new(self, checkout: Path | None = None) -> None:  # noqa: B027 - many kinds have nothing to prepare
        """Make what must be there before a deployment of `checkout`: new secrets. May be called again."""

    @abstractmethod
    def deploy(self, checkout: Path | None = None) -> None:
        """Put the recipe of `checkout` (the context's own unless told) there, over an older one when one runs.

        Refuses what a recipe may not ask for before anything is changed. Makes new secrets before. `settle` then says whether
        it came about.
        """

    @abstractmethod
    def settle(self) -> Deployment:
        """Wait until everything runs as asked for, at most `settle_seconds`. Fails early when it never will."""

    @abstractmethod
    def state(self) -> Deployment:
        """Look now."""

    @abstractmethod
    def address(self) -> Address | None:
        """Where the app is reached; None for a recipe without a web port."""

    @abstractmethod
    def logs(self, service: str = "", lines: int = 50) -> str:
        """The last lines of one service or of all."""

    @abstractmethod
    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        """Run a command inside a service: exit code and output."""

    def read(self, service: str, path: str, most: int = 1 << 20) -> bytes | None:
        """A file in a service's container; None when it is not there. At most `most` bytes."""
        raise self.cannot("read")

    def write(self, service: str, path: str, data: bytes) -> None:
        """Put a file into a service's container, whatever its image holds."""
        raise self.cannot("write")

    def mounts(self) -> Sequence[BackupPart]:
        """Every volume of the running services, backed up or not (`path`: where it is mounted)."""
        return ()

    def backups(self) -> Sequence[BackupPart]:
        """What the recipe's labels ask to back up; empty when it declares no backups."""
        return ()

    def backup(self, folder: Path) -> Backup:
        """Run the pre-hooks, copy every part into `folder`, run the post-hooks."""
        raise self.cannot("backup")

    def restore(self, backup: Backup) -> None:
        """Put a backup's parts back, then run the restore hooks."""
        raise self.cannot("restore")

    def events(self) -> Sequence[str]:
        """What the machine said about this deployment since it began, one line each (Docker's events)."""
        return ()

    def cannot(self, what: str) -> DeployError:
        return DeployError("not_applicable", f"The deployer {self.name} cannot {what}.", "Use the deployer swarm.")

    def exceeded(self) -> str:
        """Why the run has to end, since its app takes more than it may; empty while it does not. Called often."""
        return ""

    def keep(self) -> str:
        """Leave the deployment for a person to look at, if it can outlive the harness. Says how to get rid of it."""
        self.teardown()
        return "nothing, because this deployer's apps end with their run."

    def undeploy(self) -> None:
        """Stop everything and wait until it is gone; volumes, secrets and configs stay for the next `deploy`."""
        raise self.cannot("undeploy")

    @abstractmethod
    def teardown(self) -> list[str]:
        """Take everything away, data too, in any state, more than once. Gives what is still there. Never raises."""
