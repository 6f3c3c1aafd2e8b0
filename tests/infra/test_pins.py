"""A new pin in infra.yml: one value changes and no other byte; it is committed and pushed in real checkouts."""

from __future__ import annotations

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from infra.config.commit import write_value
from infra.config.edit import PinError, line_with, with_value
from infra.config.load import parse
from infra.config.schema import Git
from tests.infra.declared import TEXT, documents

pytestmark = pytest.mark.slow(0.2)

COMMIT, PUSH, NEITHER = Git(), Git(push=True), Git(commit=False)


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Ops", "-c", "user.email=ops@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A bare repository with the file in a folder of it."""
    bare, first = tmp_path / "origin.git", tmp_path / "first"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(bare))
    git(tmp_path, "clone", "-q", str(bare), str(first))
    (first / "server").mkdir()
    (first / "server" / "infra.yml").write_text(TEXT)
    (first / "README").write_text("about\n")
    git(first, "add", ".")
    git(first, "commit", "-q", "-m", "Begin")
    git(first, "push", "-q", "origin", "HEAD:main")
    return bare


@pytest.fixture
def file(tmp_path: Path, origin: Path) -> Path:
    git(tmp_path, "clone", "-q", "-b", "main", str(origin), str(tmp_path / "checkout"))
    return tmp_path / "checkout" / "server" / "infra.yml"


def test_only_the_value_changes() -> None:
    new = with_value(TEXT, "traefik", "version", "3.8.0+v3.5.0")
    assert new == TEXT.replace("version: 3.7.0+v3.4.1       # pinned", "version: 3.8.0+v3.5.0       # pinned")
    new = with_value(TEXT, "keycloak", "version", "10.8.0+26.7.0")
    assert new == TEXT.replace("'10.7.1+26.6.2'", "'10.8.0+26.7.0'"), "the quotes stay"
    new = with_value(TEXT, "drone", "owner", "reconciled")
    assert new == TEXT.replace("owner: maintainers, after", "owner: reconciled, after")


def test_a_key_that_is_not_there_yet() -> None:
    new = with_value(TEXT, "drone", "version", "1.0.0+2")
    assert new == TEXT.replace("drone: {recipe", "drone: {version: 1.0.0+2, recipe")
    text = TEXT.replace("    version: '10.7.1+26.6.2'\n", "")
    new = with_value(text, "keycloak", "version", "1.0.0+2")
    assert new == text.replace('"keycloak":\n', '"keycloak":\n    version: 1.0.0+2\n')


def test_the_ends_of_lines_and_odd_characters_stay() -> None:
    text = "\ufeff# é 🎉\r\n" + TEXT.replace("\n", "\r\n").replace("    version: '10.7.1+26.6.2'\r\n", "")
    new = with_value(text, "traefik", "version", "9.9.9+1")
    assert new == text.replace("3.7.0+v3.4.1", "9.9.9+1")
    new = with_value(text, "keycloak", "version", "9.9.9+1")
    assert new == text.replace('"keycloak":\r\n', '"keycloak":\r\n    version: 9.9.9+1\r\n')


def test_the_line_to_commit() -> None:
    assert line_with(TEXT, "traefik", "version", "3.8.0+v3.5.0") == (17, "    version: 3.8.0+v3.5.0       # pinned by cc-ci")
    number, line = line_with(TEXT, "drone", "version", "1.0.0+2")
    assert line == with_value(TEXT, "drone", "version", "1.0.0+2").splitlines()[number - 1]


def test_an_empty_value_is_filled() -> None:
    text = TEXT.replace("version: 3.7.0+v3.4.1       #", "version:   #")
    assert "    version: 1.0.0+2   # pinned" in with_value(text, "traefik", "version", "1.0.0+2")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "version: 3.7.0+v3.4.1 ",
            "version: &v 3.7.0+v3.4.1 ",
            "Line 17 has no plain value; edit it manually: `version: 9.9.9",
        ),
        ("version: 3.7.0+v3.4.1 ", "version: >-\n      3.7.0+v3.4.1\n     ", "Line 17 has no plain value"),
        ("version: 3.7.0+v3.4.1 ", "version: [3] ", "Line 17 has no plain value"),
        ("  traefik:", "  træfik:", "The file has no app traefik"),
        ("apps:", "apps: [", "Invalid YAML"),
    ],
)
def test_what_cannot_be_written(old: str, new: str, why: str) -> None:
    with pytest.raises(PinError, match=why):
        with_value(TEXT.replace(old, new, 1), "traefik", "version", "9.9.9+1")


def test_an_alias_is_not_followed() -> None:
    text = TEXT.replace("version: 3.7.0+v3.4.1 ", "version: &v 3.7.0+v3.4.1 ").replace("'10.7.1+26.6.2'", "*v")
    with pytest.raises(PinError, match="Line 33 has no plain value"):
        with_value(text, "keycloak", "version", "9.9.9+1")


@pytest.mark.parametrize("value", ["1.0.0+1 # x", "1.0.0+1\nowner: x", "", "*a", "'x'", "{}"])
def test_a_value_that_would_say_more(value: str) -> None:
    with pytest.raises(PinError, match="Cannot write"):
        with_value(TEXT, "traefik", "version", value)


@settings(max_examples=40)
@given(documents())
def test_in_every_file_just_the_pin_changes(values: dict[str, Any]) -> None:
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    before = parse(text).document
    for name in before.apps:
        after = parse(with_value(text, name, "version", "7.7.7+x")).document
        assert after == before.model_copy(
            update={"apps": {**before.apps, name: before.apps[name].model_copy(update={"version": "7.7.7+x"})}}
        )


def test_it_is_committed(file: Path) -> None:
    file.chmod(0o640)
    before = git(file.parent, "rev-parse", "HEAD")
    (file.parents[1] / "README").write_text("someone's half-done work\n")
    git(file.parent, "add", "../README")
    done = write_value(file, "traefik", "version", "3.8.0+v3.5.0", COMMIT)
    assert done.changed and not done.problem and not done.pushed
    assert done.commit == git(file.parent, "rev-parse", "HEAD") != before
    assert git(file.parent, "log", "-1", "--format=%an %s") == "cc-ci Pin traefik to 3.8.0+v3.5.0"
    assert git(file.parent, "show", "--format=", "--name-only", "HEAD") == "server/infra.yml", "and nothing of others"
    assert git(file.parent, "diff", "--cached", "--name-only") == "README"
    assert file.read_text() == with_value(TEXT, "traefik", "version", "3.8.0+v3.5.0")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    again = write_value(file, "traefik", "version", "3.8.0+v3.5.0", COMMIT)
    assert not again.changed and again.commit == done.commit, "the second time does nothing"


def test_killed_between_file_and_commit(file: Path) -> None:
    assert write_value(file, "traefik", "version", "3.8.0+v3.5.0", NEITHER).commit == ""
    assert git(file.parent, "status", "--porcelain")
    done = write_value(file, "traefik", "version", "3.8.0+v3.5.0", COMMIT)
    assert not done.changed and done.commit and not done.problem
    assert git(file.parent, "status", "--porcelain") == ""


def test_half_done_work_in_the_file_is_not_committed(file: Path) -> None:
    file.write_text(TEXT.replace("keep: 5", "keep: 6"))
    before = git(file.parent, "rev-parse", "HEAD")
    done = write_value(file, "traefik", "version", "3.8.0+v3.5.0", COMMIT)
    assert done.changed and not done.commit
    assert "has uncommitted changes" in done.problem and "git -C" in done.problem
    assert git(file.parent, "rev-parse", "HEAD") == before
    assert "keep: 6" in file.read_text() and "3.8.0+v3.5.0" in file.read_text()


def test_it_is_pushed_after_what_others_pushed(file: Path, origin: Path, tmp_path: Path) -> None:
    other = tmp_path / "first"
    (other / "README").write_text("news\n")
    git(other, "commit", "-q", "-a", "-m", "News")
    git(other, "push", "-q", "origin", "HEAD:main")
    done = write_value(file, "traefik", "version", "3.8.0+v3.5.0", PUSH)
    assert done.pushed and not done.problem
    assert git(origin, "rev-parse", "main") == done.commit
    assert git(origin, "log", "--format=%s", "main").splitlines() == ["Pin traefik to 3.8.0+v3.5.0", "News", "Begin"]
    assert git(origin, "show", "main:server/infra.yml") == with_value(TEXT, "traefik", "version", "3.8.0+v3.5.0").rstrip("\n")


def test_a_push_that_cannot_be_is_told_and_made_up_for(file: Path, origin: Path, tmp_path: Path) -> None:
    other = tmp_path / "first"
    (other / "server" / "infra.yml").write_text(with_value(TEXT, "traefik", "version", "3.7.5+v3.4.9"))
    git(other, "commit", "-q", "-a", "-m", "Pin by hand")
    git(other, "push", "-q", "origin", "HEAD:main")
    done = write_value(file, "traefik", "version", "3.8.0+v3.5.0", PUSH)
    assert done.commit and not done.pushed
    assert "committed, but not pushed" in done.problem and "pull --rebase" in done.problem
    assert git(file.parent, "status", "--porcelain=v1", "--branch").startswith("## main...origin/main"), "no rebase is left open"
    assert "3.8.0+v3.5.0" in file.read_text()
    git(file.parent, "reset", "-q", "--hard", "origin/main")
    assert write_value(file, "traefik", "version", "3.8.0+v3.5.0", PUSH).pushed


def test_no_checkout(tmp_path: Path) -> None:
    path = tmp_path / "infra.yml"
    path.write_text(TEXT)
    done = write_value(path, "traefik", "version", "3.8.0+v3.5.0", COMMIT)
    assert done.changed and not done.commit
    assert "not committed: git show: fatal: not a git repository" in done.problem


def test_a_link_to_the_checkout(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.yml"
    link.symlink_to(file)
    assert write_value(link, "keycloak", "owner", "maintainers", COMMIT).commit
    assert link.is_symlink() and not file.is_symlink()
    assert parse(file.read_text()).apps["keycloak"].owner == "maintainers"
    assert git(file.parent, "log", "-1", "--format=%s") == "Hand keycloak to maintainers"


def test_nothing_is_written_when_the_file_would_be_wrong(file: Path) -> None:
    with pytest.raises(PinError, match=r"infra.yml:\d+: apps.drone.version: an app that cc-ci reconciles"):
        write_value(file, "drone", "owner", "reconciled", COMMIT)
    assert file.read_text() == TEXT
    file.write_text(TEXT + "  : [")
    with pytest.raises(PinError):
        write_value(file, "traefik", "version", "3.8.0+v3.5.0", COMMIT)
    assert file.read_text() == TEXT + "  : ["
    assert [path.name for path in file.parent.iterdir()] == ["infra.yml"], "no rest of a half-written file"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PinError, match=r"Cannot write .*: No such file"):
        write_value(tmp_path / "infra.yml", "traefik", "version", "3.8.0+v3.5.0", COMMIT)


def test_two_writers_at_once_lose_nothing(file: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write_value, file, "traefik", "version", "3.8.0+v3.5.0", COMMIT)
        second = pool.submit(write_value, file, "keycloak", "version", "10.8.0+26.7.0", COMMIT)
        assert not first.result(20).problem and not second.result(20).problem
    assert {"3.8.0+v3.5.0", "10.8.0+26.7.0"} == {parse(file.read_text()).apps[name].version for name in ("traefik", "keycloak")}
    assert git(file.parent, "status", "--porcelain") == ""
    assert git(file.parent, "rev-list", "--count", "HEAD") == "3"
