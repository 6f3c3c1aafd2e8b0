"""Clone, fetch and push with a real git over HTTP."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from enrollment.fakeforge import Forge, Server
from tests.enrollment.fakeforge.conftest import Client

pytestmark = pytest.mark.slow(0.1)


def git(folder: Path, *arguments: str, fails: bool = False) -> str:
    """Run git as a person without any configuration would; `fails` expects it to fail and gives the complaint."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout.strip()


def address(server: Server, token: str = "") -> str:
    who = f"whoever:{token}@" if token else ""
    return server.url.replace("http://", f"http://{who}") + "/recipes/web.git"


def test_clone_and_fetch_a_pull_request(server: Server, forge: Forge, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", address(server), "copy")
    copy = tmp_path / "copy"
    assert (copy / "compose.yml").read_text() == "a\n"
    head = forge.pull("recipes/web", 1).head_sha
    git(copy, "fetch", "-q", "origin", "refs/pull/1/head")
    assert git(copy, "rev-parse", "FETCH_HEAD") == head
    git(copy, "fetch", "-q", "--depth=1", "origin", head)
    assert git(copy, "show", f"{head}:compose.yml") == "b"


@pytest.mark.parametrize("forced", [False, True])
def test_a_push_moves_the_pull_request(client: Client, server: Server, forge: Forge, tmp_path: Path, forced: bool) -> None:
    git(tmp_path, "clone", "-q", "-b", "change", address(server, client.tokens["alice"]), "copy")
    copy = tmp_path / "copy"
    (copy / "new").write_text("x" * 3_000_000)  # large enough for git to send it in chunks
    git(copy, "add", "new")
    git(copy, "commit", "-q", "-m", "More", *(["--amend"] if forced else []))
    git(copy, "push", "-q", *(["--force"] if forced else []))
    sha = git(copy, "rev-parse", "HEAD")
    assert client.get("/repos/recipes/web/pulls/1").json()["head"]["sha"] == sha
    assert git(copy, "ls-remote", "origin", "refs/pull/1/head").split()[0] == sha
    [_opened, entry] = forge.comments_of(forge.issue("recipes/web", 1), kinds="pull_push")
    assert sha in entry.body and (f'"is_force_push": {str(forced).lower()}' in entry.body)


def test_pushing_needs_the_right_to_write(client: Client, server: Server, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", address(server), "copy")
    copy = tmp_path / "copy"
    for token in ("", "wrong", client.tokens["bot"], client.tokens["mallory"]):
        assert git(copy, "push", address(server, token), "HEAD:refs/heads/mine", fails=True)


def test_a_private_repository_needs_a_token(client: Client, server: Server, forge: Forge, tmp_path: Path) -> None:
    forge.set_private("recipes/web")
    for token in ("", "wrong", client.tokens["mallory"]):
        git(tmp_path, "ls-remote", address(server, token), fails=True)
    assert git(tmp_path, "ls-remote", address(server, client.tokens["bot"]))
    header = f"http.extraHeader=Authorization: token {client.tokens['bot']}"
    assert git(tmp_path, "-c", header, "ls-remote", address(server))


def test_an_old_name_still_serves(server: Server, forge: Forge, tmp_path: Path) -> None:
    forge.rename_repo("recipes/web", "site")
    assert git(tmp_path, "ls-remote", address(server))
    assert git(tmp_path, "ls-remote", server.url + "/recipes/none.git", fails=True)
