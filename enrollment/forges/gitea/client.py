"""The client for Gitea and Forgejo (API v1). The server is asked what it can do; no version name is trusted.

This relies on the behaviour of Gitea 1.15 as measured and of Gitea 1.22 and Forgejo 13 as documented; docs/trust.md lists what
each forge can do.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from enrollment.forges.base import (
    CircuitOpen,
    Forbidden,
    ForgeError,
    Found,
    Garbage,
    Gate,
    Head,
    Hook,
    NoRoute,
    NotFound,
    OddRows,
    Pull,
    PullSummary,
    Push,
    RemoteComment,
    RemoteFile,
    RemoteIssue,
    RemoteTag,
    Repo,
    Sample,
    StatusState,
    Unauthorized,
    Unavailable,
    User,
)
from enrollment.forges.gitea import capabilities
from enrollment.forges.gitea.request_kinds import ask_of
from enrollment.forges.http import Http, json_of, storable, whole

API = "/api/v1"
PAGE = 50
#: The forge's names for permissions on a repository.
PERMISSIONS = ("none", "read", "write", "admin", "owner")
#: States of a submitted, valid review.
REVIEW_STATES = ("COMMENT", "APPROVED", "REQUEST_CHANGES")
#: A push that was never recorded.
UNSEEN = Push(None, "")
#: Maximum pages of one listing; a forge that returns more is broken, and a task must not follow it.
MAX_PAGES = 1000

T = TypeVar("T")


class GiteaClient:
    """One forge, one token. Keeps a connection; not for concurrent use by several threads."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 10,
        user_agent: str = "cc-ci",
        page_limit: int | None = None,
        gate: Gate | None = None,
    ) -> None:
        headers = {"Accept": "application/json", "User-Agent": user_agent}
        if not (token.isascii() and token.isprintable()) or " " in token:
            # Such a header cannot be sent, and the library's error would show the token.
            raise Unauthorized("the token contains a space, a line break or another character that no token has")
        if token:
            headers["Authorization"] = f"token {token}"
        # No more than the server's limit, or a full page would look like the last one.
        self.page_size = min(PAGE, page_limit or PAGE)
        self._http = Http(url.rstrip("/"), API, headers, timeout, gate, ask_of)

    @property
    def server_time(self) -> datetime | None:
        """The forge's clock at its last response."""
        return self._http.server_time

    # --- who and what is there

    def version(self) -> str:
        return str(self._get("/version", lambda data: data["version"]))

    def whoami(self) -> User:
        return self._get("/user", _user)

    def user(self, login: str) -> User | None:
        if not login:
            return None
        try:
            return self._get(f"/users/{_part(login)}", _user)
        except NotFound:
            return None

    def repository(self, owner: str, name: str) -> Repo:
        return self._get(_of(owner, name), _repo)

    def repository_by_id(self, repo_id: int) -> Repo:
        repo = self._get(f"/repositories/{repo_id}", _repo)
        if repo.id != repo_id:
            raise Garbage(f"/repositories/{repo_id}: the response is about repository {repo.id}")
        return repo

    def repositories_with_topic(self, owner: str, topic: str) -> Iterator[Repo]:
        """The owner's repositories that carry the topic. The owner is checked here, since the search may list everybody's."""
        params = {"q": topic, "topic": "true"}
        for item in self._pages("/repos/search", params, lambda data: data["data"]):
            repo = _read(_repo, item)
            if repo.owner.lower() == owner.lower():
                yield repo

    def private_repositories(self) -> Iterator[int]:
        """The ids of the private repositories that the token's owner may see."""
        params = {"private": "true", "is_private": "true"}
        for item in self._pages("/repos/search", params, lambda data: data["data"]):
            repo = _read(_repo, item)
            if repo.private:
                yield repo.id

    def branch_head(self, owner: str, name: str, branch: str) -> str:
        """The newest commit of a branch. Raises NotFound if the branch does not exist."""
        path = f"{_of(owner, name)}/branches/{_part(branch)}"
        found, sha = self._get(path, lambda data: (data["name"], _sha(data["commit"]["id"])))
        if found != branch:
            raise Garbage(f"{path}: the response is about another branch")
        return sha

    def tags(self, owner: str, name: str) -> Iterator[RemoteTag]:
        return _each(_tag, self._pages(f"{_of(owner, name)}/tags", key="name"))

    def read_file(self, owner: str, name: str, path: str, branch: str) -> RemoteFile:
        """A file of a branch. Raises NotFound if it does not exist, and Garbage for a folder or a file too large to be
        returned.
        """
        where = f"{_of(owner, name)}/contents/{quote(path)}"
        return _read(lambda data: _file(path, data), json_of(self._call("GET", where, params={"ref": branch})))

    # --- pull requests and comments

    def changed_pulls(self, since: datetime, owner: str | None) -> Iterator[PullSummary]:
        """Pull requests, open and closed, that changed at or after `since`; newest first.

        The server may ignore `owner` (before 1.16): the caller checks whose they are.
        """
        params: dict[str, Any] = {"type": "pulls", "state": "all", "since": _stamp(since)}
        if owner:
            params["owner"] = owner
        return _each(_summary, self._pages("/repos/issues/search", params))

    def pull(self, owner: str, name: str, number: int) -> Pull:
        return self._get(f"{_of(owner, name)}/pulls/{number}", _pull)

    def pull_commits(self, owner: str, name: str, number: int) -> list[str]:
        path = f"{_of(owner, name)}/pulls/{number}/commits"
        return [_read(lambda item: _sha(item["sha"]), item) for item in self._pages(path, key="sha")]

    def pull_comments(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]:
        path = f"{_of(owner, name)}/issues/{number}/comments"
        params = {"since": _stamp(since)} if since else {}
        return _each(lambda item: _comment(item, number), self._pages(path, params))

    def pull_reviews(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]:
        """Texts of reviews that were submitted or changed at or after `since`. (The list itself has no `since`.)"""
        path = f"{_of(owner, name)}/pulls/{number}/reviews"
        items = self._pages(path)
        try:
            for row, changed_at in _each(lambda item: (_review(item, number), item.get("updated_at")), items):
                # Older servers report only when it was begun, which may be long before it was submitted.
                late = since is not None and changed_at and row is not None and row.updated_at < since.replace(microsecond=0)
                if row is not None and not late:
                    yield row
        except NoRoute:
            self.pull(owner, name, number)  # only the list is missing, not the pull request

    def repository_pulls(self, owner: str, name: str, since: datetime) -> Iterator[Pull]:
        """The pull requests of one repository, open and closed, that changed at or after `since`; last changed first."""
        path = f"{_of(owner, name)}/pulls"
        params = {"state": "all", "sort": "recentupdate"}
        for pull in _each(_pull, self._pages(path, params, key="number")):
            if pull.updated_at < since.replace(microsecond=0):
                return
            yield pull

    def repository_comments(self, owner: str, name: str, since: datetime) -> Iterator[RemoteComment]:
        """Comments on pull requests and issues alike (see `pull_number`), created or edited at or after `since`."""
        return _each(_comment, self._pages(f"{_of(owner, name)}/issues/comments", {"since": _stamp(since)}))

    # --- who may ask

    def is_member(self, org: str, login: str) -> bool:
        """Whether the forge shows this person as a member (only public members, unless the token's owner is one)."""
        # Non-members are redirected to the public list; the redirect itself is not a "yes".
        return self._there(f"/orgs/{_part(org)}/members/{_part(login)}")

    def in_team(self, org: str, team: str, login: str) -> bool | None:
        """Whether this person is in the team of that name; None if the team does not exist, or the token's owner, who must be
        in it to ask (or own the organisation), is not.
        """
        try:
            teams = self._pages(f"/orgs/{_part(org)}/teams")
            found = next((item for item in teams if _read(lambda item: _label(item["name"]), item).lower() == team.lower()), None)
        except (NotFound, Forbidden):
            return None
        if found is None:
            return None
        number = _read(lambda item: _key(item["id"]), found)
        try:
            if self._get(f"/teams/{number}", lambda data: _key(data["id"])) != number:
                raise Garbage(f"/teams/{number}: the response is about another team")
        except (NotFound, Forbidden):
            return None
        path = f"/teams/{number}/members/{_part(login)}"
        try:
            member = self._get(path, _user)
        except NotFound:
            return False
        if member.login.lower() != login.lower():
            raise Garbage(f"{path}: the response is about somebody else")
        return True

    def is_site_admin(self) -> bool | None:
        """Whether the token's owner administers the whole server; None if it does not say."""
        return self._get("/user", lambda data: _flag(data["is_admin"]) if _user(data) and "is_admin" in data else None)

    def probe(self, sample: Sample) -> Iterator[Found]:
        """Probe the server's capabilities by asking; nothing is written."""
        return capabilities.probe(lambda path, params: self._call("GET", path, params=params), sample)

    def is_collaborator(self, owner: str, name: str, login: str) -> bool | None:
        """True; False for somebody who may only read, if the server says so (newer ones do, to repository administrators);
        None if the token may not see it, or the forge answers no with the message for that (404 in both cases).
        """
        path = f"{_of(owner, name)}/collaborators/{_part(login)}"
        try:
            if not self._there(path):
                return None
        except Forbidden:
            return None
        except NoRoute:
            self.repository(owner, name)
            return None
        try:
            permission = self._get(f"{path}/permission", lambda data: _label(data["permission"]))
        except (NotFound, Forbidden):
            return True
        except NoRoute:
            self.repository(owner, name)
            return True
        if permission not in PERMISSIONS:
            raise Garbage(f"{path}/permission: unknown permission {permission[:40]!r}")
        return permission in ("write", "admin", "owner")

    def last_push(self, owner: str, name: str, number: int) -> Push | None:
        """The newest push in the timeline of this pull request (its opening is the first one, and one that was never recorded
        has neither time nor commit); None if the server has no timeline (404 before 1.16 or so).

        Pushes while it is closed are not recorded, so a reopening counts as such a push.
        """
        path = f"{_of(owner, name)}/issues/{number}/timeline"
        pushes: list[tuple[int, Push]] = []
        try:
            for item in self._pages(path):
                kind = _read(lambda item: item.get("type"), item)
                if kind == "pull_push":
                    pushes.append(_read(lambda item: (_key(item["id"]), _push(item)), item))
                elif kind == "reopen":
                    pushes.append(_read(lambda item: (_key(item["id"]), UNSEEN), item))
        except (NotFound, NoRoute):
            self.pull(owner, name, number)  # only the timeline is missing, not the pull request
            return None
        return max(pushes, key=lambda row: row[0])[1] if pushes else UNSEEN

    # --- what we write

    def post_comment(self, owner: str, name: str, number: int, body: str) -> RemoteComment:
        path = f"{_of(owner, name)}/issues/{number}/comments"
        return self._write("POST", path, {"body": body}, lambda data: _comment(data, number))

    def edit_comment(self, owner: str, name: str, comment_id: int, body: str) -> None:
        self._write("PATCH", f"{_of(owner, name)}/issues/comments/{comment_id}", {"body": body}, lambda data: None)

    def delete_comment(self, owner: str, name: str, comment_id: int) -> None:
        self._call("DELETE", f"{_of(owner, name)}/issues/comments/{comment_id}")

    def issues(self, owner: str, name: str, since: datetime) -> Iterator[RemoteIssue]:
        params = {"type": "issues", "state": "all", "since": _stamp(since)}
        return _each(_issue, self._pages(f"{_of(owner, name)}/issues", params))

    def open_issue(self, owner: str, name: str, *, title: str, body: str) -> RemoteIssue:
        return self._write("POST", f"{_of(owner, name)}/issues", {"title": title, "body": body}, _issue)

    def close_issue(self, owner: str, name: str, number: int) -> None:
        """Close an issue. Its author may, without write access; closing a closed one has no effect."""
        self._write("PATCH", f"{_of(owner, name)}/issues/{number}", {"state": "closed"}, _issue)

    def react(self, owner: str, name: str, comment_id: int, content: str) -> None:
        """Add a reaction. Adding it twice has no further effect."""
        path = f"{_of(owner, name)}/issues/comments/{comment_id}/reactions"
        self._call("POST", path, body={"content": content})

    def set_status(
        self, owner: str, name: str, sha: str, *, state: StatusState, context: str, description: str, target_url: str
    ) -> None:
        body = {"state": state, "context": context, "description": description, "target_url": target_url}
        self._call("POST", f"{_of(owner, name)}/statuses/{sha}", body=body)

    def change_file(
        self, owner: str, name: str, file: RemoteFile, content: bytes, *, branch: str, new_branch: str, message: str
    ) -> None:
        """Put `content` into `file`, in one commit on `new_branch`, created from `branch`.

        Raises Rejected (422) if the file was changed meanwhile or the new branch exists, Forbidden without push permission.
        """
        path = f"{_of(owner, name)}/contents/{quote(file.path)}"
        body = {"content": base64.b64encode(content).decode(), "sha": file.sha, "message": message}
        self._call("PUT", path, body={**body, "branch": branch, "new_branch": new_branch})

    def open_pull(self, owner: str, name: str, *, head: str, base: str, title: str, body: str) -> Pull:
        """Open a pull request from the branch `head` into `base`. Raises Rejected (409) if there is one already."""
        path = f"{_of(owner, name)}/pulls"
        return self._write("POST", path, {"head": head, "base": base, "title": title, "body": body}, _pull)

    # --- hooks

    def hooks(self, owner: str, name: str) -> Iterator[Hook]:
        return _each(_hook, self._pages(_hooks_of(owner, name)))

    def create_hook(self, owner: str, name: str, *, url: str, secret: str, events: Sequence[str]) -> Hook:
        """Add a hook. The server accepts a second one with the same URL, so the caller checks first."""
        wanted = Hook(0, url, frozenset(events), active=True)
        body = _hook_body(wanted) | {"type": "gitea"}
        body["config"]["secret"] = secret
        return self._write("POST", _hooks_of(owner, name), body, _hook)

    def edit_hook(self, owner: str, name: str, hook: Hook) -> Hook:
        """Change a hook to the given one. All of it is sent, since a PATCH resets what it omits. Its secret cannot be changed."""
        return self._write("PATCH", f"{_hooks_of(owner, name)}/{hook.id}", _hook_body(hook), _hook)

    def delete_hook(self, owner: str, name: str, hook_id: int) -> None:
        self._call("DELETE", f"{_hooks_of(owner, name)}/{hook_id}")

    # --- requests

    def _there(self, path: str) -> bool:
        """A question that the forge answers with 204 for yes and 404 for no, and nothing else."""
        try:
            status = self._call("GET", path).status_code
        except NotFound:
            return False
        if status != 204:
            raise Garbage(f"{path}: {status}, expected 204 or 404", status=status)
        return True

    def _get(self, path: str, read: Callable[[Any], T]) -> T:
        return _read(read, json_of(self._call("GET", path)))

    def _write(self, method: str, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        return _read(read, json_of(self._call(method, path, body=body)))

    def _pages(
        self, path: str, params: Mapping[str, Any] | None = None, items: Callable[[Any], Any] = lambda data: data, key: str = "id"
    ) -> Iterator[Any]:
        """All items of a listing, each once, whatever they are. Ends at an empty page, at the announced total, or at a page
        without anything new: some servers ignore `page` and return everything each time.
        """
        seen: set[str] = set()
        for page in range(1, MAX_PAGES + 1):
            response = self._call("GET", path, params={**(params or {}), "limit": self.page_size, "page": page})
            batch = _read(items, json_of(response))
            if not isinstance(batch, list):
                raise Garbage(f"{path}: expected a list")
            fresh = {_name(item, key): item for item in batch}
            fresh = {name: item for name, item in fresh.items() if name not in seen}
            seen.update(fresh)
            yield from fresh.values()
            total = whole(response.headers.get("X-Total-Count", ""))
            if not fresh or (len(batch) < self.page_size if total is None else len(seen) >= total):
                return
        raise Garbage(f"{path}: the listing does not end after {MAX_PAGES} pages")

    def _call(
        self, method: str, path: str, *, params: dict[str, Any] | None = None, body: dict[str, Any] | None = None
    ) -> requests.Response:
        if method != "GET":
            # The caller must check the forge before repeating a write.
            return self._once(method, path, params, body)
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Unavailable) and not isinstance(error, CircuitOpen)),
            stop=stop_after_attempt(2),
            wait=wait_random_exponential(0.1, max=1),
            reraise=True,
        )
        return retrying(self._once, method, path, params, body)

    def _once(self, method: str, path: str, params: dict[str, Any] | None, body: dict[str, Any] | None) -> requests.Response:
        return self._http.once(method, path, params, body)


def _read(read: Callable[[Any], T], data: Any) -> T:
    """Apply a reader to the server's data; raises Garbage for anything that is not as documented."""
    try:
        return read(data)
    except ForgeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise Garbage(f"unexpected response data ({type(error).__name__}: {str(error)[:100]})") from None


def _each(read: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """Yields what can be parsed of a listing, then raises Garbage if something could not: one bad row neither hides the others
    nor goes unnoticed.
    """
    trouble: OddRows | None = None
    for item in items:
        try:
            row = _read(read, item)
        except Garbage as error:
            trouble = trouble or OddRows(str(error))
        else:
            yield row
    if trouble:
        raise trouble


def _name(item: Any, key: str) -> str:
    """What identifies an item of a listing; without an id, its whole content."""
    return repr(item.get(key, item) if isinstance(item, dict) else item)


def _part(name: str) -> str:
    return quote(name, safe="")


def _of(owner: str, name: str) -> str:
    return f"/repos/{_part(owner)}/{_part(name)}"


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).replace(microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def _id(value: Any) -> int:
    # Deleted accounts appear as a ghost with the id -1.
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 2**63:
        raise ValueError("missing or invalid id")
    return value


def _key(value: Any) -> int:
    """The id of anything but a person or an owner; never a ghost's."""
    if _id(value) <= 0:
        raise ValueError("missing or invalid id")
    return int(value)


def _tag(data: Any) -> RemoteTag:
    commit = _sha(data["commit"]["sha"])
    # An annotated tag is an object of its own, a lightweight one only a name for its commit.
    return RemoteTag(_label(data["name"]), commit, annotated=_sha(data["id"]) != commit)


def _issue(data: Any) -> RemoteIssue:
    return RemoteIssue(_number(data["number"]), _user(data["user"]), _text(data.get("body")), _label(data["state"]))


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError("missing or invalid pull request number")
    return value


def _sha(value: Any) -> str:
    if not isinstance(value, str) or len(value) not in (40, 64) or not set(value) <= set("0123456789abcdef"):
        raise ValueError("missing or invalid commit id")
    return value


def _text(value: Any) -> str:
    return str(storable(value or ""))


def _label(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 255:
        raise ValueError("missing or invalid name")
    return _text(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _state(value: Any) -> str:
    if value not in ("open", "closed"):
        raise ValueError("expected open or closed")
    return str(value)


def _user(data: Any) -> User:
    return User(id=_id(data["id"]), login=_label(data["login"]))


def _hidden(data: Any) -> bool:
    """Whether a repository is not for everybody to see: it is private itself, or its owner is visible to some people only."""
    # The first is about the repository alone; 1.15 says the second of private organisations, newer servers of no limited ones.
    shown = data["owner"].get("visibility", "public") == "public"
    return _flag(data["private"]) or _flag(data.get("internal", False)) or not shown


def _repo(data: Any) -> Repo:
    return Repo(
        id=_key(data["id"]),
        owner=_label(data["owner"]["login"]),
        owner_id=_id(data["owner"]["id"]),
        name=_label(data["name"]),
        private=_hidden(data),
        default_branch=_text(data.get("default_branch"))[:255] or "main",
        clone_url=_text(data.get("clone_url"))[:500],
        html_url=_text(data.get("html_url"))[:500],
        permissions=frozenset(name for name, allowed in (data.get("permissions") or {}).items() if _flag(allowed)),
    )


def _file(path: str, data: Any) -> RemoteFile:
    # A folder is a list; a symlink, a submodule or a file that is too large has no content.
    if data["type"] != "file" or data["encoding"] != "base64":
        raise ValueError("not a file whose content can be read")
    content = base64.b64decode("".join(data["content"].split()), validate=True)
    return RemoteFile(path=path, sha=_sha(data["sha"]), content=content)


def _summary(data: Any) -> PullSummary:
    repository = data["repository"]
    return PullSummary(
        repo_id=_key(repository["id"]),
        repo_full_name=_text(repository["full_name"]),
        number=_number(data["number"]),
        title=_text(data.get("title")),
        author=_user(data["user"]),
        state=_state(data["state"]),
        html_url=_text(data.get("html_url")),
        updated_at=_time(data["updated_at"]),
    )


def _head(data: Any) -> Head | None:
    """None for a deleted fork, whose `repo` is null."""
    repo, ref = data["repo"], _label(data["ref"])
    if repo is None:
        return None
    if _key(data["repo_id"]) != _key(repo["id"]):
        raise ValueError("two head repositories")
    return Head(
        repo_id=_key(repo["id"]),
        full_name=f"{_label(repo['owner']['login'])}/{_label(repo['name'])}",
        owner=User(_key(repo["owner"]["id"]), _label(repo["owner"]["login"])),
        # The name of an existing branch; otherwise refs/pull/N/head, which must not be taken for a branch.
        branch="" if ref.startswith("refs/") else ref,
    )


def _pull(data: Any) -> Pull:
    number, base, head = _number(data["number"]), _repo(data["base"]["repo"]), _head(data["head"])
    return Pull(
        number=number,
        title=_text(data.get("title")),
        author=_user(data["user"]),
        state=_state(data["state"]),
        merged=_flag(data["merged"]),
        html_url=_text(data.get("html_url")),
        created_at=_time(data["created_at"]),
        updated_at=_time(data["updated_at"]),
        head_sha=_sha(data["head"]["sha"]),
        head=head,
        base=base,
        base_ref=_text(data["base"]["ref"]),
        # The label is the branch's name, also when the branch was deleted. Such a pull request never had one.
        agit=(
            head is not None
            and head.repo_id == base.id
            and data["head"]["ref"] == f"refs/pull/{number}/head"
            and data["head"].get("label") == ""
        ),
    )


def _push(data: Any) -> Push:
    # The text holds {"is_force_push": …, "commit_ids": […]}: the new commits, the oldest first; of a forced push the old head and
    # the new one. Commits that are on the base branch already are left out.
    commits = json.loads(data["body"])["commit_ids"]
    by = _user(data["user"]).id if data.get("user") else None
    return Push(_time(data["created_at"]), _sha(commits[-1]) if commits else "", by)


def _comment(data: Any, pull_number: int | None = None) -> RemoteComment:
    if pull_number is None:
        # `pull_request_url` is empty for a comment on a plain issue.
        tail = _text(data.get("pull_request_url")).rstrip("/").rpartition("/")[2]
        pull_number = _number(int(tail)) if tail.isdecimal() else None
    return RemoteComment(
        id=_key(data["id"]),
        pull_number=pull_number,
        author=_user(data["user"]),
        body=_text(data["body"]),
        html_url=_text(data.get("html_url")),
        created_at=_time(data["created_at"]),
        updated_at=_time(data["updated_at"]),
    )


def _review(data: Any, pull_number: int) -> RemoteComment | None:
    """A review as a comment; None for one without text, for one whose entry its author has deleted, and for one that is not
    submitted and valid: pending, dismissed, requested.

    `submitted_at` is when it was begun, with the first remark on a line, and `updated_at` when it was submitted with its text,
    which cannot be changed afterwards.
    """
    if data["state"] not in REVIEW_STATES:
        if not isinstance(data["state"], str):
            raise ValueError("a review without a state")
        return None
    if _flag(data.get("dismissed", False)):  # its state does not change
        return None
    body, url, at = _text(data["body"]), _text(data["html_url"]), _time(data["submitted_at"])
    if not body or not url:
        return None
    # A review and its entry in the timeline have different ids. The entry is a comment with a unique id.
    tail = url.rpartition("#issuecomment-")[2]
    return RemoteComment(
        id=_key(int(tail) if tail.isdecimal() and len(tail) < 20 else None),
        pull_number=pull_number,
        author=_user(data["user"]),
        body=body,
        html_url=url,
        created_at=at,
        updated_at=_time(data["updated_at"]) if data.get("updated_at") else at,
    )


def delivered_comment(payload: Any) -> RemoteComment:
    """The comment in a webhook's delivery. Raises Garbage. (There its `pull_request_url` is empty on a plain issue, too.)"""
    return _read(lambda data: _comment(data["comment"]), payload)


def delivered_repository(payload: Any) -> tuple[int, str]:
    """Id and full name of the repository in a webhook's delivery. Raises Garbage."""
    return _read(lambda data: (_key(data["repository"]["id"]), _text(data["repository"].get("full_name"))), payload)


def _hooks_of(owner: str, name: str) -> str:
    return _of(owner, name) + "/hooks" if name else f"/orgs/{_part(owner)}/hooks"


def _hook_body(hook: Hook) -> dict[str, Any]:
    body: dict[str, Any] = {
        "active": hook.active,
        "events": sorted(hook.events),
        "branch_filter": hook.branch_filter or "*",
        "config": {"url": hook.url, "content_type": hook.content_type},
    }
    if hook.authorization_header:
        body["authorization_header"] = hook.authorization_header
    return body


def _hook(data: Any) -> Hook:
    config = data["config"]
    return Hook(
        id=_key(data["id"]),
        url=_text(config.get("url")),
        events=frozenset(_text(name) for name in data.get("events") or []),
        active=_flag(data["active"]),
        content_type=_text(config.get("content_type")),
        branch_filter=_text(data.get("branch_filter")),
        authorization_header=_text(data.get("authorization_header")),
    )
