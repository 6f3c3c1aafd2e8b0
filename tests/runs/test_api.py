"""The API's operations on runs, and the commands that use it: who sees what, and who may do what."""

from __future__ import annotations

import io
import json
import sys
import uuid
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from controlplane import tokens
from controlplane.cli import MISUSE, NO, OURS, Exit
from controlplane.models import ApiToken
from enrollment.fakeforge.faults import Fault
from enrollment.forges import http
from enrollment.models import Forge, Repository
from runs import dispatcher, lifecycle
from runs.management.commands import start
from runs.models import CaseResult, RunEvent, State, TestRun
from tests.factories import CaseResultFactory, DeferredItemFactory, RepositoryFactory, StageResultFactory, TestRunFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.2)]

ALL = list(ApiToken.Scope.values)


@cache
def browser() -> Client:
    """One for all tests: each new one reads the whole folder of static files."""
    return Client()


def ask(token: str, path: str, method: str = "GET", body: Any = None) -> Any:
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {token}"}
    return browser().generic(method, f"/api{path}", data, content_type="application/json", headers=headers)


@pytest.fixture
def user() -> User:
    """A staff user who may ask for runs, and nothing else."""
    user = User.objects.create_user("olga", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="add_testrun"))
    return user


@pytest.fixture
def token(user: User) -> str:
    return tokens.make(user, "laptop", ALL)[1]


def narrow(user: User, *scopes: str) -> str:
    return tokens.make(user, "narrow", scopes)[1]


def without_right(user: User) -> User:
    user.user_permissions.clear()
    return User.objects.get(pk=user.pk)


# --- who sees what


def test_what_is_private_needs_its_scope_and_is_otherwise_not_there(user: User, token: str) -> None:
    hidden = RepositoryFactory(name="hidden", private=True)
    run, public = TestRunFactory(repository=hidden), TestRunFactory()
    DeferredItemFactory(recipe=hidden)
    little = narrow(user, "read", "run", "approve")
    for path, seen in (("/runs", 2), ("/recipes", 2), ("/deferred", 1), ("/runs?repository=recipes/hidden", 1)):
        assert len(ask(token, path).json()["items"]) == seen, path
        shown = ask(little, path)
        assert len(shown.json()["items"]) == max(0, seen - 1) and "hidden" not in shown.content.decode(), path
    paths = [("GET", f"/runs/{run.pk}"), ("GET", f"/runs/{run.pk}/log"), ("GET", f"/recipes/{hidden.pk}/tests")]
    paths += [("POST", f"/runs/{run.pk}/{what}") for what in ("again", "cancel", "approve")]
    for method, path in paths:
        told = ask(little, path, method, {} if method == "POST" else None)
        nobodys = ask(little, path.replace(str(run.pk), str(uuid.uuid4())).replace(f"s/{hidden.pk}/", "s/999/"), method, {})
        assert told.status_code == nobodys.status_code == 404 and told.content == nobodys.content, path
    told = ask(little, "/runs", "POST", {"repository": "recipes/hidden"})
    other = ask(little, "/runs", "POST", {"repository": "recipes/hiddem"})
    assert told.status_code == other.status_code == 404 and told.content.replace(b"hidden", b"hiddem") == other.content
    assert ask(token, f"/runs/{run.pk}").status_code == 200 and ask(little, f"/runs/{public.pk}").status_code == 200
    assert TestRun.objects.count() == 2 and TestRun.objects.get(pk=run.pk).state == State.QUEUED


def test_a_run_is_shown_with_its_results(token: str) -> None:
    run = TestRunFactory(failed=True, log="line\n", level=2)
    stage = StageResultFactory(run=run, name="custom", status="failed")
    CaseResultFactory(stage=stage, name="test_page", status="failed", message="404 != 200")
    shown = ask(token, f"/runs/{run.pk}").json()
    assert (shown["id"], shown["url"], shown["state"], shown["level"]) == (str(run.pk), run.url, "failed", 2)
    assert (shown["repository"], shown["pull_request"]) == (run.repository.full_name, run.pull_request.number)
    [result] = shown["results"]
    assert (result["name"], result["cases"][0]["message"]) == ("custom", "404 != 200")
    assert ask(token, f"/runs/{run.pk}/log").json() == {"state": "failed", "log": "line\n"}


def test_runs_are_filtered(token: str) -> None:
    failed, running = TestRunFactory(failed=True), TestRunFactory(running=True)
    for query, found in (
        ("state=failed", [failed]),
        ("active=true", [running]),
        (f"repository={failed.repository.full_name.upper()}", [failed]),
        ("repository=recipes/none", []),
        ("state=passed", []),
    ):
        assert [row["id"] for row in ask(token, f"/runs?{query}").json()["items"]] == [str(run.pk) for run in found], query
    assert ask(token, "/runs?state=nonsense").status_code == 422


def test_the_history_of_tests(token: str, django_assert_max_num_queries: Any) -> None:
    row = RepositoryFactory()
    now = timezone.now()
    for number in range(30):
        run = TestRunFactory(repository=row, passed=True, created_at=now - timedelta(hours=number))
        stage = StageResultFactory(run=run, name="custom")
        CaseResultFactory(stage=stage, name="test_login", status="failed" if number == 1 else "passed")
        CaseResultFactory(stage=stage, name="test_page")
        StageResultFactory(run=run, name="install")
    TestRunFactory(repository=row, running=True)
    TestRunFactory(repository=row, failed=True, quick=True)
    with django_assert_max_num_queries(12):
        page = ask(token, f"/recipes/{row.pk}/tests?stage=custom&name=test_login&limit=100").json()
    found = [
        (result["stage"], case["name"], case["status"])
        for run in page["items"]
        for result in run["results"]
        for case in result["cases"]
    ]
    assert len(found) == 25 and found[0] == ("custom", "test_login", "passed") and found[1][2] == "failed"
    rest = ask(token, f"/recipes/{row.pk}/tests?cursor={page['next']}").json()
    assert len(rest["items"]) == 5 and rest["next"] is None and len(rest["items"][0]["results"]) == 2
    assert ask(token, "/recipes/999/tests").status_code == 404
    recipe = ask(token, "/recipes").json()["items"][0]
    assert (recipe["id"], recipe["last_state"], recipe["last_run"]) == (row.pk, "passed", page["items"][0]["run"])


def test_a_page_of_runs_with_thousands_of_tests_is_short(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.api.HEAVIEST", 5)
    row, now, expected = RepositoryFactory(), timezone.now(), []
    for number, count in enumerate((2, 2, 2, 9, 0, 1)):
        run = TestRunFactory(repository=row, passed=True, created_at=now - timedelta(hours=number))
        stage = StageResultFactory(run=run, name="custom")
        StageResultFactory(run=run, name="install")
        CaseResult.objects.bulk_create(CaseResult(stage=stage, name=f"test_{n}", status="passed") for n in range(count))
        expected.append(str(run.pk))
    for query, sizes in (("", [2, 1, 1, 2]), ("limit=1&", [1] * 6), ("name=test_0&", [6]), ("stage=install&", [6])):
        seen, pages, cursor = [], [], ""
        while cursor is not None:
            page = ask(token, f"/recipes/{row.pk}/tests?{query}cursor={cursor}").json()
            seen += [run["run"] for run in page["items"]]
            pages.append(len(page["items"]))
            cursor = page["next"]
        assert (seen, pages) == (expected, sizes), query


# --- who may do what


def test_without_the_right_to_ask_no_scope_helps(user: User) -> None:
    run = TestRunFactory(state=State.AWAITING_APPROVAL, trusted=False)
    all_scopes = tokens.make(without_right(user), "x", ALL)[1]
    for path, body in ((f"/runs/{run.pk}/again", {}), (f"/runs/{run.pk}/cancel", None), (f"/runs/{run.pk}/approve", None)):
        answer = ask(all_scopes, path, "POST", body)
        assert answer.status_code == 403 and "lacks the permission" in answer.json()["message"]
    assert ask(all_scopes, "/runs", "POST", {"repository": run.repository.full_name}).status_code == 403
    assert TestRun.objects.get().state == State.AWAITING_APPROVAL


def test_cancel(token: str) -> None:
    queued, running, ended = TestRunFactory(), TestRunFactory(running=True), TestRunFactory(passed=True)
    assert ask(token, f"/runs/{queued.pk}/cancel", "POST").json()["state"] == "cancelled"
    assert "through the API with the token laptop" in queued.events.get(kind="cancelled").text
    assert ask(token, f"/runs/{running.pk}/cancel", "POST").json()["state"] == "running"
    running.refresh_from_db()
    assert running.stop_wanted == "cancelled" and "by olga" in running.stop_reason
    for run in (running, ended, queued):
        assert ask(token, f"/runs/{run.pk}/cancel", "POST").status_code == 409


def test_start_pins_the_newest_commit_of_the_default_branch(world: World, token: str) -> None:
    head = world.client().branch_head("recipes", "web", "main")
    answer = ask(token, "/runs", "POST", {"repository": "Recipes/Web", "extra_tests": True, "sha": head})
    assert answer.status_code == 201
    run = TestRun.objects.get()
    assert (str(run.pk), run.sha, run.ref, run.trusted, run.requested_by) == (
        answer.json()["id"],
        head,
        "refs/heads/main",
        True,
        "olga",
    )
    assert "extra" in run.stages and run.state == State.QUEUED
    key = ApiToken.objects.get().key
    assert run.events.get().text == f"requested through the API with the token laptop ({key}) by olga"
    repo = world.remote.repo("recipes/web")
    world.remote.push(repo, "main", {"new.txt": "x"}, "New", world.alice)
    moved = ask(token, "/runs", "POST", {"repository": "recipes/web", "sha": head})
    assert moved.status_code == 409 and f"not at {head}" in moved.json()["message"]
    # A commit that anybody can have pushed to a pull request is no commit of the branch.
    theirs = world.add_fork_pull("recipes/web").head_sha
    assert ask(token, "/runs", "POST", {"repository": "recipes/web", "sha": theirs}).status_code == 409
    for more in ({"trusted": True}, {"ref": "refs/pull/2/head"}, {"stages": []}, {"pull_request": 2}, {"extra_tests": 0}):
        assert ask(token, "/runs", "POST", {"repository": "recipes/web", **more}).status_code == 422
    assert TestRun.objects.count() == 1


def test_start_only_of_what_is_watched_and_at_one_forge(world: World, token: str) -> None:
    RepositoryFactory(owner="recipes", name="web", forge__name="other")
    several = ask(token, "/runs", "POST", {"repository": "recipes/web"})
    assert several.status_code == 409 and world.forge.url in several.json()["message"]
    assert ask(token, "/runs", "POST", {"repository": "recipes/web", "forge": world.forge.url}).status_code == 201
    assert ask(token, "/runs", "POST", {"repository": "recipes/web", "forge": "nowhere"}).status_code == 404
    again = f"/runs/{TestRun.objects.get().pk}/again"
    for change in (lambda: Forge.objects.update(enabled=False), lambda: Repository.objects.update(active=False)):
        change()
        refused = ask(token, again, "POST", {})
        assert refused.status_code == 409 and "no longer watched" in refused.json()["message"]
        assert ask(token, "/runs", "POST", {"repository": "recipes/web", "forge": world.forge.url}).status_code == 404
        Forge.objects.update(enabled=True)


def test_a_forge_that_fails_is_not_our_fault(world: World, token: str) -> None:
    world.remote.faults = lambda request: Fault(status=503)
    answer = ask(token, "/runs", "POST", {"repository": "recipes/web"})
    assert answer.status_code == 502 and "cc-ci continues" in answer.json()["message"]
    assert not TestRun.objects.exists()


def test_a_strangers_run_is_approved_and_repeated_by_the_admins_rules(
    world: World, user: User, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    Forge.objects.update(strangers_await_approval=True)
    world.add_fork_pull("recipes/web")
    world.say("recipes/web", "!testme", "mallory", 2)
    world.hear()
    run = TestRun.objects.get()
    again = ask(token, f"/runs/{run.pk}/again", "POST", {})
    assert again.status_code == 409 and "awaiting approval" in again.json()["message"]
    assert ask(narrow(user, "read", "private", "run"), f"/runs/{run.pk}/approve", "POST").status_code == 403
    assert ask(token, f"/runs/{run.pk}/approve", "POST").json()["state"] == "queued"
    event = run.events.get(kind="approved")
    assert event.data == {"login": "olga"}
    assert ask(token, f"/runs/{run.pk}/approve", "POST").status_code == 409
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    lifecycle.move(run, "fail")
    made = ask(token, f"/runs/{run.pk}/again", "POST", {})
    new = TestRun.objects.get(pk=made.json()["id"])
    assert made.status_code == 201 and (new.sha, new.trusted, new.retry_of) == (run.sha, False, run)
    # Who approved it may no longer: what stands on that approval is not repeated.
    without_right(user)
    other = User.objects.create_superuser("root")
    refused = ask(tokens.make(other, "x", ALL)[1], f"/runs/{run.pk}/again", "POST", {})
    assert refused.status_code == 409 and "may no longer approve" in refused.json()["message"]


def test_approval_is_for_the_newest_commit_only(world: World, token: str) -> None:
    Forge.objects.update(strangers_await_approval=True)
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", "!testme", "mallory", 2)
    world.hear()
    run = TestRun.objects.get()
    fork = next(row for row in world.remote.tables.repos.values() if row.owner == "mallory")
    world.remote.push(fork, "patch", {"evil.txt": "x"}, "More", world.mallory)
    answer = ask(token, f"/runs/{run.pk}/approve", "POST")
    assert answer.status_code == 409 and "has changed" in answer.json()["message"] and pull
    assert not RunEvent.objects.filter(kind="approved").exists()


# --- the commands

SERVER = "https://ci.example.org"


class _Session:
    """Hands requests to Django's test client, as if the server were elsewhere."""

    def request(self, method: str, url: str, *, params: Any, json: Any, headers: Any, **more: Any) -> requests.Response:
        assert url.startswith(f"{SERVER}/api/")
        prepared = requests.Request(method, url, params=params, json=json, headers=headers).prepare()
        kind = prepared.headers.get("Content-Type", "")
        told = browser().generic(method, prepared.path_url, prepared.body or b"", content_type=kind, headers=dict(headers))
        response = requests.Response()
        response.status_code, response.url = told.status_code, url
        response.headers.update(told.items())
        response.raw = io.BytesIO(told.content)
        return response


@pytest.fixture
def server(token: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands reach this server, with the token in the environment."""
    real = http.session_for
    monkeypatch.setattr(http, "session_for", lambda address: _Session() if address == f"{SERVER}/api" else real(address))
    monkeypatch.setenv("CC_CI_SERVER", SERVER)
    monkeypatch.setenv("CC_CI_TOKEN", token)
    yield


def run(name: str, *words: str) -> int:
    """The exit code of a command, which keeps the test's connection to the database, as `execute` would not."""
    try:
        call_command(name, *words)
    except Exit as stop:
        return int(stop.code or 0)
    except CommandError as error:
        print(error, file=sys.stderr)
        return MISUSE
    return 0


@pytest.mark.usefixtures("server")
def test_the_commands_list_show_and_cancel(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [TestRunFactory(running=True) for _ in range(3)]
    failed = TestRunFactory(failed=True, log="so it went\n\x1b[31mred\n")
    stage = StageResultFactory(run=failed, name="custom", status="failed")
    CaseResultFactory(stage=stage, name="test_page", status="failed", message="\x1b]0;evil\x07404")
    assert run("runs", "--active", "--most", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run("runs", failed.repository.full_name, "--state", "failed", "--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [str(failed.pk)]
    assert run("show", failed.url) == 0
    shown = capsys.readouterr().out
    assert failed.reason in shown and "test_page:  ]0;evil 404" in shown and "\x1b" not in shown
    assert run("show", str(failed.pk), "--log") == 0
    assert capsys.readouterr().out == "so it went\n [31mred\n"
    assert run("cancel", rows[0].pk.hex) == 0
    assert run("cancel", str(failed.pk)) == NO
    assert "409" in capsys.readouterr().err
    assert run("show", str(uuid.uuid4())) == NO


@pytest.mark.usefixtures("server")
def test_the_command_starts_and_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(event: str) -> None:
        def sleep(seconds: float) -> None:
            new = TestRun.objects.latest("created_at")
            lifecycle.move(new, "claim", attempt=1, started_at=timezone.now())
            lifecycle.move(new, event)

        monkeypatch.setattr(start, "time", SimpleNamespace(sleep=sleep))

    for event, code in (("pass", 0), ("fail", NO), ("error", OURS)):
        end(event)
        assert run("start", "recipes/web", "--wait") == code
    assert run("start", "--again", str(TestRun.objects.latest("created_at").pk), "--extra-tests", "--json") == 0
    assert "extra" in TestRun.objects.latest("created_at").stages
    assert run("start", "recipes/web", "--sha", "0" * 40) == NO
    assert run("start", "recipes/web", "--sha", "HEAD") == MISUSE
    for words in ([], ["recipes/web", "--again", "x"], ["--again", "x"], ["--again", str(uuid.uuid4()), "--sha", "0" * 40]):
        assert run("start", *words) == MISUSE


@pytest.mark.usefixtures("server")
def test_a_wrong_token_and_too_many_requests(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("django.conf.settings.CC_CI.api_requests_per_minute", 1)
    assert [run("runs"), run("runs")] == [0, OURS]
    assert "Try again in" in capsys.readouterr().err
    monkeypatch.setenv("CC_CI_TOKEN", "wrong")
    assert run("runs") == MISUSE
    assert "cc-ci token add" in capsys.readouterr().err
    ApiToken.objects.update(requests=0)
    file = tmp_path / "token"
    call_command("token", "add", "olga", "x", "--scope", "read")
    file.write_text(capsys.readouterr().out)
    assert run("runs", "--token-file", str(file)) == 0
