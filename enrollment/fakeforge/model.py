"""The rows of the fake forge. Ids count up per table and are never reused, like those of a database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass
class User:
    """A person or, with `is_org`, an organisation: Gitea keeps both in one table with shared ids."""

    id: int
    login: str
    created: datetime
    is_admin: bool = False
    is_org: bool = False


@dataclass
class Token:
    """An access token; only its hash is stored. Without scopes it may do all that its user may."""

    id: int
    user_id: int
    digest: str
    scopes: list[str] = field(default_factory=list)


@dataclass
class Application:
    """An OAuth2 application; only its secret's hash is stored."""

    id: int
    client_id: str
    digest: str
    redirect_uris: list[str] = field(default_factory=list)


@dataclass
class Membership:
    """A user in a team of an organisation: permission (read, write, admin, owner) applies to all its repositories."""

    id: int
    org_id: int
    user_id: int
    permission: str
    public: bool = False


@dataclass
class Team:
    """A named team of an organisation. Its members' permissions come from their memberships."""

    id: int
    org_id: int
    name: str
    user_ids: list[int] = field(default_factory=list)


@dataclass
class Collaborator:
    """A user's permission in one repository."""

    id: int
    repo_id: int
    user_id: int
    permission: str


@dataclass
class Repo:
    """A repository; its bare git repository is in a folder named after the id, so that renames move nothing."""

    id: int
    owner_id: int
    owner: str
    name: str
    created: datetime
    updated: datetime
    private: bool = False
    parent_id: int = 0
    topics: list[str] = field(default_factory=list)
    size: int = 0
    description: str = ""

    @property
    def full_name(self) -> str:
        """`owner/name`, as in the API."""
        return f"{self.owner}/{self.name}"


@dataclass
class Issue:
    """An issue or, in the subclass, a pull request: both share their repository's number sequence."""

    id: int
    repo_id: int
    number: int
    user_id: int
    title: str
    body: str
    created: datetime
    updated: datetime
    closed: datetime | None = None
    comments: int = 0

    @property
    def state(self) -> str:
        """`open` or `closed`."""
        return "open" if self.closed is None else "closed"


@dataclass(kw_only=True)
class Pull(Issue):
    """A pull request. `pull_id` is its id in responses under /pulls, `id` the one under /issues.

    One with `agit` was pushed to refs/for/… of the base repository: its head is not a branch, and `head_branch` is the login
    that pushed it, a slash and the topic, which identifies further pushes.
    """

    pull_id: int
    head_repo_id: int
    head_branch: str
    head_sha: str
    base_branch: str
    base_sha: str
    merge_base: str
    merged: datetime | None = None
    merged_by: int = 0
    merge_sha: str = ""
    agit: bool = False


@dataclass
class Comment:
    """An entry below an issue. Only those of kind `comment` are in the comment lists; the others (`pull_push`, `close`,
    `reopen`, `merge_pull`, `review`) share their id sequence and are only in the timeline.
    """

    id: int
    repo_id: int
    issue_id: int
    user_id: int
    body: str
    created: datetime
    updated: datetime
    kind: str = "comment"
    visible: datetime | None = None  # hidden until then; None: visible at once
    begun: datetime | None = None  # of a review with line comments: when the first of them was written
    gone: bool = False  # of a review: its author deleted its entry, but the review stays
    review_id: int = 0  # of a review, which has a separate id
    state: str = ""  # of a review: COMMENT, APPROVED, REQUEST_CHANGES, or PENDING until its author submits it


@dataclass
class Reaction:
    """An emoji reaction to a comment."""

    id: int
    issue_id: int
    comment_id: int
    user_id: int
    content: str
    created: datetime


@dataclass
class Status:
    """A commit status."""

    id: int
    repo_id: int
    sha: str
    state: str
    context: str
    target_url: str
    description: str
    user_id: int
    created: datetime


@dataclass
class Hook:
    """A webhook of a repository or, with `repo_id` 0, of an organisation."""

    id: int
    repo_id: int
    org_id: int
    kind: str
    url: str
    content_type: str
    secret: str
    events: list[str]
    active: bool
    created: datetime
    updated: datetime


@dataclass
class Redirect:
    """An old name: of a repository (`name` set) or of a user or organisation."""

    id: int
    owner: str
    name: str
    target_id: int
