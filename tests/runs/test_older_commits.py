"""A push while a run waits, runs or has ended; a newer request, and a closed pull request, by policy."""

from __future__ import annotations

import pytest
from django.conf import settings
from django.test import Client

from enrollment.fakeforge.faults import Fault
from enrollment.models import PullRequest
from enrollment.repositories import note_pull
from runs import dispatcher, lifecycle, render
from runs.models import State, TestRun
from tests.factories import TestRunFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

OLDER = "This is about an older commit"


@pytest.fixture
def run(world: World) -> TestRun:
    world.say("recipes/web")
    world.hear()
    return TestRun.objects.get()


def push(world: World, text: str = "later") -> str:
    world.clock.move(seconds=3)
    return world.remote.push("recipes/web", "change", {"more.txt": text}, "Later", world.alice)


def hear(world: World) -> None:
    world.clock.move(minutes=1)
    world.hear()


def under_way(run: TestRun) -> TestRun:
    lifecycle.move(run, "claim", attempt=1, host="elsewhere")
    lifecycle.move(run, "begin")
    return run


def comments(world: World) -> list[str]:
    world.report()
    return world.own_comments("recipes/web")


def edits(world: World) -> int:
    return sum(request.method == "PATCH" for request in world.own_requests())


@pytest.mark.parametrize("ended", [True, False])
def test_a_push_marks_the_comment_and_the_page_once(world: World, run: TestRun, client: Client, ended: bool) -> None:
    under_way(run)
    if ended:
        lifecycle.move(run, "pass")
    assert OLDER not in comments(world)[-1] and OLDER not in client.get(run.get_absolute_url()).content.decode()
    before = edits(world), len(comments(world))
    push(world)
    hear(world)
    assert OLDER in comments(world)[-1] and OLDER in client.get(run.get_absolute_url()).content.decode()
    push(world, "later still")
    hear(world)
    hear(world)
    assert (edits(world), len(comments(world))) == (before[0] + 1, before[1]), "one edit, and no new comment"


def test_a_head_that_came_back_is_the_newest_again(world: World, run: TestRun) -> None:
    pull = world.client().pull("recipes", "web", 1)
    push(world)
    hear(world)
    assert OLDER in comments(world)[-1]
    note_pull(PullRequest.objects.get(), pull)
    assert OLDER not in comments(world)[-1]


def test_a_pull_request_without_a_run_costs_no_further_request(world: World) -> None:
    world.say("recipes/web", "Fine.")
    push(world)
    before = len(world.own_requests())
    hear(world)
    assert not [request for request in world.own_requests()[before:] if request.path.endswith("/pulls/1")]


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=404, body="<html>"), Fault(status=200, body="{}")])
def test_a_head_that_cannot_be_read_is_read_later_and_hides_no_comment(world: World, run: TestRun, fault: Fault) -> None:
    push(world)
    world.say("recipes/web", "!testme status")
    world.remote.faults = lambda request: fault if request.path.endswith("/pulls/1") else None
    hear(world)
    world.remote.faults = None
    assert any("The newest run" in text for text in comments(world))
    assert not any(OLDER in text for text in comments(world))
    PullRequest.objects.update(comments_next_try_at=None)
    world.forge.refresh_from_db()
    type(world.forge).objects.update(backoff_until=None)
    hear(world)
    assert any(OLDER in text for text in comments(world))


def test_a_full_listing_finds_a_push_too(world: World, run: TestRun) -> None:
    from enrollment.models import Repository

    push(world)
    world.remote.faults = lambda request: Fault(status=200, body="[]") if request.path.endswith("/issues/search") else None
    Repository.objects.update(net_due_at=None)
    hear(world)
    world.remote.faults = None
    assert OLDER in comments(world)[-1]


# --- a newer request


def test_by_default_it_stops_a_run_under_way(world: World, run: TestRun) -> None:
    under_way(run)
    push(world)
    world.say("recipes/web")
    hear(world)
    run.refresh_from_db()
    assert run.stop_wanted == State.SUPERSEDED


def test_by_policy_it_waits_for_the_run_under_way_and_tells_of_its_end(
    world: World, run: TestRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.CC_CI, "supersede", "queued")
    under_way(run)
    push(world)
    world.say("recipes/web")
    hear(world)
    run.refresh_from_db()
    second = TestRun.objects.exclude(pk=run.pk).get()
    assert (run.state, run.stop_wanted, second.state) == (State.RUNNING, "", State.QUEUED)
    assert dispatcher._claim() == [], "one of a pull request at a time"
    assert f"An earlier run, at `{run.short_sha}`, is running: [details]({run.url})" in comments(world)[-1]
    lifecycle.move(run, "fail")
    (text,) = comments(world)
    assert f"An earlier run, at `{run.short_sha}`, failed: [details]({run.url})" in text and "is queued" in text
    push(world, "third")
    world.say("recipes/web")
    hear(world)
    second.refresh_from_db()
    assert second.state == State.SUPERSEDED, "one that waits gives way"


# --- a closed pull request


@pytest.mark.parametrize(("policy", "stops"), [("queued", ""), ("running", State.CANCELLED)])
def test_closing_stops_a_run_under_way_by_policy(
    world: World, run: TestRun, monkeypatch: pytest.MonkeyPatch, policy: str, stops: str
) -> None:
    monkeypatch.setattr(settings.CC_CI, "close", policy)
    under_way(run)
    world.clock.move(seconds=3)
    world.remote.merge_pull(world.remote.pull("recipes/web", 1), world.alice)
    hear(world)
    dispatcher.dispatch()
    dispatcher.dispatch()
    run.refresh_from_db()
    assert (run.state, run.stop_wanted) == (State.RUNNING, stops)
    if stops:
        assert run.stop_reason == "The pull request was merged before the run ended."


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=404, body="<html>"), Fault(status=200, body="{}")])
def test_a_forge_that_does_not_say_so_stops_nothing(
    world: World, run: TestRun, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(settings.CC_CI, "close", "running")
    under_way(run)
    PullRequest.objects.update(state="closed")
    world.remote.faults = lambda request: fault if "/pulls/" in request.path else None
    dispatcher.dispatch()
    world.remote.faults = None
    run.refresh_from_db()
    assert run.stop_wanted == ""


def test_an_unknown_head_is_no_older_commit() -> None:
    assert not render.outdated(TestRunFactory(pull_request__head_sha="", sha="ab" * 20))
    assert not render.outdated(TestRunFactory(pull_request=None))
