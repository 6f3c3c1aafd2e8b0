"""Whose code a pull request has: it is trusted only if nobody but trusted people can have pushed it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from enrollment.fakeforge import api, git
from enrollment.fakeforge.faults import Fault, Request
from enrollment.fakeforge.model import Pull, Repo
from enrollment.models import Comment, Repository
from runs import approval
from runs.models import TestRun
from tests.world import World

pytestmark = pytest.mark.slow(0.1)

FORGEJO = "13.0.0+gitea-1.22.0"
PATCH = {"patch.txt": "from outside\n"}


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """Version 1.22, or another by indirect parametrisation. alice and carol are members, mallory and bob are not."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, getattr(request, "param", "1.22"))
    world.connect()
    world.remote.add_user("bob")
    world.remote.add_member(world.org, world.remote.add_user("carol"), "write")
    world.add_recipe("web")
    world.enroll("recipes/web")
    yield world
    world.remote.faults = None
    world.close()


newer = pytest.mark.parametrize("world", ["1.22", FORGEJO], indirect=True)
every_version = pytest.mark.parametrize("world", ["1.15", "1.22", FORGEJO], indirect=True)


def from_fork(world: World, owner: str, author: str, pusher: str = "") -> Pull:
    """A pull request of `author` from the fork of `owner`."""
    fork = world.remote.fork("recipes/web", owner, f"web-of-{owner}")
    world.remote.push(fork, "patch", PATCH, "Patch", pusher or owner)
    return world.remote.open_pull("recipes/web", fork, "patch", author, "From a fork")


def fork_of(world: World, owner: str) -> Repo:
    return world.remote.repo(f"{owner}/web-of-{owner}")


def asked(world: World, number: int, text: str = "!testme", user: str = "alice") -> TestRun | None:
    """What becomes of a command that is written some seconds later."""
    world.clock.move(seconds=3)
    world.say("recipes/web", text, user, number)
    world.hear()
    return TestRun.objects.filter(pull_request__number=number).order_by("created_at").last()


def trusted(world: World, number: int) -> bool:
    run = asked(world, number)
    return run is not None and run.trusted


def reason() -> str:
    return str(Comment.objects.order_by("created_at", "forge_comment_id").last().reason)  # type: ignore[union-attr]


# --- pushes for review (AGit)


@newer
def test_a_strangers_push_for_review_is_a_strangers_code(world: World) -> None:
    pull = world.remote.push_for_review("recipes/web", "mallory", "nice", PATCH)
    run = asked(world, pull.number)
    assert run and (run.sha, run.trusted) == (pull.head_sha, False)
    assert "by a push without a branch (AGit); not trusted: mallory" in reason()


@newer
def test_a_push_for_review_after_the_comment_starts_nothing(world: World) -> None:
    pull = world.remote.push_for_review("recipes/web", "mallory", "nice", PATCH)
    world.say("recipes/web", number=pull.number)
    world.clock.move(seconds=2)
    world.remote.push_for_review("recipes/web", "mallory", "nice", {"evil.txt": "at the worst moment\n"})
    world.hear()
    assert not TestRun.objects.exists()
    assert "something was pushed since the comment" in reason()


@newer
def test_a_maintainers_push_for_review_is_the_maintainers(world: World) -> None:
    pull = world.remote.push_for_review("recipes/web", "alice", "nice", PATCH)
    assert trusted(world, pull.number)
    earlier = pull.head_sha
    world.remote.push_for_review("recipes/web", "alice", "nice", {"more.txt": "more\n"})
    run = asked(world, pull.number, f"!testme {earlier}")
    assert run and (run.sha, run.trusted) == (earlier, False), "the timeline says who pushed the head, and no more"


@newer
def test_who_takes_the_name_of_a_push_for_review_is_not_its_author(world: World) -> None:
    """The forge keeps the old name of a closed one, and takes the pushes of whoever has that name when it is open again."""
    pull = world.remote.push_for_review("recipes/web", "alice", "nice", PATCH)
    world.remote.close_pull(pull, "alice")
    world.remote.rename_user("alice", "alicia")
    impostor = world.remote.add_user("alice")
    world.remote.reopen_pull(pull, "alicia")
    world.clock.move(seconds=3)
    moved = world.remote.push_for_review("recipes/web", impostor, "nice", {"evil.txt": "evil\n"})
    assert (moved.number, moved.user_id) == (pull.number, world.alice.id)
    run = asked(world, pull.number, user="carol")
    assert run is not None and not run.trusted
    assert f"the head was pushed by user {impostor.id}, who is not the author" in reason()


def test_a_name_that_was_followed_lets_nobody_push(world: World) -> None:
    pull = world.remote.push_for_review("recipes/web", "alice", "nice", PATCH)
    world.remote.rename_user("alice", "alicia")
    impostor = world.remote.add_user("alice")
    assert world.remote.push_for_review("recipes/web", impostor, "nice", PATCH).number != pull.number
    run = asked(world, pull.number, user="carol")
    assert run and run.trusted


@newer
def test_a_push_for_review_that_the_timeline_does_not_tell_of_is_nobodys(world: World) -> None:
    pull = world.remote.push_for_review("recipes/web", "alice", "nice", PATCH)
    (entry,) = world.remote.comments_of(pull, kinds="pull_push")
    del world.remote.tables.comments[entry.id]
    assert asked(world, pull.number) is None
    assert "does not say who pushed the head" in reason()
    run = asked(world, pull.number, f"!testme {pull.head_sha}")
    assert run and not run.trusted


@newer
def test_a_push_for_review_can_wait_for_approval(world: World) -> None:
    Repository.objects.update(strangers_await_approval="on")
    pull = world.remote.push_for_review("recipes/web", "mallory", "nice", PATCH)
    run = asked(world, pull.number, user="mallory")
    assert run and (run.state, run.trusted) == ("awaiting_approval", False)


# --- forks


@every_version
@pytest.mark.parametrize(
    ("owner", "author", "is_trusted"),
    [
        ("alice", "alice", True),
        ("carol", "alice", True),
        ("mallory", "alice", False),  # and mallory may push on
        ("mallory", "mallory", False),
        ("carol", "mallory", False),
        ("cc-ci", "alice", False),
    ],
)
def test_a_fork_is_trusted_by_its_owner_and_the_author(world: World, owner: str, author: str, is_trusted: bool) -> None:
    pull = from_fork(world, owner, author)
    run = asked(world, pull.number, f"!testme {pull.head_sha}", "carol")
    assert run and run.trusted is is_trusted


def test_a_fork_that_was_given_away_is_its_new_owners(world: World) -> None:
    pull = from_fork(world, "alice", "alice")
    world.remote.transfer(fork_of(world, "alice"), "mallory")
    assert not trusted(world, pull.number)
    assert "mallory" in reason()


@every_version
def test_a_deleted_fork_is_nobodys(world: World) -> None:
    pull = from_fork(world, "alice", "alice")
    world.remote.delete_repo(fork_of(world, "alice"))
    assert not trusted(world, pull.number)


@every_version
@pytest.mark.parametrize("where", ["recipes/web", "a fork"])
def test_a_branch_that_was_deleted_is_nobodys(world: World, where: str) -> None:
    pull = from_fork(world, "alice", "alice") if where == "a fork" else world.remote.pull("recipes/web", 1)
    repo = world.remote.tables.repos[pull.head_repo_id]
    git.git(world.remote.folder(repo), "update-ref", "-d", f"refs/heads/{pull.head_branch}")
    run = asked(world, pull.number, f"!testme {pull.head_sha}")
    assert run and not run.trusted
    assert run.comment and "or the branch was deleted" in run.comment.facts["code"]["doubt"]


def test_the_members_of_a_forks_organisation_are_not_trusted_for_that(world: World) -> None:
    other = world.remote.add_org("friends", "mallory")
    world.remote.add_member(other, "alice", "write")
    pull = from_fork(world, "friends", "alice", "mallory")
    assert not trusted(world, pull.number)
    assert "not trusted: friends" in reason()
    TestRun.objects.update(state="passed")
    Repository.objects.update(allow=[other.id])
    assert trusted(world, pull.number)


@pytest.mark.parametrize(("members", "is_trusted"), [("on", True), ("off", False)])
def test_a_fork_in_the_same_organisation_is_its_members(world: World, members: str, is_trusted: bool) -> None:
    Repository.objects.update(allow=[world.alice.id], members_may_ask=members)
    pull = from_fork(world, "recipes", "alice", "carol")
    assert trusted(world, pull.number) is is_trusted


# --- a branch of the repository


@every_version
def test_a_branch_of_the_repository_is_its_own_whoever_opened_the_pull_request(world: World) -> None:
    world.remote.push("recipes/web", "more", PATCH, "More", "alice")
    pull = world.remote.open_pull("recipes/web", "recipes/web", "more", "mallory")
    assert trusted(world, pull.number)


def lie(world: World, part: str, change: Callable[[Any], Any]) -> None:
    """The forge's right answers to this, changed."""

    def plan(request: Request) -> Fault | None:
        if not request.path.endswith(part):
            return None
        right = api.handle(world.remote, request)
        return Fault(body=json.dumps(change(json.loads(right.body))))

    world.remote.faults = plan


def head_with(**changes: Any) -> Callable[[Any], Any]:
    return lambda data: {**data, "head": {**data["head"], **changes}}


ODD_HEADS: dict[str, Callable[[Any], Any]] = {
    "no head": lambda data: {**data, "head": {"sha": data["head"]["sha"]}},
    "no repository": head_with(repo=None),
    "no id": head_with(repo_id=None),
    "another id": head_with(repo_id=-1),
    "no ref": head_with(ref=None),
    "an empty ref": head_with(ref=""),
    "a ref that is no branch": head_with(ref="refs/pull/1/head"),
    "a ref that is the branch's in full": head_with(ref="refs/heads/change"),
    "no such branch": head_with(ref="nothing"),
    "an owner without id": lambda data: head_with(repo={**data["head"]["repo"], "owner": {"login": "recipes"}})(data),
    "no owner": lambda data: head_with(repo={**data["head"]["repo"], "owner": None})(data),
    "a ghost for an owner": lambda data: head_with(repo={**data["head"]["repo"], "owner": {"id": -1, "login": "Ghost"}})(data),
}


@pytest.mark.parametrize("oddity", ODD_HEADS)
@pytest.mark.parametrize("own", [True, False])
def test_an_answer_that_does_not_add_up_trusts_nobody(world: World, oddity: str, own: bool) -> None:
    pull = world.remote.pull("recipes/web", 1) if own else from_fork(world, "alice", "alice")
    lie(world, f"/pulls/{pull.number}", ODD_HEADS[oddity])
    run = asked(world, pull.number, f"!testme {pull.head_sha}")
    if oddity not in ("no repository", "a ref that is no branch", "a ref that is the branch's in full", "no such branch"):
        # Nothing that a forge says: neither a yes nor a no. It is asked again.
        assert run is None
        assert Comment.objects.get(outcome="").tries == 1
        return
    assert run is not None
    # Of a fork the forge is not asked for the branch: the owner and the author decide, whatever it is called.
    assert run.trusted is (oddity == "no such branch" and not own)


@pytest.mark.parametrize(
    ("change", "starts"),
    [
        (lambda data: {**data, "commit": {**data["commit"], "id": "f" * 40}}, True),
        (lambda data: {**data, "name": "main"}, False),
        (lambda data: {"name": "change"}, False),
        (lambda data: {}, False),
        (lambda data: None, False),
        (lambda data: [data], False),
    ],
)
def test_only_a_branch_that_the_forge_shows_at_the_head_is_its_own(
    world: World, change: Callable[[Any], Any], starts: bool
) -> None:
    lie(world, "/branches/change", change)
    run = asked(world, 1, f"!testme {world.remote.pull('recipes/web', 1).head_sha[:10]}")
    assert (run is not None) is starts
    assert run is None or not run.trusted


@pytest.mark.parametrize("status", [204, 301, 404, 409, 500])
def test_no_answer_about_the_branch_is_no_yes(world: World, status: int) -> None:
    world.remote.faults = lambda request: Fault(status=status) if "/branches/" in request.path else None
    assert not trusted(world, 1)


# --- later


@pytest.mark.parametrize("who", ["author", "owner"])
def test_a_run_whose_code_is_trusted_no_longer_does_not_start(world: World, who: str) -> None:
    pull = from_fork(world, "carol", "alice")
    world.forge.allow = [world.remote.user("bob").id]
    world.forge.save()
    run = asked(world, pull.number, user="bob")
    assert run and run.trusted
    world.remote.remove_member(world.org, {"author": "alice", "owner": "carol"}[who])
    run.events.update(at=timezone.now() - timedelta(minutes=5))
    approval.ask_again()
    run.refresh_from_db()
    assert run.state == "cancelled"
    assert f"{'alice' if who == 'author' else 'carol'}, who wrote the code, is neither" in run.reason


def test_a_run_whose_code_is_still_trusted_starts(world: World) -> None:
    run = asked(world, from_fork(world, "carol", "alice").number)
    assert run and run.trusted
    run.events.update(at=timezone.now() - timedelta(minutes=5))
    assert approval.ask_again() == {run.pk}
    run.refresh_from_db()
    assert run.state == "queued"


def test_a_run_from_when_the_code_was_trusted_is_not_joined(world: World) -> None:
    pull = from_fork(world, "carol", "alice")
    first = asked(world, pull.number)
    world.remote.remove_member(world.org, "carol")
    second = asked(world, pull.number)
    assert first and second and (first.trusted, second.trusted, first.sha) == (True, False, second.sha)
    first.refresh_from_db()
    assert first.state == "superseded"


def test_a_retry_asks_again_whose_the_code_is(world: World) -> None:
    pull = from_fork(world, "carol", "alice")
    first = asked(world, pull.number)
    assert first and first.trusted
    TestRun.objects.update(state="passed")
    again = asked(world, pull.number, "!testme retry all")
    assert again and again != first and again.trusted
    TestRun.objects.update(state="passed")
    world.remote.remove_member(world.org, "carol")
    last = asked(world, pull.number, "!testme retry all")
    assert last and last != again and not last.trusted
