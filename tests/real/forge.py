"""A running Gitea or Forgejo, driven by its administrator's login, with the methods of the fake forge that tests use.

It makes its own people, organisations and repositories, and removes what an earlier test left. What somebody else made under a
name that a test needs is not touched: the test fails. A test that needs what only the fake one has, such as faults, is skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from enrollment.fakeforge import git
from tests.real.forms import submit
from tests.world import World

#: By this address what these tests made is told from what others made.
DOMAIN = "cc-ci-test.invalid"
PASSWORD = "only-for-tests-of-cc-ci"
SECONDS = 60
#: What a token of cc-ci may do, where tokens have scopes.
SCOPES = ("write:organization", "read:user", "write:issue", "write:repository")
#: What only the fake forge has, and tests set.
SANDBOX = ("faults", "listeners")
#: The permissions of an organisation's team in its units.
UNITS = ("repo.code", "repo.issues", "repo.pulls", "repo.releases")


def sandbox_only(what: str) -> Any:
    return pytest.skip(f"needs the fake forge: {what}")


class RealForge:
    """The forge at an address."""

    def __init__(self, url: str, login: str, folder: Path) -> None:
        self.url, self.root = url.rstrip("/"), folder
        self.admin, _, password = login.partition(":")
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.auth = (self.admin, password)
        self._name = f"{DOMAIN}-{os.urandom(8).hex()}"
        self._topics: dict[tuple[int, str], int] = {}  # the number of each pull request without a branch
        # Asked with a password, a server takes its time for each request.
        path = f"/users/{self.admin}/tokens"
        self._token = self.call("POST", path, {"name": self._name, "scopes": ["all"]})["sha1"]
        self._password, self._session.auth = password, None
        self._session.headers["Authorization"] = f"token {self._token}"
        self.version = self.call("GET", "/version")["version"]
        self.clear()

    def __getattr__(self, name: str) -> Any:
        return sandbox_only(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SANDBOX and value is not None:
            sandbox_only(name)
        object.__setattr__(self, name, value)

    def call(self, method: str, path: str, body: Any = None, *, sudo: str = "", missing: bool = False, **more: Any) -> Any:
        """The parsed JSON of an answer; None for one without, and for 404 with `missing`."""
        headers = {"Sudo": sudo} if sudo and sudo != self.admin else {}
        answer = self._session.request(method, f"{self.url}/api/v1{path}", json=body, headers=headers, timeout=SECONDS, **more)
        if missing and answer.status_code == 404:
            return None
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def listed(self, path: str, **query: Any) -> list[Any]:
        """All pages of a list."""
        found: list[Any] = []
        page = 1
        while part := self.call("GET", path, params={**query, "page": page, "limit": 50}):
            found += part
            page += 1
            if len(part) < 50:
                break
        return found

    def clear(self) -> None:
        """Remove what these tests made, here or earlier."""
        for application in self.listed("/user/applications/oauth2"):
            if application["name"].startswith(DOMAIN):
                self.call("DELETE", f"/user/applications/oauth2/{application['id']}")
        for org in self.listed("/admin/orgs"):
            if DOMAIN in org["website"]:
                for repo in self.listed(f"/orgs/{org['username']}/repos"):
                    self.call("DELETE", f"/repos/{repo['full_name']}")
                self.call("DELETE", f"/orgs/{org['username']}")
        for user in self.listed("/admin/users"):
            if user["email"].endswith(f"@{DOMAIN}") or user["email"].endswith(f"{DOMAIN}>"):
                self.call("DELETE", f"/admin/users/{user['login']}", params={"purge": "true"})

    def close(self) -> None:
        self.clear()
        auth = (self.admin, self._password)
        self._session.headers.pop("Authorization")
        self.call("DELETE", f"/users/{self.admin}/tokens/{self._name}", auth=auth)

    # --- people

    def add_application(self, *redirect_uris: str) -> tuple[str, str]:
        body = {"name": self._name, "redirect_uris": list(redirect_uris), "confidential_client": True}
        made = self.call("POST", "/user/applications/oauth2", body)
        return made["client_id"], made["client_secret"]

    def add_user(self, login: str, *, admin: bool = False) -> Any:
        address = f"{login}-{os.urandom(4).hex()}@{DOMAIN}"  # whoever is renamed keeps theirs
        body = {"username": login, "email": address, "password": PASSWORD, "must_change_password": False}
        try:
            self.call("POST", "/admin/users", body)
        except AssertionError as error:
            if "reserved" in str(error):
                sandbox_only(str(error))
            raise
        if admin:
            self.call("PATCH", f"/admin/users/{login}", {"login_name": login, "source_id": 0, "admin": True})
        return self.user(login)

    def add_org(self, login: str, owner: Any) -> Any:
        body = {"username": login, "visibility": "public", "website": f"https://{DOMAIN}"}
        self.call("POST", f"/admin/users/{self.login(owner)}/orgs", body)
        return self.user(login)

    def user(self, user: Any) -> Any:
        found = self.call("GET", f"/users/{self.login(user)}")
        return SimpleNamespace(id=found["id"], login=found["login"])

    @staticmethod
    def login(user: Any) -> str:
        return user if isinstance(user, str) else str(user.login)

    def rename_user(self, user: Any, login: str) -> None:
        old = self.login(user)
        org = self.call("GET", f"/orgs/{old}", missing=True)
        self.call(
            "POST", f"/orgs/{old}/rename" if org else f"/admin/users/{old}/rename", {"new_name" if org else "new_username": login}
        )
        if not isinstance(user, str):
            user.login = login
        for key in [key for key in self._topics if key[1].startswith(f"{old}/")]:  # an open one follows the name
            if self.call("GET", f"/repositories/{key[0]}") and self._pull_state(*key) == "open":
                del self._topics[key]

    def add_token(self, user: Any, *scopes: str) -> str:
        with requests.Session() as session:
            session.trust_env = False
            session.auth = (self.login(user), PASSWORD)
            body = {"name": os.urandom(8).hex(), "scopes": list(scopes or SCOPES)}
            answer = session.post(f"{self.url}/api/v1/users/{self.login(user)}/tokens", json=body, timeout=SECONDS)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["sha1"])

    # --- organisations

    def add_member(self, org: Any, user: Any, permission: str = "read", *, public: bool = False) -> None:
        self.remove_member(org, user)
        self._join(org, "Owners" if permission == "owner" else f"{permission}ers", user, permission)
        if public:
            self.call("PUT", f"/orgs/{self.login(org)}/public_members/{self.login(user)}", sudo=self.login(user))

    def add_to_team(self, org: Any, name: str, *users: Any) -> None:
        for user in users:
            self._join(org, name, user, "read")

    def _join(self, org: Any, name: str, user: Any, permission: str) -> None:
        teams = {team["name"]: team["id"] for team in self.listed(f"/orgs/{self.login(org)}/teams")}
        if name not in teams:
            body = {
                "name": name,
                "permission": permission,
                "includes_all_repositories": True,
                "units": list(UNITS),
            }
            teams[name] = self.call("POST", f"/orgs/{self.login(org)}/teams", body)["id"]
        self.call("PUT", f"/teams/{teams[name]}/members/{self.login(user)}")

    def remove_member(self, org: Any, user: Any) -> None:
        self.call("DELETE", f"/orgs/{self.login(org)}/members/{self.login(user)}", missing=True)

    # --- repositories

    def add_repo(
        self, owner: Any, name: str, *, private: bool = False, topics: Iterable[str] = (), files: git.Files | Path | None = None
    ) -> Any:
        body = {"name": name, "private": private, "default_branch": "main"}
        self.call("POST", f"/admin/users/{self.login(owner)}/repos", body)
        repo = self.repo(f"{self.login(owner)}/{name}")
        git.init(self.folder(repo))
        content = git.tree(files) if isinstance(files, Path) else files or {"README.md": f"# {name}\n"}
        git.commit(self.folder(repo), "main", content, "Begin", self.login(owner), datetime.now(UTC), fresh=True)
        self._git(repo, self.admin, "push", "--quiet", "URL", "refs/heads/main")
        if topics:
            self.set_topics(repo, topics)
        return self.repo(repo.full_name)

    def repo(self, repo: Any) -> Any:
        found = self.call("GET", f"/repos/{repo}" if isinstance(repo, str) else f"/repositories/{repo.id}")
        owner, name = found["full_name"].split("/")
        return SimpleNamespace(id=found["id"], full_name=found["full_name"], owner=owner, name=name, private=found["private"])

    def _path(self, repo: Any) -> str:
        return f"/repos/{repo if isinstance(repo, str) else self.repo(repo).full_name}"

    def folder(self, repo: Any) -> Path:
        """A bare copy of the repository, for what is to be pushed next."""
        return self.root / f"{repo.id}.git"

    def _git(self, repo: Any, user: str, *words: str) -> str:
        parts = urlsplit(self.url)
        login = f"{quote(user)}:{quote(self._token if user == self.admin else PASSWORD)}"
        url = f"{parts.scheme}://{login}@{parts.netloc}{parts.path}/{self.repo(repo).full_name}.git"
        command = ["git", "-C", str(self.folder(repo)), *(url if word == "URL" else word for word in words)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        )
        if done.returncode:
            raise git.GitError(done.stderr)
        return done.stdout

    def push(self, repo: Any, branch: str, files: git.Files, message: str = "Change", user: Any = "") -> str:
        row = self.repo(repo)
        if not self.folder(row).exists():  # a fork
            git.init(self.folder(row))
        self._git(row, self.admin, "fetch", "--quiet", "URL", "+refs/heads/*:refs/heads/*")
        author = self.login(user or row.owner)
        sha = git.commit(self.folder(row), branch, files, message, author, datetime.now(UTC))
        try:
            self._git(row, author if user else self.admin, "push", "--quiet", "URL", f"refs/heads/{branch}")
        except git.GitError as error:
            if "denied" not in str(error):
                raise
            self._git(row, self.admin, "push", "--quiet", "URL", f"refs/heads/{branch}")  # as the fake forge lets them
        self._await(row, branch, sha)
        return sha

    def _await(self, repo: Any, branch: str, sha: str) -> None:
        """Git was answered a moment before the forge knows of a push; asked for the branch meanwhile, it may even answer 500."""
        until = time.monotonic() + SECONDS
        url = f"{self.url}/api/v1{self._path(repo)}/branches/{quote(branch, safe='')}"
        while (answer := self._session.get(url, timeout=SECONDS)).status_code != 200 or answer.json()["commit"]["id"] != sha:
            assert time.monotonic() < until, f"{repo.full_name} does not show {sha} on {branch}: {answer.text[:300]}"
            time.sleep(0.1)

    def push_for_review(
        self,
        repo: Any,
        user: Any,
        topic: str,
        files: git.Files,
    ) -> Any:
        row, login = self.repo(repo), self.login(user)
        branch = topic if topic.startswith(f"{login}/") else f"{login}/{topic}"
        key = row.id, branch
        mine = key in self._topics and self._pull_state(*key) == "open"
        self._git(row, self.admin, "fetch", "--quiet", "URL", "+refs/heads/*:refs/heads/*", "+refs/pull/*:refs/pull/*")
        name = f"refs/pull/{self._topics[key]}/head" if mine else "refs/heads/main"
        sha = git.commit(self.folder(row), "", files, "Change", login, datetime.now(UTC), on=git.resolve(self.folder(row), name))
        options = [f"--push-option=topic={topic}", f"--push-option=title={topic}"]
        said = self._git(row, login, "push", "--porcelain", *options, "URL", f"{sha}:refs/for/main")
        found = re.search(r"refs/pull/(\d+)/head", said)
        assert found, said
        self._topics[key] = int(found[1])
        return self.pull(row, self._topics[key])

    def _pull_state(self, repo_id: int, branch: str) -> str:
        number = self._topics[repo_id, branch]
        return str(self.call("GET", f"{self._path(self.repo(SimpleNamespace(id=repo_id)))}/pulls/{number}")["state"])

    def fork(self, repo: Any, user: Any, name: str = "") -> Any:
        body = {"name": name} if name else {}
        return self.repo(self.call("POST", f"{self._path(repo)}/forks", body, sudo=self.login(user))["full_name"])

    def delete_repo(self, repo: Any) -> None:
        self.call("DELETE", self._path(repo))

    def rename_repo(self, repo: Any, name: str) -> None:
        self.call("PATCH", self._path(repo), {"name": name})

    def transfer(self, repo: Any, owner: Any) -> None:
        self.call("POST", f"{self._path(repo)}/transfer", {"new_owner": self.login(owner)})

    def set_topics(self, repo: Any, topics: Iterable[str]) -> None:
        self.call("PUT", f"{self._path(repo)}/topics", {"topics": list(topics)})

    def set_private(self, repo: Any, private: bool = True) -> None:
        self.call("PATCH", self._path(repo), {"private": private})

    def add_collaborator(self, repo: Any, user: Any, permission: str = "write") -> None:
        self.call("PUT", f"{self._path(repo)}/collaborators/{self.login(user)}", {"permission": permission})

    # --- pull requests

    def open_issue(self, repo: Any, user: Any, title: str, body: str = "") -> Any:
        found = self.call("POST", f"{self._path(repo)}/issues", {"title": title, "body": body}, sudo=self.login(user))
        return self.issue(repo, found["number"])

    def open_pull(
        self, base: Any, head: Any, branch: str, user: Any, title: str = "", body: str = "", base_branch: str = "main"
    ) -> Any:
        source, target = self.repo(head), self.repo(base)
        # Two repositories of one owner need their names.
        owner = f"{source.owner}/{source.name}" if source.owner == target.owner else source.owner
        where = branch if source.id == target.id else f"{owner}:{branch}"
        given = {"head": where, "base": base_branch, "title": title or f"Merge {branch}", "body": body}
        who, until = self.login(user), time.monotonic() + SECONDS
        while True:
            try:
                found = self.call("POST", f"{self._path(target)}/pulls", given, sudo=who, missing=True)
            except AssertionError as error:
                if "must be a collaborator" not in str(error):
                    raise
                if source.id != target.id:
                    sandbox_only("a pull request from somebody else's fork")
                who = target.owner  # from a branch of the repository itself, only those who may write there open one
                continue
            if found:
                break
            assert time.monotonic() < until, f"{target.full_name} does not see the branch {where}"
            time.sleep(0.1)  # a push is taken in a moment after git was answered
        return self.pull(target, found["number"])

    def issue(self, repo: Any, number: int) -> Any:
        found = self.call("GET", f"{self._path(repo)}/issues/{number}")
        return SimpleNamespace(
            id=found["id"],
            number=number,
            repo_id=self.repo(repo).id,
            state=found["state"],
            user_id=found["user"]["id"],
            created=datetime.fromisoformat(found["created_at"]),
        )

    def pull(self, repo: Any, number: int) -> Any:
        found = self.call("GET", f"{self._path(repo)}/pulls/{number}")
        issue = self.issue(repo, number)
        issue.pull_id, issue.head_sha, issue.base_branch = found["id"], found["head"]["sha"], found["base"]["ref"]
        issue.base_sha = found["base"]["sha"]
        issue.merge_sha, issue.merged = found.get("merge_commit_sha") or "", found["merged"]
        return issue

    def _of(self, issue: Any) -> str:
        return f"/repos/{self.call('GET', f'/repositories/{issue.repo_id}')['full_name']}"

    def close_pull(self, pull: Any, user: Any = "") -> None:
        self.call("PATCH", f"{self._of(pull)}/issues/{pull.number}", {"state": "closed"}, sudo=self.login(user) if user else "")

    def reopen_pull(self, pull: Any, user: Any = "") -> None:
        self.call("PATCH", f"{self._of(pull)}/issues/{pull.number}", {"state": "open"}, sudo=self.login(user) if user else "")

    def merge_pull(self, pull: Any, user: Any = "") -> str:
        sudo = self.login(user) if user else ""
        self.call("POST", f"{self._of(pull)}/pulls/{pull.number}/merge", {"Do": "merge", "force_merge": True}, sudo=sudo)
        return str(self.call("GET", f"{self._of(pull)}/pulls/{pull.number}")["merge_commit_sha"])

    # --- what is said there

    def comment(self, repo: Any, number: int, user: Any, body: str, *, created: Any = None, visible_after: float = 0.0) -> Any:
        if created or visible_after:
            sandbox_only("comments of another time")
        path = f"{self._path(repo)}/issues/{number}/comments"
        return self._comment(repo, self.call("POST", path, {"body": body}, sudo=self.login(user)))

    def _comment(self, repo: Any, found: Any) -> Any:
        number = int(found["issue_url"].rpartition("/")[2] or found["pull_request_url"].rpartition("/")[2])
        return SimpleNamespace(
            id=found["id"],
            body=found["body"],
            user_id=found["user"]["id"],
            repo_id=self.repo(repo).id,
            number=number,
            created=datetime.fromisoformat(found["created_at"]),
        )

    def review(self, repo: Any, number: int, user: Any, body: str, state: str = "COMMENT") -> Any:
        if state == "PENDING":
            sandbox_only("a review that was begun")
        given = {"body": body, "event": state}
        found = self.call("POST", f"{self._path(repo)}/pulls/{number}/reviews", given, sudo=self.login(user))
        entries = self.listed(f"{self._path(repo)}/issues/{number}/timeline")
        [entry] = [one for one in entries if one["type"] == "review" and one["review_id"] == found["id"]]
        return SimpleNamespace(id=entry["id"], repo_id=self.repo(repo).id, number=number, body=body, user_id=found["user"]["id"])

    def edit_comment(self, comment: Any, body: str, user: Any = "") -> None:
        self.call(
            "PATCH", f"{self._of(comment)}/issues/comments/{comment.id}", {"body": body}, sudo=self.login(user) if user else ""
        )

    def delete_comment(self, comment: Any, user: Any = "") -> None:
        self.call("DELETE", f"{self._of(comment)}/issues/comments/{comment.id}", sudo=self.login(user) if user else "")

    def comments_of(self, issue: Any = None, repo: Any = None, kinds: str = "comment") -> list[Any]:
        if issue is None or kinds != "comment":
            sandbox_only("comments of every kind")
        found = self.call("GET", f"{self._of(issue)}/issues/{issue.number}/comments")
        return [self._comment(SimpleNamespace(id=issue.repo_id), one) for one in found]

    def reactions_of(self, issue: Any, comment: Any) -> list[Any]:
        found = self.call("GET", f"{self._of(comment)}/issues/comments/{comment.id}/reactions") or []
        return [SimpleNamespace(content=one["content"], user_id=one["user"]["id"]) for one in found]

    def statuses_of(self, repo: Any, sha: str) -> list[Any]:
        found = self.listed(f"{self._path(repo)}/commits/{sha}/statuses")
        rows = sorted(found, key=lambda one: -one["id"])
        return [SimpleNamespace(**{**one, "state": one["status"], "sha": sha}) for one in rows]


class _Clock:
    """The forge's clock is its own: to move it a little is to wait."""

    def move(self, **units: float) -> None:
        seconds = timedelta(**units).total_seconds()
        if not 0 <= seconds <= 10:
            sandbox_only("a clock that can be moved")
        time.sleep(seconds)

    def __call__(self) -> datetime:
        """Tests run where the forge's clock is about right."""
        return datetime.now(UTC)

    def __getattr__(self, name: str) -> Any:
        return sandbox_only(f"the clock's {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        sandbox_only(f"the clock's {name}")


class _Server:
    def __init__(self, url: str) -> None:
        self.url = url

    def __getattr__(self, name: str) -> Any:
        return sandbox_only(f"the server's {name}")


class RealWorld(World):
    """The same people and recipes at a real forge."""

    def __init__(self, root: Path, url: str, login: str) -> None:
        self.clock = _Clock()  # type: ignore[assignment]
        self.remote = RealForge(url, login, root)  # type: ignore[assignment]
        self.server = _Server(self.remote.url)  # type: ignore[assignment]
        self.settle_in()

    def close(self) -> None:
        self.remote.close()  # type: ignore[attr-defined]

    def consent(self, target: str, name: str) -> str:
        with requests.Session() as browser:
            browser.trust_env = False
            submit(
                browser, browser.get(f"{self.remote.url}/user/login", timeout=SECONDS), {"user_name": name, "password": PASSWORD}
            )
            answer = browser.get(target, allow_redirects=False, timeout=SECONDS)
            if answer.status_code == 200:  # not granted before
                answer = submit(browser, answer, {"granted": "true"}, follow=False)
        assert answer.status_code in (302, 303), f"{answer.status_code} {answer.text[:500]}"
        return answer.headers["Location"]

    def own_requests(self) -> list:  # type: ignore[type-arg]
        return sandbox_only("a list of requests")  # type: ignore[no-any-return]

    def reactions(self, comment: Any) -> list[str]:
        return [row.content for row in self.remote.reactions_of(None, comment)]  # type: ignore[arg-type]
