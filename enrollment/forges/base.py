"""What a forge can do, in cc-ci's terms. To add another kind of forge, add a folder with a `ForgeKind` and a line in
`enrollment/forges/kinds.py`; nothing else in cc-ci knows a forge's pages, events, headers or scopes.

Every call has a timeout and raises a ForgeError that says what it means for the caller and what a person can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol


class ForgeError(Exception):
    """A call to a forge failed. `advice` says what a person can do."""

    advice: ClassVar[str] = "Check the forge's own log."
    #: Whether the same call may succeed later by itself.
    passing: ClassVar[bool] = True

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after  #: seconds that the forge asked us to wait


def explain(error: Exception) -> str:
    """What went wrong and, if a forge was asked, what a person can do about it."""
    return f"{error}. {error.advice}" if isinstance(error, ForgeError) else str(error)


class Unauthorized(ForgeError):
    advice = "The forge does not accept the token: create a new one there and enter it with `cc-ci forge add`."
    passing = False


class Forbidden(ForgeError):
    advice = "The token lacks a permission: docs/enroll-recipe.md lists what it needs."
    passing = False


class NotFound(ForgeError):
    advice = "It was deleted or renamed, or the token may not see it: make the bot a member with read access."
    passing = False


class Rejected(ForgeError):
    advice = "The forge refused the request (4xx). If this persists, it is a bug in cc-ci: please report it."
    passing = False


class RateLimited(ForgeError):
    advice = "The forge asks for fewer requests: raise CC_CI_POLL_SECONDS."


class OverBudget(RateLimited):
    """Not sent: our budget for this minute, or this purpose's or repository's share of it, is used up."""

    advice = "cc-ci continues within a minute. If this persists, raise CC_CI_REQUESTS_PER_MINUTE."


class Unavailable(ForgeError):
    advice = "The forge is down or unreachable; cc-ci continues by itself when it is back."


class CircuitOpen(Unavailable):
    """Not sent: the forge has failed many times in a row, and its circuit is open."""


class OutOfTime(ForgeError):
    """Not sent: the requests before it took all the time that there was."""

    advice = "The forge is slow. Try again later."


class Garbage(ForgeError):
    advice = "The response is not from a forge, or a proxy is in between: open the URL in a browser."


class NoForge(Garbage):
    """At a typed address no forge answered."""

    advice = "A forge's address is that of its start page in a browser."


class NoRoute(Garbage):
    """404 in plain text: the forge is too old for this route, or only a proxy responded. Asking for something that every forge
    has shows which.
    """


class OddRows(Garbage):
    """Some rows of a listing could not be parsed. Raised at its end, after all the others."""


#: Errors of the whole forge or token: no further requests are sent.
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
    """A pull request as a search reports it: without its head commit."""

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
    """The repository and branch that a pull request's code comes from, if all that the forge reports about them agrees."""

    repo_id: int
    full_name: str
    owner: User
    branch: str  #: empty if there is none (any more)


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
    head: Head | None  #: None when the fork was deleted
    base: Repo
    base_ref: str
    #: Pushed for review to the base repository, without branch or fork (AGit): open to anybody with read access.
    agit: bool = False


@dataclass(frozen=True)
class Push:
    """A push to a pull request, as the forge's timeline reports it. A push to a closed pull request is not recorded, and one
    to an open one a moment after the pull request's head shows it: only a push that led to the head that was read shows when
    that came.
    """

    at: datetime | None
    sha: str  #: the commit that it led to; empty if unknown
    by: int | None = None  #: the id of who pushed; None if unknown


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
class RemoteTag:
    """A tag. `sha` is the commit that it leads to. `annotated`: it has an author and a message of its own."""

    name: str
    sha: str
    annotated: bool


@dataclass(frozen=True)
class RemoteIssue:
    """An issue; pull requests are none."""

    number: int
    author: User
    body: str
    state: str


@dataclass(frozen=True)
class RemoteFile:
    """A file on a branch. `sha` is the id of its content, which an update must name so that no other change is lost."""

    path: str
    sha: str
    content: bytes


@dataclass(frozen=True)
class Hook:
    """A webhook as the forge reports it. No response contains its secret; `events` may be more than requested."""

    id: int
    url: str
    events: frozenset[str]
    active: bool
    content_type: str = "json"
    branch_filter: str = ""  #: empty if the server does not report it
    authorization_header: str = ""  #: set by somebody for a proxy; lost unless sent with each change


@dataclass(frozen=True)
class Ask:
    """A request about to be sent. `kind` is a row of the table of requests (`permissions.SHOWN_BY` knows some by name),
    `repository` is `owner/name` or empty.
    """

    kind: str
    repository: str = ""


class Gate(Protocol):
    """The gate before each request of a client: budget, circuit and statistics."""

    def enter(self, ask: Ask) -> None:
        """Raises OverBudget, RateLimited or CircuitOpen if the request may not be sent now."""

    def leave(self, ask: Ask, seconds: float, error: ForgeError | None) -> None:
        """Record the result."""


@dataclass(frozen=True)
class Sample:
    """What is known to exist at a forge, for probing its capabilities."""

    repository: tuple[str, str] | None = None  #: owner and name
    pull: int | None = None  #: of that repository
    organisation: str = ""


@dataclass(frozen=True)
class Found:
    """A capability of a forge, or a permission of our token there, as observed. `value` is None if nothing there could show
    it.
    """

    name: str
    value: bool | int | str | None
    evidence: str
    failed: bool = False  #: the forge did not answer; the earlier result still holds


StatusState = Literal["pending", "success", "failure", "error"]


class ForgeClient(Protocol):
    """The operations of a forge. Names of owners and repositories are the current ones."""

    @property
    def server_time(self) -> datetime | None: ...
    def version(self) -> str: ...
    def whoami(self) -> User: ...
    def user(self, login: str) -> User | None: ...
    def repository(self, owner: str, name: str) -> Repo: ...
    def repository_by_id(self, repo_id: int) -> Repo: ...
    def repositories_with_topic(self, owner: str, topic: str) -> Iterator[Repo]: ...
    # The ids of private repositories that the token's owner may see.
    def private_repositories(self) -> Iterator[int]: ...
    def branch_head(self, owner: str, name: str, branch: str) -> str: ...
    def tags(self, owner: str, name: str) -> Iterator[RemoteTag]: ...
    def read_file(self, owner: str, name: str, path: str, branch: str) -> RemoteFile: ...
    def changed_pulls(self, since: datetime, owner: str | None) -> Iterator[PullSummary]: ...
    def pull(self, owner: str, name: str, number: int) -> Pull: ...
    def pull_commits(self, owner: str, name: str, number: int) -> list[str]: ...
    def pull_comments(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]: ...
    # The texts of reviews as comments, if a forge lists them separately. Their ids are those of comments, too.
    def pull_reviews(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]: ...
    def repository_comments(self, owner: str, name: str, since: datetime) -> Iterator[RemoteComment]: ...
    def repository_pulls(self, owner: str, name: str, since: datetime) -> Iterator[Pull]: ...
    def is_member(self, org: str, login: str) -> bool: ...
    def in_team(self, org: str, team: str, login: str) -> bool | None: ...
    def is_site_admin(self) -> bool | None: ...
    def probe(self, sample: Sample) -> Iterator[Found]: ...
    # False for a collaborator who may only read, if the forge reports that.
    def is_collaborator(self, owner: str, name: str, login: str) -> bool | None: ...
    def last_push(self, owner: str, name: str, number: int) -> Push | None: ...
    def post_comment(self, owner: str, name: str, number: int, body: str) -> RemoteComment: ...
    def edit_comment(self, owner: str, name: str, comment_id: int, body: str) -> None: ...
    def delete_comment(self, owner: str, name: str, comment_id: int) -> None: ...
    # Issues of whoever's, open and closed, that changed at or after `since`.
    def issues(self, owner: str, name: str, since: datetime) -> Iterator[RemoteIssue]: ...
    def open_issue(self, owner: str, name: str, *, title: str, body: str) -> RemoteIssue: ...
    def close_issue(self, owner: str, name: str, number: int) -> None: ...
    def react(self, owner: str, name: str, comment_id: int, content: str) -> None: ...
    def set_status(
        self, owner: str, name: str, sha: str, *, state: StatusState, context: str, description: str, target_url: str
    ) -> None: ...
    def change_file(
        self, owner: str, name: str, file: RemoteFile, content: bytes, *, branch: str, new_branch: str, message: str
    ) -> None: ...
    def open_pull(self, owner: str, name: str, *, head: str, base: str, title: str, body: str) -> Pull: ...

    # Hooks of a repository, or with an empty name of an organisation. Forbidden (or NotFound) if the token may not.
    def hooks(self, owner: str, name: str) -> Iterator[Hook]: ...
    def create_hook(self, owner: str, name: str, *, url: str, secret: str, events: Sequence[str]) -> Hook: ...
    def edit_hook(self, owner: str, name: str, hook: Hook) -> Hook: ...
    def delete_hook(self, owner: str, name: str, hook_id: int) -> None: ...


@dataclass(frozen=True)
class Heard:
    """The content of a webhook's delivery, as far as cc-ci needs it."""

    repo_id: int
    repo_name: str
    action: str  #: created or edited, if there is a comment
    unwanted: str = ""  #: why cc-ci does not need it
    number: int | None = None  #: of the pull request
    comment: RemoteComment | None = None
    review: str = ""  #: the text of a review; the rest must be asked of the forge
    closed: bool = False  #: whether the pull request was merged or closed
    doubts: str = ""  #: why it cannot be stored as a comment by itself
    title: str = ""
    html_url: str = ""


class Deliveries(Protocol):
    """How a kind of forge delivers to a webhook: a JSON object in UTF-8, and proof that the sender knows the secret."""

    def signatures(self, headers: Mapping[str, str]) -> list[str]:
        """The signatures of a request; any valid one will do."""

    def sign(self, secret: bytes, body: bytes) -> str:
        """The signature of exactly this body."""

    def event(self, headers: Mapping[str, str]) -> str: ...

    def delivery_id(self, headers: Mapping[str, str]) -> str:
        """Identifies the same delivery when it is sent again; empty if there is none."""

    def hear(self, event: str, data: dict[str, Any]) -> Heard:
        """Parse a body: a comment on a pull request, a review, or a closed one; all else is `unwanted`. Raises Garbage."""


class MakeClient(Protocol):
    def __call__(
        self, url: str, token: str, *, timeout: float, user_agent: str, page_limit: int | None, gate: Gate | None
    ) -> ForgeClient:
        """A client for one forge and one token. `page_limit`: the maximum rows of a list at this forge, if known."""


@dataclass(frozen=True)
class Event:
    """An event that a hook is registered for."""

    name: str
    label: str  #: its label in the forge's form
    #: The events that it may be listed as instead, all together.
    read_as: frozenset[str] = frozenset()

    def is_in(self, events: frozenset[str]) -> bool:
        return self.name in events or bool(self.read_as and self.read_as <= events)


@dataclass(frozen=True)
class Pages:
    """URLs of a forge's pages, to be formatted with `forge` or `repository` (URLs), `owner`, `before` and `sha`. Empty if a kind
    has no such page.
    """

    version: str = ""  #: reports the version without a token
    tokens: str = ""  #: where a token, or an OAuth2 application, is created
    teams: str = ""
    collaborators: str = ""
    hooks: str = ""
    pulls: str = ""
    commit: str = ""
    compare: str = ""  #: the commits from `before` to `sha`


@dataclass(frozen=True)
class SignIn:
    """How people log in with a forge (OAuth2): paths below its URL, and the scopes to ask for."""

    authorize: str
    token: str
    scope: str


@dataclass(frozen=True)
class ForgeKind:
    """Everything cc-ci knows of one kind of forge."""

    name: str  #: as stored in `Forge.kind`
    label: str  #: for people
    client: MakeClient
    pull_ref: str  #: what is fetched for pull request {number}
    pages: Pages = Pages()
    api: str = ""  #: path of the API, which people may append to a forge's URL
    deliveries: Deliveries | None = None  #: None: takes no webhooks
    sign_in: SignIn | None = None  #: None: nobody can log in with it
    events: tuple[Event, ...] = ()
    #: How a maintainer adds a hook, step by step: HTML, to be formatted with `hooks` (a link), `url` and `events`.
    hook_steps: tuple[str, ...] = ()
    #: The scopes a token needs for each permission (`permissions.PERMISSIONS`), and for `people`: reading who somebody is.
    scopes: Mapping[str, str] = field(default_factory=dict)
    #: The scopes that a refusal says the token lacks.
    lacked_scopes: Callable[[str], frozenset[str]] = lambda refusal: frozenset()
    #: Whether a refusal is about a locked conversation: then the token lacks nothing.
    is_locked: Callable[[str], bool] = lambda refusal: False

    @property
    def event_names(self) -> tuple[str, ...]:
        return tuple(event.name for event in self.events)
