"""What a forge can do, in cc-ci's words. Another kind of forge is one new file: a class that does these things, and what reads
its deliveries, where it has webhooks. `enrollment/clients.py` names both.

Every call has a timeout and raises a ForgeError, which says what it means for the caller and what a person can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol


class ForgeError(Exception):
    """A call to a forge that did not do what was asked. `advice` tells a person what to do."""

    advice: ClassVar[str] = "Look at the forge's own log."
    #: Whether the same call may go well later without anybody doing anything.
    passing: ClassVar[bool] = True

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after  #: seconds that the forge asked us to wait


class Unauthorized(ForgeError):
    advice = "The token is unknown to the forge: make a new one there and give it with `cc-ci forge add`."
    passing = False


class Forbidden(ForgeError):
    advice = "The token lacks a right: see docs/enroll-recipe.md for what it needs."
    passing = False


class NotFound(ForgeError):
    advice = "It was deleted or renamed, or the token may not see it: make the bot a member that can read it."
    passing = False


class Rejected(ForgeError):
    advice = "The forge understood and refused (4xx). If it goes on, this is a fault in cc-ci: please report it."
    passing = False


class RateLimited(ForgeError):
    advice = "The forge asks for fewer requests: raise CC_CI_POLL_SECONDS."


class OverBudget(RateLimited):
    """Not asked at all: our own budget of a minute is used up, or this purpose's or repository's share of it."""

    advice = "cc-ci goes on within a minute. If it goes on for long, raise CC_CI_REQUESTS_PER_MINUTE."


class Unavailable(ForgeError):
    advice = "The forge is down or cannot be reached; cc-ci goes on by itself when it is back."


class CircuitOpen(Unavailable):
    """Not asked at all: the forge has failed many times in a row, and is left alone for a while."""


class Garbage(ForgeError):
    advice = "What answers there is no forge, or a proxy stands between: open the address in a browser."


class OddRows(Garbage):
    """Some rows of a listing could not be read. Raised at its end: all the others were given before."""


#: What concerns the whole forge, or the token as a whole: nothing more is asked then.
HALTS = (RateLimited, CircuitOpen, Unauthorized)


@dataclass(frozen=True)
class User:
    id: int
    login: str


@dataclass(frozen=True)
class Repo:
    id: int
    owner: str
    owner_id: int
    name: str
    private: bool
    default_branch: str
    clone_url: str
    html_url: str
    #: What the token may do there: pull, push, admin.
    permissions: frozenset[str] = frozenset()

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True)
class PullSummary:
    """A pull request as a search tells of it: no head commit in it."""

    repo_id: int
    repo_full_name: str
    number: int
    title: str
    author: User
    state: str
    html_url: str
    updated_at: datetime


@dataclass(frozen=True)
class Head:
    """The repository and the branch that a pull request's code comes from, where all that the forge says of them agrees."""

    repo_id: int
    full_name: str
    owner: User
    branch: str  #: empty where there is none (any more)


@dataclass(frozen=True)
class Pull:
    number: int
    title: str
    author: User
    state: str
    merged: bool
    html_url: str
    created_at: datetime
    updated_at: datetime
    head_sha: str
    head: Head | None  #: None when the fork was deleted, and where the forge's answer does not add up
    base: Repo
    base_ref: str
    #: Pushed for review to the base repository, with no branch and no fork (AGit): open to anybody who may read there.
    agit: bool = False


@dataclass(frozen=True)
class Push:
    """A push to a pull request, as the forge's timeline tells of it. A push to a closed pull request is not written down, and
    one to an open one a moment later than the pull request's head shows it: only a push that led to the head that was read tells
    when that came."""

    at: datetime | None
    sha: str  #: the commit that it led to; empty where that is not told
    by: int | None = None  #: the id of who pushed; None where that is not told


@dataclass(frozen=True)
class RemoteComment:
    id: int
    pull_number: int | None  #: None for a comment on a plain issue
    author: User
    body: str
    html_url: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class RemoteFile:
    """A file as it is on a branch. `sha` is its content's own id, which a change must name, so that none goes lost."""

    path: str
    sha: str
    content: bytes


@dataclass(frozen=True)
class Hook:
    """A webhook as the forge tells of it. No answer holds its secret; `events` may be more than what was asked for."""

    id: int
    url: str
    events: frozenset[str]
    active: bool
    content_type: str = "json"
    branch_filter: str = ""  #: empty where the server does not tell
    authorization_header: str = ""  #: what somebody added for a proxy; lost unless it is sent again with each change


@dataclass(frozen=True)
class Ask:
    """A request about to be made. `kind` is a row of the table of requests, `repository` is `owner/name` or empty."""

    kind: str
    repository: str = ""


class Gate(Protocol):
    """What stands before each request of a client: budget and circuit, and the counting."""

    def enter(self, ask: Ask) -> None:
        """Raises OverBudget, RateLimited or CircuitOpen where the request is not to be made now."""

    def leave(self, ask: Ask, seconds: float, error: ForgeError | None) -> None:
        """How it went."""


@dataclass(frozen=True)
class Sample:
    """What is known to be at a forge, to try its abilities on."""

    repository: tuple[str, str] | None = None  #: owner and name
    pull: int | None = None  #: of that repository
    organisation: str = ""


@dataclass(frozen=True)
class Found:
    """One ability as it was found. `value` is None where nothing there could tell."""

    name: str
    value: bool | int | str | None
    evidence: str
    failed: bool = False  #: the forge gave no answer; what was found before still holds


StatusState = Literal["pending", "success", "failure", "error"]


class ForgeClient(Protocol):
    """The verbs. Names of owners and repositories are the current ones."""

    @property
    def server_time(self) -> datetime | None: ...

    def version(self) -> str: ...

    def whoami(self) -> User: ...

    def user(self, login: str) -> User | None: ...

    def repository(self, owner: str, name: str) -> Repo: ...

    def repository_by_id(self, repo_id: int) -> Repo: ...

    def repositories_with_topic(self, owner: str, topic: str) -> Iterator[Repo]: ...

    def branch_head(self, owner: str, name: str, branch: str) -> str: ...

    def read_file(self, owner: str, name: str, path: str, branch: str) -> RemoteFile: ...

    def changed_pulls(self, since: datetime, owner: str | None) -> Iterator[PullSummary]: ...

    def pull(self, owner: str, name: str, number: int) -> Pull: ...

    def pull_commits(self, owner: str, name: str, number: int) -> list[str]: ...

    def pull_comments(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]: ...

    def repository_comments(self, owner: str, name: str, since: datetime) -> Iterator[RemoteComment]: ...

    def is_member(self, org: str, login: str) -> bool: ...

    def in_team(self, org: str, team: str, login: str) -> bool | None: ...

    def is_site_admin(self) -> bool | None: ...

    def probe(self, sample: Sample) -> Iterator[Found]: ...

    # False for a collaborator who may only read, where the forge tells.
    def is_collaborator(self, owner: str, name: str, login: str) -> bool | None: ...

    def last_push(self, owner: str, name: str, number: int) -> Push | None: ...

    def post_comment(self, owner: str, name: str, number: int, body: str) -> RemoteComment: ...

    def edit_comment(self, owner: str, name: str, comment_id: int, body: str) -> None: ...

    def delete_comment(self, owner: str, name: str, comment_id: int) -> None: ...

    def react(self, owner: str, name: str, comment_id: int, content: str) -> None: ...

    def set_status(
        self, owner: str, name: str, sha: str, *, state: StatusState, context: str, description: str, target_url: str
    ) -> None: ...

    def change_file(
        self, owner: str, name: str, file: RemoteFile, content: bytes, *, branch: str, new_branch: str, message: str
    ) -> None: ...

    def open_pull(self, owner: str, name: str, *, head: str, base: str, title: str, body: str) -> Pull: ...

    # Hooks of a repository, or with an empty name of an organisation. Forbidden (or NotFound) where the token may not.

    def hooks(self, owner: str, name: str) -> Iterator[Hook]: ...

    def create_hook(self, owner: str, name: str, *, url: str, secret: str, events: Sequence[str]) -> Hook: ...

    def edit_hook(self, owner: str, name: str, hook: Hook) -> Hook: ...

    def delete_hook(self, owner: str, name: str, hook_id: int) -> None: ...


@dataclass(frozen=True)
class Heard:
    """What stands in a delivery to a webhook, as far as cc-ci wants to know."""

    repo_id: int
    repo_name: str
    action: str  #: created or edited, where there is a comment
    unwanted: str = ""  #: why cc-ci does not wait for it
    number: int | None = None  #: of the pull request
    comment: RemoteComment | None = None
    doubts: str = ""  #: why it may bring no comment by itself
    title: str = ""
    html_url: str = ""


class Deliveries(Protocol):
    """What a kind of forge delivers to a webhook: a JSON object in UTF-8, with the hex HMAC-SHA-256 of the exact body."""

    def signatures(self, headers: Mapping[str, str]) -> list[str]:
        """What a request claims as that HMAC; any of them will do."""

    def event(self, headers: Mapping[str, str]) -> str: ...

    def delivery_id(self, headers: Mapping[str, str]) -> str:
        """By which the same delivery is known when it comes again; empty where there is none."""

    def hear(self, event: str, data: dict[str, Any]) -> Heard:
        """Read a body. A comment is one on a pull request; all else is `unwanted`. Raises Garbage."""
