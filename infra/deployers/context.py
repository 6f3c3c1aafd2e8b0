"""What a deployment is given: its owner, limits, clock, images and secrets."""

from __future__ import annotations

import secrets as random
import string
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infra.deployers.errors import DeployError
from infra.deployers.probe import Address, Answer


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


def _silent(text: str) -> None:
    pass


def _go_on() -> None:
    pass


@dataclass(frozen=True)
class Secret:
    """A secret that a recipe expects to exist, and the format of its value."""

    name: str  #: in the Swarm
    key: str  #: in the recipe
    length: int = 32
    characters: str = string.ascii_letters + string.digits
    generate: bool = True  #: False: a person has to give it


def random_secret(secret: Secret) -> str:
    """A random value for a secret. Raises DeployError if it must not be generated."""
    if not secret.generate:
        raise DeployError(
            "invalid_recipe",
            f"The secret {secret.key} has generate=false in .env.sample, so no value is generated, and none is given.",
            f'Add one for tests to cc-ci.toml, under [secrets]: {secret.key} = "…"',
        )
    return "".join(random.choice(secret.characters) for _ in range(secret.length))


def _together(_most: float) -> AbstractContextManager[None]:
    return nullcontext()


def _untimed(_step: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Bounds:
    """The limits of each service of a run (`memory_mb` … `log_mb`), and of the run as a whole."""

    __pydantic_config__ = {"extra": "forbid"}  # a request carries them

    memory_mb: int = 2048
    cpus: float = 1.0
    processes: int = 1024
    log_mb: int = 20
    tasks: int = 20
    services: int = 20
    secrets: int = 50
    configs: int = 50
    networks: int = 20
    volumes_mb: int = 8192  #: in volumes and beside them; the run ends above it


#: How long the pulls of a run may take together when nobody says otherwise, in seconds.
PULL_SECONDS = 1800


@dataclass
class Clock:
    """A time budget that several steps share, in seconds."""

    most: float
    used: float = 0.0

    @property
    def left(self) -> float:
        return max(self.most - self.used, 0.0)

    @contextmanager
    def runs(self) -> Iterator[None]:
        """The time spent in this block counts against the budget."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.used += time.monotonic() - started


@dataclass(frozen=True)
class Image:
    """What an image's name means in this run."""

    digest: str = ""  #: that its registry knows it by; empty for one that was made on this machine
    note: str = ""  #: such as why its registry could not be asked


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
    asked_seconds: int = 0  #: what the recipe's settings ask for to come up; its label is in the recipe itself
    memory_mb: int = 2048
    processes: int = 512
    disk_mb: int = 2048
    bounds: Bounds = Bounds()
    allow: Sequence[str] = ()  #: refusals of `admission` that are allowed for this recipe, word for word without the place
    withheld: Sequence[str] = ()  #: those that are allowed for it, but not to a stranger's commit, which this one is
    env: Mapping[str, str] = field(default_factory=dict)  #: added to the app's `.env` (from the recipe's cc-ci.toml)
    installed: Path | None = None  #: the version that an upgrade starts on, whose sample the operator's `.env` was made from
    overlays: Sequence[str] = ()  #: compose files laid over the recipe's, where a checkout has them (the server's own)
    env_upgrade: Mapping[str, str] = field(default_factory=dict)  #: the same, for the files in `checkout` alone
    secret_values: Mapping[str, str] = field(default_factory=dict)  #: by name in the recipe, for tests (from its cc-ci.toml)
    lent: Mapping[str, str] = field(default_factory=dict)  #: what the server lends, for recipe and tests (an OIDC realm)
    exclusive_ports: Sequence[int] = ()  #: published as they are, leased by a lock in `locks`; others get free ones
    locks: Path | None = None
    mirror: str = ""  #: a registry that is asked first for images of Docker Hub
    registries: Sequence[str] = ()  #: those that a run may pull from, as `host` or `host:port`; empty: any public one
    registry_auth: str = ""  #: a Docker config.json with logins, as text; never in an environment or on a command line
    image_ledger: Path | None = None  #: where this machine notes when an image was used last
    images: dict[str, Image] = field(default_factory=dict)  #: what was found out of each, by the name in the recipe
    health_path: str = "/"  #: what is asked to see whether the app answers
    no_web: bool = False  #: whether the app is not to be asked by HTTP, whatever ports it has
    health_status: Sequence[int] = ()  #: the answers that count; empty: any below 500 that is the app's own
    app: str = ""  #: the name of a long-lived app of the server; empty for a run
    app_stack: str = ""  #: the stack of such an app, or the one whose data a quick run starts on; empty: the run's own
    mark: str = ""  #: the number of its deployment, that tells its services from those of another
    secret: Callable[[Secret], str] = random_secret  #: the value for a secret that nobody else gives
    ephemeral: bool = True  #: thrown away after its run: an earlier attempt's rest goes first, nothing gets time to stop
    report: Callable[[str], None] = field(default=_silent)  #: a step, for the events
    warn: Callable[[str], None] = field(default=_silent)  #: a line, for the report
    log: Callable[[str], None] = field(default=_silent)  #: a line, for the log
    timed: Callable[[str], AbstractContextManager[None]] = field(default=_untimed)  #: notes how long a step took
    apart: Callable[[float], AbstractContextManager[None]] = field(
        default=_together
    )  #: around what has so many seconds of its own
    pulls: Clock = field(default_factory=lambda: Clock(PULL_SECONDS))  #: how long all pulls of a run may take
    check: Callable[[], None] = field(default=_go_on)  #: raises when the run shall stop; called in every wait

    @property
    def stack(self) -> str:
        """The stack's name: a given one, or `ccci-` and the first 12 hex digits of the run's id."""
        return self.app_stack or stack_name(self.run_id)

    def accepts(self, answer: Answer, address: Address) -> bool:
        """Whether an answer to GET `health_path` shows that the app is healthy."""
        if self.health_status:
            return answer.status in self.health_status and not answer.circle and not answer.from_proxy(address)
        return answer.from_app(address)


def stack_name(run_id: str) -> str:
    return "ccci-" + "".join(c for c in run_id.lower() if c in "0123456789abcdef")[:12]
