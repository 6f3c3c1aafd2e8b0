"""Strangers' runs repeated in the admin: one that nobody let go is not, and one that was is asked about like any other."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from enrollment.fakeforge.faults import Fault
from enrollment.models import Forge
from runs import dispatcher, lifecycle, manual, outcomes, scheduling
from runs.models import Report, RunEvent, State, TestRun
from tests.factories import TestRunFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.4)]

OFF = "recipes/web no longer accepts runs by strangers."


@pytest.fixture(autouse=True)
def strangers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """mallory has a pull request from a fork (number 2), and such runs may be approved. No harness is started."""
    monkeypatch.setattr(settings.CC_CI, "slots", 5)
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    Forge.objects.update(strangers_await_approval=True)
    world.add_fork_pull("recipes/web")


def hear(world: World, body: str = "!testme", user: str = "mallory") -> TestRun:
    """Say it some seconds after what was last read, handle it, and give the newest run."""
    world.clock.move(seconds=3)
    world.say("recipes/web", body, user, 2)
    world.hear()
    return TestRun.objects.latest("created_at")


def act(client: Client, action: str, run: TestRun) -> str:
    data = {"action": action, "_selected_action": [run.pk], "sure": "yes"}
    return client.post(reverse("admin:runs_testrun_changelist"), data, follow=True).content.decode()


def approved(world: World, way: str, admin_client: Client) -> TestRun:
    """mallory's run, let go in this way, and at its end."""
    run = hear(world)
    if way == "admin":
        act(admin_client, "approve", run)
    else:
        hear(world, f"!testme approve {run.sha}", "alice")
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    assert lifecycle.move(run, "fail")
    return run


def repeat(client: Client, run: TestRun) -> TestRun:
    """What "Run again" made of it."""
    act(client, "run", run)
    new = TestRun.objects.latest("created_at")
    assert new.retry_of == run
    return new


def later(run: TestRun) -> None:
    """As if it had waited for some minutes since it was queued."""
    RunEvent.objects.filter(run=run).update(at=timezone.now() - timedelta(minutes=5))


def alice_leaves(world: World) -> None:
    world.remote.remove_member(world.org, world.alice)


@pytest.mark.parametrize("action", ["run", "run_with_extra_tests"])
def test_a_run_that_waits_is_approved_and_not_run_again(world: World, admin_client: Client, action: str) -> None:
    run = hear(world)
    assert "is awaiting approval: choose the action Approve" in act(admin_client, action, run)
    assert TestRun.objects.get().state == State.AWAITING_APPROVAL


def test_a_run_that_nobody_let_go_is_not_run_again(world: World, admin_client: Client) -> None:
    run = hear(world)
    hear(world, "!testme cancel", "alice")
    assert "was never approved. Its author can ask again" in act(admin_client, "run", run)
    assert TestRun.objects.get().state == State.CANCELLED


@pytest.mark.parametrize("way", ["admin", "comment"])
def test_one_that_was_let_go_runs_again_by_its_approval(world: World, admin_client: Client, way: str) -> None:
    run = approved(world, way, admin_client)
    new = repeat(admin_client, run)
    assert (new.state, new.sha, new.trusted, new.requested_by) == (State.QUEUED, run.sha, False, "admin")
    assert new.events.get(kind="approved").data == run.events.get(kind="approved").data
    later(new)
    assert dispatcher.dispatch() == [new]
    who = "admin approved it" if way == "admin" else "alice is a member"
    assert who in new.events.get(kind="asked_again").text


@pytest.mark.parametrize("way", ["admin", "comment"])
def test_what_is_known_here_stops_it_at_once(world: World, admin_client: Client, way: str) -> None:
    new = repeat(admin_client, approved(world, way, admin_client))
    Forge.objects.update(strangers_await_approval=False)
    assert dispatcher.dispatch() == []
    new.refresh_from_db()
    assert (new.state, new.reason) == (State.CANCELLED, OFF)


def test_who_approved_it_and_leaves_stops_it(world: World, admin_client: Client) -> None:
    new = repeat(admin_client, approved(world, "comment", admin_client))
    later(new)
    alice_leaves(world)
    assert dispatcher.dispatch() == []
    new.refresh_from_db()
    assert new.state == State.CANCELLED and "alice, who approved it, is neither owner" in new.reason


def test_a_repeated_run_is_repeated_by_the_same_approval(world: World, admin_client: Client) -> None:
    again = repeat(admin_client, repeat(admin_client, approved(world, "comment", admin_client)))
    Forge.objects.update(block=[world.mallory.id])
    assert dispatcher.dispatch() == []
    again.refresh_from_db()
    assert (again.state, again.reason) == (State.CANCELLED, "mallory, who asked for it, has been blocked.")


def test_so_is_a_second_run_of_an_approved_commit(world: World, admin_client: Client) -> None:
    approved(world, "comment", admin_client)
    second = hear(world)
    lifecycle.want_stop(second, State.CANCELLED, "enough")
    new = repeat(admin_client, second)
    later(new)
    assert dispatcher.dispatch() == [new]
    Forge.objects.update(strangers_await_approval=False)
    assert OFF in act(admin_client, "run", second)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (alice_leaves, "cannot be repeated: alice, who approved it, is neither owner"),
        (lambda world: Forge.objects.update(strangers_await_approval=False), f"cannot be repeated: {OFF}"),
        (lambda world: world.remote.delete_repo("recipes/web"), "cannot be repeated: its source can no longer be read"),
        (lambda world: setattr(world.remote, "faults", lambda request: Fault(status=500)), "500"),
    ],
    ids=["alice has left", "approvals are off", "gone", "no answer"],
)
def test_what_would_not_start_is_told_when_it_is_asked_for(world: World, admin_client: Client, change, told: str) -> None:  # type: ignore[no-untyped-def]
    run = approved(world, "comment", admin_client)
    change(world)
    assert told in act(admin_client, "run", run)
    assert TestRun.objects.count() == 1
    world.remote.faults = None


def test_a_strangers_commit_that_a_maintainer_named_runs_again_while_the_maintainer_may(
    world: World, admin_client: Client
) -> None:
    named = hear(world, f"!testme {world.remote.pull('recipes/web', 2).head_sha}", "alice")
    lifecycle.want_stop(named, State.CANCELLED, "enough")
    new = repeat(admin_client, named)
    later(new)
    alice_leaves(world)
    assert dispatcher.dispatch() == []
    new.refresh_from_db()
    assert "alice, who asked for it, is neither owner" in new.reason


def test_a_strangers_run_of_which_nothing_is_known_any_more_does_not_start(db: None) -> None:
    run = TestRunFactory(trusted=False, comment=None, retry_of=None)
    assert dispatcher.dispatch() == []
    run.refresh_from_db()
    assert (run.state, run.reason) == (State.CANCELLED, "it is no longer known who asked for it.")


def test_nothing_is_queued_without_its_approval(world: World, admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both or none of them is written."""
    run = approved(world, "comment", admin_client)
    note = lifecycle.note

    def die(run: TestRun, kind: str, *args: str, **data: object) -> None:
        if kind == "approved":
            raise KeyboardInterrupt
        note(run, kind, *args, **data)

    monkeypatch.setattr(lifecycle, "note", die)
    with pytest.raises(KeyboardInterrupt):
        manual.run_again(run, "admin")
    assert TestRun.objects.count() == 1


def test_looking_at_runs_is_no_right_to_repeat_one(world: World, admin_client: Client, client: Client) -> None:
    run = approved(world, "comment", admin_client)
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_testrun"))
    client.force_login(viewer)
    act(client, "run", run)
    assert TestRun.objects.count() == 1
    viewer.user_permissions.add(Permission.objects.get(codename="add_testrun"))
    repeat(client, run)


def test_scheduled_runs_start_when_nobody_else_waits_and_leave_the_commits_status_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 1)
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    asked = TestRunFactory(state=State.PASSED)
    nightly = outcomes.create_run(
        asked.repository, sha=asked.sha, ref="refs/heads/main", stages=("install",), requested_by="", trusted=True, scheduled=True
    )
    person = TestRunFactory()
    assert scheduling.places() == {person.pk: 1, nightly.pk: 2}
    assert not Report.objects.filter(kind=Report.Kind.STATUS).exists()
    assert dispatcher.dispatch() == [person]
    lifecycle.move(person, "pass")
    assert dispatcher.dispatch() == [nightly]


def test_a_repository_that_the_forge_refuses_to_show_holds_up_no_other(world: World) -> None:
    world.add_recipe("other")
    world.enroll("recipes/other")
    world.say("recipes/web")
    world.say("recipes/other")
    world.hear()
    for run in TestRun.objects.all():
        later(run)
    web = TestRun.objects.get(repository__name="web").repository
    world.remote.faults = lambda request: Fault(status=403) if request.path.endswith(f"/{web.forge_repo_id}") else None
    assert [run.repository.name for run in dispatcher.dispatch()] == ["other"]
    world.remote.faults = None


def test_a_second_attempt_is_asked_about_again(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    run = TestRun.objects.get()
    later(run)
    assert lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    alice_leaves(world)
    assert dispatcher._try_again(run, "the harness was lost")
    assert dispatcher.dispatch() == []
    run.refresh_from_db()
    assert run.state == State.CANCELLED and "alice, who asked for it, is neither owner" in run.reason
