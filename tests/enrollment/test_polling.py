"""Polling: every comment exactly once, whatever the forge and this machine do; and few requests."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import requests
from django.conf import settings
from django.db import connections
from django.db.models import QuerySet
from django.utils import timezone

from controlplane import backoff, leases
from enrollment import comments, tasks
from enrollment.fakeforge.faults import Fault, Request, Response
from enrollment.fakeforge.server import serve
from enrollment.forges.gitea import client as gitea
from enrollment.models import Comment, Forge, PullRequest, Repository, Traffic
from enrollment.polling import poller
from enrollment.repositories import RESYNC_HOURS
from enrollment.signals import comment_received
from tests.chaos.air import FAIR, Air, Strike
from tests.killing import Killed, killed_at
from tests.world import EVERY_VERSION, World

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases, pytest.mark.slow(0.1)]

FORGEJO = "13.0.0+gitea-1.22.0"
SEARCH, COMMENTS, BY_ID = "/issues/search", "/issues/1/comments", "/repositories/"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause before a read is repeated."""
    monkeypatch.setattr(gitea, "wait_random_exponential", lambda *args, **more: lambda state: 0)


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """Version 1.15, or another by indirect parametrisation. No net is due."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, getattr(request, "param", "1.15"))
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    nets_later()
    yield world
    world.remote.faults = None
    world.close()


every_version = pytest.mark.parametrize("world", EVERY_VERSION, indirect=True)
newer = pytest.mark.parametrize("world", ["1.22", FORGEJO], indirect=True)


def nets_later() -> None:
    Repository.objects.update(net_due_at=timezone.now() + timedelta(hours=6))


def stored() -> list[int]:
    """The forge's ids of the comments that have a row."""
    return sorted(Comment.objects.values_list("forge_comment_id", flat=True))


def asked(world: World, part: str = "") -> list[Request]:
    return [request for request in world.own_requests() if part in request.path]


def requests_of(world: World, step: Callable[[], object]) -> list[str]:
    """The paths that a step asks for."""
    before = len(world.own_requests())
    step()
    return [request.path for request in world.own_requests()[before:]]


def fail(world: World, fault: Fault | None, part: str = "") -> None:
    world.remote.faults = lambda request: fault if part in request.path else None


def wait_no_longer() -> None:
    """As if the time that a failure asks to wait had passed."""
    Forge.objects.update(backoff_until=None)
    Traffic.objects.all().delete()  # with what the circuit and the budget remember
    PullRequest.objects.update(comments_next_try_at=None)
    Repository.objects.filter(last_error__gt="").update(net_due_at=timezone.now())


# --- what is seen


@every_version
def test_a_comment_is_stored_once_however_often_one_looks(world: World) -> None:
    said = world.say("recipes/web", "!testme\r\nplease")
    told: list[int] = []

    def hear(sender: object, comment_id: int, **more: object) -> None:
        told.append(comment_id)

    comment_received.connect(hear)
    try:
        with mock.patch("django.db.transaction.on_commit", lambda function: function()):
            looks = [world.poll() for _ in range(3)]
    finally:
        comment_received.disconnect(hear)
    row = Comment.objects.get()
    assert (row.forge_comment_id, row.author_id, row.body) == (said.id, world.alice.id, said.body)
    assert (row.via, row.created_at, row.outcome) == ("poll", said.created, "")
    assert (row.pull_request.number, row.pull_request.title) == (1, "A change")
    assert [look.comments for look in looks] == [1, 0, 0]
    assert told == [row.pk]
    assert looks[0].text() == "sandbox: 1 changed, 1 new comments"


@pytest.mark.parametrize(
    ("body", "user", "seen"),
    [
        ("!testme", "alice", True),
        ("please\r\n!TestMe", "mallory", True),
        ("Looks good", "alice", False),
        ("!test me", "alice", False),
        ("!testme", "cc-ci", False),
    ],
)
def test_only_what_may_hold_a_command_of_somebody_else_is_kept(world: World, body: str, user: str, seen: bool) -> None:
    world.say("recipes/web", body, user)
    world.poll()
    assert Comment.objects.exists() is seen


@every_version
def test_comments_on_closed_pull_requests_count_and_those_on_issues_do_not(world: World) -> None:
    world.remote.close_pull(world.remote.pull("recipes/web", 1))
    said = world.say("recipes/web")
    issue = world.remote.open_issue("recipes/web", world.alice, "An issue")
    world.say("recipes/web", number=issue.number)
    world.poll()
    Repository.objects.update(net_due_at=None)
    world.poll()
    assert stored() == [said.id]


@every_version
def test_what_becomes_visible_a_minute_late_is_seen(world: World) -> None:
    world.poll()
    said = world.say("recipes/web", visible_after=60)
    for _ in range(7):
        world.poll()
        assert not Comment.objects.exists()
        world.clock.move(seconds=9)
    world.poll()
    assert stored() == [said.id]


def test_the_windows_are_the_servers_times(world: World) -> None:
    world.clock.move(hours=-30)
    row = world.enroll("recipes/web")[0]
    Repository.objects.update(enrolled_at=row.enrolled_at - timedelta(hours=30))
    for _ in range(3):
        said = world.say("recipes/web")
        before = world.clock().replace(microsecond=0)
        world.poll()
        after = world.clock()
        world.clock.move(minutes=7)
        assert said.id in stored()
    world.forge.refresh_from_db()
    assert world.forge.cursor and before <= world.forge.cursor <= after


def test_comments_nobody_told_of_come_by_the_net(world: World) -> None:
    """An edit does not move the pull request, so the search never tells of it."""
    said = world.say("recipes/web", "Looks good")
    world.poll()
    world.clock.move(minutes=9)
    world.poll()
    world.remote.edit_comment(said, "Looks good\n!testme")
    world.poll()
    assert not Comment.objects.exists()
    Repository.objects.update(net_due_at=timezone.now() - timedelta(seconds=1))
    world.poll()
    row = Comment.objects.get()
    assert row.via == "net"
    assert row.edited
    assert Repository.objects.get().net_due_at > timezone.now() + timedelta(hours=RESYNC_HOURS * 0.89)


@pytest.mark.parametrize("search", ["works", "refused"])
def test_what_two_odd_answers_hid_is_in_the_next_net(world: World, search: str) -> None:
    """The comment's text was missing when it was read, and once more when the repository was listed."""
    if search == "refused":
        fail(world, Fault(status=404), SEARCH)
    world.poll()
    said = world.say("recipes/web")
    air = Air(world.remote, lambda seconds: None)
    air.strike = lambda request: Strike("hides", change=hide) if "/comments" in request.path else FAIR
    if search == "refused":
        air.strike = lambda request: Strike("no", status=404) if "search" in request.path else Strike("hides", change=hide)
    with air.carrying():
        world.poll()
        world.clock.move(minutes=4)
        Repository.objects.update(net_due_at=None)
        world.poll()
    assert stored() == []
    world.clock.move(minutes=4)
    Repository.objects.update(net_due_at=None)
    world.poll()
    assert stored() == [said.id]


def hide(answer: Response) -> Response:
    """An answer in which every text is empty."""
    data = json.loads(answer.body)
    for row in data if isinstance(data, list) else []:
        row["body"] = ""
    answer.body = json.dumps(data).encode()
    return answer


def test_the_nets_are_spread_out(world: World) -> None:
    names = [world.remote.add_repo("recipes", f"r{number}").full_name for number in range(30)]
    world.enroll(*names)
    due = sorted(row.net_due_at for row in Repository.objects.exclude(name="web"))
    assert due[-1] - due[0] > timedelta(hours=RESYNC_HOURS / 2)
    assert due[-1] <= timezone.now() + timedelta(hours=RESYNC_HOURS)
    Repository.objects.update(net_due_at=None)
    paths = requests_of(world, world.poll)
    assert len([path for path in paths if path.endswith("/issues/comments")]) == poller.LISTINGS_A_POLL
    # All of them in turn, and then spread anew.
    while Repository.objects.filter(net_due_at=None).exists():
        world.poll()
    due = sorted(row.net_due_at for row in Repository.objects.all())
    assert due[-1] - due[0] > timedelta(minutes=20)


# --- with few requests


@every_version
@pytest.mark.parametrize("owners", [1, 5])
def test_an_idle_tick_is_one_request_for_each_owner(world: World, owners: int) -> None:
    names = [f"o{number}" for number in range(owners - 1)]
    for name in names:
        world.remote.add_org(name, world.admin)
        world.remote.add_repo(name, "app")
    world.enroll(*[f"{name}/app" for name in names])
    nets_later()
    world.clock.move(minutes=9)
    world.poll()
    # Where the owner is ignored, and that was seen, one answer holds all.
    searches = owners if world.remote.features.owner_filter else 1
    assert requests_of(world, world.poll) == ["/api/v1/repos/issues/search"] * searches


def test_an_idle_tick_costs_the_same_for_many_repositories(world: World) -> None:
    names = [world.remote.add_repo("recipes", f"r{number}").full_name for number in range(40)]
    world.enroll(*names)
    nets_later()
    world.clock.move(minutes=9)
    world.poll()
    assert len(requests_of(world, world.poll)) == 1


@pytest.mark.parametrize("world", ["1.15"], indirect=True)
def test_where_the_owner_is_ignored_all_are_asked_for_at_once(world: World) -> None:
    for name in ("one", "two", "three"):
        world.remote.add_org(name, world.admin)
        world.add_recipe("app", name)
    world.enroll("one/app", "two/app")
    nets_later()
    ours, foreign = world.say("one/app"), world.say("three/app")
    world.poll()
    world.forge.refresh_from_db()
    assert world.forge.search == "ignored"
    assert stored() == [ours.id]
    assert foreign.id not in stored()
    paths = requests_of(world, world.poll)
    assert paths.count("/api/v1/repos/issues/search") == 1
    assert "owner" not in asked(world, SEARCH)[-1].parameters
    # After a day it is looked at whether that has changed.
    Forge.objects.update(search_probed_at=timezone.now() - timedelta(days=2))
    world.poll()
    assert "owner" in asked(world, SEARCH)[-1].parameters
    world.forge.refresh_from_db()
    assert world.forge.search == "ignored"
    assert world.forge.search_probed_at > timezone.now() - timedelta(minutes=1)


@newer
def test_where_the_owner_counts_that_is_noted(world: World) -> None:
    world.poll()
    world.forge.refresh_from_db()
    assert world.forge.search == "works"


# --- names change


@every_version
@pytest.mark.parametrize("what", ["repository", "owner", "both", "transfer"])
def test_renames_are_followed_by_id(world: World, what: str) -> None:
    world.poll()
    repo = world.remote.repo("recipes/web")
    if what in ("repository", "both"):
        world.remote.rename_repo("recipes/web", "site")
    if what in ("owner", "both"):
        world.remote.rename_user("recipes", "cookbook")
    if what == "transfer":
        world.remote.transfer("recipes/web", "mallory")
    repo = world.remote.repo(repo)
    # The old names go to somebody else, with the same trigger in it.
    if what in ("owner", "both"):
        world.remote.add_org("recipes", world.mallory)
    world.add_recipe("web")
    world.clock.move(seconds=5)
    foreign, ours = world.say("recipes/web"), world.say(repo.full_name)
    for _ in range(3):
        world.poll()
    world.forge.refresh_from_db()
    if what != "repository" and world.forge.search == "works":
        # A search for the old owner tells of the one who took the name; the net asks by id.
        assert not Comment.objects.exists()
        Repository.objects.update(net_due_at=None)
        world.poll()
    assert stored() == [ours.id]
    assert foreign.id not in stored()
    row = Repository.objects.get()
    assert row.full_name == repo.full_name
    assert row.owner_id == world.remote.user(row.owner).id


@newer
def test_an_owner_that_is_unknown_shows_and_is_found_under_the_new_name(world: World) -> None:
    world.poll()
    said = world.say("recipes/web")
    world.remote.rename_user("recipes", "cookbook")
    world.clock.move(minutes=9)
    cursor = Forge.objects.get().cursor
    look = world.poll()
    assert any("recipes" in problem and "400" in problem for problem in look.problems)
    assert "now cookbook/web" in look.problems
    world.forge.refresh_from_db()
    assert "does not exist" in world.forge.last_error
    assert world.forge.cursor == cursor, "under the new name nothing was asked yet"
    assert world.poll().problems == []
    assert stored() == [said.id]
    world.forge.refresh_from_db()
    assert world.forge.last_error == ""


@newer
def test_an_owner_that_is_gone_stays_visible_and_holds_up_no_other(world: World) -> None:
    world.remote.add_org("other", world.admin)
    world.add_recipe("app", "other")
    world.enroll("other/app")
    nets_later()
    world.remote.delete_repo("recipes/web")
    world.remote.rename_user("recipes", "gone")
    said = world.say("other/app")
    for _ in range(2):
        look = world.poll()
        assert any("recipes" in problem for problem in look.problems)
    assert stored() == [said.id]
    assert "404" in Repository.objects.get(owner="recipes").last_error
    world.forge.refresh_from_db()
    assert world.forge.failures == 0
    assert "recipes" in world.forge.last_error
    assert world.forge.cursor is not None


# --- the search is refused


@every_version
@pytest.mark.parametrize("status", [403, 404, 400, 422])
def test_without_a_search_each_repository_is_listed(world: World, status: int) -> None:
    world.add_recipe("app")
    world.enroll("recipes/app")
    nets_later()
    world.poll()
    fail(world, Fault(status=status), SEARCH)
    said = [world.say("recipes/web").id, world.say("recipes/app").id]
    world.poll()
    world.forge.refresh_from_db()
    assert world.forge.search == "refused"
    assert stored() == said
    paths = requests_of(world, world.poll)
    assert not any(SEARCH in path for path in paths)
    assert len([path for path in paths if path.endswith("/issues/comments")]) == 2
    # A day later the search is tried again, and what came meanwhile is in its window.
    cursor = world.forge.cursor
    fail(world, None)
    Forge.objects.update(search_probed_at=timezone.now() - timedelta(days=1, minutes=1))
    said.append(world.say("recipes/web").id)
    paths = requests_of(world, world.poll)
    assert any(SEARCH in path for path in paths)
    world.forge.refresh_from_db()
    assert world.forge.search == "works"
    assert world.forge.cursor >= cursor
    assert stored() == said


def test_where_it_stays_refused_it_is_asked_once_a_day(world: World) -> None:
    fail(world, Fault(status=403), SEARCH)
    for _ in range(4):
        world.poll()
    assert len(asked(world, SEARCH)) == 1
    Forge.objects.update(search_probed_at=timezone.now() - timedelta(days=1, minutes=1))
    for _ in range(4):
        world.poll()
    assert len(asked(world, SEARCH)) == 2


# --- the forge in trouble

TROUBLE = [
    ("401", Fault(status=401), "create a new one"),
    ("429", Fault(status=429), "fewer requests"),
    ("500", Fault(status=500), "continues by itself"),
    ("502 in HTML", Fault(status=502, body="<html>"), "continues by itself"),
    ("closed", Fault(close="before"), "continues by itself"),
    ("cut", Fault(cut=1), "continues by itself"),
    ("timeout", Fault(delay=0.3), "response within 0.1 s"),
    ("garbage", Fault(body="<html>Log in</html>"), "not valid JSON"),
    ("no list", Fault(body="{}"), "expected a list"),
]


@pytest.mark.parametrize(("fault", "words"), [row[1:] for row in TROUBLE], ids=[row[0] for row in TROUBLE])
def test_a_failing_forge_shows_waits_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Fault, words: str
) -> None:
    world.poll()
    cursor = Forge.objects.get().cursor
    said = world.say("recipes/web")
    fail(world, fault, SEARCH)
    with monkeypatch.context() as patched:
        patched.setattr(settings.CC_CI, "http_timeout", 0.1 if fault.delay else 60)
        look = world.poll()
    assert look.problems
    forge = Forge.objects.get()
    assert words in forge.last_error
    assert forge.last_error_at
    assert forge.failures == 1
    assert forge.cursor == cursor
    assert forge.backoff_until > timezone.now()
    assert world.token not in forge.last_error
    # While it waits it asks nothing.
    assert requests_of(world, world.poll) == []
    assert "waits until" in world.poll().text()
    fail(world, None)
    wait_no_longer()
    world.poll()
    assert stored() == [said.id]
    forge = Forge.objects.get()
    assert (forge.failures, forge.last_error, forge.backoff_until) == (0, "", None)


def test_the_forge_is_off_for_hours(world: World) -> None:
    world.poll()
    before = world.say("recipes/web")
    world.server.stop()
    for _ in range(12):
        wait_no_longer()
        world.poll()
        world.clock.move(minutes=30)
    assert Forge.objects.get().failures == 12
    during = world.say("recipes/web")
    world.server = serve(world.remote)
    Forge.objects.update(url=world.server.url)
    wait_no_longer()
    world.clock.move(minutes=30)
    world.poll()
    assert stored() == [before.id, during.id]


def test_a_restart_goes_on_where_the_rows_stand(world: World) -> None:
    world.poll()
    world.clock.move(hours=5)
    said = world.say("recipes/web")
    world.clock.move(hours=5)
    world.forge = Forge.objects.get(pk=world.forge.pk)
    poller.poll(Forge.objects.get())
    assert stored() == [said.id]


def test_the_waits_grow_with_jitter_and_have_an_end(world: World) -> None:
    fail(world, Fault(status=500))
    waits: list[list[float]] = []
    for failures in range(25):
        waits.append([])
        for _ in range(4):
            Forge.objects.update(backoff_until=None, failures=failures)
            Traffic.objects.all().delete()
            now = timezone.now()
            world.poll()
            waits[-1].append((Forge.objects.get().backoff_until - now).total_seconds())
    tick = settings.CC_CI.poll_seconds
    assert all(tick * 0.75 <= wait <= tick * 1.25 + 1 for wait in waits[0])
    assert max(waits[0]) < min(waits[3]) < min(waits[20])
    assert all(wait <= backoff.LONGEST.total_seconds() * 1.25 + 1 for row in waits for wait in row)
    longest = [wait for row in waits[12:] for wait in row]
    assert max(longest) - min(longest) > 60, "all at the same moment"


@pytest.mark.parametrize(("asked_for", "at_least", "at_most"), [("300", 299, 301), ("99999999", 3599, 3601), ("1", 10, 120)])
def test_a_forge_that_asks_to_wait_is_obeyed_up_to_an_hour(world: World, asked_for: str, at_least: float, at_most: float) -> None:
    fail(world, Fault(status=429, headers={"Retry-After": asked_for}))
    world.poll()
    wait = (Forge.objects.get().backoff_until - timezone.now()).total_seconds()
    assert at_least <= wait <= at_most


def test_a_bad_token_while_comments_are_read_stops_the_look(world: World) -> None:
    said = world.say("recipes/web")
    fail(world, Fault(status=401), COMMENTS)
    world.poll()
    forge = Forge.objects.get()
    assert forge.failures == 1
    assert "token" in forge.last_error
    fail(world, None)
    wait_no_longer()
    world.poll()
    assert stored() == [said.id]


def test_a_token_that_cannot_be_decrypted_shows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.secrets.keys", lambda: ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="])
    look = world.poll()
    assert "Cannot decrypt a secret" in look.problems[0]
    forge = Forge.objects.get()
    assert forge.failures == 1
    assert "Cannot decrypt a secret" in forge.last_error


def test_one_forge_in_trouble_holds_up_no_other(world: World) -> None:
    """One forge is looked at by the task itself, several by a task each."""
    said = world.say("recipes/web")
    assert tasks.poll() == "sandbox: 1 changed, 1 new comments"
    Forge.objects.create(name="a", url="http://127.0.0.1:9", bot_id=1)
    off = Forge.objects.create(name="b", url="http://127.0.0.1:9/b", bot_id=1, enabled=False)
    before = world.queue_length()
    assert tasks.poll() == "2 forges queued"
    assert world.queue_length() == before + 2
    assert tasks.poll_forge(world.forge.pk).startswith("sandbox: ")
    assert tasks.poll_forge(off.pk) == "gone"
    assert stored() == [said.id]


@pytest.mark.parametrize("fault", [Fault(status=404), Fault(status=403), Fault(status=500), Fault(body="[null]"), Fault(cut=3)])
def test_a_poisoned_pull_request_holds_up_no_other(world: World, fault: Fault) -> None:
    web = world.remote.repo("recipes/web")
    second = world.remote.open_pull(web, web, "change", world.alice)
    poisoned, sound = world.say("recipes/web"), world.say("recipes/web", number=second.number)
    fail(world, fault, COMMENTS)
    look = world.poll()
    assert stored() == [sound.id]
    assert any("recipes/web#1" in problem for problem in look.problems)
    forge = Forge.objects.get()
    assert "recipes/web#1" in forge.last_error
    assert forge.failures == 0
    row = PullRequest.objects.get(number=1)
    assert row.comments_failures == 1
    assert row.comments_next_try_at > timezone.now()
    # It waits by itself, longer each time, while the others go on.
    assert not any(COMMENTS in path for path in requests_of(world, world.poll))
    wait_no_longer()
    world.poll()
    assert PullRequest.objects.get(number=1).comments_failures == 2
    fail(world, None)
    wait_no_longer()
    world.poll()
    assert stored() == [poisoned.id, sound.id]
    row = PullRequest.objects.get(number=1)
    assert (row.comments_failures, row.comments_next_try_at, row.comments_wanted_since) == (0, None, None)


def test_an_odd_row_of_the_search_delays_only_what_it_hides(world: World) -> None:
    web = world.remote.repo("recipes/web")
    second = world.remote.open_pull(web, web, "change", world.alice)
    hidden, shown = world.say("recipes/web"), world.say("recipes/web", number=second.number)

    def plan(request: Request) -> Fault | None:
        if SEARCH not in request.path:
            return None
        found = [row for row in real if row["number"] == second.number]
        return Fault(body=json.dumps([{"id": 5}, *found]))

    url = f"{world.server.url}/api/v1/repos/issues/search?type=pulls"
    real = requests.get(url, headers={"Authorization": f"token {world.token}"}, timeout=60).json()
    world.remote.faults = plan
    look = world.poll()
    assert any(problem.startswith("search:") for problem in look.problems)
    assert stored() == [hidden.id, shown.id]
    assert Comment.objects.get(forge_comment_id=hidden.id).via == "net"
    assert Forge.objects.get().cursor


def test_a_repository_that_cannot_be_listed_shows_on_its_row(world: World) -> None:
    world.add_recipe("app")
    world.enroll("recipes/app")
    Repository.objects.update(net_due_at=None)
    gone = Repository.objects.get(name="app")
    world.remote.delete_repo("recipes/app")
    look = world.poll()
    assert any(problem.startswith("recipes/app: ") for problem in look.problems)
    gone.refresh_from_db()
    assert "404" in gone.last_error
    assert gone.net_due_at > timezone.now()
    assert Repository.objects.get(name="web").last_error == ""


# --- people at the same time


def test_what_a_person_changes_during_a_look_stays(world: World) -> None:
    row = Repository.objects.get()
    Repository.objects.update(net_due_at=None)
    client = world.client()
    listing = client.repository_comments

    def slowly(*args: Any) -> Any:
        Repository.objects.filter(pk=row.pk).update(active=False, allow=[17], source="hand")
        return listing(*args)

    client.repository_comments = slowly  # type: ignore[method-assign]
    poller.poll(world.forge, client)
    row.refresh_from_db()
    assert not row.active
    assert row.allow == [17]


@pytest.mark.django_db(transaction=True)
def test_two_at_once_are_one(world: World) -> None:
    said = world.say("recipes/web")
    gate, over = threading.Event(), threading.Event()

    def plan(request: Request) -> None:
        if SEARCH in request.path:
            gate.set()
            assert over.wait(600)

    world.remote.faults = plan
    looks: list[comments.PollResult] = []

    def other() -> None:
        try:
            looks.append(poller.poll(Forge.objects.get()))
        finally:
            connections.close_all()

    thread = threading.Thread(target=other)
    thread.start()
    assert gate.wait(600)
    assert world.poll().skipped == "another worker is polling it"
    over.set()
    thread.join()
    assert looks[0].comments == 1
    assert stored() == [said.id]


def test_a_late_owner_of_the_lease_moves_no_cursor(world: World) -> None:
    world.poll()
    cursor = Forge.objects.get().cursor
    world.clock.move(minutes=5)
    said = world.say("recipes/web")

    search = poller._search

    def slowly(*args: Any) -> Any:
        found = search(*args)
        leases.Lease.objects.update(owner="somebody else")
        return found

    with mock.patch.object(poller, "_search", slowly):
        world.poll()
    assert Forge.objects.get().cursor == cursor
    leases.Lease.objects.update(expires_at=timezone.now())
    world.poll()
    assert stored() == [said.id]


# --- a process that is killed


#: Calls to the forge, and writes to the database.
STEPS: list[tuple[Any, str]] = [
    (gitea.GiteaClient, "_once"),
    (QuerySet, "update"),
    (QuerySet, "create"),
    (QuerySet, "update_or_create"),
    (Repository, "save"),
    (Comment, "save"),
]


@pytest.mark.slow(4)
@pytest.mark.parametrize("world", [pytest.param("1.15", marks=pytest.mark.on_postgresql), FORGEJO], indirect=True)
@pytest.mark.parametrize("way", ["search", "net", "refused"])
def test_killed_at_any_step_each_comment_counts_once(world: World, way: str) -> None:
    world.poll()
    air = Air(world.remote, lambda seconds: None)
    if way == "refused":
        air.strike = lambda request: Strike("refused", status=404, body=b'{"message": ""}') if SEARCH in request.path else FAIR
    web = world.remote.repo("recipes/web")
    world.remote.open_pull(web, web, "change", world.alice)
    said: list[int] = []
    all_steps: set[str] = set()
    for step in itertools.count():
        world.clock.move(minutes=11)
        said += [world.say("recipes/web").id, world.say("recipes/web", number=2).id]
        world.clock.move(minutes=11)
        if way == "net":
            Repository.objects.update(net_due_at=None)
        steps: list[str] = []
        killed = None
        with killed_at(step, steps, STEPS), air.carrying():
            try:
                world.poll()
            except Killed as error:
                killed = error
        all_steps.update(steps)
        leases.Lease.objects.update(expires_at=timezone.now())  # a dead owner's lease runs out
        wait_no_longer()
        with air.carrying():
            world.poll()
        assert stored() == said, f"killed {killed}"
        if not killed:
            break
        # What was counted goes, on both sides: each of some 70 steps would read all that came before.
        while len(said) > 4:
            world.remote.delete_comment(said.pop(0))
        Comment.objects.exclude(forge_comment_id__in=said).delete()
    assert step > 15
    assert {"before GiteaClient._once", "after GiteaClient._once", "after QuerySet.update", "before Comment.save"} <= all_steps
