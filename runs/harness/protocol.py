"""The formats that the control plane and the harness exchange through a run's folder (see docs/run-folder.md)."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from infra.deployers.context import Bounds

SCHEMA = 1

#: The file name of our generic checks; any other is a recipe's test file.
GENERIC = "generic"


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    ERRORED = "errored"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("it is in no year that UTC has") from error


#: A time that a database can store.
Time = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Limits(_Model):
    """Limits of a run, in seconds of wall clock, megabytes, and number of processes."""

    run_seconds: int = 1800
    stage_seconds: int = 600
    settle_seconds: int = 300
    start_seconds: int = 1800  #: the most that `settle_seconds` may become where a recipe asks for it
    pull_seconds: int = 1800  #: for all pulls of the run combined
    memory_mb: int = 2048
    processes: int = 512
    disk_mb: int = 2048
    app: Bounds = Field(default_factory=Bounds)

    @property
    def longest(self) -> int:
        """The time after which a run is certainly over: its own clock is paused while images are pulled and while the app starts,
        which happens when it is installed, upgraded and restored.
        """
        return self.run_seconds + self.pull_seconds + 3 * self.start_seconds


class Source(_Model):
    """Where the recipe's commit comes from: a clone URL or local path, and the pinned commit.

    `ref` is fetched (`refs/pull/N/head` for a pull request); then `sha`, 40 hex digits, is checked out. An empty `sha`
    is allowed only for a local path: its current working tree (`cc-ci run .`).
    """

    url: str
    ref: str = ""
    sha: str = ""


class Images(_Model):
    """How images are pulled. A registry's login is part of the credential, never of this."""

    mirror: str = ""  #: the registry to try first for Docker Hub images, such as `mirror.example.org:5000`
    registries: list[str] = Field(default_factory=list)  #: those that a run may pull from; empty: any public one
    most_gb: float = 0.0  #: removes the least recently used images beyond this; 0 keeps all
    ledger: str = ""  #: the file in which this machine notes when an image was used last; empty: nothing is removed
    keep: list[str] = Field(default_factory=list)  #: images to keep whatever their age: needed for rollbacks


class Oidc(_Model):
    """The warm provider (Keycloak). The password of `user` is in the credential as `oidc_password`."""

    url: str
    user: str = "admin"


class Request(_Model):
    schema_version: Literal[1] = 1
    run_id: str
    installation_id: str
    recipe: str
    source: Source
    base: Source | None = None  #: the target of the pull request: source of settings and published versions
    tests: Source | None = None  #: the repository of tests kept on the server, at a commit; uses `tests/<recipe>/`
    stages: list[str]
    upgrade_from: str = ""  #: the published version to upgrade from; empty: the newest one before the commit
    deployer: Literal["auto", "swarm", "process"] = "auto"
    trusted: bool = True  #: False: a stranger's code, which runs only in a full sandbox
    domain: str = ""
    proxy_url: str = ""
    keep: bool = False
    limits: Limits = Field(default_factory=Limits)
    allow: list[str] = Field(default_factory=list)  #: what this recipe may ask for though a stranger may not (docs/security.md)
    withheld: list[str] = Field(default_factory=list)  #: what it might if this commit were a trusted one; only to say so
    images: Images = Field(default_factory=Images)
    oidc: Oidc | None = None
    locks: str = ""  #: a folder of this machine, the same for all its runs, in which exclusive ports are leased
    picture: bool = True  #: take a screenshot of the app if there is a Chromium
    #: A quick run: the folder of the known-good data to start on; empty if there is none here. None: not a quick run.
    quick: str | None = None
    known_good_mb: int = 0  #: if it passes, save up to so many MB of its data for quick runs; 0: do not
    app_url: str = ""  #: test a running app, without deploying or tearing down (`cc-ci test --app`)


class CaseResult(_Model):
    name: str
    file: str = ""
    status: Literal["passed", "failed", "errored", "skipped"]
    seconds: float = 0.0
    message: str = ""
    output: str = ""  #: last lines only


class StageResult(_Model):
    name: str
    status: Literal["passed", "failed", "errored", "skipped", "not_applicable", "not_run"]
    reason: str = ""
    proven: bool = True  #: False: nothing shows that it worked (a backup without a marker), or that it does not apply
    seconds: float = 0.0
    started: Time | None = None
    finished: Time | None = None
    cases: list[CaseResult] = Field(default_factory=list)


class Teardown(_Model):
    clean: bool = True
    left: list[str] = Field(default_factory=list)
    seconds: float = 0.0


class Timing(_Model):
    """The duration of one step of a run, such as *pull*, *deploy*, *settle*."""

    step: str
    stage: str = ""
    seconds: float


class LintFinding(_Model):
    """One finding about a recipe. Never decides the verdict; an *error* keeps the recipe from the last level."""

    rule: str  #: such as `C003`
    level: Literal["error", "warning"]
    text: str
    file: str = ""
    line: int = 0


class Claim(_Model):
    """A value of the README's metadata: what the README says, and what the run shows."""

    name: str  #: such as `Backups`
    says: str = ""  #: empty: the README does not say
    shown: str
    agrees: bool
    why: str


#: Statuses of a rung that stop the level from rising.
NOT_REACHED = frozenset({"failed", "not_tested"})


class Rung(_Model):
    """One rung of the ladder, and what the run showed about it."""

    level: int
    name: str
    status: Literal["reached", "failed", "not_tested", "does_not_apply"]
    reason: str = ""


class Level(_Model):
    """The level from 0 to 5, and why. `value` never exceeds what was shown."""

    value: int = 0
    rungs: list[Rung] = Field(default_factory=list)


class ExtraTest(_Model):
    """An extra test of the recipe. `covers`: the paths whose change makes it worth running."""

    file: str
    name: str
    covers: list[str] = Field(default_factory=list)


class Extras(_Model):
    """The extra tests that were not run, and those that the pull request's changes ask for."""

    not_run: int = 0
    suggested: list[ExtraTest] = Field(default_factory=list)
    tests: list[ExtraTest] = Field(default_factory=list)  #: all there are, run or not


class Artefact(_Model):
    """A file beside the results: `name` in the run's folder."""

    name: str
    kind: Literal["results", "junit", "service_log", "docker_events", "picture", "log"]
    title: str = ""
    bytes: int = 0


class ImageResult(_Model):
    """An image that the run deployed."""

    name: str  #: as the recipe writes it
    digest: str = ""  #: in its registry; empty for an image built on the machine
    note: str = ""  #: such as why its registry could not be asked whether the tag moved


class KnownGood(_Model):
    """Where known-good data comes from: the run that passed and left it, and its commit."""

    run_id: UUID
    sha: str = Field(pattern="^[0-9a-f]{40}$")
    made: Time


class Results(_Model):
    schema_version: Literal[1] = 1
    run_id: str
    sha: str = ""
    verdict: Verdict
    reason: str = ""  #: one sentence for a person: what failed and what to do
    deployer: str = ""
    sandbox: str = ""  #: "bubblewrap", or "none" with the reason in `warnings`
    warnings: list[str] = Field(default_factory=list)
    deployments: int = 0  #: how often the recipe was deployed from scratch: always once
    upgraded_from: str = ""  #: the version, or commit, that the run started on; empty when it started on the commit itself
    version: str = ""  #: the version label, read back
    images: list[ImageResult] = Field(default_factory=list)
    started: Time
    finished: Time
    stages: list[StageResult] = Field(default_factory=list)
    teardown: Teardown = Field(default_factory=Teardown)
    timings: list[Timing] = Field(default_factory=list)
    level: Level | None = None  #: None for a run of some stages only, or without a verdict
    lint: list[LintFinding] = Field(default_factory=list)
    extras: Extras = Field(default_factory=Extras)
    #: Changes of `cc-ci.toml` that loosen a check and only count once merged; one sentence each.
    loosened: list[str] = Field(default_factory=list)
    #: A digest of what else decides how a commit is tested: cc-ci's version, limits, allowances, `cc-ci.toml`.
    settings: str = ""
    kept: str = ""  #: the commit of the added tests kept on the server; empty if there are none
    secret_leaks: list[str] = Field(default_factory=list)  #: artefacts that contained a secret of the run (redacted)
    artefacts: list[Artefact] = Field(default_factory=list)
    known_good: KnownGood | None = None  #: the data that a quick run started on
    metadata: list[Claim] = Field(default_factory=list)  #: of the README, as far as the run shows anything
    changed: list[str] = Field(default_factory=list)  #: paths that differ from the base, at most 1000


class Event(_Model):
    """One line of events.jsonl. `kind`: begun, step, stage_started, stage_finished, warning, finished."""

    seq: int
    at: Time
    kind: str
    stage: str = ""
    text: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


class FolderState(StrEnum):
    NOT_STARTED = "not_started"
    RUNNING = "running"
    LOST = "lost"
    FINISHED = "finished"


class RunFolder:
    """The files of one attempt at a run. Reading never raises for an incomplete or missing file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def begun(self) -> Path:
        return self.path / "begun"

    @property
    def cancel(self) -> Path:
        return self.path / "cancel"

    @property
    def apart_file(self) -> Path:
        return self.path / "apart"

    def apart(self) -> float:
        """The seconds that count neither against a stage nor the run; for a wait in progress, its maximum."""
        try:
            return float(self.apart_file.read_text())
        except (OSError, ValueError):
            return 0.0

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def results_file(self) -> Path:
        return self.path / "results.json"

    @property
    def request_file(self) -> Path:
        return self.path / "request.json"

    def write_request(self, request: Request) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.request_file, request.model_dump_json(indent=1))

    def request(self) -> Request:
        return Request.model_validate_json(self.request_file.read_text())

    def write_results(self, results: Results) -> None:
        text = json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False)
        # Untrusted text may contain lone surrogates, which cannot be encoded: they become `?`.
        write_atomically(self.results_file, text.encode(errors="replace").decode())

    def results(self) -> Results | None:
        try:
            return Results.model_validate_json(self.results_file.read_text())
        except FileNotFoundError:
            return None

    def state(self) -> FolderState:
        """The state of the folder's harness, without relying on process ids (the lock is released when its holder dies)."""
        if self.results_file.exists():
            return FolderState.FINISHED
        if self._locked():
            return FolderState.RUNNING
        if self.results_file.exists():  # finished between the two checks
            return FolderState.FINISHED
        return FolderState.LOST if self.begun.exists() else FolderState.NOT_STARTED

    def _locked(self) -> bool:
        try:
            handle = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # A shared lock suffices to check, and two checkers do not mistake each other for a harness.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def events(self, after: int = 0) -> Iterator[Event]:
        """The events with `seq` above `after`. Leaves an incomplete last line for the next call."""
        try:
            lines = self.events_file.read_text(errors="replace").splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            if not line.endswith("\n"):
                return
            try:
                event = Event.model_validate(json.loads(line))
            except ValueError:
                continue
            if event.seq > after:
                yield event


def write_atomically(path: Path, data: str | bytes, mode: int = 0o666) -> None:
    """Replace `path` with `data` atomically, even if the machine loses power. `mode`: its permissions, less the umask's."""
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    kind = "w" if isinstance(data, str) else "wb"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), kind) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
