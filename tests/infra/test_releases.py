"""Releases, discovered in real git repositories."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from django_q.models import OrmQ

from controlplane.registry import registry
from infra import tasks
from infra.deployers.isolation import children
from infra.git import environment as git_environment
from infra.git import mirror
from infra.git.mirror import Mirror, environment
from infra.git.runner import Git, GitError
from infra.models import InfraApp, InfraRelease
from infra.releases.discovery import LONGEST_NOTES, ON_BRANCH, NotDiscovered, discover, mirror_of
from infra.releases.evaluate import plan_of, record
from infra.runtime import inspect
from tests.factories import InfraAppFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.2)]
LAST_MONTH = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Recipe:
    """A recipe's repository in which versions are published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")
        self.commit("compose.yml", "services: {}\n")

    def git(self, *words: str, at: datetime = LAST_MONTH) -> str:
        when = f"{int(at.timestamp())} +0000"
        env = {"PATH": "/usr/bin:/bin", "GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when, "GIT_CONFIG_GLOBAL": "/dev/null"}
        identity = ["-c", "user.name=Mia", "-c", "user.email=mia@example.org"]
        done = subprocess.run(["git", *identity, *words], cwd=self.folder, env=env, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, name: str, text: str, at: datetime = LAST_MONTH) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.git("add", ".", at=at)
        self.git("commit", "-q", "--allow-empty", "-m", f"Write {name}", at=at)

    def publish(self, version: str, notes: str = "", at: datetime = LAST_MONTH, *, annotated: bool = True) -> None:
        """As a maintainer does: the notes in a commit, and the tag upon it."""
        if notes:
            self.commit(f"release/{version}", notes, at)
        else:
            self.commit("compose.yml", f"services: {{}} # {version}\n", at)
        self.git("tag", *(("-a", "-m", version) if annotated else ()), version, at=at)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path / "recipe")


@pytest.fixture
def app(recipe: Recipe, data_dir: Path) -> InfraApp:
    app: InfraApp = InfraAppFactory(source=str(recipe.folder), recipe="web")
    return app


def versions(app: InfraApp) -> list[str]:
    return list(app.releases.filter(gone=False).order_by("rank").values_list("version", flat=True))


def test_tags_and_their_notes(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.0+2.10", "First.\n")
    recipe.publish("1.0.1+2.9")
    recipe.publish("1.0.0+2.9", "Über alles: é 🎉\n", LAST_MONTH + timedelta(days=1))
    recipe.publish("0.10.0+1", annotated=False)
    new = discover(app)
    assert [row.version for row in new] == versions(app) == ["0.10.0+1", "1.0.0+2.9", "1.0.0+2.10", "1.0.1+2.9"]
    rows = {row.version: row for row in app.releases.all()}
    assert rows["1.0.0+2.9"].notes == "Über alles: é 🎉"
    assert rows["1.0.1+2.9"].notes is None
    assert rows["1.0.0+2.9"].tagged_at == LAST_MONTH + timedelta(days=1)
    assert {version for version, row in rows.items() if not row.annotated} == {"0.10.0+1"}
    assert rows["1.0.1+2.9"].commit == recipe.git("rev-parse", "1.0.1+2.9^{commit}"), "the commit, not the tag"
    app.refresh_from_db()
    assert app.discovered_at and app.discovery_error == "" and app.unreadable == []
    assert discover(app) == [], "a second look finds nothing new"


def test_tags_that_cannot_be_used_are_listed(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.0+2.0")
    for name in ("v1.2.3", "1.0.0", "latest"):
        recipe.git("tag", "-a", "-m", "x", name)
    recipe.git("tag", "-a", "-m", "x", "1.0.9+2.0", "HEAD^{tree}")
    discover(app)
    assert versions(app) == ["1.0.0+2.0"]
    listed = {item["tag"]: item["reason"] for item in app.unreadable}
    assert set(listed) == {"v1.2.3", "1.0.0", "latest", "1.0.9+2.0"}
    assert "expected X.Y.Z+<app version>" in listed["latest"]
    assert listed["1.0.9+2.0"] == "The tag does not point to a commit."


def test_a_warning_that_came_later(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0", "All is well.\n")
    discover(app)
    recipe.commit("release/1.0.1+2.0", "Do not: it eats data. Dump it by hand.\n")
    recipe.publish("1.0.2+2.0")
    recipe.commit("release/1.0.2+2.0", "Written after the tag.\n")
    discover(app)
    notes = {row.version: row.notes for row in app.releases.all()}
    assert notes["1.0.1+2.0"] == f"All is well.\n\n{ON_BRANCH}\n\nDo not: it eats data. Dump it by hand."
    assert notes["1.0.2+2.0"] == "Written after the tag."
    assert plan_of(app).target is None, "and the gate reads it"


def test_notes_without_an_end(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0", "by hand " * LONGEST_NOTES)
    recipe.publish("1.0.2+2.0", "x")
    discover(app)
    notes = {row.version: row.notes for row in app.releases.all()}
    assert notes == {"1.0.1+2.0": None, "1.0.2+2.0": "x"}
    [item] = app.unreadable
    assert item["tag"] == "release/1.0.1+2.0" and "They count as missing" in item["reason"]


def test_a_deleted_tag_is_no_candidate(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0")
    discover(app)
    recipe.git("tag", "-d", "1.0.1+2.0")
    discover(app)
    assert versions(app) == []
    assert app.releases.get().gone, "the row stays for the trail"
    assert plan_of(app).verdicts == ()
    recipe.publish("1.0.1+2.0")
    discover(app)
    assert versions(app) == ["1.0.1+2.0"]


def test_a_moved_tag_loses_its_approval_and_its_age(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0")
    discover(app)
    first = app.releases.get()
    InfraRelease.objects.update(approved_by="mia", approved_at=timezone.now(), lifted=["x"])
    recipe.commit("compose.yml", "services: {evil: {}}\n")
    recipe.git("tag", "-f", "-a", "-m", "again", "1.0.1+2.0")
    before = timezone.now()
    discover(app)
    moved = app.releases.get()
    assert moved.commit == recipe.git("rev-parse", "HEAD") != first.commit
    assert (moved.approved_by, moved.approved_at, moved.lifted) == ("", None, [])
    assert moved.evidence["moved"]["from"] == first.commit
    assert first.published_at == LAST_MONTH
    assert moved.published_at > before - timedelta(minutes=1), "not as old as it claims: it was not there at the last look"
    assert [blocker.kind for blocker in plan_of(app).verdicts[0].blockers] == ["cooldown"]


def test_a_tag_cannot_make_itself_older_or_younger(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0", at=datetime(2099, 1, 1, tzinfo=UTC))
    discover(app)
    assert app.releases.get().published_at <= timezone.now()
    looked = app.discovered_at
    recipe.publish("1.0.2+2.0", at=datetime(2001, 1, 1, tzinfo=UTC))
    discover(app)
    assert app.releases.get(version="1.0.2+2.0").published_at == looked


def test_what_the_gate_said_is_kept_with_each_release(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.0+2.0")
    recipe.publish("1.0.1+2.0", at=timezone.now())
    recipe.publish("2.0.0+2.0", "Breaking.")
    discover(app)
    InfraRelease.objects.filter(version="1.0.1+2.0").update(state="quarantined", evidence={"quarantined": "it died."})
    assert [row.version for row in record(app, plan_of(app))] == ["2.0.0+2.0"], "newly held"
    rows = {row.version: row for row in app.releases.all()}
    assert {version: row.state for version, row in rows.items()} == {
        "1.0.0+2.0": "candidate",
        "1.0.1+2.0": "quarantined",
        "2.0.0+2.0": "held",
    }
    assert [reason["kind"] for reason in rows["1.0.1+2.0"].reasons] == ["cooldown", "quarantined"]
    assert [reason["kind"] for reason in rows["2.0.0+2.0"].reasons] == ["left_major", "manual_work"]
    assert record(app, plan_of(app)) == [], "once, not every night"
    InfraRelease.objects.update(held_told_at=timezone.now())
    InfraApp.objects.update(running_version="2.0.0+2.0")
    app.refresh_from_db()
    record(app, plan_of(app))
    row = app.releases.get(version="2.0.0+2.0")
    assert (row.state, row.reasons, row.held_told_at) == ("candidate", [], None), "what runs waits no more"


def test_what_tests_said_counts_for_that_commit_only(app: InfraApp, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.publish("1.0.0+2.0")
    recipe.publish("1.0.1+2.0")
    app.policy = {"need_test_run": True}
    discover(app)
    asked: list[tuple[str, str]] = []
    answer: dict[str, Any] = {"passed": True, "run": "u", "lint": [], "commit": app.releases.get(version="1.0.1+2.0").commit}

    def evidence(name: str, version: str) -> dict[str, Any]:
        asked.append((name, version))
        return answer

    monkeypatch.setattr(registry, "answers", {"version_evidence": evidence})
    assert str(plan_of(app).takes) == "1.0.1+2.0"
    assert asked == [("web", "1.0.1+2.0")], "of the recipe, and only about what may come"
    answer["commit"] = "0" * 40
    assert plan_of(app).takes is None
    monkeypatch.setattr(registry, "answers", {})
    assert [blocker.kind for blocker in plan_of(app).verdicts[0].blockers] == ["not_tested"]


# --- what goes wrong


def test_no_repository(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0")
    discover(app)
    app.source = str(recipe.folder.parent / "nothing")
    app.save()
    with pytest.raises(NotDiscovered, match=r"Cannot read the releases of web: git fetch: fatal: .*does not appear"):
        discover(app)
    app.refresh_from_db()
    assert "Cannot read" in app.discovery_error
    assert versions(app) == ["1.0.1+2.0"], "what was known stays known"


def test_an_empty_repository(app: InfraApp, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path / "empty")], check=True, timeout=20)
    app.source = str(tmp_path / "empty")
    with pytest.raises(NotDiscovered, match="Cannot read"):
        discover(app)


def test_a_repository_that_would_run_something(recipe: Recipe, tmp_path: Path) -> None:
    recipe.publish("1.0.1+2.0")
    with pytest.raises(GitError, match="not allowed"):
        Mirror(tmp_path, f"ext::sh -c touch% {tmp_path}/pwned").fetch()
    assert not (tmp_path / "pwned").exists()


def test_locks_of_a_git_that_was_killed(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0")
    discover(app)
    recipe.git("tag", "-d", "1.0.1+2.0")
    lock = mirror_of(app).folder / "packed-refs.lock"
    lock.touch()
    with pytest.raises(NotDiscovered, match="packed-refs"):
        discover(app)
    assert lock.exists(), "it may be at work"
    os.utime(lock, (0, 0))
    discover(app)
    assert versions(app) == []


def test_git_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "git").write_text('#!/bin/sh\nsleep 60 &\necho $! > "$(dirname "$0")/../child"\nwait\n')
    (tools / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(GitError, match=r"git fetch did not finish within 0.5 s"):
        Git(tmp_path, {"PATH": f"{tools}:/usr/bin:/bin"}).run("fetch", seconds=0.5)
    child = (tmp_path / "child").read_text().strip()
    deadline = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline, "its children end with it"
        time.sleep(0.01)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server that answers nothing but 401, and what it was told about who asks."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(self.headers.get("Authorization", ""))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}", told
    listener.shutdown()
    listener.server_close()


def test_the_token_goes_to_its_server_and_on_no_command_line(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, told = server
    lines: list[str] = []
    real: Callable[..., Any] = subprocess.Popen

    def watched(command: list[str], **options: Any) -> Any:
        lines.append(" ".join(command))
        # A test server has no certificate, so plain http is let through here.
        env = {**options["env"], "GIT_ALLOW_PROTOCOL": "http"}
        return real(command, **{**options, "env": env})

    monkeypatch.setattr(subprocess, "Popen", watched)
    with pytest.raises(GitError) as caught:
        Mirror(tmp_path, f"{url}/a.git", "s3cret-token").fetch()
    assert told[0] == "Basic " + base64.b64encode(b"git:s3cret-token").decode()
    assert "s3cret-token" not in str(caught.value) + "".join(lines)
    assert environment("https://git.example.org/a.git", "t")["GIT_TERMINAL_PROMPT"] == "0"


def test_a_missing_token_is_told(app: InfraApp) -> None:
    app.credential = "env:NO_SUCH_TOKEN"
    with pytest.raises(NotDiscovered, match=r"The token for .* is missing: the environment variable NO_SUCH_TOKEN"):
        discover(app)


def test_the_task_looks_at_each_app(app: InfraApp, recipe: Recipe) -> None:
    recipe.publish("1.0.1+2.0")
    InfraAppFactory(declared=False)
    assert tasks.discover() == "1 apps queued"
    [queued] = OrmQ.objects.all()
    assert (queued.func(), queued.task["args"]) == ("infra.tasks.discover_app", (app.pk,))
    recipe.publish("2.0.0+2.0")
    assert tasks.discover_app(app.pk) == "2 new"
    assert app.releases.get(state="held").version == "2.0.0+2.0", "the gate has looked at them, too"
    assert tasks.discover_app(0) == "gone"
    assert registry.recurring["infra.tasks.discover"].every_seconds == 86400
    assert settings.CC_CI.queue_timeout > mirror.FETCH_SECONDS, "the queue must not stop it first"


def test_a_local_checkout_has_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(command: list[str], *, env: Any, **how: Any) -> children.Done:
        seen.append(env)
        return children.Done(0, b"", b"")

    monkeypatch.setattr(children, "run", run)
    there = Mirror(tmp_path, "https://forge.example.org/recipes/web", "s3cret")
    there.tags()
    inspect._files(there, "c" * 40, tmp_path / "files")
    token = git_environment.basic("s3cret", "git")
    assert [any(token in value for value in env.values()) for env in seen] == [True, False]
