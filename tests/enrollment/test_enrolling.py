"""Enrolling by hand and by topic, letting go, and what counts from when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from enrollment import repositories, tasks
from enrollment.fakeforge.faults import Fault
from enrollment.forges.base import NoForge, Unauthorized
from enrollment.models import Comment, Forge, PullRequest, Repository
from enrollment.polling import poller
from enrollment.repositories import add_forge, bare, unenroll
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases]


def enroll(world: World, recipe: str, source: str = "hand") -> tuple[Repository, bool]:
    """By one client, so that it is the forge's clock that counts."""
    client = world.client()
    return repositories.enroll(world.forge, client.repository(*recipe.split("/")), source, client)


def stored(world: World) -> list[int]:
    for _ in range(2):
        Repository.objects.update(net_due_at=None)
        world.poll()
    return sorted(Comment.objects.values_list("forge_comment_id", flat=True))


def topics(world: World, *owners: str) -> list[str]:
    world.forge.watched_owners = list(owners) or world.forge.watched_owners
    world.forge.save()
    lines = poller.enroll_topics(world.forge)
    world.forge.refresh_from_db()
    return lines


def state(name: str) -> tuple[bool, str]:
    row = Repository.objects.get(name=name)
    return row.active, row.source


def test_a_repository_is_watched_from_now_on(world: World) -> None:
    world.add_recipe("app")
    row, changed = enroll(world, "recipes/app")
    assert changed
    assert row.active
    assert row.full_name == "recipes/app"
    assert row.owner_id == world.org.id
    assert not row.private
    assert row.clone_url == f"{world.server.url}/recipes/app.git"
    assert abs(row.enrolled_at - world.clock()) < timedelta(seconds=5)
    assert enroll(world, "recipes/app") == (row, False)


def test_the_enrolment_is_a_time_of_the_forges_clock(world: World) -> None:
    world.add_recipe("app")
    world.clock.move(days=-3)
    row, _ = enroll(world, "recipes/app")
    assert abs(row.enrolled_at - world.clock()) < timedelta(seconds=5)


def test_older_comments_never_trigger(world: World) -> None:
    world.add_recipe("app")
    old = world.say("recipes/app")
    late = world.say("recipes/app", visible_after=30)
    world.clock.move(seconds=10)
    enroll(world, "recipes/app")
    young = world.say("recipes/app")
    world.clock.move(minutes=5)
    world.remote.edit_comment(old, "!testme again")
    assert stored(world) == [young.id]
    assert old.id < late.id < young.id


def test_a_private_repository_is_known_as_one(world: World) -> None:
    world.remote.add_repo("recipes", "hidden", private=True)
    row, _ = enroll(world, "recipes/hidden")
    assert row.private
    world.remote.set_private("recipes/hidden", False)
    row, _ = enroll(world, "recipes/hidden")
    assert not row.private


def test_what_was_said_while_it_was_not_watched_starts_nothing(world: World) -> None:
    unenroll(Repository.objects.get())
    world.clock.move(minutes=1)
    between = world.say("recipes/web")
    assert stored(world) == []
    world.clock.move(minutes=1)
    row, changed = enroll(world, "recipes/web")
    assert changed
    young = world.say("recipes/web")
    assert stored(world) == [young.id]
    assert between.created < row.enrolled_at
    assert Repository.objects.count() == 1


def test_what_was_wanted_before_is_read_no_more_after_unenrolling(world: World) -> None:
    world.say("recipes/web")
    PullRequest.objects.create(
        repository=Repository.objects.get(), number=1, comments_wanted_since=timezone.now() - timedelta(days=1)
    )
    unenroll(Repository.objects.get())
    assert stored(world) == []


# --- by topic


def test_the_topic_enrols_and_its_loss_lets_go(world: World) -> None:
    world.add_recipe("app")
    world.add_recipe("plain")
    world.remote.set_topics("recipes/app", ["cc-ci", "wiki"])
    assert topics(world, "recipes") == ["enrolled recipes/app"]
    assert state("app") == (True, "topic")
    assert not Repository.objects.filter(name="plain").exists()
    assert topics(world) == []
    world.remote.set_topics("recipes/app", ["wiki"])
    assert topics(world) == ["unenrolled recipes/app: it no longer carries the topic"]
    assert state("app") == (False, "topic")
    world.remote.set_topics("recipes/app", ["cc-ci"])
    assert topics(world) == ["enrolled recipes/app"]


def test_only_watched_owners_count(world: World) -> None:
    world.remote.add_repo("mallory", "trap", topics=["cc-ci"])
    world.remote.add_repo("recipes", "app", topics=["cc-ci"])
    assert topics(world, "Recipes") == ["enrolled recipes/app"]


def test_a_hidden_repository_with_the_topic_is_enrolled_as_private(world: World) -> None:
    world.remote.add_repo("recipes", "hidden", private=True, topics=["cc-ci"])
    topics(world, "recipes")
    assert Repository.objects.get(name="hidden").private


def test_enrolled_by_hand_stays_without_the_topic(world: World) -> None:
    topics(world, "recipes")
    assert state("web") == (True, "hand")
    # Also when the topic was there first.
    world.remote.add_repo("recipes", "app", topics=["cc-ci"])
    topics(world)
    assert enroll(world, "recipes/app")[1] is False
    world.remote.set_topics("recipes/app", [])
    assert topics(world) == []
    assert state("app") == (True, "hand")


def test_unenrolled_by_hand_stays_so_with_the_topic(world: World) -> None:
    world.remote.add_repo("recipes", "app", topics=["cc-ci"])
    topics(world, "recipes")
    unenroll(Repository.objects.get(name="app"))
    assert topics(world) == []
    assert state("app") == (False, "hand")
    assert enroll(world, "recipes/app")[1]
    assert state("app") == (True, "hand")


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_nothing_is_let_go_while_the_forge_fails(world: World, status: int) -> None:
    world.remote.add_repo("recipes", "app", topics=["cc-ci"])
    topics(world, "recipes")
    world.remote.faults = lambda request: Fault(status=status)
    (line,) = topics(world)
    assert str(status) in line
    assert state("app") == (True, "topic")
    assert str(status) in world.forge.last_error
    # It waits as polling does.
    assert topics(world) == []


def test_a_renamed_owner_keeps_its_repositories(world: World) -> None:
    world.remote.add_repo("recipes", "app", topics=["cc-ci"])
    world.remote.add_repo("mallory", "other", topics=["cc-ci"])
    topics(world, "recipes", "mallory")
    world.remote.rename_user("recipes", "cookbook")
    assert topics(world) == ["recipes was renamed to cookbook"]
    assert state("app") == (True, "topic")
    assert world.forge.watched_owners == ["cookbook", "mallory"]
    world.remote.add_repo("cookbook", "new", topics=["cc-ci"])
    assert topics(world) == ["enrolled cookbook/new"]


def test_a_repository_given_to_another_owner_is_let_go(world: World) -> None:
    world.remote.add_repo("recipes", "app", topics=["cc-ci"])
    topics(world, "recipes")
    world.remote.transfer("recipes/app", "mallory")
    assert topics(world) == ["unenrolled mallory/app: it no longer carries the topic"]
    assert world.forge.watched_owners == ["recipes"]


def test_more_repositories_than_a_page_holds(world: World) -> None:
    for number in range(61):
        world.remote.add_repo("recipes", f"r{number}", topics=["cc-ci"])
    assert len(topics(world, "recipes")) == 61


def test_the_recurring_task_says_what_changed(world: World) -> None:
    assert tasks.find_by_topic() == "nothing new"
    world.remote.add_repo("recipes", "app", topics=["cc-ci"])
    Forge.objects.update(watched_owners=["recipes"])
    assert tasks.find_by_topic() == "enrolled recipes/app"


# --- forges


def test_a_forge_is_asked_who_we_are_before_it_is_added(world: World) -> None:
    forge = world.forge
    assert (forge.bot_id, forge.bot_login, forge.version) == (world.bot.id, "cc-ci", world.remote.version)
    assert forge.reveal_token() == world.token
    with pytest.raises(Unauthorized):
        add_forge(world.server.url, "wrong")
    forge.refresh_from_db()
    assert forge.reveal_token() == world.token
    world.server.stop()
    with pytest.raises(NoForge, match="is the address right"):
        add_forge("http://127.0.0.1:9", "abc")
    assert Forge.objects.count() == 1


def test_a_new_token_ends_all_waiting(world: World) -> None:
    Forge.objects.update(
        failures=7, backoff_until=timezone.now() + timedelta(hours=1), last_error="401", search="refused", enabled=False
    )
    again, made = add_forge(f" {world.server.url}/api/v1 ", world.remote.add_token(world.bot))
    assert not made
    again.refresh_from_db()
    assert (again.failures, again.backoff_until, again.last_error, again.search) == (0, None, "", "unknown")
    assert again.enabled


def test_the_token_lies_encrypted_in_the_database(world: World) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT token FROM enrollment_forge")
        (kept,) = cursor.fetchone()
    assert kept
    assert world.token not in kept
    assert world.token not in repr(Forge.objects.get().token)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("https://git.example.org", "https://git.example.org"),
        (" https://GIT.example.org/api/v1/ ", "https://git.example.org"),
        ("http://gitea:3000", "http://gitea:3000"),
        ("https://example.org/Git/", "https://example.org/Git"),
    ],
)
def test_one_spelling_of_an_address(typed: str, kept: str) -> None:
    assert bare(typed) == kept


@pytest.mark.parametrize(
    "typed", ["git.example.org", "ftp://x", "https://", "https://user:pw@host", "https://h:port", "https://h/?a=b", ""]
)
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        bare(typed)
