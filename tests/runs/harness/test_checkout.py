"""Checkouts with a real git: the pinned commit, no trace of the credential, nothing harmful."""

from __future__ import annotations

import base64
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from infra.git.runner import GitError
from runs.harness.checkout import Checkout, resolve
from runs.harness.git import secrets_of
from runs.harness.protocol import Source
from tests.runs.harness.conftest import git

pytestmark = pytest.mark.slow(0.1)

CREDENTIAL = {"git_username": "bot", "git_token": "t0ken-of-the-bot"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "recipe"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "compose.yml").write_text("services: {}\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "One")
    return folder


def _head(repository: Path) -> str:
    return git(repository, "rev-parse", "HEAD")


def _commit(repository: Path, name: str, text: str) -> str:
    (repository / name).write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", name)
    return _head(repository)


def test_the_pinned_commit_comes_even_when_the_branch_moved_on(repository: Path, tmp_path: Path) -> None:
    pinned = _head(repository)
    _commit(repository, "later", "x")
    target = tmp_path / "checkout"
    source = Source(url=str(repository), ref="refs/heads/main", sha=pinned)
    assert Checkout(source, target).make() == pinned
    assert [path.name for path in target.iterdir()] == ["compose.yml"]  # no later file, and no .git


def test_a_commit_that_is_gone_says_so(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(GitError, match="refs/heads/main no longer contains the commit aaaaaaaaaaaa"):
        Checkout(Source(url=str(repository), ref="refs/heads/main", sha="a" * 40), tmp_path / "checkout").make()


@pytest.mark.parametrize(
    ("url", "sha"), [("--upload-pack=touch /tmp/x", "a" * 40), ("ext::sh -c id", "a" * 40), ("ssh://x/y", "a" * 40)]
)
def test_only_http_and_folders_are_sources(url: str, sha: str, tmp_path: Path) -> None:
    with pytest.raises(GitError):
        Checkout(Source(url=url, sha=sha), tmp_path / "checkout").make()


def test_a_short_sha_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(GitError, match="expected 40 hex digits"):
        Checkout(Source(url=str(repository), sha="abc123"), tmp_path / "checkout").make()


def test_a_working_tree_comes_as_it_is_without_what_git_ignores(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitignore").write_text(".env\n")
    (repository / ".env").write_text("SECRET=1\n")
    (repository / "new").write_text("not committed\n")
    target = tmp_path / "checkout"
    assert Checkout(Source(url=str(repository)), target).make() == ""  # changed: no commit describes it
    assert sorted(path.name for path in target.iterdir()) == [".gitignore", "compose.yml", "new"]


def test_an_unchanged_working_tree_is_its_commit(repository: Path, tmp_path: Path) -> None:
    assert Checkout(Source(url=str(repository)), tmp_path / "checkout").make() == _head(repository)


def test_a_huge_commit_is_refused_before_it_is_written(repository: Path, tmp_path: Path) -> None:
    sha = _commit(repository, "zeros", "0" * (3 << 20))
    target = tmp_path / "checkout"
    with pytest.raises(GitError, match="too big") as caught:
        Checkout(Source(url=str(repository), sha=sha), target, disk_mb=2).make()
    assert caught.value.recipes_fault
    assert not (target / "zeros").exists()


def _put(repository: Path, name: bytes, content: str = "x", mode: str = "100644") -> str:
    """A commit with one more file, of a name that no file system here need be able to hold."""
    blob = subprocess.run(
        ["git", "-C", repository, "hash-object", "-w", "--stdin"], input=content, capture_output=True, text=True, check=True
    ).stdout.strip()
    entry = f"{mode} {blob}\t".encode() + name + b"\0"
    subprocess.run(["git", "-C", repository, "update-index", "--add", "-z", "--index-info"], input=entry, check=True)
    return git(repository, "commit-tree", git(repository, "write-tree"), "-m", "x")


REFUSED = {
    "deep": (b"a/" * 51 + b"f", "x", "100644", "more than 50 levels of folders"),
    "no UTF-8": (b"tests/\xff/test_x.py", "x", "100644", r"a name that is not UTF-8: 'tests/\?'"),
    "long name": (b"tests/" + b"a" * 256, "x", "100644", "a name or symlink of more than 255"),
    "long path": ((b"a" * 200 + b"/") * 5 + b"f", "x", "100644", "a path of more than 1000 bytes"),
    "long symlink": (b"cc-ci.toml", "a" * 256, "120000", "a name or symlink of more than 255"),
    "very deep": (b"a/" * 1900 + b"f", "x", "100644", "more than 50 levels of folders"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_commit_that_no_checkout_can_be_asked_to_hold_is_refused(case: str, repository: Path, tmp_path: Path) -> None:
    name, content, mode, words = REFUSED[case]
    sha, target = _put(repository, name, content, mode), tmp_path / "checkout"
    git(repository, "update-ref", "refs/heads/main", sha)
    with pytest.raises(GitError, match=words) as caught:
        Checkout(Source(url=str(repository), sha=sha), target).make()
    assert caught.value.recipes_fault
    assert [path.name for path in target.iterdir()] == [".git"]


@pytest.mark.parametrize("repository", [True, False])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/" * 50 + "f", ""),
        ("a/" * 51 + "f", "more than 50 levels of folders"),
        ("a/" * 300 + "f", "more than 50 levels of folders"),
        ("bad\udcff", "a name that is not UTF-8"),
    ],
)
def test_a_working_tree_is_refused_for_the_same(repository: bool, name: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe" / name
    path.parent.mkdir(parents=True)
    path.touch()
    if repository:
        git(tmp_path / "recipe", "init", "--quiet")
    checkout = Checkout(Source(url=str(tmp_path / "recipe")), tmp_path / "checkout")
    if not words:
        checkout.make()
        return
    with pytest.raises(GitError, match=words) as caught:
        checkout.make()
    assert caught.value.recipes_fault


ATTRIBUTES = {
    "ident": "* ident",
    "encoding": "* working-tree-encoding=UTF-32",
    "line ends": "* text eol=crlf",
    "old line ends": "* crlf=auto eol=crlf",
    "macro": "[attr]grow ident text eol=crlf working-tree-encoding=UTF-16\n* grow",
    "a file's own": "* -ident\nbig ident working-tree-encoding=UTF-32",
}


@pytest.mark.parametrize("attributes", ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_files_are_written_as_they_are_stored(attributes: str, repository: Path, tmp_path: Path) -> None:
    _put(repository, b".gitattributes", attributes + "\n")
    sha, target = _put(repository, b"big", "$Id$\n" * 1000), tmp_path / "checkout"
    git(repository, "update-ref", "refs/heads/main", sha)
    Checkout(Source(url=str(repository), sha=sha), target).make()
    assert (target / "big").read_text() == "$Id$\n" * 1000
    assert (target / "big").stat().st_size == 5000


@pytest.mark.parametrize("repository", [True, False])
def test_a_working_tree_with_a_long_symlink_is_refused(repository: bool, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "cc-ci.toml").symlink_to("a" * 256)
    if repository:
        git(tmp_path / "recipe", "init", "--quiet")
    with pytest.raises(GitError, match="symlink of more than 255") as caught:
        Checkout(Source(url=str(tmp_path / "recipe")), tmp_path / "checkout").make()
    assert caught.value.recipes_fault


def test_hooks_and_filters_of_the_person_do_not_run(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    marker = tmp_path / "ran"
    (home / ".gitconfig").write_text(f'[filter "x"]\n  smudge = touch {marker}\n  required = true\n')
    monkeypatch.setenv("HOME", str(home))
    sha = _commit(repository, ".gitattributes", "* filter=x\n")
    Checkout(Source(url=str(repository), sha=sha), tmp_path / "checkout").make()
    assert not marker.exists()


class _Forge(http.server.SimpleHTTPRequestHandler):
    """A private repository over plain HTTP: nothing without the right header."""

    root: ClassVar[str]
    seen: ClassVar[list[str]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=self.root)

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        wanted = base64.b64encode(b"bot:t0ken-of-the-bot").decode()
        if self.headers.get("Authorization") != f"Basic {wanted}":
            self.send_error(401)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def forge(repository: Path) -> Iterator[str]:
    git(repository, "config", "remote.origin.url", "x")
    subprocess.run(["git", "-C", str(repository), "update-server-info"], check=True)
    _Forge.root, _Forge.seen = str(repository / ".git"), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Forge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def test_a_credential_opens_a_private_repository_and_stays_nowhere(
    forge: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: commands.append(command) or popen(command, **options))
    target = tmp_path / "checkout"
    source = Source(url=forge, ref="refs/heads/main", sha=_head(repository))
    assert Checkout(source, target, CREDENTIAL).make() == _head(repository)
    told = " ".join(word for command in commands for word in command)
    files = b"".join(path.read_bytes() for path in target.rglob("*") if path.is_file())
    for secret in secrets_of(CREDENTIAL):
        assert secret not in told
        assert secret.encode() not in files
    assert any(_Forge.seen)
    with pytest.raises(GitError):
        Checkout(source, tmp_path / "other").make()


def test_the_credential_goes_to_no_other_server(forge: str, repository: Path, tmp_path: Path) -> None:
    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", forge + self.path)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Source(url=f"http://127.0.0.1:{server.server_address[1]}/", ref="refs/heads/main", sha=_head(repository))
        with pytest.raises(GitError):
            Checkout(source, tmp_path / "checkout", CREDENTIAL).make()
        server.shutdown()
    assert _Forge.seen == []


def test_a_wish_to_stop_ends_git(repository: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    with pytest.raises(Stop):
        Checkout(Source(url=str(repository), sha=_head(repository)), tmp_path / "checkout", check=check).make()


def test_names_are_pinned_to_commits(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _head(repository)
    git(repository, "tag", "-a", "1.0.0+1", "-m", "One")
    _commit(repository, "later", "x")
    assert resolve(str(repository), "1.0.0+1").sha == first
    assert resolve(str(repository), "main").sha == _head(repository)
    assert resolve(str(repository)).sha == ""
    monkeypatch.chdir(repository)
    assert resolve(".").url == os.fspath(repository)
    with pytest.raises(GitError, match="has no nothing"):
        resolve(str(repository), "nothing")
    with pytest.raises(GitError, match="There is no folder"):
        resolve("/nowhere")


@pytest.mark.parametrize("repository", [True, False])
def test_a_working_tree_that_is_its_owners_alone_can_be_read_in_the_sandbox(repository: bool, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        recipe = tmp_path / "recipe"
        (recipe / "tests").mkdir(parents=True)
        (recipe / "tests" / "test_x.py").write_text("")
        (recipe / "run.sh").write_text("")
        (recipe / "run.sh").chmod(0o700)
        (recipe / "link").symlink_to("run.sh")
        if repository:
            git(recipe, "init", "--quiet")
        Checkout(Source(url=str(recipe)), tmp_path / "checkout").make()
    finally:
        os.umask(before)
    found = {
        str(path.relative_to(tmp_path / "checkout")): path.lstat().st_mode & 0o777 for path in (tmp_path / "checkout").rglob("*")
    }
    assert found == {"tests": 0o755, "tests/test_x.py": 0o644, "run.sh": 0o755, "link": 0o777}
    assert (tmp_path / "checkout").stat().st_mode & 0o777 == 0o755
