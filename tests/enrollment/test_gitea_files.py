"""Reading a file at the forge, changing it on a branch of its own, and asking to merge that: in all versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from enrollment.fakeforge import git
from enrollment.fakeforge.faults import Fault
from enrollment.forges.base import Forbidden, Garbage, NotFound, Rejected
from enrollment.forges.gitea.client import GiteaClient
from tests.world import EVERY_VERSION, World

REPO = ("recipes", "web")
TEXT = b"one\r\ntwo \xf0\x9f\x8c\xb1\xff"


@pytest.fixture(params=EVERY_VERSION)
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    place = World(tmp_path, request.param)
    place.add_recipe("web", files={"docs/a file.md": TEXT, "compose.yml": "services: {}\n"})
    yield place
    place.close()


def client_of(place: World, user: str = "") -> GiteaClient:
    token = place.remote.add_token(user) if user else place.token
    return GiteaClient(place.server.url, token, timeout=60, user_agent="cc-ci/test")


def on(place: World, branch: str) -> bytes:
    folder = place.remote.folder(place.remote.repo("recipes/web"))
    return git.git(folder, "cat-file", "blob", f"refs/heads/{branch}:docs/a file.md")


def test_a_file_is_read_changed_on_a_new_branch_and_offered(place: World) -> None:
    client = client_of(place, "alice")
    file = client.read_file(*REPO, "docs/a file.md", "main")
    assert file.content == TEXT
    client.change_file(*REPO, file, b"new\n", branch="main", new_branch="cc-ci/x", message="Say it anew")
    assert (on(place, "main"), on(place, "cc-ci/x")) == (TEXT, b"new\n")
    pull = client.open_pull(*REPO, head="cc-ci/x", base="main", title="Say it anew", body="Because.")
    assert (pull.title, pull.author.login, pull.base_ref, pull.state) == ("Say it anew", "alice", "main", "open")
    assert pull.head_sha == client.branch_head(*REPO, "cc-ci/x")
    assert place.remote.pull("recipes/web", pull.number).body == "Because."


def test_what_is_no_file(place: World) -> None:
    client = client_of(place)
    with pytest.raises(NotFound):
        client.read_file(*REPO, "DEFERRED.md", "main")
    with pytest.raises(NotFound):
        client.read_file(*REPO, "compose.yml", "no-branch")
    with pytest.raises(Garbage):
        client.read_file(*REPO, "docs", "main")


def test_a_change_that_would_undo_another_one_is_refused(place: World) -> None:
    client = client_of(place, "alice")
    file = client.read_file(*REPO, "docs/a file.md", "main")
    place.remote.push("recipes/web", "main", {"docs/a file.md": "meanwhile\n"})
    with pytest.raises(Rejected, match="sha does not match"):
        client.change_file(*REPO, file, b"new\n", branch="main", new_branch="cc-ci/x", message="m")
    with pytest.raises(NotFound):  # and no branch was left behind
        client.branch_head(*REPO, "cc-ci/x")


def test_the_same_branch_or_pull_request_twice_is_refused(place: World) -> None:
    client = client_of(place, "alice")
    file = client.read_file(*REPO, "docs/a file.md", "main")
    client.change_file(*REPO, file, b"new\n", branch="main", new_branch="cc-ci/x", message="m")
    with pytest.raises(Rejected, match="branch already exists"):
        client.change_file(*REPO, file, b"new\n", branch="main", new_branch="cc-ci/x", message="m")
    client.open_pull(*REPO, head="cc-ci/x", base="main", title="t", body="")
    with pytest.raises(Rejected, match="already exists") as refused:
        client.open_pull(*REPO, head="cc-ci/x", base="main", title="t", body="")
    assert refused.value.status == 409
    with pytest.raises(NotFound):
        client.open_pull(*REPO, head="nothing", base="main", title="t", body="")


def test_a_reader_may_not_change_a_file(place: World) -> None:
    client = client_of(place)
    file = client.read_file(*REPO, "docs/a file.md", "main")
    with pytest.raises(Forbidden):
        client.change_file(*REPO, file, b"new\n", branch="main", new_branch="cc-ci/x", message="m")


@pytest.mark.parametrize("place", ["1.22"], indirect=True)
@pytest.mark.parametrize("change", [{"encoding": None, "content": None}, {"content": "%%"}, {"type": "symlink"}, {"sha": "x"}])
def test_an_odd_answer_is_garbage(place: World, change: dict[str, object]) -> None:
    whole = {"type": "file", "encoding": "base64", "content": "YQ==", "sha": "a" * 40, "path": "compose.yml"}
    place.remote.faults = lambda request: Fault(status=200, body=json.dumps({**whole, **change}).encode())
    with pytest.raises(Garbage):
        client_of(place).read_file(*REPO, "compose.yml", "main")
