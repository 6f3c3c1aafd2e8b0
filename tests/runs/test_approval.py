"""A stranger's run waits for a trusted person's approval of one commit; whoever is no longer trusted starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import time_machine
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from enrollment.fakeforge import git
from enrollment.fakeforge.faults import Fault, Request
from enrollment.fakeforge.model import Pull, Repo
from enrollment.models import Comment, Forge, Repository
from runs import approval, dispatcher, lifecycle
from runs.harness.stage_table import DEFAULT_STAGES, STAGES
from runs.models import Report, RunEvent, State, TestRun
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

AGO = timedelta(minutes=5)


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """Strangers' runs may be approved; mallory has a pull request from a fork (number 2). No harness is started."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    world = World(tmp_path, getattr(request, "param", "1.22"))
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    Forge.objects.update(strangers_await_approval=True)
    world.add_fork_pull("recipes/web")
    yield world
    world.remote.faults = None
    world.close()


def pull_of(world: World) -> Pull:
    return world.remote.pull("recipes/web", 2)


def hear(world: World, body: str = "!testme", user: str = "mallory", after: int = 3) -> Comment:
    """Say it some seconds after what was last read, and handle it."""
    world.clock.move(seconds=after)
    said = world.say("recipes/web", body, user, 2)
    world.hear()
    return Comment.objects.get(forge_comment_id=said.id)


def approve(world: World, user: str = "alice") -> Comment:
    """What the comment of the run that waits says to write."""
    (waiting,) = TestRun.objects.filter(state=State.AWAITING_APPROVAL)
    line = f"!testme approve {waiting.sha}"
    assert line in world.own_comments("recipes/web", 2)[-1]
    return hear(world, line, user)


def push(world: World) -> str:
    return world.remote.push(fork_of(world), "patch", {"more.txt": str(world.clock())}, "More", world.mallory)


def fork_of(world: World) -> Repo:
    return world.remote.repo("mallory/web")


def force(world: World, sha: str) -> None:
    git.git(world.remote.folder(fork_of(world)), "update-ref", "refs/heads/patch", sha)
    world.remote.pushed(fork_of(world), world.mallory)


@pytest.mark.parametrize("world", ["1.15", "1.22"], indirect=True)
def test_a_strangers_run_waits_and_a_member_lets_it_go(world: World) -> None:
    asked = hear(world)
    run = TestRun.objects.get()
    assert (run.state, run.sha, run.trusted, asked.outcome) == (State.AWAITING_APPROVAL, pull_of(world).head_sha, False, "run")
    assert "needs approval" in asked.reason
    (text,) = world.own_comments("recipes/web", 2)
    assert f"!testme approve {run.sha}" in text
    assert dispatcher.dispatch() == []
    answered = approve(world)
    run.refresh_from_db()
    assert (run.state, answered.outcome) == (State.QUEUED, "acted")
    assert "alice" in answered.reason and "approved" in answered.reason
    assert answered.facts["waiting_sha"] == run.sha
    event = run.events.get(kind="approved")
    assert event.data == {"login": "alice", "id": world.alice.id, "comment": answered.forge_comment_id}
    assert dispatcher.dispatch() == [run]


def test_without_the_policy_a_stranger_is_told_as_ever(world: World) -> None:
    Repository.objects.update(strangers_await_approval="off")  # its own word counts before its forge's
    assert hear(world).outcome == "reply"
    assert not TestRun.objects.exists()


def test_only_the_author_of_the_pull_request_gets_a_run_that_waits(world: World) -> None:
    world.remote.add_user("eve")
    assert hear(world, user="eve").outcome == "reply"
    assert not TestRun.objects.exists()


@pytest.mark.parametrize("user", ["mallory", "eve", "renovate", "trudy"])
def test_nobody_else_approves(world: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "bots", ["renovate"])
    for name in ("eve", "renovate", "trudy"):
        world.remote.add_user(name)
    for name in ("renovate", "trudy"):
        world.remote.add_member(world.org, name, "write")
    Forge.objects.update(block=[world.remote.user("trudy").id])
    hear(world)
    said = approve(world, user)
    assert TestRun.objects.get().state == State.AWAITING_APPROVAL
    assert said.outcome in ("reply", "ignored")


def test_asking_twice_is_one_run_and_one_comment(world: World) -> None:
    hear(world)
    assert hear(world).outcome == "joined"
    assert TestRun.objects.count() == 1
    assert len(world.own_comments("recipes/web", 2)) == 1


def test_a_push_in_between_needs_a_new_approval(world: World) -> None:
    hear(world)
    old = TestRun.objects.get()
    world.clock.move(seconds=3)
    new = push(world)
    hear(world)
    old.refresh_from_db()
    assert old.state == State.SUPERSEDED
    said = hear(world, f"!testme approve {old.sha}", "alice")
    assert said.outcome == "reply" and f"is not for `{old.sha}`" in world.own_comments("recipes/web", 2)[-1]
    waiting = TestRun.objects.exclude(pk=old.pk).get()
    assert (waiting.state, waiting.sha, waiting.requested_by) == (State.AWAITING_APPROVAL, new, "mallory")
    approve(world)
    waiting.refresh_from_db()
    assert waiting.state == State.QUEUED


@pytest.mark.parametrize("digits", [0, 7, 10, 39])
def test_an_approval_names_the_whole_commit(world: World, digits: int) -> None:
    """Whoever pushes one commit, has it approved and puts another in its place can choose when, and the first digits."""
    hear(world)
    run = TestRun.objects.get()
    said = hear(world, f"!testme approve {run.sha[:digits]}".rstrip(), "alice")
    run.refresh_from_db()
    assert (run.state, said.outcome) == (State.AWAITING_APPROVAL, "reply")
    assert f"!testme approve {run.sha}\n" in world.own_comments("recipes/web", 2)[-1]
    assert f"/commits/{run.sha}" in world.own_comments("recipes/web", 2)[-1]


def test_a_commit_that_was_put_back_is_not_what_was_approved(world: World) -> None:
    """The run waits for one commit, a harmless one is shown while alice looks, and the first one comes back."""
    world.clock.move(seconds=3)
    evil = push(world)
    hear(world)
    harmless = git.text(world.remote.folder(fork_of(world)), "rev-parse", f"{evil}^")
    force(world, harmless)
    world.clock.move(seconds=3)
    world.say("recipes/web", "!testme approve", "alice", 2)
    world.clock.move(seconds=3)
    force(world, evil)
    world.hear()
    assert TestRun.objects.get().state == State.AWAITING_APPROVAL


def test_a_push_while_the_approval_is_handled_starts_what_was_approved(world: World) -> None:
    hear(world)
    run = TestRun.objects.get()
    seen: list[str] = []

    def plan(request: Request) -> Fault | None:
        if not seen and request.path.endswith("/pulls/2"):
            seen.append(request.path)  # the answer that is being given is read; the push comes right behind it
            return Fault(delay_after=0)
        if len(seen) == 1:
            seen.append(push(world))
        return None

    world.remote.faults = plan
    approve(world)
    world.remote.faults = None
    push(world)
    dispatcher.dispatch()
    run.refresh_from_db()
    assert (run.state, TestRun.objects.count()) == (State.STARTING, 1)
    assert run.sha != pull_of(world).head_sha


def test_another_commit_than_waits_cannot_be_approved(world: World) -> None:
    hear(world)
    hear(world, f"!testme approve {'f' * 10}", "alice")
    assert TestRun.objects.get().state == State.AWAITING_APPROVAL
    assert "is not for `ffffffffff`" in world.own_comments("recipes/web", 2)[-1]


def test_nothing_waits(world: World) -> None:
    assert hear(world, "!testme approve", "alice").outcome == "reply"
    assert "No run is waiting for approval" in world.own_comments("recipes/web", 2)[-1]


def test_an_approved_commit_needs_no_second_approval_and_the_next_one_does(world: World) -> None:
    hear(world)
    approve(world)
    lifecycle.move(TestRun.objects.get(), "claim", attempt=1, started_at=timezone.now())
    lifecycle.move(TestRun.objects.get(), "fail")
    hear(world)
    again = TestRun.objects.order_by("created_at").last()
    assert again is not None
    assert (again.state, again.trusted) == (State.QUEUED, False)
    lifecycle.want_stop(again, State.CANCELLED, "enough")
    world.clock.move(seconds=3)
    push(world)
    hear(world)
    assert TestRun.objects.order_by("created_at").last().state == State.AWAITING_APPROVAL  # type: ignore[union-attr]


def test_an_approval_ends_with_the_trust_in_who_gave_it(world: World) -> None:
    hear(world)
    approve(world)
    lifecycle.want_stop(TestRun.objects.get(), State.CANCELLED, "enough")
    world.remote.remove_member(world.org, world.alice)
    hear(world)
    assert TestRun.objects.order_by("created_at").last().state == State.AWAITING_APPROVAL  # type: ignore[union-attr]


def test_a_stranger_takes_no_maintainers_place(world: World) -> None:
    sha = pull_of(world).head_sha
    hear(world, f"!testme {sha}", "alice")
    world.clock.move(seconds=3)
    push(world)
    assert hear(world).outcome == "ignored"
    run = TestRun.objects.get()
    assert (run.state, run.sha) == (State.QUEUED, sha)


def test_a_maintainer_who_names_the_commit_needs_no_approval(world: World) -> None:
    hear(world)
    sha = TestRun.objects.get().sha
    hear(world, f"!testme {sha}", "alice")
    assert [run.state for run in TestRun.objects.order_by("created_at")] == [State.SUPERSEDED, State.QUEUED]


def test_retry_repeats_nothing_that_nobody_let_go(world: World) -> None:
    hear(world)
    hear(world, "!testme cancel", "alice")
    assert hear(world, "!testme retry", "alice").outcome == "reply"
    assert TestRun.objects.get().state == State.CANCELLED


def test_a_stranger_leaves_no_stage_out(world: World) -> None:
    """Else one who may not ask could have the part repeated that works, and make a red verdict green."""
    hear(world, "!testme --stages extra --from 1.0.0+1")
    run = TestRun.objects.get()
    assert (tuple(run.stages), run.upgrade_from) == (STAGES, "")
    approve(world)
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    lifecycle.move(run, "fail")
    hear(world, "!testme --stages install")
    again = TestRun.objects.exclude(pk=run.pk).get()
    assert (again.state, tuple(again.stages)) == (State.QUEUED, DEFAULT_STAGES)


def statuses(world: World, sha: str) -> list[str]:
    world.report()
    return [row.wanted["state"] for row in Report.objects.filter(kind=Report.Kind.STATUS) if row.wanted["sha"] == sha]


def test_a_run_that_was_never_let_go_says_nothing_of_a_commit(world: World) -> None:
    """Anybody can open a pull request with a maintainer's commit as its head."""
    world.say("recipes/web", number=1)
    world.hear()
    run = TestRun.objects.get()
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    git.git(
        world.remote.folder(fork_of(world)), "fetch", "-q", str(world.remote.folder(world.remote.repo("recipes/web"))), run.sha
    )
    world.clock.move(seconds=3)
    force(world, run.sha)
    hear(world)
    assert TestRun.objects.get(state=State.AWAITING_APPROVAL).sha == run.sha
    assert statuses(world, run.sha) == ["pending"]
    lifecycle.move(run, "fail")
    assert statuses(world, run.sha) == ["failure"], "and what waits does not hide it"
    hear(world, "!testme cancel", "alice")
    assert statuses(world, run.sha) == ["failure"]


# --- in the admin


def act(client: Client, run: TestRun) -> str:
    data = {"action": "approve", "_selected_action": [run.pk], "sure": "yes"}
    return client.post(reverse("admin:runs_testrun_changelist"), data, follow=True).content.decode()


def test_approved_in_the_admin(world: World, admin_client: Client) -> None:
    hear(world)
    run = TestRun.objects.get()
    assert run.short_sha in act(admin_client, run)
    run.refresh_from_db()
    assert run.state == State.QUEUED
    assert run.events.get(kind="approved").data == {"login": "admin"}
    assert "is not awaiting approval" in act(admin_client, run)


def test_the_admin_is_told_of_a_push(world: World, admin_client: Client) -> None:
    hear(world)
    push(world)
    run = TestRun.objects.get()
    assert "the pull request has changed since" in act(admin_client, run)
    run.refresh_from_db()
    assert run.state == State.AWAITING_APPROVAL


def test_the_admin_is_told_of_a_forge_that_does_not_answer(world: World, admin_client: Client) -> None:
    hear(world)
    world.remote.faults = lambda request: Fault(status=500)
    assert "500" in act(admin_client, TestRun.objects.get())
    assert TestRun.objects.get().state == State.AWAITING_APPROVAL


def test_looking_at_runs_is_no_right_to_approve(world: World, client: Client) -> None:
    hear(world)
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_testrun"))
    client.force_login(viewer)
    act(client, TestRun.objects.get())
    assert TestRun.objects.get().state == State.AWAITING_APPROVAL


# --- who leaves


def later(run: TestRun) -> None:
    """As if it had waited for some minutes since it was let go."""
    RunEvent.objects.filter(run=run).update(at=timezone.now() - AGO)


def test_a_member_removed_between_two_comments(world: World) -> None:
    assert hear(world, "!testme " + pull_of(world).head_sha, "alice").outcome == "run"
    world.remote.remove_member(world.org, world.alice)
    assert hear(world, "!testme --extra-tests", "alice").outcome == "reply"
    assert TestRun.objects.count() == 1


@pytest.mark.parametrize("approved", [True, False])
def test_a_member_removed_between_approval_and_start(world: World, approved: bool) -> None:
    if approved:
        hear(world)
        approve(world)
    else:
        hear(world, "!testme " + pull_of(world).head_sha, "alice")
    run = TestRun.objects.get()
    world.remote.remove_member(world.org, world.alice)
    later(run)
    assert f"alice, who {'approved' if approved else 'asked for'} it, is neither owner" in cancelled_for(run)
    world.report()
    assert "is neither owner" in world.own_comments("recipes/web", 2)[-1]


def test_who_is_still_there_is_asked_about_once_a_minute_and_starts(world: World) -> None:
    hear(world)
    approve(world)
    run = TestRun.objects.get()
    later(run)
    assert approval.ask_again() == {run.pk}
    asked = len(world.own_requests())
    assert approval.ask_again() == {run.pk}
    assert len(world.own_requests()) == asked
    assert dispatcher.dispatch() == [run]


def test_what_cannot_be_asked_about_waits_and_others_do_not(world: World) -> None:
    hear(world, "!testme " + pull_of(world).head_sha, "alice")
    run = TestRun.objects.get()
    later(run)
    world.remote.faults = lambda request: Fault(status=500)
    assert dispatcher.dispatch() == []
    run.refresh_from_db()
    assert run.state == State.QUEUED
    world.remote.faults = None
    with time_machine.travel(timezone.now() + timedelta(seconds=2)):
        assert dispatcher.dispatch() == [run]


def test_who_comes_next_in_the_place_of_one_that_left_is_asked_about_too(world: World) -> None:
    bea = world.remote.add_user("bea")
    world.remote.add_member(world.org, bea, "write")
    hear(world, "!testme " + pull_of(world).head_sha, "alice")
    world.say("recipes/web", "!testme", "bea", 1)
    world.hear()
    first, second = TestRun.objects.order_by("created_at")
    world.remote.remove_member(world.org, world.alice)
    world.remote.remove_member(world.org, bea)
    later(first)
    later(second)
    assert dispatcher.dispatch() == []
    assert [run.state for run in TestRun.objects.all()] == [State.CANCELLED, State.CANCELLED]


def test_a_run_that_cannot_be_asked_about_holds_up_no_fresh_one(world: World) -> None:
    hear(world, "!testme " + pull_of(world).head_sha, "alice")
    old = TestRun.objects.get()
    world.say("recipes/web", "!testme", "alice", 1)
    world.hear()
    fresh = TestRun.objects.exclude(pk=old.pk).get()
    later(old)
    world.remote.faults = lambda request: Fault(status=500)
    assert dispatcher.dispatch() == [fresh]
    old.refresh_from_db()
    assert old.state == State.QUEUED


def cancelled_for(run: TestRun) -> str:
    """Nothing starts, and this run is cancelled instead. Returns the reason."""
    assert dispatcher.dispatch() == []
    run.refresh_from_db()
    assert run.state == State.CANCELLED
    return run.reason


def approve_by(world: World, way: str, admin_client: Client) -> TestRun:
    """mallory's run, approved some minutes ago in this way."""
    hear(world)
    if way == "admin":
        act(admin_client, TestRun.objects.get())
    else:
        approve(world)
    run = TestRun.objects.get()
    assert run.state == State.QUEUED
    later(run)
    return run


def blocked(world: World) -> None:
    Forge.objects.update(block=[world.mallory.id])


def let_go_of(world: World) -> None:
    Repository.objects.update(active=False)


def forge_off(world: World) -> None:
    Forge.objects.update(enabled=False)


def no_approvals(world: World) -> None:
    Repository.objects.update(strangers_await_approval="off")


def closed(world: World) -> None:
    world.remote.close_pull(pull_of(world), world.alice)


def rewritten(world: World) -> None:
    """Another commit in the place of the one that was approved, which is none of the branch any more."""
    folder = world.remote.folder(fork_of(world))
    git.git(folder, "update-ref", "refs/heads/patch", git.text(folder, "rev-parse", "refs/heads/main"))
    push(world)


def gone(world: World) -> None:
    world.remote.delete_repo("recipes/web")


def nothing(world: World) -> None:
    """All is as it was."""


AGAINST = {
    blocked: "mallory, who asked for it, has been blocked",
    let_go_of: "recipes/web is no longer enrolled",
    forge_off: "recipes/web is no longer enrolled",
    no_approvals: "recipes/web no longer accepts runs by strangers",
    closed: "the pull request is now closed",
    rewritten: "is no longer a commit of the pull request",
    gone: "can no longer be read",
}


@pytest.mark.parametrize("way", ["admin", "comment"])
@pytest.mark.parametrize("change", list(AGAINST), ids=lambda change: change.__name__)
def test_what_speaks_against_an_approved_run_at_its_start(
    world: World, admin_client: Client, way: str, change: Callable[[World], None]
) -> None:
    run = approve_by(world, way, admin_client)
    change(world)
    assert AGAINST[change] in cancelled_for(run)


@pytest.mark.parametrize("change", [blocked, let_go_of, no_approvals], ids=lambda change: change.__name__)
def test_what_is_known_here_counts_at_once(world: World, admin_client: Client, change: Callable[[World], None]) -> None:
    run = approve_by(world, "admin", admin_client)
    RunEvent.objects.filter(run=run).update(at=timezone.now())
    world.remote.faults = lambda request: Fault(status=500)  # and the forge is not needed for it
    change(world)
    cancelled_for(run)


def test_who_approved_in_the_admin_and_may_not_any_more(world: World, admin_client: Client, admin_user: User) -> None:
    run = approve_by(world, "admin", admin_client)
    admin_user.is_superuser = False
    admin_user.save()
    assert cancelled_for(run) == "admin, who approved it in the admin, may no longer approve runs."


def test_whose_account_was_switched_off_approved_nothing(world: World, admin_client: Client, admin_user: User) -> None:
    run = approve_by(world, "admin", admin_client)
    lifecycle.want_stop(run, State.CANCELLED, "enough")
    hear(world)  # the commit was approved, and needs no second approval
    again = TestRun.objects.exclude(pk=run.pk).get()
    assert again.state == State.QUEUED
    lifecycle.want_stop(again, State.CANCELLED, "enough")
    admin_user.is_active = False
    admin_user.save()
    hear(world)
    assert TestRun.objects.order_by("created_at").last().state == State.AWAITING_APPROVAL  # type: ignore[union-attr]


def test_who_was_blocked_gets_no_second_run_of_an_approved_commit(world: World) -> None:
    hear(world)
    approve(world)
    lifecycle.want_stop(TestRun.objects.get(), State.CANCELLED, "enough")
    hear(world)
    again = TestRun.objects.order_by("created_at").last()
    assert again is not None
    later(again)
    blocked(world)
    cancelled_for(again)


def approve_again(world: World, way: str, admin_client: Client) -> TestRun:
    """mallory's second run of a commit that was approved in this way: queued at once, without an approval of its own."""
    first = approve_by(world, way, admin_client)
    lifecycle.want_stop(first, State.CANCELLED, "enough")
    assert hear(world).outcome == "run"
    again = TestRun.objects.exclude(pk=first.pk).get()
    assert again.state == State.QUEUED and not again.events.filter(kind="approved").exists()
    return again


@pytest.mark.parametrize("way", ["admin", "comment"])
@pytest.mark.parametrize("waits", [True, False], ids=["for minutes", "for a moment"])
def test_approvals_switched_off_stop_a_second_run_of_an_approved_commit(
    world: World, admin_client: Client, way: str, waits: bool
) -> None:
    again = approve_again(world, way, admin_client)
    if waits:
        later(again)
    else:
        world.remote.faults = lambda request: Fault(status=500)  # what is known here needs no forge
    no_approvals(world)
    assert cancelled_for(again) == AGAINST[no_approvals] + "."


def test_so_does_who_approved_in_the_admin_and_may_not_any_more(world: World, admin_client: Client, admin_user: User) -> None:
    again = approve_again(world, "admin", admin_client)
    admin_user.is_active = False
    admin_user.save()
    assert cancelled_for(again) == "admin, who approved it in the admin, may no longer approve runs."


def test_a_second_run_of_an_approved_commit_starts_where_nothing_has_changed(world: World, admin_client: Client) -> None:
    again = approve_again(world, "comment", admin_client)
    later(again)
    assert dispatcher.dispatch() == [again]


def test_who_left_needs_approvals_that_are_still_there(world: World) -> None:
    """alice named a commit that was approved, too. Once she has left, the run stands on the approval alone."""
    bea = world.remote.add_user("bea")
    world.remote.add_member(world.org, bea, "write")
    hear(world)
    approve(world, "bea")
    lifecycle.want_stop(TestRun.objects.get(), State.CANCELLED, "enough")
    hear(world, f"!testme {pull_of(world).head_sha}", "alice")
    run = TestRun.objects.exclude(state=State.CANCELLED).get()
    later(run)
    world.remote.remove_member(world.org, world.alice)
    no_approvals(world)
    assert "alice, who asked for it, is neither owner" in cancelled_for(run)


def test_approvals_that_are_off_stop_no_maintainers_run_of_a_strangers_commit(world: World) -> None:
    no_approvals(world)
    hear(world, f"!testme {pull_of(world).head_sha}", "alice")
    run = TestRun.objects.get()
    assert not run.trusted
    later(run)
    assert dispatcher.dispatch() == [run]


def test_nobody_approves_in_the_admin_where_approvals_are_off(world: World, admin_client: Client) -> None:
    hear(world)
    no_approvals(world)
    run = TestRun.objects.get()
    assert AGAINST[no_approvals] in act(admin_client, run)
    run.refresh_from_db()
    assert run.state == State.AWAITING_APPROVAL


@pytest.mark.parametrize("change", [nothing, push], ids=["nothing changed", "a push behind it"])
def test_an_approval_in_the_admin_is_held_against_the_forge_before_the_start(
    world: World, admin_client: Client, change: Callable[[World], object]
) -> None:
    run = approve_by(world, "admin", admin_client)
    change(world)
    world.remote.faults = lambda request: Fault(status=500)
    assert dispatcher.dispatch() == []
    run.refresh_from_db()
    assert run.state == State.QUEUED
    world.remote.faults = None
    with time_machine.travel(timezone.now() + timedelta(seconds=2)):
        assert dispatcher.dispatch() == [run]
    assert run.events.get(kind="asked_again").text == "admin approved it in the admin"


def test_who_took_the_organisations_name_keeps_no_run_alive(world: World) -> None:
    hear(world)
    approve(world)
    run = TestRun.objects.get()
    later(run)
    world.remote.remove_member(world.org, world.alice)
    world.remote.rename_user("recipes", "cookbook")
    other = world.remote.add_org("recipes", world.alice)
    world.remote.add_member(other, world.bot, "read")
    cancelled_for(run)


def test_the_admin_is_told_that_the_author_is_blocked(world: World, admin_client: Client) -> None:
    hear(world)
    blocked(world)
    run = TestRun.objects.get()
    assert "has been blocked" in act(admin_client, run)
    run.refresh_from_db()
    assert run.state == State.AWAITING_APPROVAL


def test_a_push_between_decision_and_start_changes_nothing(world: World) -> None:
    hear(world)
    approve(world)
    run = TestRun.objects.get()
    pinned = run.sha
    push(world)
    dispatcher.dispatch()
    run.refresh_from_db()
    assert (run.state, run.sha) == (State.STARTING, pinned)
    assert pinned != pull_of(world).head_sha


def test_the_page_of_a_run_that_waits(world: World, client: Client) -> None:
    hear(world)
    page = client.get(TestRun.objects.get().get_absolute_url())
    assert page.status_code == 200
    assert "awaiting approval" in page.content.decode().lower() or "waiting for approval" in page.content.decode()
