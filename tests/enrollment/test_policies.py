"""Who may ask, by policy: what a repository says counts before its forge, lists add up, and a block stands above all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from enrollment.access import authorization
from enrollment.access.policy import Policy, merge, policy_of
from enrollment.forges.base import User
from enrollment.models import Comment, Forge, Repository
from runs.models import TestRun
from tests.world import EVERY_VERSION, World

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("forge", "repository", "policy"),
    [
        ({}, {}, Policy()),
        ({"members_may_ask": False}, {}, Policy(members=False)),
        ({"members_may_ask": False}, {"members_may_ask": "on"}, Policy()),
        ({}, {"members_may_ask": "off"}, Policy(members=False)),
        ({"collaborators_may_ask": False}, {}, Policy(collaborators=False)),
        ({}, {"collaborators_may_ask": "off"}, Policy(collaborators=False)),
        ({"collaborators_may_ask": False}, {"collaborators_may_ask": "on"}, Policy()),
        ({"team": "maintainers"}, {}, Policy(team="maintainers")),
        ({"team": "maintainers"}, {"team": "web"}, Policy(team="web")),
        ({"strangers_await_approval": True}, {}, Policy(approval=True)),
        ({"strangers_await_approval": True}, {"strangers_await_approval": "off"}, Policy()),
        ({}, {"strangers_await_approval": "on"}, Policy(approval=True)),
        ({"allow": [1], "block": [2]}, {"allow": [3], "block": [4]}, Policy(allow=frozenset({1, 3}), block=frozenset({2, 4}))),
    ],
)
def test_merge(forge: dict[str, Any], repository: dict[str, Any], policy: Policy) -> None:
    assert merge(Forge(**forge), Repository(**repository)) == policy


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """bob owns a repository; carol collaborates at recipes/web; dora and the bot are in the team Maintainers, ed in another."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, getattr(request, "param", "1.22"))
    world.connect()
    for name in ("bob", "carol", "dora", "ed"):
        world.remote.add_user(name)
    world.add_recipe("web")
    world.add_recipe("site", "bob")
    world.remote.add_collaborator("recipes/web", "carol")
    world.remote.add_to_team("recipes", "Maintainers", "dora", "cc-ci")
    world.remote.add_to_team("recipes", "others", "ed")
    world.enroll("recipes/web", "bob/site")
    yield world
    world.close()


every_version = pytest.mark.parametrize("world", EVERY_VERSION, indirect=True)


def trusted(world: World, recipe: str = "web", **policy: Any) -> set[str]:
    Repository.objects.filter(name=recipe).update(**policy)
    row = Repository.objects.select_related("forge").get(name=recipe)
    names = ("alice", "bob", "carol", "dora", "ed", "mallory", "cc-ci")
    people = [authorization.person(User(world.remote.user(name).id, name), row, world.client()) for name in names]
    return {person.login for person in people if person.trusted}


def test_members_and_collaborators_may_ask_unless_it_is_said_otherwise(world: World) -> None:
    assert trusted(world) == {"alice", "dora", "ed", "carol"}
    assert trusted(world, members_may_ask="off") == {"carol"}
    assert trusted(world, collaborators_may_ask="off") == set()
    assert trusted(world, "site") == {"bob"}


@every_version
def test_a_team_by_its_name(world: World) -> None:
    assert trusted(world, members_may_ask="off", collaborators_may_ask="off", team="maintainers") == {"dora"}
    assert trusted(world, team="no such team") == set()
    world.remote.remove_member("recipes", "dora")
    assert trusted(world, team="maintainers") == set()


@every_version
def test_a_team_that_the_token_is_not_in_tells_nothing(world: World) -> None:
    assert trusted(world, members_may_ask="off", collaborators_may_ask="off", team="others") == set()
    row = Repository.objects.get(name="web")
    assert world.client().in_team(row.owner, "others", "ed") is None
    assert world.client().in_team(row.owner, "maintainers", "ed") is False
    assert world.client().in_team("bob", "maintainers", "ed") is None


@pytest.mark.parametrize("name", ["alice", "bob", "carol", "dora"])
@pytest.mark.parametrize("by", ["forge", "repository"])
def test_who_is_blocked_gets_nothing_whatever_else_says_yes(world: World, name: str, by: str) -> None:
    number = world.remote.user(name).id
    recipe = "site" if name == "bob" else "web"
    Repository.objects.update(allow=[number], team="maintainers")
    (Forge if by == "forge" else Repository).objects.update(block=[number])
    said = world.say(f"{'bob' if name == 'bob' else 'recipes'}/{recipe}", user=name)
    asked = len(world.own_requests())
    world.hear()
    row = Comment.objects.get(forge_comment_id=said.id)
    assert (row.outcome, row.facts["asker"]["is_blocked"]) == ("ignored", True)
    assert "is blocked" in row.reason
    assert not TestRun.objects.exists()
    assert not [request for request in world.own_requests()[asked:] if request.method != "GET"]


def test_a_block_ends_also_what_waits_for_approval(world: World) -> None:
    Repository.objects.update(strangers_await_approval="on", block=[world.mallory.id])
    pull = world.add_fork_pull("recipes/web")
    world.say("recipes/web", user="mallory", number=pull.number)
    world.hear()
    assert Comment.objects.get().outcome == "ignored"
    assert not TestRun.objects.exists()


def test_what_holds_is_kept_with_the_decision(world: World) -> None:
    Repository.objects.update(team="maintainers", strangers_await_approval="on")
    world.say("recipes/web")
    world.hear()
    facts = Comment.objects.get().facts
    assert facts["policy"] == {"members": True, "team": "maintainers", "collaborators": True, "approval": True}


def test_a_member_removed_between_two_comments_is_trusted_no_longer(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    world.remote.remove_member("recipes", "alice")
    world.say("recipes/web", "!testme --extra-tests")
    world.hear()
    assert sorted(Comment.objects.values_list("outcome", flat=True)) == ["reply", "run"]


def test_policies_are_set_in_the_admin(world: World, admin_client: Client) -> None:
    row = Repository.objects.get(name="web")
    data = {
        "active": "on",
        "members_may_ask": "off",
        "team": "Maintainers",
        "collaborators_may_ask": "",
        "allow": "7",
        "block": "mallory",
        "strangers_await_approval": "on",
        "allowances": "",
        "webhooks": "",
    }
    url = f"/admin/enrollment/repository/{row.pk}/change/"
    assert admin_client.post(url, data).status_code == 302
    row.refresh_from_db()
    assert policy_of(row) == Policy(
        members=False, team="Maintainers", allow=frozenset({7}), block=frozenset({world.mallory.id}), approval=True
    )
    assert "Nobody at the forge" in admin_client.post(url, {**data, "block": "nobody"}).content.decode()
