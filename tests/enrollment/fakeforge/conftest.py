"""A forge with an organisation, its people and one pull request, and a server around it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from enrollment.fakeforge import Forge, Server, serve


class Clock:
    """A clock that stands still until it is stepped."""

    def __init__(self) -> None:
        self.time = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def step(self, seconds: float = 1.0) -> datetime:
        """Move on and give the new time."""
        self.time += timedelta(seconds=seconds)
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fill(forge: Forge) -> None:
    """admin (of the site), bot (reader), alice (writer), mallory (outsider); recipes/web with pull request 1."""
    forge.add_user("admin", admin=True)
    for login in ("bot", "alice", "mallory"):
        forge.add_user(login)
    forge.add_org("recipes", "admin")
    forge.add_member("recipes", "bot", "read")
    forge.add_member("recipes", "alice", "write")
    repo = forge.add_repo("recipes", "web", topics=["cc-ci"], files={"compose.yml": "a\n", "docs/notes.md": "n\n"})
    forge.push(repo, "change", {"compose.yml": "b\n"}, "Change", "alice")
    forge.open_pull(repo, repo, "change", "alice", "Change it", "please")


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a filled forge, to be copied: git takes most of a short test's time."""
    root = tmp_path_factory.mktemp("filled")
    fill(Forge(root, clock=Clock(), persist=True))
    return root


@pytest.fixture
def forge(tmp_path: Path, filled: Path, clock: Clock, request: pytest.FixtureRequest) -> Forge:
    """Version 1.15, or another with `@pytest.mark.parametrize("forge", [...], indirect=True)`."""
    root = Path(shutil.copytree(filled, tmp_path / "forge"))
    return Forge(root, getattr(request, "param", "1.15"), clock, persist=True)


@pytest.fixture
def server(forge: Forge) -> Iterator[Server]:
    with serve(forge) as running:
        yield running


class Client:
    """Plain requests to the API, `client.get("/user", "alice")`; the second argument is who asks."""

    def __init__(self, server: Server) -> None:
        self.server, self.session = server, requests.Session()
        users = [user.login for user in server.forge.tables.users.values() if not user.is_org]
        self.tokens = {login: server.forge.add_token(login) for login in users}

    def __call__(self, method: str, path: str, who: str = "", **options: Any) -> requests.Response:
        headers = {"Authorization": f"token {self.tokens[who]}"} if who else {}
        options.setdefault("allow_redirects", False)
        return self.session.request(method, self.server.url + "/api/v1" + path, headers=headers, timeout=60, **options)

    def get(self, path: str, who: str = "", **params: Any) -> requests.Response:
        return self("GET", path, who, params=params)

    def post(self, path: str, who: str = "", **body: Any) -> requests.Response:
        return self("POST", path, who, json=body)


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server)
