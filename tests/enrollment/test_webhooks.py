"""Webhooks that register and heal themselves: the plan, what it does at a forge, and how polling rests meanwhile."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import requests
from django.conf import settings
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from controlplane.models import Lease
from controlplane.rotation import reencrypt, sealed_fields
from enrollment import tasks
from enrollment.fakeforge.faults import Fault
from enrollment.fakeforge.features import VERSIONS
from enrollment.fakeforge.routes_hooks import read_back
from enrollment.forges.base import Forbidden, Hook
from enrollment.forges.gitea.client import GiteaClient
from enrollment.forges.gitea.kind import GITEA
from enrollment.models import Comment, Delivery, Forge, Repository, WebhookConfig
from enrollment.models.webhooks import hooks_address
from enrollment.webhooks import coverage, receiver
from enrollment.webhooks import reconcile as hook_reconcile
from enrollment.webhooks.checks import check_webhooks
from enrollment.webhooks.lifecycle import MOVES, State, move
from enrollment.webhooks.plan import DesiredHook, Do, differences, is_desired, is_ours, key_in, plan
from enrollment.webhooks.reconcile import OVERLAP, reconcile
from enrollment.webhooks.registration import rotate, secret_by_hand
from enrollment.webhooks.result import Pass
from tests.chaos.air import Air
from tests.enrollment.hooks import Bridge, writes
from tests.factories import CommentFactory, ForgeFactory, RepositoryFactory, WebhookConfigFactory
from tests.killing import Killed, killed_at
from tests.world import EVERY_VERSION, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

FORGEJO = "13.0.0+gitea-1.22.0"
every_version = pytest.mark.parametrize("world", EVERY_VERSION, indirect=True)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Iterator[None]:
    """No pause before a read is repeated, and hooks are wanted."""
    monkeypatch.setattr("tenacity.nap.time", mock.Mock())
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", True)
    receiver.forget()
    yield
    receiver.forget()


@pytest.fixture
def world(db: None, tmp_path: Path, data_dir: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """Two recipes of one organisation, enrolled; the bot may read. No net is due."""
    world = World(tmp_path, getattr(request, "param", "1.15"))
    world.connect()
    for name in ("web", "app"):
        world.add_recipe(name)
    world.enroll("recipes/web", "recipes/app")
    Repository.objects.update(net_due_at=timezone.now() + timedelta(hours=6))
    yield world
    world.remote.faults = None
    world.close()


def own_organisation(world: World) -> None:
    world.remote.add_member(world.org, world.bot, "owner")


def administer(world: World, *names: str) -> None:
    for name in names or ("recipes/web", "recipes/app"):
        world.remote.add_collaborator(name, world.bot, "admin")


def apply(world: World, **more: Any) -> Pass:
    world.forge.refresh_from_db()
    result = reconcile(world.forge, apply=True, **more)
    assert not result.problems, result.problems
    return result


def done(result: Pass) -> list[tuple[str, str]]:
    return [(action.do.value, action.place) for action in result.actions]


def states() -> dict[str, str]:
    return {row.place: row.state for row in WebhookConfig.objects.exclude(state="rotating").select_related("repository")}


def remote(world: World) -> list[Any]:
    return list(world.remote.tables.hooks.values())


def as_desired(world: World, hook: Any) -> bool:
    """Whether a hook at the forge is what it should be."""
    row = WebhookConfig.objects.get(key=key_in(hook.url))
    return (
        hook.url == row.url
        and hook.url.startswith(hooks_address(world.forge.pk))
        and set(read_back(list(GITEA.event_names))) <= set(hook.events)
        and hook.content_type == "json"
        and hook.active
        and hook.secret == row.reveal_secret()
        and len(hook.secret) == 64
    )


# --- the plan, which asks nobody

ADDRESS = "https://ci.example.org/hooks/1/"
ROW = DesiredHook("k1", f"{ADDRESS}?hook=k1", remote_id=7)
REAL = Hook(7, ROW.url, frozenset({*GITEA.event_names, "pull_request_review_comment"}), active=True)

PLANS: list[tuple[str, list[DesiredHook], list[Hook], dict[str, Any], list[tuple[str, int | None]]]] = [
    ("in sync", [ROW], [REAL], {}, [("nothing", 7)]),
    ("there is none", [replace(ROW, remote_id=None)], [], {}, [("create", None)]),
    ("it was deleted", [ROW], [], {}, [("create", None)]),
    ("another address", [ROW], [replace(REAL, url="http://old.example.org/hooks/1/?hook=k1")], {}, [("update", 7)]),
    ("one event", [ROW], [replace(REAL, events=frozenset({"issue_comment"}))], {}, [("update", 7)]),
    ("events reset", [ROW], [replace(REAL, events=frozenset({"push"}))], {}, [("update", 7)]),
    ("a form", [ROW], [replace(REAL, content_type="form")], {}, [("update", 7)]),
    ("a branch filter", [ROW], [replace(REAL, branch_filter="main")], {}, [("update", 7)]),
    ("all branches", [ROW], [replace(REAL, branch_filter="*")], {}, [("nothing", 7)]),
    ("more events", [ROW], [replace(REAL, events=REAL.events | {"push", "release"})], {}, [("nothing", 7)]),
    ("switched off", [ROW], [replace(REAL, active=False)], {}, [("disabled", 7)]),
    ("switched off and drifted", [ROW], [replace(REAL, active=False, content_type="form")], {}, [("disabled", 7)]),
    ("switched on by policy", [ROW], [replace(REAL, active=False)], {"reenable": True}, [("update", 7)]),
    ("twice", [ROW], [replace(REAL, id=3), REAL], {}, [("delete", 3), ("nothing", 7)]),
    ("a stranger's key", [ROW], [REAL, replace(REAL, id=9, url=f"{ADDRESS}?hook=zz")], {}, [("delete", 9), ("nothing", 7)]),
    ("no key", [ROW], [REAL, replace(REAL, id=9, url=ADDRESS[:-1])], {}, [("delete", 9), ("nothing", 7)]),
    ("foreign", [ROW], [REAL, Hook(9, "https://chat.example.org/", frozenset(), active=False)], {}, [("nothing", 7)]),
    (
        "foreign, another forge's",
        [ROW],
        [REAL, replace(REAL, id=9, url="https://ci.example.org/hooks/12/?hook=q")],
        {},
        [("nothing", 7)],
    ),
    ("foreign, no URL", [ROW], [REAL, replace(REAL, id=9, url="http://[")], {}, [("nothing", 7)]),
    ("not wanted", [ROW], [REAL], {"unwanted": "off"}, [("delete", 7)]),
    ("not wanted and gone", [ROW], [], {"unwanted": "off"}, [("forget", None)]),
    ("by hand, not wanted", [replace(ROW, by_hand=True)], [REAL], {"unwanted": "off"}, [("nothing", 7)]),
    ("unreadable", [replace(ROW, unreadable=True)], [REAL], {}, [("rotate", 7)]),
    ("unreadable and off", [replace(ROW, unreadable=True)], [replace(REAL, active=False)], {}, [("disabled", 7)]),
    ("silent and off", [replace(ROW, silent=True)], [replace(REAL, active=False)], {}, [("disabled", 7)]),
    (
        "unreadable, on by policy",
        [replace(ROW, unreadable=True)],
        [replace(REAL, active=False)],
        {"reenable": True},
        [("rotate", 7)],
    ),
    (
        "a rotation of one that is off",
        [DesiredHook("k2", f"{ADDRESS}?hook=k2"), replace(ROW, rotating=True)],
        [replace(REAL, active=False)],
        {},
        [("nothing", 7), ("disabled", None)],
    ),
    (
        "the same by policy",
        [DesiredHook("k2", f"{ADDRESS}?hook=k2"), replace(ROW, rotating=True)],
        [replace(REAL, active=False)],
        {"reenable": True},
        [("create", None), ("nothing", 7)],
    ),
    ("by hand, and not there", [replace(ROW, by_hand=True)], [], {}, [("rotate", None)]),
    ("by hand, and there", [replace(ROW, by_hand=True)], [REAL], {}, [("nothing", 7)]),
    ("silent", [replace(ROW, silent=True)], [REAL], {}, [("rotate", 7)]),
    ("silent and drifted", [replace(ROW, silent=True)], [replace(REAL, events=frozenset())], {}, [("update", 7)]),
    (
        "a rotation begins",
        [DesiredHook("k2", f"{ADDRESS}?hook=k2"), replace(ROW, rotating=True)],
        [REAL],
        {},
        [("create", None), ("nothing", 7)],
    ),
    (
        "a rotation ends",
        [DesiredHook("k2", f"{ADDRESS}?hook=k2", 8), replace(ROW, rotating=True, ended=True)],
        [REAL, replace(REAL, id=8, url=f"{ADDRESS}?hook=k2")],
        {},
        [("delete", 7), ("nothing", 8)],
    ),
    (
        "the new one vanished",
        [DesiredHook("k2", f"{ADDRESS}?hook=k2", 8), replace(ROW, rotating=True, ended=True)],
        [REAL],
        {},
        [("create", None), ("delete", 7)],
    ),
]


@pytest.mark.parametrize(("rows", "found", "more", "actions"), [row[1:] for row in PLANS], ids=[row[0] for row in PLANS])
def test_the_plan(
    rows: list[DesiredHook], found: list[Hook], more: dict[str, Any], actions: list[tuple[str, int | None]]
) -> None:
    made = plan("recipes/web", rows, found, address=ADDRESS, events=GITEA.events, **more)
    assert [(action.do.value, action.hook.id if action.hook else None) for action in made] == actions
    assert all(action.reason and action.place == "recipes/web" for action in made)


@pytest.mark.parametrize(
    ("setting", "forge", "repository", "result"),
    [
        (False, "", "", False),
        (True, "", "", True),
        (False, "on", "", True),
        (True, "off", "", False),
        (True, "off", "on", True),
        (True, "", "off", False),
        (False, "on", "off", False),
        (False, "", "on", True),
    ],
)
def test_who_decides_whether_a_hook_is_wanted(setting: bool, forge: str, repository: str, result: bool) -> None:
    assert is_desired(setting, forge, repository) is result


def test_what_is_ours() -> None:
    assert is_ours(f"{ADDRESS}?hook=k1", ADDRESS, [])
    assert is_ours("http://old/hooks/3?hook=k1", ADDRESS, ["k1"])
    assert not is_ours("http://old/hooks/3?hook=", ADDRESS, ["k1"])
    assert not is_ours("https://ci.example.org/hooks/11/", ADDRESS, ["k1"])
    assert differences(REAL, ROW.url, GITEA.events) == []


ENDS = {"pull_request_review_approved", "pull_request_review_rejected"}


@pytest.mark.parametrize(
    ("reviews", "well"),
    [
        ({"pull_request_review"}, True),  # Gitea from 1.24 on
        ({"pull_request_review_comment", *ENDS}, True),  # Gitea before that, and Forgejo
        (ENDS, True),
        ({"pull_request_review_comment"}, False),  # as they add it to the comments
        ({"pull_request_review_approved"}, False),
        (set(), False),
    ],
)
def test_a_hook_is_told_of_reviews_however_they_are_listed(reviews: set[str], well: bool) -> None:
    hook = replace(REAL, events=frozenset({"issue_comment", "pull_request_comment", *reviews}))
    assert differences(hook, ROW.url, GITEA.events) == ([] if well else ["it lacks the event pull_request_review"])


# --- the table of states


@pytest.mark.parametrize("event", list(MOVES))
@pytest.mark.parametrize("state", list(State))
def test_each_move_from_each_state(event: str, state: State) -> None:
    hook = WebhookConfigFactory(state=state, reason="before")
    sources, target, _, _ = MOVES[event]
    assert move(hook, event, "because") is (state in sources)
    hook.refresh_from_db()
    assert (hook.state, hook.reason) == ((target, "because") if state in sources else (state, "before"))
    stale = WebhookConfig.objects.get()
    WebhookConfig.objects.update(state="rotating")
    assert not move(stale, event), "somebody was first"


def test_the_docs_show_the_moves() -> None:
    text = (settings.BASE_DIR / "docs" / "webhooks.md").read_text()
    for event, (sources, target, who, what) in MOVES.items():
        assert f"| {event} | {', '.join(state.value for state in sources)} | {target.value} | {who} | {what} |" in text


def test_each_state_can_be_reached_and_left() -> None:
    reached = {target for _, target, _, _ in MOVES.values()} | {State.ABSENT}
    left = {state for sources, *_ in MOVES.values() for state in sources} | {State.ROTATING}
    assert reached == left == set(State)


# --- registering


def test_by_default_nothing_is_asked_and_nothing_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", False)
    own_organisation(world)
    before = len(world.own_requests())
    assert apply(world).actions == []
    assert tasks.see_to_hooks() == "nothing to do"
    assert len(world.own_requests()) == before
    assert not WebhookConfig.objects.exists()


@every_version
def test_one_hook_for_an_organisation_that_the_token_owns(world: World) -> None:
    own_organisation(world)
    assert done(apply(world)) == [("create", "recipes")]
    (hook,) = remote(world)
    assert (hook.org_id, hook.repo_id) == (world.org.id, 0)
    assert as_desired(world, hook)
    assert states() == {"recipes": "registered"}
    for _ in range(3):
        with writes(world) as made:
            assert done(apply(world)) == [("nothing", "recipes")]
        assert made == []


@every_version
def test_a_hook_for_each_repository_otherwise(world: World) -> None:
    administer(world)
    assert done(apply(world)) == [("refused", "recipes"), ("create", "recipes/app"), ("create", "recipes/web")]
    assert len(remote(world)) == 2
    assert all(as_desired(world, hook) for hook in remote(world))
    assert len({hook.secret for hook in remote(world)}) == 2
    assert states() == {"recipes": "refused", "recipes/app": "registered", "recipes/web": "registered"}
    for _ in range(3):
        with writes(world) as made:
            assert {do for do, _ in done(apply(world))} == {"refused", "nothing"}
        assert made == []


def test_the_plan_alone_changes_nothing(world: World) -> None:
    own_organisation(world)
    with writes(world) as made:
        result = reconcile(world.forge, apply=False)
    assert [action.text() for action in result.actions] == ["create   recipes: none exists yet"]
    assert made == []
    assert not WebhookConfig.objects.exists()


@every_version
def test_a_hook_proves_itself_by_our_own_report(world: World) -> None:
    own_organisation(world)
    bridge = Bridge(world)
    apply(world)
    assert states() == {"recipes": "registered"}
    world.say("recipes/app", "### passed", "cc-ci")
    bridge.carry()
    assert states() == {"recipes": "verified"}
    said = world.say("recipes/web")
    bridge.carry()
    row = Comment.objects.get()
    assert (row.forge_comment_id, row.via) == (said.id, "delivery")


@pytest.mark.parametrize("place", ["forge", "repository"])
def test_switched_off_again_it_goes(world: World, place: str) -> None:
    administer(world)
    apply(world)
    if place == "forge":
        Forge.objects.update(webhooks="off")
    else:
        Repository.objects.filter(name="web").update(webhooks="off")
    done_there = done(apply(world))
    assert ("delete", "recipes/web") in done_there
    assert len(remote(world)) == (0 if place == "forge" else 1)
    assert "recipes/web" not in states()
    assert apply(world).writes == 0


def test_watched_no_longer_the_hook_goes(world: World) -> None:
    own_organisation(world)
    apply(world)
    Repository.objects.filter(name="web").update(active=False)
    assert apply(world).writes == 0, "it serves the other one"
    Repository.objects.update(active=False)
    assert done(apply(world)) == [("delete", "recipes")]
    assert (remote(world), WebhookConfig.objects.count()) == ([], 0)


@every_version
def test_where_not_all_want_one_each_has_its_own_and_those_come_first(world: World) -> None:
    own_organisation(world)
    apply(world)
    Repository.objects.filter(name="web").update(webhooks="off")
    WebhookConfig.objects.update(next_check_at=None)
    assert done(apply(world, due_only=True)) == [("create", "recipes/app"), ("delete", "recipes")]
    assert [hook.repo_id for hook in remote(world)] == [world.remote.repo("recipes/app").id]
    Repository.objects.update(webhooks="")
    assert done(apply(world)) == [("create", "recipes"), ("delete", "recipes/app")]
    assert [hook.org_id for hook in remote(world)] == [world.org.id]


@pytest.mark.parametrize("world", ["1.22"], indirect=True)
def test_a_renamed_organisation_keeps_its_hook(world: World) -> None:
    own_organisation(world)
    apply(world)
    world.remote.rename_user("recipes", "cookbook")
    Repository.objects.update(owner="cookbook")
    with writes(world) as made:
        assert done(apply(world)) == [("nothing", "cookbook")]
    assert made == []
    assert states() == {"cookbook": "registered"}


# --- traps


@pytest.mark.parametrize("world", list(VERSIONS), indirect=True)
def test_events_that_read_back_longer_are_no_drift(world: World) -> None:
    administer(world)
    apply(world)
    read = next(iter(world.client().hooks("recipes", "web"))).events
    expanded = {"pull_request_review_approved", "pull_request_review_rejected"}
    assert read >= {"issue_comment", "pull_request_comment"}
    assert (read >= expanded) is (not world.remote.version.startswith("1.26"))
    assert ("pull_request_review" in read) is (not read >= expanded)
    assert apply(world).writes == 0


@every_version
def test_a_hook_from_before_reviews_were_asked_for_gets_them(world: World) -> None:
    administer(world)
    apply(world)
    for hook in remote(world):
        hook.events = read_back(["issue_comment", "pull_request_comment"])
    assert apply(world).writes == len(remote(world))
    assert all(as_desired(world, hook) for hook in remote(world))
    assert apply(world).writes == 0


@every_version
def test_drift_is_repaired_with_the_whole_hook_and_shown(world: World) -> None:
    administer(world)
    apply(world)
    (hook,) = [row for row in remote(world) if row.repo_id == world.remote.repo("recipes/web").id]
    secret, root = hook.secret, world.remote.add_token(world.admin)
    # Somebody changes the content type alone, and resets the events by that.
    body = {"config": {"url": hook.url, "content_type": "form"}}
    url = f"{world.server.url}/api/v1/repos/recipes/web/hooks/{hook.id}"
    assert requests.patch(url, json=body, headers={"Authorization": f"token {root}"}, timeout=60).status_code == 200
    assert "pull_request_comment" not in hook.events or "issue_comment" not in hook.events
    with writes(world) as made:
        result = apply(world)
    assert made == [f"PATCH /repos/recipes/web/hooks/{hook.id}"]
    sent = json.loads(world.own_requests()[-1].body)
    assert sent == {
        "active": True,
        "events": sorted(GITEA.event_names),
        "branch_filter": "*",
        "config": {"url": hook.url, "content_type": "json"},
    }
    assert as_desired(world, hook)
    assert hook.secret == secret
    (action,) = [action for action in result.actions if action.do == Do.UPDATE]
    assert "its content type is form, not json" in action.reason
    row = WebhookConfig.objects.get(repository__name="web")
    assert (row.state, row.reason) == ("registered", f"repaired: {action.reason}")
    assert apply(world).writes == 0


def test_what_a_proxy_needs_is_sent_again(world: World) -> None:
    """Forgejo resets this header with every change that does not name it."""
    administer(world, "recipes/web")
    apply(world)
    (hook,) = remote(world)
    world.client().edit_hook("recipes", "web", replace(REAL, id=hook.id, authorization_header="Bearer x"))
    assert json.loads(world.own_requests()[-1].body)["authorization_header"] == "Bearer x"


def test_a_forge_that_does_not_take_the_repair_is_not_written_to_for_ever(world: World) -> None:
    administer(world, "recipes/web")
    apply(world)
    (hook,) = remote(world)
    hook.content_type = "form"
    world.remote.faults = lambda request: (
        Fault(body=json.dumps({"id": hook.id, "config": {"url": hook.url, "content_type": "form"}, "events": [], "active": True}))
        if request.method == "PATCH"
        else None
    )
    hook_before = hook.content_type
    result = reconcile(world.forge, apply=True)
    assert "still differs" in result.problems[0]
    assert hook_before == "form"
    assert states()["recipes/web"] == "drifted"
    for _ in range(5):
        with writes(world) as made:
            reconcile(world.forge, apply=True, due_only=True)
        assert made == []


@every_version
def test_deleted_at_the_forge_it_is_made_again(world: World) -> None:
    own_organisation(world)
    apply(world)
    world.remote.tables.hooks.clear()
    assert done(apply(world)) == [("create", "recipes")]
    row = WebhookConfig.objects.get()
    assert (row.state, row.reason) == ("registered", "created again: it was deleted at the forge")
    assert as_desired(world, remote(world)[0])


@every_version
def test_duplicates_go_and_foreign_hooks_stay(world: World) -> None:
    own_organisation(world)
    apply(world)
    root = GiteaClient(world.server.url, world.remote.add_token(world.admin))
    url = WebhookConfig.objects.get().url
    foreign = [root.create_hook("recipes", "", url=address, secret="x", events=["push"]).id for address in FOREIGN]
    for address in (url, url, hooks_address(world.forge.pk)):
        root.create_hook("recipes", "", url=address, secret="x", events=GITEA.event_names)
    kept = [replace(row) for row in remote(world) if row.id in foreign]
    assert len(remote(world)) == 6
    assert [do for do, _ in done(apply(world))] == ["delete", "delete", "delete", "nothing"]
    assert len(remote(world)) == 3
    assert as_desired(world, next(row for row in remote(world) if row.id not in foreign)), "the one whose secret is known"
    assert [row for row in remote(world) if row.id in foreign] == kept
    assert apply(world).writes == 0


FOREIGN = ("https://chat.example.org/hook", "https://ci.example.org/other")


def test_one_that_was_switched_off_stays_off_and_shows(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own_organisation(world)
    apply(world)
    (hook,) = remote(world)
    hook.active = False
    for _ in range(3):
        with writes(world) as made, caplog.at_level(logging.INFO, "enrollment"):
            assert done(apply(world)) == [("disabled", "recipes")]
        assert made == []
    assert states() == {"recipes": "disabled"}
    assert len([line for line in caplog.messages if "disabled" in line]) == 1
    monkeypatch.setattr(settings.CC_CI, "webhook_reenable", True)
    assert done(apply(world)) == [("update", "recipes")]
    assert hook.active
    assert states() == {"recipes": "registered"}


def test_switched_on_again_by_hand_it_is_registered(world: World) -> None:
    own_organisation(world)
    apply(world)
    (hook,) = remote(world)
    for active, state in ((False, "disabled"), (True, "registered")):
        hook.active = active
        assert apply(world).writes == 0
        assert states() == {"recipes": state}


@pytest.mark.slow(8)
def test_in_sync_for_hundreds_of_repositories_nothing_is_written(world: World) -> None:
    rows = RepositoryFactory.build_batch(200, forge=world.forge, owner="many", owner_id=77, enrolled_at=timezone.now())
    client = ManyHooks(Repository.objects.bulk_create(rows))
    Repository.objects.exclude(owner="many").update(active=False)
    result = reconcile(world.forge, client, apply=True)  # type: ignore[arg-type]
    assert (result.writes, client.writes) == (200, 200)
    for _ in range(2):
        result = reconcile(world.forge, client, apply=True)  # type: ignore[arg-type]
        assert (result.writes, client.writes) == (0, 200)
    client.reads = 0
    result = reconcile(world.forge, client, apply=True, due_only=True)  # type: ignore[arg-type]
    assert client.reads == 0, "nothing is due for hours"
    WebhookConfig.objects.update(next_check_at=None)
    result = reconcile(world.forge, client, apply=True, due_only=True, seconds=1e-9)  # type: ignore[arg-type]
    assert result.unfinished, "what is left waits for the next pass"


class ManyHooks:
    """A forge's hooks alone: a token with admin right at each repository, and at no organisation."""

    def __init__(self, rows: list[Repository]) -> None:
        self.rows = {row.forge_repo_id: row for row in rows}
        self.found: dict[str, list[Hook]] = {row.full_name: [] for row in rows}
        self.reads = self.writes = 0

    def hooks(self, owner: str, name: str) -> Iterator[Hook]:
        self.reads += 1
        if not name:
            raise Forbidden("GET /orgs/many/hooks: 403")
        yield from self.found[f"{owner}/{name}"]

    def repository_by_id(self, repo_id: int) -> Repository:
        return self.rows[repo_id]

    def create_hook(self, owner: str, name: str, *, url: str, secret: str, events: Any) -> Hook:
        self.writes += 1
        hook = Hook(self.writes, url, frozenset({*events, "pull_request_review_comment"}), active=True)
        self.found[f"{owner}/{name}"].append(hook)
        return hook


# --- without the right


@every_version
def test_refused_is_told_once_and_polling_goes_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "enrollment"):
        for _ in range(4):
            assert done(apply(world)) == [("refused", "recipes"), ("refused", "recipes/app"), ("refused", "recipes/web")]
    assert states() == {"recipes": "refused", "recipes/app": "refused", "recipes/web": "refused"}
    assert len([line for line in caplog.messages if "recipes/web" in line]) == 1
    row = WebhookConfig.objects.get(repository__name="web")
    assert row.reason.startswith("The token lacks the admin permission on recipes/web (GET /repos/recipes/web/hooks: 403")
    assert "add the hook manually" in row.reason
    said = world.say("recipes/web")
    world.poll()
    assert Comment.objects.get().forge_comment_id == said.id


def test_refused_costs_few_requests(world: World) -> None:
    apply(world)
    before = len(world.own_requests())
    for _ in range(60):
        reconcile(world.forge, apply=True, due_only=True)
    assert len(world.own_requests()) == before
    WebhookConfig.objects.update(next_check_at=timezone.now())
    reconcile(world.forge, apply=True, due_only=True)
    assert len(world.own_requests()) == before + 3


def test_given_the_right_later_it_registers(world: World) -> None:
    apply(world)
    administer(world, "recipes/web")
    assert ("create", "recipes/web") in done(apply(world))
    assert states() == {"recipes": "refused", "recipes/app": "refused", "recipes/web": "registered"}


def verified_and_then_no_right(world: World) -> None:
    """The hook of recipes/web delivers; then the token loses its right there."""
    administer(world, "recipes/web")
    bridge = Bridge(world)
    apply(world)
    world.say("recipes/web")
    bridge.carry()
    world.remote.tables.collaborators.clear()


def test_the_right_taken_away_a_hook_that_delivers_stays_verified(world: World) -> None:
    verified_and_then_no_right(world)
    apply(world)
    assert states()["recipes/web"] == "verified"
    WebhookConfig.objects.filter(repository__name="web").update(state="unhealthy")
    apply(world)
    assert states()["recipes/web"] == "refused"


def test_a_right_to_look_but_not_to_write(world: World) -> None:
    administer(world, "recipes/web")
    world.remote.faults = lambda request: Fault(status=403) if request.method == "POST" else None
    apply(world)
    assert states()["recipes/web"] == "refused"
    assert remote(world) == []


# --- between an organisation's hook and its repositories'


@every_version
def test_moving_to_one_hook_and_back_loses_and_doubles_nothing(world: World) -> None:
    administer(world)
    bridge = Bridge(world)
    apply(world)
    heard: list[int] = []

    def everybody_speaks() -> None:
        heard.extend(world.say(name).id for name in ("recipes/web", "recipes/app"))
        bridge.carry()
        assert sorted(Comment.objects.values_list("forge_comment_id", flat=True)) == sorted(heard)
        assert set(bridge.statuses) <= {202}

    everybody_speaks()
    own_organisation(world)
    assert done(apply(world)) == [("create", "recipes"), ("delete", "recipes/app"), ("delete", "recipes/web")]
    assert len(remote(world)) == 1
    everybody_speaks()
    assert states() == {"recipes": "verified"}
    # The organisation is lost again: as long as its hook delivers, it stays; when it does no more, the repositories' come.
    world.remote.add_member(world.org, world.bot, "read")
    apply(world)
    assert states() == {"recipes": "verified"}
    everybody_speaks()
    WebhookConfig.objects.update(state="unhealthy", state_at=timezone.now() + timedelta(seconds=60))
    assert done(apply(world))[1:] == [("create", "recipes/app"), ("create", "recipes/web")]
    assert len(remote(world)) == 3
    everybody_speaks()
    assert Delivery.objects.filter(outcome="known").count() == 2, "told twice, and counted once"


def test_killed_while_moving_it_is_gone_on_with(world: World) -> None:
    administer(world)
    apply(world)
    own_organisation(world)
    killed_everywhere(lambda: reconcile(world.forge, apply=True))
    assert states() == {"recipes": "registered"}
    assert [hook.org_id for hook in remote(world)] == [world.org.id]


def test_a_hook_that_a_maintainer_adds_during_a_pass_is_let_be(world: World) -> None:
    administer(world, "recipes/web")
    row = Repository.objects.get(name="web")
    Repository.objects.filter(name="web").update(webhooks="on")
    apply(world)
    WebhookConfig.objects.update(by_hand=True)
    client = world.client()
    listing = client.hooks

    def added_meanwhile(owner: str, name: str) -> Any:
        if name == "web" and WebhookConfig.objects.filter(repository=row).count() == 1:
            made = secret_by_hand(row)
            client.create_hook("recipes", "web", url=made.url, secret=made.reveal_secret(), events=GITEA.event_names)
        return listing(owner, name)

    with mock.patch.object(client, "hooks", added_meanwhile):
        reconcile(world.forge, client, apply=True)
    assert len(remote(world)) == 2
    assert all(as_desired(world, hook) for hook in remote(world))


# --- killed anywhere


#: Calls to the forge, and writes to the database.
STEPS: list[tuple[Any, str]] = [
    (requests.Session, "request"),
    (QuerySet, "update"),
    (QuerySet, "create"),
    (WebhookConfig, "delete"),
]


def counts(subject: Any, *args: Any) -> bool:
    if isinstance(subject, requests.Session) and "/api/v1/" not in args[1]:
        return False  # the fake forge delivers from a thread of its own, by the same library
    # Within a statement of many rows: whoever dies here has died before it.
    return not (connection.savepoint_ids and connection.savepoint_ids[-1] is None)


def killed_everywhere(work: Callable[[], Any], check: Callable[[], Any] = lambda: None) -> int:
    """Do a piece of work again and again, killed one step later each time, until it comes to its end. Returns the steps."""
    for step in itertools.count():
        steps: list[str] = []
        killed = None
        with killed_at(step, steps, STEPS, counts):
            try:
                work()
            except Killed as error:
                killed = error
        Lease.objects.update(expires_at=timezone.now())  # a dead owner's lease runs out
        check()
        if not killed:
            return step
    raise AssertionError


@pytest.fixture
def no_sockets(world: World) -> Iterator[None]:
    with Air(world.remote, lambda seconds: None).carrying():
        yield


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("world", ["1.15", FORGEJO], indirect=True)
@pytest.mark.parametrize("who", ["organisation", "repositories"])
def test_killed_at_any_step_of_registering(world: World, who: str) -> None:
    own_organisation(world) if who == "organisation" else administer(world)
    expected = 1 if who == "organisation" else 2

    def one_each() -> None:
        assert len(remote(world)) <= expected
        assert all(as_desired(world, hook) for hook in remote(world))

    # Never twice the same hook: each time it is begun anew, until all stands.
    steps = 0
    while True:
        taken: list[str] = []
        try:
            with killed_at(steps, taken, STEPS, counts):
                reconcile(world.forge, apply=True)
        except Killed:
            Lease.objects.update(expires_at=timezone.now())
            one_each()
            reconcile(world.forge, apply=True)
            one_each()
            assert len(remote(world)) == expected
            assert set(states().values()) <= {"registered", "refused"}
            WebhookConfig.objects.all().delete()
            world.remote.tables.hooks.clear()
            steps += 1
            continue
        break
    assert steps > 8
    one_each()


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("world", ["1.15", FORGEJO], indirect=True)
@pytest.mark.parametrize("who", ["organisation", "repository"])
def test_killed_at_any_step_of_a_rotation(world: World, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_reconcile, "OVERLAP", timedelta(0))
    own_organisation(world) if who == "organisation" else administer(world, "recipes/web")
    bridge = Bridge(world)
    apply(world)
    said: list[int] = []

    def turn() -> None:
        rows = WebhookConfig.objects.exclude(state="rotating").select_related("repository", "forge")
        rotate([row for row in rows if row.state != "refused"])
        for _ in range(2):  # the second removes the old one
            reconcile(world.forge, apply=True)

    def nothing_lost() -> None:
        assert 1 <= len(remote(world)) <= 2
        bridge.statuses.clear()
        said.append(world.say("recipes/web").id)
        bridge.carry()
        assert 202 in bridge.statuses, "one of them is always there, and its secret counts"
        assert sorted(Comment.objects.values_list("forge_comment_id", flat=True)) == said

    assert killed_everywhere(turn, nothing_lost) > 12
    for _ in range(2):
        apply(world)
    assert len(remote(world)) == 1
    assert as_desired(world, remote(world)[0])
    assert not WebhookConfig.objects.filter(state="rotating").exists()
    assert apply(world).writes == 0


def test_an_answer_that_is_lost_makes_no_second_hook(world: World) -> None:
    own_organisation(world)
    world.remote.faults = lambda request: Fault(close="after") if request.method == "POST" else None
    result = reconcile(world.forge, apply=True)
    assert "down or unreachable" in result.problems[0]
    assert states() == {"recipes": "absent"}
    world.remote.faults = None
    with writes(world) as made:
        assert done(apply(world)) == [("nothing", "recipes")]
    assert made == []
    assert len(remote(world)) == 1
    assert states() == {"recipes": "registered"}


@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(status=429), Fault(status=401), Fault(body="<html>"), Fault(body="[{}]")]
)
def test_a_forge_in_trouble_shows_and_nothing_is_written(world: World, fault: Fault) -> None:
    own_organisation(world)
    apply(world)
    world.remote.faults = lambda request: fault if "hooks" in request.path else None
    with writes(world) as made:
        result = reconcile(world.forge, apply=True)
    assert result.problems
    assert made == []
    assert states()["recipes"] == "registered"
    assert WebhookConfig.objects.filter(repository=None).get().next_check_at > timezone.now() + timedelta(minutes=10)


def test_two_passes_at_once_do_not_both_write(world: World) -> None:
    own_organisation(world)
    from controlplane.leases import lease

    with lease(f"hooks:{world.forge.pk}", 60):
        assert reconcile(world.forge, apply=True).skipped
    assert remote(world) == []


@every_version
def test_a_name_that_was_taken_by_somebody_else_gets_no_hook(world: World) -> None:
    administer(world)
    world.remote.rename_repo("recipes/web", "site")
    world.add_recipe("web")
    administer(world, "recipes/web")
    result = reconcile(world.forge, apply=True)
    assert "recipes/web was renamed to" in result.problems[0]
    assert [hook.repo_id for hook in remote(world)] == [world.remote.repo("recipes/app").id]
    world.poll()
    apply(world)
    assert {hook.repo_id for hook in remote(world)} == {world.remote.repo(f"recipes/{name}").id for name in ("app", "site")}


# --- rotation


@every_version
def test_a_rotation_from_beginning_to_end(world: World) -> None:
    own_organisation(world)
    bridge = Bridge(world)
    apply(world)
    (old,) = remote(world)
    begun, left = rotate(list(WebhookConfig.objects.all()))
    assert (len(begun), left) == (1, [])
    assert [line for _, line in [rotate(list(WebhookConfig.objects.exclude(state="rotating")))]] == [
        ["recipes: absent; there is no hook to rotate"]
    ]
    apply(world, due_only=True)
    assert len(remote(world)) == 2
    assert rotate(list(WebhookConfig.objects.exclude(state="rotating")))[1] == ["recipes: a rotation is already in progress"]
    world.say("recipes/web")
    bridge.carry()
    assert bridge.statuses == [202, 202], "both count"
    assert Comment.objects.count() == 1
    assert states() == {"recipes": "verified"}
    retired = WebhookConfig.objects.get(state="rotating")
    assert timezone.now() < retired.ends_at <= timezone.now() + OVERLAP
    assert apply(world).writes == 0
    WebhookConfig.objects.filter(state="rotating").update(ends_at=timezone.now(), next_check_at=timezone.now())
    assert ("delete", "recipes") in done(apply(world, due_only=True))
    (new,) = remote(world)
    assert new.secret != old.secret
    assert as_desired(world, new)
    assert WebhookConfig.objects.count() == 1


def test_a_secret_that_no_key_opens_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    own_organisation(world)
    apply(world)
    client = world.client()
    with monkeypatch.context() as patch:
        patch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="])
        result = reconcile(world.forge, client, apply=True)
        assert done(result)[0] == ("rotate", "recipes")
        assert len(remote(world)) == 2
        assert WebhookConfig.objects.exclude(state="rotating").get().reveal_secret() == remote(world)[1].secret


def test_one_that_stays_silent_gets_a_new_secret_once_a_day(world: World) -> None:
    own_organisation(world)
    apply(world)
    (old,) = remote(world)
    hours_ago = timezone.now() - timedelta(hours=7)
    WebhookConfig.objects.update(state="unhealthy", state_at=hours_ago)
    assert apply(world).writes == 0, "it is young"
    WebhookConfig.objects.update(created_at=timezone.now() - timedelta(days=2))
    result = apply(world)
    assert [do for do, _ in done(result)] == ["rotate", "create", "nothing"]
    assert "the forge may have another secret" in result.actions[0].reason
    assert len({old.secret, *(hook.secret for hook in remote(world))}) == 2
    assert states() == {"recipes": "registered"}
    assert apply(world).writes == 0


def test_secrets_are_sealed_and_their_keys_can_be_rotated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.fernet import Fernet

    own_organisation(world)
    apply(world)
    secret = remote(world)[0].secret
    with connection.cursor() as cursor:
        cursor.execute("SELECT secret FROM enrollment_webhookconfig")
        (stored,) = cursor.fetchone()
    assert secret not in stored
    assert (WebhookConfig, "secret") in set(sealed_fields())
    from controlplane import secrets

    old, new = secrets.keys()[0], Fernet.generate_key().decode()
    for module in ("controlplane.secrets", "controlplane.rotation"):
        monkeypatch.setattr(f"{module}.keys", lambda: [new, old])
    assert reencrypt() >= 1
    for module in ("controlplane.secrets", "controlplane.rotation"):
        monkeypatch.setattr(f"{module}.keys", lambda: [new])
    assert WebhookConfig.objects.get().reveal_secret() == secret
    assert str(WebhookConfig.objects.get().secret) == "<sealed>"


# --- how polling rests


def searches(world: World, looks: int) -> int:
    before = len(world.own_requests())
    for _ in range(looks):
        world.poll()
    return sum("issues/search" in request.path for request in world.own_requests()[before:])


def rested() -> None:
    """As if those that rest had rested for long enough."""
    forge = Forge.objects.get()
    long_ago = timezone.now() - timedelta(seconds=settings.CC_CI.poll_rarely_seconds + 1)
    forge.rarely = {name: [seen, long_ago.isoformat()] for name, (seen, _) in forge.rarely.items()}
    forge.save(update_fields=["rarely"])


def verified(world: World) -> Bridge:
    """An organisation's hook that has told of a comment."""
    own_organisation(world)
    bridge = Bridge(world)
    apply(world)
    world.say("recipes/web", "### passed", "cc-ci")
    bridge.carry()
    assert states() == {"recipes": "verified"}
    world.poll()
    return bridge


@every_version
def test_a_verified_hook_lets_polling_rest_and_an_unhealthy_one_ends_that(world: World) -> None:
    assert searches(world, 3) == 3
    bridge = verified(world)
    world.poll()
    assert searches(world, 5) == 0
    rested()
    assert searches(world, 3) == 1
    # The receiver is down while somebody speaks: polling finds it at its next turn, and returns to full speed.
    bridge.down = True
    WebhookConfig.objects.update(state_at=timezone.now() - timedelta(days=1))
    missed = world.say("recipes/web")
    bridge.carry()
    assert searches(world, 2) == 0
    rested()
    world.poll()
    assert [row.forge_comment_id for row in Comment.objects.all()] == [missed.id]
    assert coverage.find_unhealthy() == [], "the delivery may still come"
    Comment.objects.update(seen_at=timezone.now() - timedelta(seconds=70))
    (line,) = coverage.find_unhealthy()
    assert "polling found comment" in line and "recipes" in line
    assert states() == {"recipes": "unhealthy"}
    assert searches(world, 3) == 3
    # And the next one that comes heals it.
    bridge.down = False
    world.say("recipes/app", "### failed", "cc-ci")
    bridge.carry()
    assert states() == {"recipes": "verified"}


@every_version
def test_what_was_said_while_polling_rested_is_found_whenever_it_returns(world: World) -> None:
    bridge = verified(world)
    world.remote.add_org("other", world.admin)
    world.add_recipe("loud", "other")
    world.enroll("other/loud")
    Repository.objects.update(net_due_at=timezone.now() + timedelta(hours=6))
    for _ in range(2):
        world.poll()
    bridge.down = True
    missed = world.say("recipes/web")
    bridge.carry()
    # The other owner has no hook, and is asked at each look; where all are asked at once, nobody can rest.
    all_at_once = not world.remote.features.owner_filter
    for _ in range(8):
        world.clock.move(minutes=1)
        loud = world.say("other/loud")
        world.poll()
        assert loud.id in Comment.objects.values_list("forge_comment_id", flat=True)
        assert (missed.id in Comment.objects.values_list("forge_comment_id", flat=True)) is all_at_once
    assert Forge.objects.get().cursor > missed.created + timedelta(minutes=5)
    WebhookConfig.objects.filter(state="verified").update(state="unhealthy")
    world.poll()
    assert missed.id in Comment.objects.values_list("forge_comment_id", flat=True)
    assert Forge.objects.get().rarely == {}


@pytest.mark.parametrize("world", ["1.22"], indirect=True)
def test_a_renamed_owner_is_asked_from_its_own_time_on(world: World) -> None:
    bridge = verified(world)
    world.poll()
    bridge.down = True
    missed = world.say("recipes/web")
    bridge.carry()
    entry = Forge.objects.get().rarely
    assert list(entry) == [str(world.org.id)]
    Forge.objects.update(cursor=world.clock() + timedelta(minutes=5))
    world.clock.move(minutes=5)
    Repository.objects.update(owner="cookbook")
    world.remote.rename_user("recipes", "cookbook")
    WebhookConfig.objects.update(state="unhealthy")
    world.poll()
    assert Comment.objects.get().forge_comment_id == missed.id


def test_a_repository_where_hooks_are_off_keeps_its_owner_awake(world: World) -> None:
    verified(world)
    Repository.objects.filter(name="app").update(webhooks="off")
    assert searches(world, 3) == 3


def test_without_a_search_only_the_loud_are_listed(world: World) -> None:
    verified(world)
    Repository.objects.update(net_cursor=timezone.now())
    world.remote.faults = lambda request: Fault(status=403) if "search" in request.path else None
    Forge.objects.update(search="refused", search_probed_at=timezone.now())
    before = len(world.own_requests())
    world.poll()
    assert len(world.own_requests()) == before
    Repository.objects.filter(name="app").update(webhooks="off")
    world.poll()
    assert {request.path for request in world.own_requests()[before:] if "comments" in request.path} == {
        "/api/v1/repos/recipes/app/issues/comments"
    }


@pytest.mark.parametrize(
    ("comment", "delivered", "hook", "missed"),
    [
        ({}, "", {}, True),
        ({}, "here", {}, False),
        ({}, "elsewhere", {}, True),
        ({"via": "delivery"}, "", {}, False),
        ({"via": "net"}, "", {}, True),
        ({}, "", {"state": "registered"}, False),
        ({"created_at": timedelta(days=3)}, "", {}, False),
        ({"seen_at": timedelta(0)}, "", {}, False),
    ],
    ids=[
        "missed",
        "delivered",
        "told by another place's hook",
        "by delivery",
        "by the net",
        "not verified",
        "before the hook",
        "a moment ago",
    ],
)
def test_what_counts_as_missed(db: None, comment: dict[str, Any], delivered: str, hook: dict[str, Any], missed: bool) -> None:
    row = WebhookConfigFactory(**hook)
    given = {"created_at": timedelta(minutes=8), "seen_at": timedelta(minutes=5), **comment}
    now = timezone.now()
    times = {name: now - value if isinstance(value, timedelta) else value for name, value in given.items()}
    made = CommentFactory(pull_request__repository=row.repository, **times)
    if delivered:
        place = row.repository if delivered == "here" else RepositoryFactory(forge=row.forge)
        said = {"forge_comment_id": made.forge_comment_id, "repository": place}
        Delivery.objects.create(forge=row.forge, delivery_id="d", status=202, outcome="known", **said)
    assert bool(coverage.find_unhealthy()) is missed
    row.refresh_from_db()
    assert (row.state == "unhealthy") is missed
    assert coverage.find_unhealthy() == []


def test_the_task_repairs_what_is_unhealthy(world: World) -> None:
    verified(world)
    (hook,) = remote(world)
    hook.events = ["push"]
    WebhookConfig.objects.update(state_at=timezone.now() - timedelta(days=1))
    assert tasks.see_to_hooks() == "nothing to do", "nothing is due"
    web = Repository.objects.get(name="web")
    CommentFactory(pull_request__repository=web, pull_request__number=77, seen_at=timezone.now() - timedelta(minutes=2))
    words = tasks.see_to_hooks()
    assert "no delivery had reported" in words
    assert as_desired(world, hook)
    assert states() == {"recipes": "registered"}


def test_the_task_leaves_a_failing_forge_alone(world: World) -> None:
    own_organisation(world)
    Forge.objects.update(backoff_until=timezone.now() + timedelta(minutes=5))
    before = len(world.own_requests())
    assert tasks.see_to_hooks() == "nothing to do"
    assert len(world.own_requests()) == before


# --- doctor


def test_doctor_says_nothing_where_no_hook_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    RepositoryFactory()
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", False)
    assert list(check_webhooks()) == []


@pytest.mark.parametrize(
    ("state", "level", "words"),
    [
        ("verified", "ok", "1 of 1 verified"),
        ("registered", "ok", "0 of 1 verified"),
        ("unhealthy", "warning", "unhealthy: recipes/web. because"),
        ("drifted", "warning", "reconcile_webhooks --apply"),
        ("disabled", "warning", "CC_CI_WEBHOOK_REENABLE=1"),
        ("refused", "warning", "add the hook manually"),
    ],
)
def test_doctor_on_each_state(monkeypatch: pytest.MonkeyPatch, state: str, level: str, words: str) -> None:
    monkeypatch.setattr(settings.CC_CI, "base_url", "https://ci.example.org")
    WebhookConfigFactory(repository__name="web", state=state, reason="because")
    (finding,) = check_webhooks()
    assert finding.level == level
    assert words in f"{finding.text} {finding.fix}"


def test_doctor_on_an_address_that_no_forge_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "base_url", "http://127.0.0.1:8000")
    RepositoryFactory()
    (finding,) = check_webhooks()
    assert (finding.level, finding.fix) == ("error", "CC_CI_BASE_URL=https://ci.example.org, or CC_CI_WEBHOOK_URL")
    monkeypatch.setattr(settings.CC_CI, "webhook_url", "https://hooks.example.org")
    assert next(iter(check_webhooks())).level == "ok"


def test_the_address_can_be_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    forge = ForgeFactory()
    monkeypatch.setattr(settings.CC_CI, "webhook_url", "http://ci.internal:8000")
    assert hooks_address(forge.pk) == f"http://ci.internal:8000/hooks/{forge.pk}/"


# --- over the wire


@pytest.mark.django_db(transaction=True)
def test_from_the_forge_to_the_comment_over_real_http(world: World, live_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "webhook_url", live_server.url)
    own_organisation(world)
    apply(world)
    said = world.say("recipes/web", "!testme")
    world.server.deliveries.flush()
    assert [delivery.status for delivery in world.server.deliveries.done] == [202]
    assert tasks.take_deliveries() == "1 processed"
    row = Comment.objects.get()
    assert (row.forge_comment_id, row.via) == (said.id, "delivery")
    assert states() == {"recipes": "verified"}
