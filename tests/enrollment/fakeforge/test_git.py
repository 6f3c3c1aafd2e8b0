"""Clone, fetch and push with a real git over HTTP."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from enrollment.fakeforge import Forge, Server
from tests.enrollment.fakeforge.conftest import Client
from tests.enrollment.fakeforge.test_traps import FORGEJO, versions

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


# Pushes for review (AGit), as services/agit of Gitea 1.26 has them


@versions("1.22", FORGEJO)
def test_who_may_read_may_push_for_review(client: Client, server: Server, forge: Forge, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", address(server, client.tokens["mallory"]), "copy")
    copy = tmp_path / "copy"
    git(copy, "commit", "-q", "--allow-empty", "-m", "Mine\n\nAll of it.")
    git(copy, "push", "-q", "origin", "HEAD:refs/for/main", "-o", "topic=nice")
    sha = git(copy, "rev-parse", "HEAD")
    pull = client.get("/repos/recipes/web/pulls/2", "bot").json()
    assert (pull["title"], pull["user"]["login"], pull["state"]) == ("Mine", "mallory", "open")
    head, base = pull["head"], pull["base"]
    assert (head["label"], head["ref"], head["sha"]) == ("", "refs/pull/2/head", sha)
    assert head["repo_id"] == base["repo_id"] and head["repo"] == base["repo"]
    # No branch comes of it, and no ref that stays but the pull request's.
    assert git(copy, "ls-remote", "origin", "refs/for/*", "refs/heads/mallory/*", "refs/heads/nice") == ""
    assert git(copy, "ls-remote", "origin", "refs/pull/2/head").split()[0] == sha
    (entry,) = forge.comments_of(forge.issue("recipes/web", 2), kinds="pull_push")
    assert sha in entry.body and forge.tables.users[entry.user_id].login == "mallory"


@versions("1.22", FORGEJO)
def test_a_further_push_for_review_moves_it(client: Client, server: Server, forge: Forge, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", address(server, client.tokens["mallory"]), "copy")
    copy = tmp_path / "copy"
    push = ("push", "-q", "origin", "HEAD:refs/for/main/deep/topic")
    git(copy, "commit", "-q", "--allow-empty", "-m", "One")
    git(copy, *push)
    assert "new commit is same with old commit" in git(copy, *push, fails=True)
    git(copy, "commit", "-q", "--allow-empty", "--amend", "-m", "Another")
    assert "request `force-push` push option" in git(copy, *push, fails=True)
    assert client.get("/repos/recipes/web/pulls/2").json()["title"] == "One"
    git(copy, *push, "-o", "force-push")
    assert forge.pull("recipes/web", 2).head_sha == git(copy, "rev-parse", "HEAD")
    # The same topic under another name is another pull request.
    git(copy, "push", "-q", address(server, client.tokens["alice"]), "HEAD:refs/for/main", "-o", "topic=deep/topic")
    assert [forge.pull("recipes/web", number).head_branch for number in (2, 3)] == ["mallory/deep/topic", "alice/deep/topic"]


@versions("1.22")
def test_pushes_for_review_that_are_refused(client: Client, server: Server, forge: Forge, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", address(server, client.tokens["mallory"]), "copy")
    copy = tmp_path / "copy"
    git(copy, "commit", "-q", "--allow-empty", "-m", "Mine")
    assert "topic-branch is not set" in git(copy, "push", "origin", "HEAD:refs/for/main", fails=True)
    assert "base-branch does not exist" in git(copy, "push", "origin", "HEAD:refs/for/none", fails=True)
    git(copy, "push", "origin", "HEAD:refs/for/main/x", "HEAD:refs/heads/mine", fails=True)
    git(copy, "push", address(server), "HEAD:refs/for/main/x", fails=True)
    forge.set_private("recipes/web")
    git(copy, "push", "origin", "HEAD:refs/for/main/x", fails=True)
    with pytest.raises(LookupError):
        forge.issue("recipes/web", 2)


@versions("1.15")
def test_an_old_forge_takes_no_push_for_review(client: Client, server: Server, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", address(server, client.tokens["mallory"]), "copy")
    assert git(tmp_path / "copy", "push", "origin", "HEAD:refs/for/main/x", fails=True)


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
