"""A running Drone or Woodpecker, set up as docs/executors says: a login through its forge, and a runner repository."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from tests.real.forge import PASSWORD, SECONDS, RealForge
from tests.real.forms import submit

DOCS = Path(__file__).parents[2] / "docs" / "executors"
MINUTES = 155


class RealServer:
    """A CI server where one user of the forge has logged in, and a repository there."""

    kind = ""
    login_path = ""  #: leads to the forge and back
    params = ""  #: what a build calls its parameters
    builds_path = ""  #: below `path`

    def __init__(self, url: str, forge: RealForge, login: str, repository: str) -> None:
        self.url, self.forge, self.login, self.repository = url.rstrip("/"), forge, login, repository
        self.token = self._log_in()

    @classmethod
    def pipeline(cls) -> str:
        """The one that users paste."""
        found = re.search(
            r"^## The (?:pipeline|workflow)\n\n```yaml\n(.*?)```", (DOCS / f"{cls.kind}.md").read_text(), re.S | re.M
        )
        assert found
        return found[1]

    @property
    def path(self) -> str:
        """The repository's."""
        raise NotImplementedError

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None, **query: Any) -> requests.Response:
        """An answer, whatever its status; as a guest with an empty token."""
        token = self.token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, params=query, json=body, headers=headers, timeout=SECONDS)

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The parsed JSON of an answer; None for one without."""
        answer = self.ask(method, path, body, **query)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def _log_in(self) -> str:
        with requests.Session() as browser:
            browser.trust_env = False
            page = browser.get(f"{self.forge.url}/user/login", timeout=SECONDS)
            page = submit(browser, page, {"user_name": self.login, "password": PASSWORD})
            assert page.ok and not page.url.endswith("/user/login"), f"{self.login} cannot log in at {self.forge.url}"
            page = browser.get(self.url + self.login_path, timeout=SECONDS)
            if page.url.startswith(self.forge.url):  # not granted yet
                page = submit(browser, page, {"granted": "true"})
            answer = browser.post(f"{self.url}/api/user/token", headers=self._csrf(browser), timeout=SECONDS)
            assert answer.ok, f"{self.url} did not let {self.login} in: {page.url} {page.text[-500:]}"
            return self._token_in(answer)

    def _csrf(self, browser: requests.Session) -> dict[str, str]:
        return {}

    def _token_in(self, answer: requests.Response) -> str:
        raise NotImplementedError

    def sync(self) -> None:
        """Have the server ask the forge what its user may do."""
        raise NotImplementedError

    def activate(self) -> None:
        """Step 4 of the docs."""
        raise NotImplementedError

    def set_visibility(self, visibility: str) -> None:
        self.call("PATCH", self.path, {"visibility": visibility})

    def deactivate(self) -> None:
        self.call("DELETE", self.path)

    def add_secret(self, name: str, value: str) -> None:
        raise NotImplementedError

    def build(self, number: int) -> dict[str, Any]:
        return dict(self.call("GET", f"{self.path}{self.builds_path}/{number}"))

    def builds(self) -> list[dict[str, Any]]:
        """With their steps, the newest first."""
        return [self.build(row["number"]) for row in self.call("GET", self.path + self.builds_path) or []]

    def stop(self, number: int) -> None:
        """Cancel a build; nothing to do if it has ended."""
        raise NotImplementedError

    def page(self, number: int) -> str:
        raise NotImplementedError

    @staticmethod
    def steps(build: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        """The name of each step, its status, and the end of the path to its log."""
        raise NotImplementedError

    def log(self, build: dict[str, Any]) -> str:
        """Of all its steps that have one."""
        raise NotImplementedError


class RealDrone(RealServer):
    kind, login_path, params, builds_path = "drone", "/login", "params", "/builds"

    @property
    def path(self) -> str:
        return f"/api/repos/{self.repository}"

    def _token_in(self, answer: requests.Response) -> str:
        return str(answer.json()["token"])

    def sync(self) -> None:
        self.call("POST", "/api/user/repos", **{"async": "false"})

    def activate(self) -> None:
        self.sync()
        self.call("POST", self.path)
        settings = {"visibility": "private", "ignore_pull_requests": True, "ignore_forks": True, "timeout": MINUTES}
        self.call("PATCH", self.path, settings)

    def add_secret(self, name: str, value: str) -> None:
        self.call("POST", f"{self.path}/secrets", {"name": name, "data": value})

    def stop(self, number: int) -> None:
        self.call("DELETE", f"{self.path}/builds/{number}")

    def page(self, number: int) -> str:
        return f"{self.url}/{self.repository}/{number}"

    @staticmethod
    def steps(build: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        for stage in build.get("stages") or []:
            for step in stage.get("steps") or []:
                yield step["name"], step["status"], f"{stage['number']}/{step['number']}"

    def log(self, build: dict[str, Any]) -> str:
        answers = [self.ask("GET", f"{self.path}/builds/{build['number']}/logs/{at}") for _, _, at in self.steps(build)]
        return "".join(line["out"] for answer in answers if answer.ok for line in answer.json())


class RealWoodpecker(RealServer):
    kind, login_path, params, builds_path = "woodpecker", "/authorize", "variables", "/pipelines"

    @property
    def path(self) -> str:
        return f"/api/repos/{self.number}"

    @property
    def number(self) -> int:
        return int(self.call("GET", f"/api/repos/lookup/{self.repository}")["id"])

    def _csrf(self, browser: requests.Session) -> dict[str, str]:
        found = re.search(r'WOODPECKER_CSRF = "([^"]*)"', browser.get(f"{self.url}/web-config.js", timeout=SECONDS).text)
        assert found
        return {"X-CSRF-TOKEN": found[1]}

    def _token_in(self, answer: requests.Response) -> str:
        return answer.text.strip()

    def sync(self) -> None:
        self.call("POST", "/api/user/repos/refresh")

    def activate(self) -> None:
        self.call("POST", "/api/repos", forge_remote_id=self.forge.repo(self.repository).id)
        self.call("PATCH", self.path, {"visibility": "private", "allow_pr": False, "timeout": MINUTES})

    def add_secret(self, name: str, value: str) -> None:
        self.call("POST", f"{self.path}/secrets", {"name": name, "value": value, "events": ["manual"]})

    def stop(self, number: int) -> None:
        answer = self.ask("POST", f"{self.path}/pipelines/{number}/cancel")
        assert answer.ok or answer.status_code == 400, answer.text

    def page(self, number: int) -> str:
        return f"{self.url}/repos/{self.number}/pipeline/{number}"

    @staticmethod
    def steps(build: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        for workflow in build.get("workflows") or []:
            for step in workflow.get("children") or []:
                yield step["name"], step["state"], str(step["id"])

    def log(self, build: dict[str, Any]) -> str:
        answers = [self.ask("GET", f"{self.path}/logs/{build['number']}/{at}") for _, _, at in self.steps(build)]
        lines = [line for answer in answers if answer.ok for line in answer.json() or []]
        return "".join(base64.b64decode(line["data"] or "").decode(errors="replace") + "\n" for line in lines)


SERVERS: dict[str, type[RealServer]] = {"drone": RealDrone, "woodpecker": RealWoodpecker}
