"""The schema of `infra.yml`, with its defaults. See docs/infra.md. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator

from controlplane.time_window import Window
from infra import release_notes
from infra.recipe_version import Version

#: As strings, since an operator may configure others.
MANUAL_PATTERNS = tuple(pattern.pattern for pattern in release_notes.WORK)
HARMLESS_PATTERNS = tuple(pattern.pattern for pattern in release_notes.HARMLESS)

_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^\s].*")
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|API_?KEY|PRIVATE_?KEY|CREDENTIALS?)$", re.IGNORECASE
)
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_DURATION = re.compile(r"(0|[1-9]\d{0,4})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(duration: str) -> int:
    """Parse `90s`, `10m`, `12h`, `3d`, `2w` to seconds. Raises ValueError."""
    match = _DURATION.fullmatch(duration)
    if not match:
        raise ValueError(f"invalid duration {duration!r}: expected one number and one unit (s, m, h, d or w), such as 3d or 90m")
    return int(match[1]) * _UNITS[match[2]]


def _duration(value: Any) -> str:
    seconds(str(value))
    return str(value)


def _reference(value: str) -> str:
    if not _REFERENCE.fullmatch(value):
        # Keep the value out of the message: it may be the secret.
        raise ValueError("must be a reference, env:NAME or file:path: this file must not contain secrets")
    return value


def _listed(value: Any) -> Any:
    """Accept a single string as a list of one."""
    return [value] if isinstance(value, str) else value


Duration = Annotated[str, BeforeValidator(_duration)]
Reference = Annotated[str, AfterValidator(_reference)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=2000)


class Policy(_Section):
    """What is upgraded automatically, and how."""

    auto: Literal["none", "patch", "minor"] = Field(
        default="minor", description="The largest step of the recipe's version that is taken unattended."
    )
    left_major: Literal["hold", "allow"] = Field(default="hold", description="A new major of the recipe.")
    right_major: Literal["hold", "allow"] = Field(default="hold", description="A new major of the app itself.")
    missing_notes: Literal["hold", "allow"] = Field(default="allow", description="A version without release notes.")
    manual_patterns: tuple[str, ...] = Field(
        default=MANUAL_PATTERNS,
        description="Regular expressions; a matching line in the notes holds the version.",
    )
    harmless_patterns: tuple[str, ...] = Field(
        default=HARMLESS_PATTERNS, description="Regular expressions; matches in the notes are ignored."
    )
    cooldown: Duration = Field(default="2d", description="Minimum age of a version.")
    need_test_run: bool = Field(default=False, description="Use only versions that passed a test run on this server.")
    soak: Duration = Field(default="5m", description="How long a new version must stay healthy before it counts.")
    after_failure: Literal["stop", "go_on"] = Field(
        default="stop", description="Whether the maintenance run stops if this app's upgrade fails."
    )

    @field_validator("manual_patterns", "harmless_patterns")
    @classmethod
    def _expressions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"invalid regular expression {pattern!r}: {error}") from None
        return value


class Check(_Section):
    """One health check: exactly one of `http`, `tcp` and `command`."""

    http: str = Field(default="", description="A path on the app's domain.")
    status: tuple[Annotated[int, Field(ge=100, le=599)], ...] = Field(
        default=(), description="Accepted status codes; default: any below 500."
    )
    body: str = Field(default="", description="Text that the response must contain.")
    tcp: str = Field(default="", description="HOST:PORT as seen from the server; a number alone is a port on the server itself.")
    command: tuple[str, ...] = Field(default=(), description="Run in a service's container; must exit with 0.")
    service: str = Field(default="app", description="The service in which the command runs.")
    seconds: float = Field(default=10, gt=0, le=300, description="Timeout for a response.")

    @field_validator("tcp", mode="before")
    @classmethod
    def _port(cls, value: Any) -> Any:
        return f"127.0.0.1:{value}" if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("tcp")
    @classmethod
    def _address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and (not host or not port.isdigit() or not 1 <= int(port) <= 65535 or any(c.isspace() for c in host)):
            raise ValueError("must be HOST:PORT, or a port alone")
        return value

    @field_validator("http")
    @classmethod
    def _path(cls, value: str) -> str:
        if value and (not value.startswith("/") or not value.isprintable() or " " in value):
            raise ValueError("must be a path that begins with a slash, such as /ping")
        return value

    @field_validator("status", mode="before")
    @classmethod
    def _one_status(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @property
    def kind(self) -> Literal["http", "tcp", "command"]:
        return "http" if self.http else "tcp" if self.tcp else "command"

    def problem(self) -> str:
        """What is wrong with the check as a whole; empty if nothing is."""
        given = [name for name in ("http", "tcp", "command") if getattr(self, name)]
        if len(given) != 1:
            return f"a check has exactly one of http, tcp and command; this one has {' and '.join(given) or 'none'}"
        if not self.http and (self.status or self.body):
            return "status and body are only for http checks"
        if not self.command and self.service != "app":
            return "service is only for command checks"
        return ""


class Snapshots(_Section):
    of: Literal["none", "volumes"] = Field(default="volumes", description="`none` for an app without data.")
    store: str = Field(default="", description="Name of a store; optional if there is only one.")
    keep: int = Field(default=3, ge=1, le=1000, description="How many to keep; the one under the running version is always kept.")


class Store(_Section):
    """Where snapshots are stored: exactly one of `folder` and `restic`."""

    folder: str = Field(default="", description="Absolute path of a folder on the server.")
    restic: str = Field(default="", description="A restic repository, as for restic's option -r.")
    password: Reference | None = Field(default=None, description="The restic repository's password.")

    @field_validator("folder")
    @classmethod
    def _whole(cls, value: str) -> str:
        if value and not value.startswith("/"):
            raise ValueError("must be an absolute path")
        return value

    @field_validator("restic")
    @classmethod
    def _no_option(cls, value: str) -> str:
        if value.startswith("-"):
            raise ValueError("must be a restic repository, such as sftp:backup@host:/cc-ci")
        return _without_password(value)

    def problem(self) -> str:
        if bool(self.folder) == bool(self.restic):
            return "a store has exactly one of folder and restic"
        if bool(self.restic) != bool(self.password):
            return "a restic store needs password: env:NAME or file:path; a folder takes none"
        return ""


class Git(_Section):
    """What happens to a new pin in the file."""

    commit: bool = Field(default=True, description="Commit new pins in the checkout that contains the file.")
    push: bool = Field(default=False, description="Push them to the branch's upstream.")


def _without_password(value: str) -> str:
    parts = urlsplit(value.removeprefix("rest:")) if "://" in value else None
    if parts and (parts.password or (parts.scheme in ("http", "https") and parts.username)):
        raise ValueError("must not contain a user or password: use credential: env:NAME or file:path")
    return value


class App(_Section):
    """One app on the server."""

    recipe: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$", description="The recipe's name.")
    source: str = Field(description="The recipe's git repository: its URL, or a folder.")
    credential: Reference | None = Field(default=None, description="The token for a private repository.")
    domain: str = Field(pattern=rf"^{_LABEL}(\.{_LABEL})*$", max_length=253)
    server: str = Field(
        default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="abra's name for the server."
    )
    stack: str = Field(
        default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,62})?$", description="The stack's name; default: abra's."
    )
    deployer: Literal["swarm"] = "swarm"
    owner: Literal["reconciled", "maintainers"] = Field(description="Who changes it: cc-ci, or its maintainers.")
    version: str = Field(default="", description="The pinned version.")
    after: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(default=(), description="Apps that must come before it.")
    env: dict[str, str] = Field(default_factory=dict, description="For the app's `.env`.")
    secrets: dict[str, Reference] = Field(
        default_factory=dict, description="The recipe's secrets that are provided, not generated."
    )
    policy: Policy = Policy()
    window: str = Field(default="", description="When it may be upgraded; default: any time.")
    health: tuple[Check, ...] = ()
    snapshots: Snapshots | None = Field(default=None, description="Required for owner: reconciled.")

    @field_validator("source")
    @classmethod
    def _repository(cls, value: str) -> str:
        if not re.match(r"(https://|ssh://|file:///|/|[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:)[^\s-]", value):
            raise ValueError("must be a git repository: https://…, ssh://…, git@host:path, or an absolute folder path")
        return _without_password(value)

    @field_validator("version")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value:
            Version.parse(value)
        return value

    @field_validator("window")
    @classmethod
    def _window(cls, value: str) -> str:
        return Window.parse(value).text

    @field_validator("snapshots", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return {"of": "none"} if value == "none" else value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not name.isidentifier() or name in ("STACK_NAME", "DOMAIN", "TYPE"):
                raise ValueError(f"{name} cannot be set here")
            if _SECRET_NAME.search(name) and text and not _REFERENCE.fullmatch(text):
                raise ValueError(f"{name} looks like a secret: use a reference, env:NAME or file:path")
        return value

    @property
    def stack_name(self) -> str:
        return self.stack or self.domain.replace(".", "_")


class Document(_Section):
    """The whole file."""

    git: Git = Git()
    stores: dict[Name, Store] = Field(default_factory=dict)
    apps: dict[Name, App] = Field(default_factory=dict)


Place = tuple[str | int, ...]


def disagreements(document: Document) -> Iterator[tuple[Place, str]]:
    """Errors between parts that are valid on their own: the path, and a message."""
    stacks: dict[tuple[str, str], str] = {}
    for store_name, store in document.stores.items():
        if problem := store.problem():
            yield ("stores", store_name), problem
    for name, app in document.apps.items():
        place: Place = ("apps", name)
        key = (app.server, app.stack_name)
        if key in stacks:
            yield place, f"{name} and {stacks[key]} would use the same stack {key[1]} on the server {key[0]}"
        stacks.setdefault(key, name)
        for number, check in enumerate(app.health):
            if problem := check.problem():
                yield (*place, "health", number), problem
        yield from _snapshots(place, app, document.stores)
        yield from _policy(place, app)
        for number, other in enumerate(app.after):
            if other == name or other not in document.apps:
                near = nearest(other, [known for known in document.apps if known != name])
                yield (*place, "after", number), f"no other app {other}{near}"
    if circle := _circle(document.apps):
        yield ("apps", circle[0], "after"), f"dependency cycle: {' after '.join(circle)}"


def _snapshots(place: Place, app: App, stores: Mapping[str, Store]) -> Iterator[tuple[Place, str]]:
    if app.owner == "reconciled":
        if not app.version:
            yield (*place, "version"), "an app that cc-ci reconciles needs an initial version"
        if app.snapshots is None:
            yield (
                (*place, "snapshots"),
                "set `snapshots: none` if the app has no data, else `snapshots: {store: NAME}`",
            )
    if app.snapshots is None or app.snapshots.of == "none":
        return
    if app.snapshots.store and app.snapshots.store not in stores:
        near = nearest(app.snapshots.store, list(stores))
        yield (*place, "snapshots", "store"), f"unknown store {app.snapshots.store}{near}"
    if not app.snapshots.store and len(stores) != 1:
        known = f"one of {', '.join(stores)}" if stores else "one listed under `stores:`"
        yield (*place, "snapshots"), f"choose a store: {known}"


def _policy(place: Place, app: App) -> Iterator[tuple[Place, str]]:
    if app.policy.left_major == "allow" and app.policy.auto != "minor":
        yield (*place, "policy", "left_major"), f"left_major: allow has no effect while auto is {app.policy.auto}"


def _circle(apps: Mapping[str, App]) -> list[str]:
    """Names that each come after the next, ending with the first one again; empty if there is no cycle."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done or name not in apps:
            return []
        for other in apps[name].after:
            if found := follow(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in apps if (found := follow(name, []))), [])


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean …?`, or the known names."""
    near = get_close_matches(name, known, 1, 0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f" (known: {', '.join(known)})" if known else ""
