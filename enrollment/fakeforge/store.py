"""The fake forge's state, and every operation on it: used by its API, its pages, the demo and the tests."""

from __future__ import annotations

import hashlib
import secrets
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enrollment.fakeforge import git
from enrollment.fakeforge.faults import FaultPlan, Request
from enrollment.fakeforge.features import features_of
from enrollment.fakeforge.issues import Event, IssueStore
from enrollment.fakeforge.model import Application, Collaborator, Membership, Pull, Redirect, Repo, Team, Token, User
from enrollment.fakeforge.tables import Tables

LEVELS = {"none": 0, "read": 1, "write": 2, "admin": 3, "owner": 4}


class Forge(IssueStore):
    """A forge in a folder. All methods are thread-safe.

    root: the folder for the repositories and, with `persist`, for the state, from which a later Forge in the same folder
        continues.
    version: the version to imitate, one of `features.VERSIONS`; ValueError for any other.
    clock: returns the current time, timezone-aware; the real one by default.

    Users and repositories may be given as rows or by name (`"alice"`, `"recipes/hello-web"`). Missing ones raise
    LookupError.

    `listeners` are called for comments and reviews, under the lock; the server's webhook deliveries are one.
    `requests` lists the requests to the server, oldest first, at most 10,000. `faults`, if set, is called for every
    request and may return a Fault. `url` is set by the server: responses contain absolute URLs.
    """

    def __init__(
        self, root: Path, version: str = "1.15", clock: Callable[[], datetime] | None = None, *, persist: bool = False
    ) -> None:
        self.root = Path(root)
        self.version = version
        self.features = features_of(version)
        self.clock = clock or (lambda: datetime.now(UTC))
        self.url = "http://localhost:3000"
        self.requests: deque[Request] = deque(maxlen=10_000)
        self.faults: FaultPlan | None = None
        self.listeners: list[Callable[[Event], None]] = []
        self.lock = threading.RLock()
        self._depth = 0
        self._state = self.root / "state.json" if persist else None
        (self.root / "repositories").mkdir(parents=True, exist_ok=True)
        #: Codes of the OAuth2 server, each for one exchange; see `oauth`.
        self.codes: dict[str, Any] = {}
        self.tables = Tables.load(self._state) if self._state and self._state.exists() else Tables()

    @contextmanager
    def changing(self) -> Iterator[Tables]:
        """Hold the lock for a change; the state is saved when the outermost change ends."""
        with self.lock:
            self._depth += 1
            try:
                yield self.tables
            finally:
                self._depth -= 1
                if not self._depth and self._state:
                    self.tables.save(self._state)

    def now(self) -> datetime:
        """The current time in UTC, in whole seconds, as a real server's database stores it."""
        return self.clock().astimezone(UTC).replace(microsecond=0)

    # Users and organisations

    def add_user(self, login: str, *, admin: bool = False) -> User:
        """Create a user; `admin` makes them a site admin. Raises ValueError if the name is taken."""
        with self.changing() as tables:
            if any(user.login.lower() == login.lower() for user in tables.users.values()):
                raise ValueError(f"the name {login!r} is taken")
            user = User(tables.next_id("users"), login, self.now(), is_admin=admin)
            tables.users[user.id] = user
            return user

    def add_org(self, login: str, owner: User | str) -> User:
        """Create an organisation with its first owner."""
        with self.changing() as tables:
            org = self.add_user(login)
            org.is_org = True
            member = Membership(tables.next_id("memberships"), org.id, self.user(owner).id, "owner")
            tables.memberships[member.id] = member
            return org

    def add_member(self, org: User | str, user: User | str, permission: str = "read", *, public: bool = False) -> Membership:
        """Add a user to a team of an organisation (read, write, admin or owner), or move them to it."""
        if permission not in LEVELS:
            raise ValueError(f"no such permission: {permission!r}")
        self.remove_member(org, user)
        with self.changing() as tables:
            row = tables.next_id("memberships")
            member = Membership(row, self.user(org).id, self.user(user).id, permission, public)
            tables.memberships[row] = member
            return member

    def add_to_team(self, org: User | str, name: str, *users: User | str) -> Team:
        """Add users to a named team, created if missing. They become members (read) unless they are."""
        with self.changing() as tables:
            holder = self.user(org)
            teams = tables.teams.values()
            team = next((row for row in teams if row.org_id == holder.id and row.name.lower() == name.lower()), None)
            if team is None:
                team = Team(tables.next_id("teams"), holder.id, name)
                tables.teams[team.id] = team
            for row in map(self.user, users):
                if self.membership(holder, row) is None:
                    self.add_member(holder, row)
                team.user_ids = [*(number for number in team.user_ids if number != row.id), row.id]
            return team

    def remove_member(self, org: User | str, user: User | str) -> None:
        """Remove a user from an organisation and its teams; does nothing if they are not in it."""
        with self.changing() as tables:
            for team in tables.teams.values():
                if team.org_id == self.user(org).id:
                    team.user_ids = [number for number in team.user_ids if number != self.user(user).id]
            if member := self.membership(self.user(org), self.user(user)):
                del tables.memberships[member.id]

    def membership(self, org: User, user: User | None) -> Membership | None:
        """The membership of a user in an organisation, or None."""
        with self.lock:
            rows = self.tables.memberships.values()
            return next((row for row in rows if user and row.org_id == org.id and row.user_id == user.id), None)

    def rename_user(self, user: User | str, login: str) -> None:
        """Rename a user or organisation; the old name redirects until somebody takes it."""
        with self.changing() as tables:
            row = self.user(user)
            self._add_redirect(row.login, "", row.id)
            for pull in tables.issues.values():
                # Not updated in closed ones: whoever takes the old name takes over such a pull request once it is reopened.
                if isinstance(pull, Pull) and pull.agit and pull.user_id == row.id and pull.state == "open":
                    pull.head_branch = f"{login.lower()}/{pull.head_branch.partition('/')[2]}"
            row.login = login
            for repo in tables.repos.values():
                if repo.owner_id == row.id:
                    repo.owner = login

    def user(self, user: User | str) -> User:
        """A user or organisation by login, case-insensitive. Raises LookupError."""
        if isinstance(user, User):
            return user
        with self.lock:
            for row in self.tables.users.values():
                if row.login.lower() == user.lower():
                    return row
        raise LookupError(f"no user {user!r}")

    def add_token(self, user: User | str, *scopes: str) -> str:
        """Create an access token, e.g. with the scopes `read:repository`, `write:issue`; without any, it may do all."""
        with self.changing() as tables:
            secret = secrets.token_hex(20)
            token = Token(tables.next_id("tokens"), self.user(user).id, _digest(secret), list(scopes))
            tables.tokens[token.id] = token
            return secret

    def token(self, secret: str) -> Token | None:
        """The token row for a secret, or None."""
        with self.lock:
            return next((row for row in self.tables.tokens.values() if row.digest == _digest(secret)), None)

    def add_application(self, *redirect_uris: str) -> tuple[str, str]:
        """Register an OAuth2 application. Returns its client id and secret."""
        with self.changing() as tables:
            secret = secrets.token_urlsafe(32)
            row = Application(tables.next_id("applications"), str(uuid.uuid4()), _digest(secret), list(redirect_uris))
            tables.applications[row.id] = row
            return row.client_id, secret

    def application(self, client_id: str, secret: str | None = None) -> Application | None:
        """The application with this id and, if given, this secret, or None."""
        with self.lock:
            rows = (row for row in self.tables.applications.values() if row.client_id == client_id)
            return next((row for row in rows if secret is None or row.digest == _digest(secret)), None)

    def revoke_tokens(self, user: User | str) -> None:
        """Revoke all tokens of a user."""
        with self.changing() as tables:
            owner = self.user(user).id
            tables.tokens = {key: row for key, row in tables.tokens.items() if row.user_id != owner}

    # Repositories

    def add_repo(
        self,
        owner: User | str,
        name: str,
        *,
        private: bool = False,
        topics: Iterable[str] = (),
        files: git.Files | Path | None = None,
    ) -> Repo:
        """Create a repository with one commit on main with `files` (a folder is copied; a README by default)."""
        with self.changing() as tables:
            holder, now = self.user(owner), self.now()
            row = tables.next_id("repos")
            repo = Repo(row, holder.id, holder.login, name, now, now, private, topics=list(topics))
            git.init(self.folder(repo))
            tables.repos[row] = repo
            content = git.tree(files) if isinstance(files, Path) else files or {"README.md": f"# {name}\n"}
            git.commit(self.folder(repo), "main", content, "Begin", holder.login, now, fresh=True)
            self._measure(repo)
            return repo

    def fork(self, repo: Repo | str, user: User | str, name: str = "") -> Repo:
        """Fork a repository to another user."""
        with self.changing() as tables:
            parent, holder, now = self.repo(repo), self.user(user), self.now()
            row = tables.next_id("repos")
            fork = Repo(row, holder.id, holder.login, name or parent.name, now, now, parent.private, parent.id)
            git.init(self.folder(fork))
            mirror = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            git.git(self.folder(fork), "fetch", "--quiet", str(self.folder(parent)), *mirror)
            tables.repos[row] = fork
            self._measure(fork)
            return fork

    def delete_repo(self, repo: Repo | str) -> None:
        """Delete a repository with its issues and comments; pull requests from it to others lose their head."""
        with self.changing() as tables:
            gone = self.repo(repo)
            del tables.repos[gone.id]
            tables.issues = {key: row for key, row in tables.issues.items() if row.repo_id != gone.id}
            tables.comments = {key: row for key, row in tables.comments.items() if row.repo_id != gone.id}

    def rename_repo(self, repo: Repo | str, name: str) -> None:
        """Rename a repository; the old name redirects until another repository takes it."""
        with self.changing():
            row = self.repo(repo)
            self._add_redirect(row.owner, row.name, row.id)
            row.name = name

    def transfer(self, repo: Repo | str, owner: User | str) -> None:
        """Transfer a repository to another owner; the old path redirects."""
        with self.changing():
            row, holder = self.repo(repo), self.user(owner)
            self._add_redirect(row.owner, row.name, row.id)
            row.owner_id, row.owner = holder.id, holder.login

    def set_topics(self, repo: Repo | str, topics: Iterable[str]) -> None:
        """Replace the topics of a repository."""
        with self.changing():
            self.repo(repo).topics = list(topics)

    def set_private(self, repo: Repo | str, private: bool = True) -> None:
        """Make a repository private, or public."""
        with self.changing():
            self.repo(repo).private = private

    def add_collaborator(self, repo: Repo | str, user: User | str, permission: str = "write") -> None:
        """Give a user a permission in one repository: read, write or admin."""
        with self.changing() as tables:
            row = tables.next_id("collaborators")
            tables.collaborators[row] = Collaborator(row, self.repo(repo).id, self.user(user).id, permission)

    def repo(self, repo: Repo | str) -> Repo:
        """A repository by `owner/name`, case-insensitive. Raises LookupError."""
        if isinstance(repo, Repo):
            return repo
        with self.lock:
            for row in self.tables.repos.values():
                if row.full_name.lower() == repo.lower():
                    return row
        raise LookupError(f"no repository {repo!r}")

    def folder(self, repo: Repo) -> Path:
        """The path of the bare git repository."""
        return self.root / "repositories" / f"{repo.id}.git"

    def push(self, repo: Repo | str, branch: str, files: git.Files, message: str = "Change", user: User | str = "") -> str:
        """Add a commit to a branch, created from main if new, and return its SHA. Pull requests are updated.

        A file that is None is removed. The author is the repository's owner by default.
        """
        with self.changing():
            row = self.repo(repo)
            author = self.user(user or row.owner)
            sha = git.commit(self.folder(row), branch, files, message, author.login, self.now())
            self.pushed(row, author)
            return sha

    def tag(self, repo: Repo | str, name: str, sha: str = "main", *, annotated: bool = True) -> None:
        """Tag a commit or branch; published versions of recipes are annotated tags. Raises git.GitError."""
        with self.changing():
            row = self.repo(repo)
            who = ("-c", f"user.name={row.owner}", "-c", f"user.email={row.owner}@example.org")
            kind = ("-a", "-m", name) if annotated else ()
            git.git(self.folder(row), *who, "tag", *kind, name, git.resolve(self.folder(row), sha) or sha)

    def pushed(self, repo: Repo, user: User) -> None:
        """Call this after a branch of a repository has moved: records the time and updates its open pull requests."""
        with self.changing() as tables:
            repo.updated = self.now()
            self._measure(repo)
            for pull in list(tables.issues.values()):
                if isinstance(pull, Pull) and pull.state == "open" and pull.head_repo_id == repo.id and not pull.agit:
                    self._follow_head(pull, user)
                if isinstance(pull, Pull) and pull.state == "open" and pull.repo_id == repo.id:
                    pull.base_sha = git.resolve(self.folder(repo), f"refs/heads/{pull.base_branch}") or pull.base_sha

    def level(self, user: User | None, repo: Repo) -> int:
        """The permission of a user, or of nobody, in a repository: 0 nothing, 1 read, 2 write, 3 and more admin."""
        with self.lock:
            owner = self.tables.users[repo.owner_id]
            granted = [0 if repo.private else 1]
            if user:
                if user.is_admin or user.id == owner.id:
                    granted.append(LEVELS["owner"])
                if member := self.membership(owner, user):
                    granted.append(LEVELS[member.permission])
                shares = self.tables.collaborators.values()
                granted += [LEVELS[s.permission] for s in shares if s.repo_id == repo.id and s.user_id == user.id]
            return max(granted)

    def redirect_of(self, owner: str, name: str = "") -> int:
        """The id of the repository, or without a name of the user, that once had this name; 0 if none had it."""
        with self.lock:
            for row in reversed(self.tables.redirects.values()):
                if (row.owner.lower(), row.name.lower()) == (owner.lower(), name.lower()):
                    return row.target_id
            return 0

    def settle(self) -> None:
        """Publish delayed comments that are due: the pull request's time becomes the time they were written, which may be in
        the past, as when a slow transaction of a real server commits.
        """
        with self.lock:
            now = self.clock()
            for comment in self.tables.comments.values():
                if comment.visible and comment.visible <= now:
                    comment.visible = None
                    issue = self.tables.issues[comment.issue_id]
                    self._count(issue, comment)
                    self._tell("created", issue, comment, self.tables.users[comment.user_id])

    def _add_redirect(self, owner: str, name: str, target: int) -> None:
        row = self.tables.next_id("redirects")
        self.tables.redirects[row] = Redirect(row, owner, name, target)

    def _measure(self, repo: Repo) -> None:
        files = self.folder(repo).rglob("*")
        repo.size = sum(file.stat().st_size for file in files if file.is_file()) // 1024


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
