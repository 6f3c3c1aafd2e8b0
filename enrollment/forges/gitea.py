"""The client for Gitea and Forgejo (API v1). The server says what it can do; no version is believed by its name.

The behaviours that this file stands on are those of Gitea 1.15 as measured and of Gitea 1.22 and Forgejo 13 as documented;
docs/architecture.md lists the ones that surprise.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from enrollment.forges import gitea_probes
from enrollment.forges.base import (
    CircuitOpen,
    Forbidden,
    ForgeError,
    Found,
    Garbage,
    Gate,
    Head,
    Hook,
    NotFound,
    OddRows,
    Pull,
    PullSummary,
    Push,
    RemoteComment,
    RemoteFile,
    Repo,
    Sample,
    StatusState,
    Unauthorized,
    Unavailable,
    User,
)
from enrollment.forges.http import Http, storable, whole

PAGE = 50
#: A push that was never written down.
UNSEEN = Push(None, "")
#: Pages of one listing; the forge that goes on for longer is broken, and a task may not be.
MAX_PAGES = 1000

T = TypeVar("T")


class GiteaClient:
    """One forge, one token. Keeps a connection; not for use by several threads at once."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 10,
        user_agent: str = "cc-ci",
        page_size: int = PAGE,
        gate: Gate | None = None,
    ) -> None:
        headers = {"Accept": "application/json", "User-Agent": user_agent}
        if not (token.isascii() and token.isprintable()) or " " in token:
            # Such a header cannot be sent, and the library's complaint would show the token.
            raise Unauthorized("the token holds a blank, a line break or another character that no token has")
        if token:
            headers["Authorization"] = f"token {token}"
        self.page_size = page_size  #: no more than the server gives at once, or the end of a listing is taken for its middle
        self._http = Http(url.rstrip("/") + "/api/v1", headers, timeout, gate)

    @property
    def server_time(self) -> datetime | None:
        """The forge's clock at its last answer."""
        return self._http.server_time

    @property
    def timeout(self) -> float:
        """Seconds that an answer may take."""
        return self._http.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._http.timeout = seconds

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
        return self._get(f"/repos/{_part(owner)}/{_part(name)}", _repo)

    def repository_by_id(self, repo_id: int) -> Repo:
        repo = self._get(f"/repositories/{repo_id}", _repo)
        if repo.id != repo_id:
            raise Garbage(f"/repositories/{repo_id}: the answer is about repository {repo.id}")
        return repo

    def repositories_with_topic(self, owner: str, topic: str) -> Iterator[Repo]:
        """The owner's repositories that carry the topic. The owner is checked here: the search may list everybody's."""
        params = {"q": topic, "topic": "true", "limit": self.page_size}
        for item in self._pages("/repos/search", params, lambda data: data["data"], key="id"):
            repo = _read(_repo, item)
            if repo.owner.lower() == owner.lower():
                yield repo

    def branch_head(self, owner: str, name: str, branch: str) -> str:
        """The newest commit of a branch. Raises NotFound when there is none of that name."""
        path = f"/repos/{_part(owner)}/{_part(name)}/branches/{_part(branch)}"
        found, sha = self._get(path, lambda data: (data["name"], _sha(data["commit"]["id"])))
        if found != branch:
            raise Garbage(f"{path}: the answer is about another branch")
        return sha

    def read_file(self, owner: str, name: str, path: str, branch: str) -> RemoteFile:
        """A file of a branch. Raises NotFound when there is none, and Garbage for a folder or a file too big to be shown."""
        where = f"/repos/{_part(owner)}/{_part(name)}/contents/{quote(path)}"
        return _read(lambda data: _file(path, data), _json(self._call("GET", where, params={"ref": branch})))

    # --- pull requests and comments

    def changed_pulls(self, since: datetime, owner: str | None) -> Iterator[PullSummary]:
        """Pull requests, open and closed, that changed at or after `since`; newest first.

        `owner` may be ignored by the server (before 1.16): the caller looks at whose they are.
        """
        params: dict[str, Any] = {"type": "pulls", "state": "all", "since": _stamp(since), "limit": self.page_size}
        if owner:
            params["owner"] = owner
        return _each(_summary, self._pages("/repos/issues/search", params, lambda data: data, key="id"))

    def pull(self, owner: str, name: str, number: int) -> Pull:
        return self._get(f"/repos/{_part(owner)}/{_part(name)}/pulls/{number}", _pull)

    def pull_commits(self, owner: str, name: str, number: int) -> list[str]:
        path = f"/repos/{_part(owner)}/{_part(name)}/pulls/{number}/commits"
        items = self._pages(path, {"limit": self.page_size}, lambda data: data, key="sha")
        return [_read(lambda item: _sha(item["sha"]), item) for item in items]

    def pull_comments(self, owner: str, name: str, number: int, since: datetime | None) -> Iterator[RemoteComment]:
        path = f"/repos/{_part(owner)}/{_part(name)}/issues/{number}/comments"
        params: dict[str, Any] = {"limit": self.page_size}
        if since:
            params["since"] = _stamp(since)
        items = self._pages(path, params, lambda data: data, key="id")
        return _each(lambda item: _comment(item, number), items)

    def repository_comments(self, owner: str, name: str, since: datetime) -> Iterator[RemoteComment]:
        """Comments on pull requests and issues alike (`pull_number` tells), created or edited at or after `since`."""
        path = f"/repos/{_part(owner)}/{_part(name)}/issues/comments"
        params = {"since": _stamp(since), "limit": self.page_size}
        return _each(_comment, self._pages(path, params, lambda data: data, key="id"))

    # --- who may ask

    def is_member(self, org: str, login: str) -> bool:
        """Whether the forge shows this person as a member (only public members, unless the token's owner is one)."""
        try:
            # Who is no member asks for the public list by a redirect, which is no "yes" by itself.
            status = self._call("GET", f"/orgs/{_part(org)}/members/{_part(login)}").status_code
        except NotFound:
            return False
        return status == 204

    def in_team(self, org: str, team: str, login: str) -> bool | None:
        """Whether this person is in the team of that name; None where there is none, or the token's owner is not in it,
        which is what the forge asks of those who ask (unless they own the organisation)."""
        try:
            teams = self._pages(f"/orgs/{_part(org)}/teams", {"limit": self.page_size}, lambda data: data, key="id")
            found = next((item for item in teams if _read(lambda item: _text(item["name"]), item).lower() == team.lower()), None)
        except (NotFound, Forbidden):
            return None
        if found is None:
            return None
        number = _read(lambda item: _key(item["id"]), found)
        try:
            self._call("GET", f"/teams/{number}")
        except (NotFound, Forbidden):
            return None
        try:
            return self._call("GET", f"/teams/{number}/members/{_part(login)}").status_code == 200
        except NotFound:
            return False

    def is_site_admin(self) -> bool | None:
        """Whether the token's owner administers the whole server; None where it does not tell."""
        return self._get("/user", lambda data: bool(data["is_admin"]) if "is_admin" in data else None)

    def probe(self, sample: Sample) -> Iterator[Found]:
        """Find out what the server can do, by asking; nothing is written."""
        return gitea_probes.probe(lambda path, params: self._call("GET", path, params=params), sample)

    def is_collaborator(self, owner: str, name: str, login: str) -> bool | None:
        """True; False for one who may only read, where the server tells (newer ones do, to who administers the repository); or
        None where the token may not see it, or the forge says no in the words for that (404 for both)."""
        path = f"/repos/{_part(owner)}/{_part(name)}/collaborators/{_part(login)}"
        try:
            if self._call("GET", path).status_code != 204:
                return None
        except (NotFound, Forbidden):
            return None
        try:
            return self._get(f"{path}/permission", lambda data: _label(data["permission"])) in ("write", "admin", "owner")
        except (NotFound, Forbidden):
            return True

    def last_push(self, owner: str, name: str, number: int) -> Push | None:
        """The newest push that the timeline of this pull request tells of (its opening is the first one, and one that never was
        written down has neither time nor commit); None where the server keeps no timeline (404 before 1.16 or so).

        What is pushed while it is closed is not written down: so a reopening counts as such a push."""
        path = f"/repos/{_part(owner)}/{_part(name)}/issues/{number}/timeline"
        pushes: list[tuple[int, Push]] = []
        try:
            for item in self._pages(path, {"limit": self.page_size}, lambda data: data, key="id"):
                kind = _read(lambda item: item.get("type"), item)
                if kind == "pull_push":
                    pushes.append(_read(lambda item: (_key(item["id"]), _push(item)), item))
                elif kind == "reopen":
                    pushes.append(_read(lambda item: (_key(item["id"]), UNSEEN), item))
        except NotFound:
            return None
        return max(pushes, key=lambda row: row[0])[1] if pushes else UNSEEN

    # --- what we write

    def post_comment(self, owner: str, name: str, number: int, body: str) -> RemoteComment:
        path = f"/repos/{_part(owner)}/{_part(name)}/issues/{number}/comments"
        return self._write("POST", path, {"body": body}, lambda data: _comment(data, number))

    def edit_comment(self, owner: str, name: str, comment_id: int, body: str) -> None:
        self._write(
            "PATCH", f"/repos/{_part(owner)}/{_part(name)}/issues/comments/{comment_id}", {"body": body}, lambda data: None
        )

    def delete_comment(self, owner: str, name: str, comment_id: int) -> None:
        self._call("DELETE", f"/repos/{_part(owner)}/{_part(name)}/issues/comments/{comment_id}")

    def react(self, owner: str, name: str, comment_id: int, content: str) -> None:
        """Add a reaction. A second time is no second reaction."""
        path = f"/repos/{_part(owner)}/{_part(name)}/issues/comments/{comment_id}/reactions"
        self._call("POST", path, body={"content": content})

    def set_status(
        self, owner: str, name: str, sha: str, *, state: StatusState, context: str, description: str, target_url: str
    ) -> None:
        body = {"state": state, "context": context, "description": description, "target_url": target_url}
        self._call("POST", f"/repos/{_part(owner)}/{_part(name)}/statuses/{sha}", body=body)

    def change_file(
        self, owner: str, name: str, file: RemoteFile, content: bytes, *, branch: str, new_branch: str, message: str
    ) -> None:
        """Put `content` into `file`, in one commit on `new_branch`, which is made from `branch`.

        Raises Rejected (422) when the file was changed meanwhile or the new branch exists, Forbidden without a right to push.
        """
        path = f"/repos/{_part(owner)}/{_part(name)}/contents/{quote(file.path)}"
        body = {"content": base64.b64encode(content).decode(), "sha": file.sha, "message": message}
        self._call("PUT", path, body={**body, "branch": branch, "new_branch": new_branch})

    def open_pull(self, owner: str, name: str, *, head: str, base: str, title: str, body: str) -> Pull:
        """Ask to merge the branch `head` into `base`. Raises Rejected (409) when that is asked for already."""
        path = f"/repos/{_part(owner)}/{_part(name)}/pulls"
        return self._write("POST", path, {"head": head, "base": base, "title": title, "body": body}, _pull)

    # --- hooks

    def hooks(self, owner: str, name: str) -> Iterator[Hook]:
        return _each(_hook, self._pages(_hooks_of(owner, name), {"limit": self.page_size}, lambda data: data, key="id"))

    def create_hook(self, owner: str, name: str, *, url: str, secret: str, events: Sequence[str]) -> Hook:
        """Add a hook. Nothing at the server stops a second one with the same URL: the caller looks first."""
        wanted = Hook(0, url, frozenset(events), active=True)
        body = _hook_body(wanted) | {"type": "gitea"}
        body["config"]["secret"] = secret
        return self._write("POST", _hooks_of(owner, name), body, _hook)

    def edit_hook(self, owner: str, name: str, hook: Hook) -> Hook:
        """Make the hook as given. All of it is sent: what a PATCH does not name is reset. Its secret cannot be changed."""
        return self._write("PATCH", f"{_hooks_of(owner, name)}/{hook.id}", _hook_body(hook), _hook)

    def delete_hook(self, owner: str, name: str, hook_id: int) -> None:
        self._call("DELETE", f"{_hooks_of(owner, name)}/{hook_id}")

    # --- the wire

    def _get(self, path: str, read: Callable[[Any], T]) -> T:
        return _read(read, _json(self._call("GET", path)))

    def _write(self, method: str, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        return _read(read, _json(self._call(method, path, body=body)))

    def _pages(self, path: str, params: dict[str, Any], items: Callable[[Any], Any], key: str) -> Iterator[Any]:
        """All items of a listing, each once, whatever they are. Ends at an empty page, at the announced total, or at a page
        without anything new: some servers ignore `page`, and give everything each time."""
        seen: set[str] = set()
        for page in range(1, MAX_PAGES + 1):
            response = self._call("GET", path, params={**params, "page": page})
            batch = _read(items, _json(response))
            if not isinstance(batch, list):
                raise Garbage(f"{path}: a list was expected")
            fresh = {_name(item, key): item for item in batch}
            fresh = {name: item for name, item in fresh.items() if name not in seen}
            seen.update(fresh)
            yield from fresh.values()
            total = whole(response.headers.get("X-Total-Count", ""))
            if not fresh or (len(batch) < self.page_size if total is None else len(seen) >= total):
                return
        raise Garbage(f"{path}: no end after {MAX_PAGES} pages")

    def _call(
        self, method: str, path: str, *, params: dict[str, Any] | None = None, body: dict[str, Any] | None = None
    ) -> requests.Response:
        if method != "GET":
            # Before a write is repeated, the far side is looked at; that is the caller's work.
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


def _json(response: requests.Response) -> Any:
    try:
        return storable(json.loads(response.content))
    except (ValueError, RecursionError):
        raise Garbage(f"{urlsplit(response.url).path}: the answer is no JSON") from None


def _read(read: Callable[[Any], T], data: Any) -> T:
    """Apply a reader to what the server said; anything that is not as promised is Garbage."""
    try:
        return read(data)
    except ForgeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise Garbage(f"an answer without what it should hold ({type(error).__name__}: {str(error)[:100]})") from None


def _each(read: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """What can be read of a listing first, then Garbage if something could not: one odd row hides none of the others, and
    is not passed over in silence either."""
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
    """What tells an item of a listing from the others; of one without a name, all that it is."""
    return repr(item.get(key, item) if isinstance(item, dict) else item)


def _part(name: str) -> str:
    return quote(name, safe="")


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).replace(microsecond=0).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def _id(value: Any) -> int:
    # Deleted accounts stand there as a ghost with the id -1.
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 2**63:
        raise ValueError("no id")
    return value


def _key(value: Any) -> int:
    """The id of anything but a person or an owner: never of a ghost."""
    if _id(value) <= 0:
        raise ValueError("no id")
    return int(value)


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError("no number of a pull request")
    return value


def _sha(value: Any) -> str:
    if not isinstance(value, str) or len(value) not in (40, 64) or not set(value) <= set("0123456789abcdef"):
        raise ValueError("no commit id")
    return value


def _text(value: Any) -> str:
    return str(storable(value or ""))


def _label(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 255:
        raise ValueError("no name")
    return _text(value)


def _user(data: Any) -> User:
    return User(id=_id(data["id"]), login=_text(data["login"]))


def _repo(data: Any) -> Repo:
    return Repo(
        id=_key(data["id"]),
        owner=_label(data["owner"]["login"]),
        owner_id=_id(data["owner"]["id"]),
        name=_label(data["name"]),
        private=bool(data["private"]),
        default_branch=_text(data.get("default_branch"))[:255] or "main",
        clone_url=_text(data.get("clone_url"))[:500],
        html_url=_text(data.get("html_url"))[:500],
        permissions=frozenset(name for name, allowed in (data.get("permissions") or {}).items() if allowed),
    )


def _file(path: str, data: Any) -> RemoteFile:
    # A folder is a list; of a symlink, a submodule or a file that is too big there is no content.
    if data["type"] != "file" or data["encoding"] != "base64":
        raise ValueError("no file whose content can be read")
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
        state=_text(data.get("state")),
        html_url=_text(data.get("html_url")),
        updated_at=_time(data["updated_at"]),
    )


def _head(data: Any) -> Head | None:
    """None for a deleted fork, whose `repo` is null, and for anything that is not as documented: nobody is trusted by that."""
    try:
        repo, ref = data["repo"], _label(data["ref"])
        head = Head(
            repo_id=_key(repo["id"]),
            full_name=f"{_label(repo['owner']['login'])}/{_label(repo['name'])}",
            owner=User(_key(repo["owner"]["id"]), _label(repo["owner"]["login"])),
            # The name of a branch that exists; else refs/pull/N/head, which is also what no branch may be taken for.
            branch="" if ref.startswith("refs/") else ref,
        )
        return head if _key(data["repo_id"]) == head.repo_id else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _pull(data: Any) -> Pull:
    number, base, head = _number(data["number"]), _repo(data["base"]["repo"]), _head(data["head"])
    return Pull(
        number=number,
        title=_text(data.get("title")),
        author=_user(data["user"]),
        state=_text(data["state"]),
        merged=bool(data.get("merged")),
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


def delivered_comment(payload: Any) -> RemoteComment:
    """The comment in a webhook's delivery. Raises Garbage. (There its `pull_request_url` is empty on a plain issue, too.)"""
    return _read(lambda data: _comment(data["comment"]), payload)


def delivered_repository(payload: Any) -> tuple[int, str]:
    """Id and full name of the repository in a webhook's delivery. Raises Garbage."""
    return _read(lambda data: (_key(data["repository"]["id"]), _text(data["repository"].get("full_name"))), payload)


def _hooks_of(owner: str, name: str) -> str:
    return f"/repos/{_part(owner)}/{_part(name)}/hooks" if name else f"/orgs/{_part(owner)}/hooks"


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
        active=bool(data["active"]),
        content_type=_text(config.get("content_type")),
        branch_filter=_text(data.get("branch_filter")),
        authorization_header=_text(data.get("authorization_header")),
    )
