"""A stranger pushes at the worst moment: the reviewed commit runs, or nothing does, and a pinned commit never changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings

from enrollment.access import authorization
from enrollment.access.authorization import Approval, Code, Decision, Facts, Person, approve, decide
from enrollment.fakeforge import git
from enrollment.fakeforge.faults import Fault, Request
from enrollment.models import Comment
from runs import dispatcher
from runs.models import State, TestRun
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]
NEWER = ["1.22", "13.0.0+gitea-1.22.0"]
PULL, TIMELINE, MEMBERS, COMMENTS = "/pulls/2", "/timeline", "/members/", "/issues/2/comments"


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """mallory has a pull request from a fork (number 2), opened a minute ago."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    world = World(tmp_path, request.param)
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    world.add_fork_pull("recipes/web")
    world.clock.move(minutes=1)
    yield world
    world.remote.faults = None
    world.close()


newer = pytest.mark.parametrize("world", NEWER, indirect=True)
every_version = pytest.mark.parametrize("world", ["1.15", *NEWER], indirect=True)


def push(world: World) -> str:
    fork = next(row for row in world.remote.tables.repos.values() if row.owner == "mallory")
    return world.remote.push(fork, "patch", {"evil.txt": str(len(world.remote.requests))}, "Evil", world.mallory)


def push_at(world: World, part: str, *, before: bool) -> list[str]:
    """Push once: just before the first request of this kind is answered, or when the next one after it comes in."""
    pushed: list[str] = []
    asked: list[str] = []

    def plan(request: Request) -> Fault | None:
        hit = part in request.path and request.method == "GET"
        if not pushed and ((before and hit) or (not before and asked)):
            world.clock.move(seconds=2)
            pushed.append(push(world))
        if hit:
            asked.append(request.path)
        return None

    world.remote.faults = plan
    return pushed


def head(world: World) -> str:
    return world.remote.pull("recipes/web", 2).head_sha


@newer
@pytest.mark.parametrize(
    ("part", "before"),
    [
        (COMMENTS, True),  # between the comment and its being read
        (COMMENTS, False),  # between that and its being handled
        (MEMBERS, True),  # while it is asked who asks
        (PULL, True),  # just before the head is read
        (PULL, False),  # between the head and the timeline
        (TIMELINE, True),
    ],
)
def test_a_push_before_the_decision_starts_nothing(world: World, part: str, before: bool) -> None:
    seen = head(world)
    world.say("recipes/web", number=2)
    pushed = push_at(world, part, before=before)
    world.hear()
    assert pushed and pushed[0] == head(world) != seen
    assert not TestRun.objects.exists()
    row = Comment.objects.get()
    assert row.outcome == "reply" and "something was pushed since the comment" in row.reason
    assert row.facts["pushed_after_comment"] is True


@newer
def test_a_push_right_behind_the_timeline_changes_nothing_of_what_runs(world: World) -> None:
    seen = head(world)
    world.say("recipes/web", number=2)
    pushed = push_at(world, TIMELINE, before=False)
    world.hear()  # the first request after the timeline is the report's
    run = TestRun.objects.get()
    assert pushed and run.sha == seen != head(world)


@every_version
def test_a_push_between_decision_and_start_never_moves_the_pinned_commit(world: World) -> None:
    seen = head(world)
    world.say("recipes/web", f"!testme {seen}", number=2)
    world.hear()
    push(world)
    assert dispatcher.dispatch() == [TestRun.objects.get()]
    push(world)
    world.hear()
    run = TestRun.objects.get()
    assert (run.state, run.sha) == (State.STARTING, seen)


@every_version
@pytest.mark.parametrize("part", [MEMBERS, PULL, "/commits"])
def test_a_named_commit_is_what_runs_whatever_is_pushed_meanwhile(world: World, part: str) -> None:
    seen = head(world)
    world.say("recipes/web", f"!testme {seen}", number=2)
    pushed = push_at(world, part, before=True)
    world.hear()
    assert pushed
    assert TestRun.objects.get().sha == seen


@newer
def test_a_head_that_was_put_back_while_it_was_closed_is_not_the_one_that_was_looked_at(world: World) -> None:
    """The newest push that was written down led to that very commit, but another was the head in between."""
    pull, fork = world.remote.pull("recipes/web", 2), next(r for r in world.remote.tables.repos.values() if r.owner == "mallory")

    def put(sha: str) -> None:
        world.remote.close_pull(pull, world.mallory)
        git.git(world.remote.folder(fork), "update-ref", "refs/heads/patch", sha)
        world.remote.pushed(fork, world.mallory)
        world.remote.reopen_pull(pull, world.mallory)
        world.clock.move(minutes=5)

    harmless = head(world)
    evil = push(world)
    world.clock.move(minutes=5)
    put(harmless)
    assert head(world) == harmless
    world.say("recipes/web", number=2)
    put(evil)
    world.hear()
    assert head(world) == evil and not TestRun.objects.exists()
    assert Comment.objects.get().outcome == "reply"


@newer
def test_a_push_in_the_very_second_of_the_comment_counts_as_after_it(world: World) -> None:
    from datetime import UTC, datetime

    world.clock.fixed = datetime.now(UTC).replace(microsecond=0)
    push(world)
    world.say("recipes/web", number=2)
    world.hear()
    assert not TestRun.objects.exists()


@newer
@pytest.mark.parametrize("moved", [False, True], ids=["as it was", "pushed to meanwhile"])
def test_a_review_looked_at_what_was_there_when_it_was_begun(world: World, moved: bool) -> None:
    begun = world.remote.review("recipes/web", 2, world.alice, "", "PENDING")
    world.clock.move(minutes=5)
    seen = push(world) if moved else head(world)
    world.clock.move(minutes=5)
    said = world.remote.submit_review(begun, "A remark on a line.\n!testme")
    world.hear()
    row = Comment.objects.get(forge_comment_id=said.id)
    assert (row.outcome, row.facts["pushed_after_comment"]) == ("reply" if moved else "run", moved)
    assert [run.sha for run in TestRun.objects.all()] == ([] if moved else [seen])


@newer
def test_a_review_that_was_touched_after_a_push_is_no_younger_for_that(world: World) -> None:
    said = world.remote.review("recipes/web", 2, world.alice, "!testme", "APPROVED")
    world.clock.move(seconds=5)
    push(world)
    world.clock.move(seconds=5)
    said.updated = world.clock().replace(microsecond=0)  # as by who dismisses it, and takes that back
    world.hear()
    assert Comment.objects.get().outcome == "reply" and not TestRun.objects.exists()


@newer
def test_a_forced_push_back_to_what_was_looked_at_still_counts_as_a_push(world: World) -> None:
    seen = head(world)
    world.say("recipes/web", number=2)
    world.clock.move(seconds=2)
    push(world)
    world.remote.pull("recipes/web", 2).head_sha = seen
    world.hear()
    assert not TestRun.objects.exists()


@newer
@pytest.mark.parametrize("entry", ["late", "lost with the pull request closed", "odd"])
def test_a_push_that_the_timeline_does_not_tell_of_starts_nothing(world: World, entry: str) -> None:
    """The head comes from git at once; the timeline's entry later, from a task of the server's, and never for a closed one."""
    world.say("recipes/web", number=2)
    world.clock.move(seconds=2)
    pull = world.remote.pull("recipes/web", 2)
    if entry == "lost with the pull request closed":
        world.remote.close_pull(pull, world.mallory)
        pushed = push(world)
        world.remote.reopen_pull(pull, world.mallory)
    else:
        pushed = push(world)
        newest = world.remote.comments_of(pull, kinds="pull_push")[-1]
        newest.body = '{"is_force_push": false, "commit_ids": []}'
        newest.created -= timedelta(hours=1)
        if entry == "late":
            del world.remote.tables.comments[newest.id]
    world.hear()
    assert pushed == head(world)
    assert not TestRun.objects.exists()
    assert "does not say when it was pushed" in Comment.objects.get().reason


# --- the tables, pure

MEMBER, STRANGER = Person(3, "alice", is_member=True), Person(4, "mallory")
BLOCKED = Person(5, "trudy", is_member=True, is_owner=True, is_allowed=True, is_team=True, is_blocked=True)
A, B = "a" * 40, "b" * 40
FORK = Code("fork", "mallory/web")
WITH_APPROVAL = authorization.Policy(approval=True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(BLOCKED, BLOCKED, FORK, A), (False, "", "nothing")),
        (Facts(BLOCKED, BLOCKED, FORK, A, policy=WITH_APPROVAL, approved=(A,)), (False, "", "nothing")),
        (Facts(Person(6, "t", is_team=True), STRANGER, Code("branch"), A), (True, A, "")),
        (Facts(STRANGER, STRANGER, FORK, A), (False, "", "outsider")),
        (Facts(STRANGER, STRANGER, FORK, A, policy=WITH_APPROVAL), (False, A, "needs_approval")),
        (Facts(STRANGER, MEMBER, FORK, A, policy=WITH_APPROVAL), (False, "", "outsider")),
        (Facts(STRANGER, STRANGER, FORK, A, policy=WITH_APPROVAL, approved=(A,)), (True, A, "")),
        (Facts(STRANGER, STRANGER, FORK, A, policy=WITH_APPROVAL, approved=(B,)), (False, A, "needs_approval")),
        (Facts(STRANGER, STRANGER, FORK, A, (A, B), B[:7], policy=WITH_APPROVAL, approved=(A,)), (False, B, "needs_approval")),
        (Facts(STRANGER, STRANGER, FORK, A, (A, B), B[:7], policy=WITH_APPROVAL, approved=(B,)), (True, B, "")),
        (Facts(STRANGER, STRANGER, FORK, A, (A,), "f" * 7, policy=WITH_APPROVAL), (False, "", "unknown_sha")),
        # An approval helps the stranger, and changes nothing for a member: their own rules are stricter.
        (Facts(MEMBER, STRANGER, FORK, A, policy=WITH_APPROVAL, approved=(A,)), (False, A, "needs_sha")),
        (Facts(MEMBER, BLOCKED, FORK, A), (False, A, "needs_sha")),
    ],
)  # fmt: skip
def test_decide(facts: Facts, expected: tuple[bool, str, str]) -> None:
    decision = decide(facts)
    assert (decision.allowed, decision.sha, decision.refusal) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Approval(MEMBER, A, A), (True, "")),
        (Approval(MEMBER, A), (False, "needs_sha")),
        (Approval(MEMBER, A, A[:7]), (False, "needs_sha")),
        (Approval(MEMBER, A, A[:-1]), (False, "needs_sha")),
        (Approval(MEMBER, A, f"{A}0"), (False, "unknown_sha")),
        (Approval(MEMBER, A, B), (False, "unknown_sha")),
        (Approval(STRANGER, A, A), (False, "outsider")),
        (Approval(BLOCKED, A, A), (False, "nothing")),
        (Approval(Person(9, "cc-ci", is_self=True, is_member=True), A, A), (False, "nothing")),
    ],
)
def test_approve(facts: Approval, expected: tuple[bool, str]) -> None:
    decision: Decision = approve(facts)
    assert (decision.allowed, decision.refusal) == expected
    assert decision.sha == (A if decision.allowed else "")
    assert facts.asker.login in decision.reason
