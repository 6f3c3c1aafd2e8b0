"""What CI servers have in common: builds of the runner repository and their logs, and the client that asks for them.

A kind of server is one subclass of `Engine` in a module of its own; `runs.executors.builds` does the rest. Requests go through
the same code as those to forges (`enrollment.forges.http`): limits on time and size, and errors by what they mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, ClassVar
from urllib.parse import quote

from django.conf import settings
from django.db.models import F
from django.utils import timezone

from controlplane import backoff
from enrollment.forges.base import (
    Ask,
    CircuitOpen,
    Forbidden,
    ForgeError,
    Garbage,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from enrollment.forges.http import Http, json_of
from runs.models import RemoteExecutor

#: Steps of a build whose logs are read; ours has one or two.
STEPS = 50
#: Failures in a row after which nothing is asked for a while, and the first such wait.
OPENS_AFTER, FIRST_WAIT = 3, timedelta(seconds=10)
#: Parameters of a build.
PARAMETERS = {"STAGES", "EXTRA_TESTS", "CC_CI_REQUEST", "CC_CI_KEY", "CC_CI_RUN_ID", "CC_CI_ATTEMPT"}

#: What a server may be able to do. How much of that a kind can, is its `can`; its page in docs/executors explains each.
CAPABILITIES = ("pin", "cancel", "logs", "artifacts", "rerun")


@dataclass(frozen=True)
class Repo:
    """The runner repository, and what the token's user may do there."""

    active: bool
    write: bool
    timeout_minutes: int
    clone_url: str
    config: str  #: the path of its pipeline, if it is set
    visibility: str  #: private, internal (to all who log in) or public
    closed: bool  #: the server ignores its pull requests, and so those of forks


@dataclass(frozen=True)
class Step:
    stage: int
    number: int
    name: str
    status: str
    id: int = 0  #: by which its log is asked for, where that is not by numbers


@dataclass(frozen=True)
class Build:
    number: int
    status: str
    final: bool
    error: str
    event: str
    params: Mapping[str, str]
    created: datetime
    started: bool
    steps: tuple[Step, ...]


class Circuit:
    """The gate before requests to one executor, shared by all processes through its row: after failures nothing is asked."""

    def __init__(self, row: RemoteExecutor) -> None:
        self._rows = RemoteExecutor.objects.filter(pk=row.pk)

    def enter(self, ask: Ask) -> None:
        row = self._rows.first()
        if row and row.open_until and row.open_until > timezone.now():
            wait = (row.open_until - timezone.now()).total_seconds()
            raise CircuitOpen(f"{row.failures} requests in a row failed; no requests for {wait:.0f} s ({row.last_error})"[:500])

    def leave(self, ask: Ask, seconds: float, error: ForgeError | None) -> None:
        if isinstance(error, Unavailable | RateLimited):
            self._rows.update(failures=F("failures") + 1, last_error=str(error)[:500])
            row = self._rows.first()
            if row and (row.failures >= OPENS_AFTER or error.retry_after):
                wait = backoff.wait(max(0, row.failures - OPENS_AFTER), FIRST_WAIT)
                if error.retry_after:
                    wait = min(backoff.LONGEST, timedelta(seconds=error.retry_after))
                self._rows.update(open_until=timezone.now() + wait)
        else:
            self._rows.exclude(failures=0).update(failures=0, open_until=None, last_error="")


class Engine(ABC):
    """A client with one executor's token, for its runner repository. Requests raise ForgeError."""

    label: ClassVar[str]
    major: ClassVar[str]  #: the versions that are known here
    can: ClassVar[frozenset[str]]  #: of CAPABILITIES
    event: ClassVar[str]  #: of a build that was asked for through the API
    final: ClassVar[frozenset[str]]  #: statuses that no longer change. Anything else, known or not, counts as running
    pipelines: ClassVar[tuple[str, ...]]  #: where the pipeline is looked for if the repository's settings name no file
    trigger: ClassVar[str]  #: what the pipeline needs, so that it runs for `event`
    closing: ClassVar[str]  #: what to do so that pull requests start nothing
    account: ClassVar[str]  #: the page with the token
    takes_none: ClassVar[str]  #: why no runner may take a build
    when_silent: ClassVar[str]  #: what else an answer may mean that is none
    listing: ClassVar[Mapping[str, Any]]  #: parameters of a request for a page of builds, besides its number
    build_word: ClassVar[str]  #: the server's word for a build
    params_key: ClassVar[str]  #: where a build has its parameters
    stages_key: ClassVar[str]  #: where a build has its stages, and these their steps
    steps_key: ClassVar[str]
    number_key: ClassVar[str]  #: the number of a stage and of a step
    status_key: ClassVar[str]  #: the status of a step

    def __init__(self, row: RemoteExecutor) -> None:
        """Raises SecretUnreadable."""
        self.row, self.url, self.repository, self.branch = row, row.url, row.repository, row.branch
        headers = {"User-Agent": f"cc-ci/{settings.VERSION} (+{settings.CC_CI.base_url})"}
        login = {**headers, "Authorization": f"Bearer {row.reveal_token()}"}
        gate = Circuit(row) if row.pk else None
        timeout = settings.CC_CI.http_timeout
        self._http = Http(row.url, "/api", login, timeout, gate, lambda method, path: Ask(method), self.message)
        self._outside = Http(row.url, "", headers, timeout, gate, lambda method, path: Ask(method))
        self.admin = False  #: whether the user administers the server and may everything, once `whoami` was asked

    @property
    def docs(self) -> str:
        return f"docs/executors/{self.row.kind}.md"

    @property
    def server_time(self) -> datetime:
        """The server's clock at its last answer."""
        return self._http.server_time or datetime.now(UTC)

    #: What a server says in an error, None if it is none of its; the forges' way unless a kind has its own.
    message: ClassVar[Any] = None

    @abstractmethod
    def page(self, number: int) -> str: ...

    @property
    @abstractmethod
    def settings_page(self) -> str: ...

    def version(self) -> str:
        """Empty if the server does not say."""
        try:
            return str(mapping(json_of(self._outside.once("GET", "/version"))).get("version") or "")[:50]
        except ForgeError:
            return ""

    def whoami(self) -> str:
        """The login of the token's user. A wrong token is an error here and perhaps nowhere else: elsewhere it makes a guest."""
        found = mapping(self._get("/user"))
        self.admin = found.get("admin") is True
        return str(found.get("login", ""))

    @abstractmethod
    def repo(self) -> Repo: ...

    @property
    @abstractmethod
    def builds_path(self) -> str: ...

    def builds(self, page: int) -> list[Build]:
        """A page of builds, the newest first; without their steps."""
        return [self.read(row) for row in listed(self._get(self.builds_path, {"page": page, **self.listing}))]

    def build(self, number: int) -> Build:
        return self.read(self._get(f"{self.builds_path}/{number}"))

    @abstractmethod
    def create(self, params: Mapping[str, str]) -> Build | None:
        """Start a build; None if the server accepted the request and started nothing."""

    @abstractmethod
    def cancel(self, number: int) -> None:
        """Stop a build; nothing to do if it has ended."""

    @abstractmethod
    def log(self, step: Step, number: int) -> str | None:
        """The log of a step that ended; None if the server has none (yet), or an empty one."""

    @abstractmethod
    def live_log(self, step: Step, number: int, seconds: float) -> str:
        """What is known of the log of a running step; reads for about so many seconds."""

    @abstractmethod
    def error_of(self, build: Mapping[str, Any]) -> str:
        """What a build says went wrong with it."""

    @classmethod
    def step_id(cls, step: Mapping[str, Any]) -> int | None:
        """By which the log of a step is asked for, where that is not by numbers; None if there can be no such step. Pure."""
        return 0

    @classmethod
    @abstractmethod
    def pipeline_problem(cls, text: str, branch: str) -> str:
        """Why nothing in this file would run for a build of ours; empty if something does. Pure. Raises ValueError, YAMLError."""

    def explain(self, error: ForgeError) -> str:
        """What an error means, and what to change."""
        add = f"cc-ci executor add {self.row.name} --kind {self.row.kind} --url {self.url} --repository {self.repository}"
        if isinstance(error, Unauthorized):
            return (
                f"{self.label} does not accept the token: copy a new one from {self.url}{self.account} and enter it with "
                f"`{add} --token-env VARIABLE` ({error})"
            )
        if isinstance(error, Forbidden):
            return f"the token's user may not write to {self.repository}: give it write access at the forge ({error})"
        if isinstance(error, NotFound):
            return (
                f"{self.label} has no repository {self.repository} with a branch {self.branch} that the token's user may start "
                f"builds of: activate it at {self.url}, and give the user write access at the forge. More: "
                f"`cc-ci executor check {self.row.name}` ({error})"
            )
        if isinstance(error, Unavailable):
            return f"{self.label} at {self.url} does not answer properly ({error}). {self.when_silent.format(engine=self)}"
        return str(error)

    def read(self, found: Any) -> Build:
        """A build as the server sends it."""
        found = mapping(found)
        if number_of(found, "number") < 1:
            raise Garbage(f"{self.label}'s answer is not a {self.build_word}")
        status = str(found.get("status", ""))
        return Build(
            number=number_of(found, "number"),
            status=status,
            final=status in self.final,
            error=self.error_of(found),
            event=str(found.get("event", "")),
            params=texts_of(found.get(self.params_key)),
            created=time_of(number_of(found, "created")),
            started=number_of(found, "started") > 0,
            steps=tuple(islice(self.steps(found), STEPS)),
        )

    @classmethod
    def steps(cls, build: Mapping[str, Any]) -> Iterator[Step]:
        for stage in children(build, cls.stages_key):
            for step in children(stage, cls.steps_key):
                numbers = number_of(stage, cls.number_key), number_of(step, cls.number_key)
                if is_small(*numbers) and (known := cls.step_id(step)) is not None:
                    yield Step(*numbers, str(step.get("name", "")), str(step.get(cls.status_key, "")), known)

    def _get(self, path: str, params: dict[str, Any] | None = None) -> Any:
        return json_of(self._http.once("GET", path, params))

    def _path(self) -> str:
        return "/".join(quote(part, safe="") for part in self.repository.split("/"))


# --- what servers send


def mapping(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Garbage("the answer is not an object")
    return found


def listed(found: Any) -> list[Any]:
    """A list, which is null if it is empty."""
    if not isinstance(found, list | None):
        raise Garbage("the answer is not a list")
    return found or []


def children(found: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The objects of a list in an object; nothing if there is none."""
    value = found.get(name)
    return (one for one in (value if isinstance(value, list) else []) if isinstance(one, dict))


def number_of(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    return value if type(value) is int else 0


def is_small(*numbers: int) -> bool:
    """Whether these can be numbers of steps, which become parts of file names."""
    return all(1 <= number <= 9999 for number in numbers)


def texts_of(found: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def time_of(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


# --- pipelines


def object_of(found: object) -> dict[Any, Any]:
    """What is not an object, though it should be, is an empty one."""
    return found if isinstance(found, dict) else {}


def objects_of(found: object) -> list[dict[Any, Any]]:
    return [object_of(one) for one in found] if isinstance(found, list) else []


def admits(rule: object, value: str) -> bool:
    """Whether a condition admits a value: a word, a list, or `include` and `exclude`; with `*` as a pattern."""

    def words(found: object) -> list[str]:
        return [str(word) for word in found] if isinstance(found, list) else [str(found)] if found else []

    if isinstance(rule, dict):
        included, excluded = words(rule.get("include")), words(rule.get("exclude"))
    else:
        included, excluded = words(rule), []
    if any(fnmatchcase(value, pattern) for pattern in excluded):
        return False
    return not included or any(fnmatchcase(value, pattern) for pattern in included)


def environment_problem(found: list[dict[Any, Any]], text: str) -> str:
    """What pipelines of all kinds, and their steps, may not do."""
    for one in found:
        if hidden := set(object_of(one.get("environment"))) & PARAMETERS:
            return f"an `environment:` hides the build's parameter {min(hidden)}: remove that line"
    return "" if "harness" in text else "no step calls `cc-ci harness`"
