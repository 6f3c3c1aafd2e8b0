"""A running Drone, set up as docs/executors/drone.md says: a login through its forge, and a runner repository."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests

from tests.real.forge import PASSWORD, SECONDS, RealForge

DOCS = Path(__file__).parents[2] / "docs" / "executors" / "drone.md"
NEEDED = (
    "needs a Gitea that is there for tests alone (FORGE), its administrator's login (FORGE_ADMIN=name:password), and a Drone "
    "that works with it (DRONE): see CONTRIBUTING.md"
)


def pipeline() -> str:
    """The one that users paste."""
    found = re.search(r"```yaml\n(kind: pipeline\n.*?)```", DOCS.read_text(), re.S)
    assert found
    return found[1]


class RealDrone:
    """A Drone where one user of the forge has logged in, and a repository there."""

    kind = "drone"

    def __init__(self, url: str, forge: RealForge, login: str, repository: str) -> None:
        self.url, self.repository = url.rstrip("/"), repository
        self.path = f"/api/repos/{repository}"
        self.token = self._log_in(forge, login)

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

    def _log_in(self, forge: RealForge, login: str) -> str:
        with requests.Session() as browser:
            browser.trust_env = False
            page = browser.get(f"{forge.url}/user/login", timeout=SECONDS)
            page = _submit(browser, page, {"user_name": login, "password": PASSWORD})
            assert page.ok and not page.url.endswith("/user/login"), f"{login} cannot log in at {forge.url}"
            page = browser.get(f"{self.url}/login", timeout=SECONDS)
            if page.url.startswith(forge.url):  # not granted yet
                page = _submit(browser, page, {"granted": "true"})
            answer = browser.post(f"{self.url}/api/user/token", timeout=SECONDS)
            assert answer.ok, f"Drone at {self.url} did not let {login} in: {page.url} {page.text[-500:]}"
            return str(answer.json()["token"])

    def sync(self) -> None:
        self.call("POST", "/api/user/repos", **{"async": "false"})

    def activate(self) -> None:
        """Step 4 of the docs."""
        self.sync()
        self.call("POST", self.path)
        settings = {"visibility": "private", "ignore_pull_requests": True, "ignore_forks": True, "timeout": 155}
        self.call("PATCH", self.path, settings)

    def deactivate(self) -> None:
        self.call("DELETE", self.path)

    def add_secret(self, name: str, value: str) -> None:
        self.call("POST", f"{self.path}/secrets", {"name": name, "data": value})

    def builds(self) -> list[dict[str, Any]]:
        """With their steps, the newest first."""
        return [self.call("GET", f"{self.path}/builds/{row['number']}") for row in self.call("GET", f"{self.path}/builds")]

    def log(self, build: dict[str, Any]) -> str:
        """Of all its steps that have one."""
        steps = [(stage["number"], step["number"]) for stage in build["stages"] for step in stage["steps"]]
        answers = [self.ask("GET", f"{self.path}/builds/{build['number']}/logs/{stage}/{step}") for stage, step in steps]
        return "".join(line["out"] for answer in answers if answer.ok for line in answer.json())


class _Form(HTMLParser):
    """The first form with method POST of a page: where it goes, and its hidden fields."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = self.action is None and given.get("method", "").lower() == "post"
            if self._inside:
                self.action = given.get("action", "")
        elif tag == "input" and self._inside and given.get("type") == "hidden":
            self.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False


def _submit(browser: requests.Session, page: requests.Response, fields: dict[str, str]) -> requests.Response:
    form = _Form(page.text)
    assert form.action is not None, f"{page.url} has no form: {page.status_code} {page.text[:300]}"
    headers = {"Referer": page.url}
    return browser.post(urljoin(page.url, form.action), {**form.fields, **fields}, headers=headers, timeout=SECONDS)
