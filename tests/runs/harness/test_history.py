"""The repository beside the pinned commit: published versions, the base branch, what changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runs.harness.history import History
from runs.harness.protocol import Source
from tests.runs.harness.conftest import git

pytestmark = pytest.mark.slow(0.2)


def commit(folder: Path, name: str, text: str = "") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text or name)
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", f"Change {name}")
    return git(folder, "rev-parse", "HEAD")


def tag(folder: Path, name: str, *, annotated: bool = True) -> None:
    git(folder, "tag", *(["--annotate", "--message", name] if annotated else []), name)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A recipe with three versions on main, one on a branch of its own, and tags that are no versions."""
    folder = tmp_path / "base"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "compose.yml", "one")
    tag(folder, "1.0.0+2.0")
    commit(folder, "compose.yml", "two")
    tag(folder, "1.0.0+10.0", annotated=False)
    git(folder, "checkout", "--quiet", "-b", "next")
    commit(folder, "compose.yml", "far")
    tag(folder, "9.0.0+1.0")
    git(folder, "checkout", "--quiet", "main")
    commit(folder, "README.md")
    tag(folder, "latest")
    tag(folder, "v1.0.3", annotated=False)
    tag(folder, "2fa-support", annotated=False)
    return folder


@pytest.fixture
def pull(base: Path) -> Source:
    """A pull request from a fork that tags its own commit as a version."""
    fork = base.parent / "fork"
    subprocess.run(["git", "clone", "--quiet", str(base), str(fork)], check=True)
    git(fork, "checkout", "--quiet", "-b", "change")
    sha = commit(fork, "extra/test_more.py")
    commit(base, "other.md")  # main goes on meanwhile
    tag(fork, "5.0.0+1.0")
    git(base, "fetch", "--quiet", "--no-tags", str(fork), "change:refs/pull/1/head")
    return Source(url=str(base), ref="refs/pull/1/head", sha=sha)


def history(source: Source, tmp_path: Path, base: Source | None) -> History:
    made = History(source, base, tmp_path / "history")
    assert made.fetch()
    return made


def test_the_previous_version_is_the_highest_readable_one_that_the_base_holds(base: Path, pull: Source, tmp_path: Path) -> None:
    past = history(pull, tmp_path, Source(url=str(base), ref="refs/heads/main"))
    assert [entry.name for entry in past.tags] == ["1.0.0+10.0", "1.0.0+2.0"]  # 10 is above 2; not the fork's, not next's
    previous = past.previous(pull.sha)
    assert previous and previous.name == "1.0.0+10.0" and not previous.annotated
    assert past.tags[1].annotated
    assert [entry.name for entry in past.unreadable] == ["2fa-support", "latest", "v1.0.3"]
    lightweight = past.tag_of(git(base, "rev-parse", "v1.0.3"))
    assert lightweight and (lightweight.name, lightweight.annotated) == ("v1.0.3", False), "it was meant to be a version"


def test_a_commit_that_is_published_itself_is_not_its_own_predecessor(base: Path, tmp_path: Path) -> None:
    sha = git(base, "rev-parse", "1.0.0+10.0^{commit}")
    past = history(Source(url=str(base), sha=sha), tmp_path, Source(url=str(base), ref="refs/heads/main"))
    previous, own = past.previous(sha), past.tag_of(sha)
    assert previous and previous.name == "1.0.0+2.0"
    assert own and own.name == "1.0.0+10.0"


def test_what_a_pull_request_changes_is_counted_from_where_it_left(base: Path, pull: Source, tmp_path: Path) -> None:
    past = history(pull, tmp_path, Source(url=str(base), ref="refs/heads/main"))
    assert past.changed() == ["extra/test_more.py"]


def test_another_base_branch_has_other_versions(base: Path, pull: Source, tmp_path: Path) -> None:
    past = history(pull, tmp_path, Source(url=str(base), ref="refs/heads/next"))
    previous = past.previous(pull.sha)
    assert previous and previous.name == "9.0.0+1.0"


def test_a_version_is_exported_without_the_history(base: Path, pull: Source, tmp_path: Path) -> None:
    past = history(pull, tmp_path, Source(url=str(base), ref="refs/heads/main"))
    previous = past.previous(pull.sha)
    assert previous
    past.export(previous.commit, tmp_path / "previous")
    assert (tmp_path / "previous" / "compose.yml").read_text() == "two"
    assert not (tmp_path / "previous" / ".git").exists()
    assert past.file(past.base, "compose.yml") == b"two"
    assert past.file(past.base, "nothing") is None


def test_a_folder_that_is_no_repository_has_no_history(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert not History(Source(url=str(tmp_path / "plain")), None, tmp_path / "history").fetch()


def test_a_folder_within_another_repository_is_not_that_repository(base: Path, tmp_path: Path) -> None:
    (base / "inner").mkdir()
    assert not History(Source(url=str(base / "inner")), None, tmp_path / "history").fetch()


def test_a_working_tree_has_the_versions_of_its_repository(base: Path, tmp_path: Path) -> None:
    past = history(Source(url=str(base)), tmp_path, None)
    previous = past.previous("")
    assert previous and previous.name == "1.0.0+10.0"
    assert past.changed() == []
