"""Webhooks where names, rights, owners or leases change under them: what is not known is left alone, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.utils import timezone

from controlplane.leases import Held
from controlplane.models import Lease
from controlplane.registry import registry
from enrollment.fakeforge.faults import Fault
from enrollment.forges.base import ForgeKind
from enrollment.forges.gitea.client import GiteaClient
from enrollment.forges.gitea.kind import GITEA
from enrollment.models import Comment, Repository, WebhookConfig
from enrollment.models.webhooks import hooks_address
from enrollment.webhooks import reconcile as hook_reconcile
from enrollment.webhooks.checks import check_webhooks
from enrollment.webhooks.reconcile import reconcile
from enrollment.webhooks.registration import rotate, secret_by_hand
from tests.enrollment.hooks import writes
from tests.enrollment.test_webhooks import (
    FORGEJO,
    administer,
    apply,
    as_desired,
    done,
    hasty,
    own_organisation,
    remote,
    states,
    verified,
    verified_and_then_no_right,
    world,
)
from tests.world import World

__all__ = ["hasty", "world"]
pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

GARBAGE = Fault(status=200, body="<html>")


def where(world: World) -> dict[int, int]:
    """Which hook stands at which repository (0: at an organisation)."""
    return {hook.id: hook.repo_id for hook in remote(world)}


def of(world: World, *names: str) -> set[int]:
    return {world.remote.repo(f"recipes/{name}").id for name in names}


def all_due() -> None:
    WebhookConfig.objects.update(next_check_at=None)


def current() -> list[WebhookConfig]:
    return list(WebhookConfig.objects.exclude(state="rotating").select_related("repository", "forge"))


# --- the organisation's hook and its repositories'


@pytest.mark.parametrize(
    "fault", [Fault(status=422), Fault(status=405), GARBAGE, Fault(status=500)], ids=["422", "405", "garbage", "500"]
)
def test_while_the_organisations_is_in_doubt_its_repositories_keep_theirs(world: World, fault: Fault) -> None:
    administer(world)
    Repository.objects.filter(name="web").update(webhooks="off")
    apply(world)
    Repository.objects.update(webhooks="")
    world.remote.faults = lambda request: fault if "/orgs/" in request.path else None
    for _ in range(3):
        all_due()
        assert reconcile(world.forge, apply=True, due_only=True).problems
        assert set(where(world).values()) == of(world, "app")
    assert states() == {"recipes": "absent", "recipes/app": "registered"}
    world.remote.faults = None
    own_organisation(world)
    apply(world)
    assert [hook.org_id for hook in remote(world)] == [world.org.id]


def test_an_answer_that_makes_no_sense_is_no_refusal(world: World) -> None:
    administer(world)
    world.remote.faults = lambda request: GARBAGE if "/orgs/" in request.path else None
    for _ in range(2):
        all_due()
        reconcile(world.forge, apply=True)
        assert remote(world) == [], "the next answer may say that one for all can be had"


def test_a_refused_organisation_that_is_not_due_leaves_its_repositories_their_own(world: World) -> None:
    administer(world)
    apply(world)
    WebhookConfig.objects.exclude(repository=None).update(next_check_at=None)
    assert {do for do, _ in done(apply(world, due_only=True))} == {"nothing"}
    assert set(where(world).values()) == of(world, "app", "web")


def test_once_the_organisations_stands_its_repositories_are_looked_at_at_once(world: World) -> None:
    administer(world)
    apply(world)
    own_organisation(world)
    WebhookConfig.objects.filter(repository=None).update(next_check_at=None)
    assert ("create", "recipes") in done(apply(world, due_only=True))
    apply(world, due_only=True)
    assert [hook.org_id for hook in remote(world)] == [world.org.id]


def test_one_that_was_switched_off_brings_no_others(world: World) -> None:
    administer(world)
    own_organisation(world)
    apply(world)
    (hook,) = remote(world)
    hook.active = False
    for _ in range(2):
        assert done(apply(world)) == [("disabled", "recipes")]
    assert len(remote(world)) == 1


def test_the_plan_tells_of_the_move(world: World) -> None:
    administer(world)
    apply(world)
    own_organisation(world)
    before = where(world)
    result = reconcile(world.forge, apply=False)
    assert done(result) == [("create", "recipes"), ("delete", "recipes/app"), ("delete", "recipes/web")]
    assert where(world) == before


# --- switched off, and new secrets


@pytest.mark.parametrize("seen", [True, False])
def test_a_rotation_does_not_switch_on_what_was_switched_off(world: World, seen: bool) -> None:
    own_organisation(world)
    apply(world)
    (hook,) = remote(world)
    hook.active = False
    if seen:
        apply(world)
    begun, left = rotate(current())
    assert begun == []
    assert "disabled at the forge" in left[0]
    apply(world)
    assert [(one.id, one.active) for one in remote(world)] == [(hook.id, False)]
    assert states() == {"recipes": "disabled"}


def test_a_rotation_of_one_that_turns_out_to_be_off_waits_until_it_is_on(world: World) -> None:
    own_organisation(world)
    apply(world)
    (hook,) = remote(world)
    hook.active = False
    world.remote.faults = lambda request: Fault(status=500)
    assert len(rotate(current())[0]) == 1, "it could not be asked"
    world.remote.faults = None
    for _ in range(2):
        apply(world)
        assert [(one.id, one.active) for one in remote(world)] == [(hook.id, False)]
    assert states() == {"recipes": "disabled"}
    hook.active = True
    apply(world)
    assert len(remote(world)) == 2
    assert states() == {"recipes": "registered"}


def test_one_that_is_off_and_whose_secret_no_key_opens_stays_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    own_organisation(world)
    apply(world)
    (hook,) = remote(world)
    hook.active = False
    client = world.client()
    monkeypatch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="])
    assert done(reconcile(world.forge, client, apply=True)) == [("disabled", "recipes")]
    assert [(one.id, one.active) for one in remote(world)] == [(hook.id, False)]


def test_without_the_right_no_rotation_begins(world: World) -> None:
    verified_and_then_no_right(world)
    begun, left = rotate([row for row in current() if row.place == "recipes/web"])
    assert begun == []
    assert "the token may no longer manage its hooks" in left[0]
    assert states()["recipes/web"] == "verified"
    assert not WebhookConfig.objects.filter(state="rotating").exists()


def test_what_was_to_be_added_by_hand_is_registered_once_the_token_may(world: World) -> None:
    apply(world)
    row = Repository.objects.get(name="web")
    shown = secret_by_hand(row).reveal_secret()
    administer(world, "recipes/web")
    apply(world)
    (hook,) = remote(world)
    new = WebhookConfig.objects.exclude(state="rotating").get(repository=row)
    assert (new.by_hand, new.state) == (False, "registered")
    assert as_desired(world, hook)
    assert hook.secret != shown
    retired = WebhookConfig.objects.get(state="rotating")
    assert retired.ends_at > timezone.now() + timedelta(hours=23), "somebody may be about to add it"
    Repository.objects.filter(pk=row.pk).update(webhooks="off")
    apply(world)
    assert remote(world) == []


# --- names


@pytest.mark.parametrize("world", ["1.15", "1.22", FORGEJO], indirect=True)
@pytest.mark.parametrize("due_only", [False, True])
def test_under_a_name_that_came_free_nobody_elses_hook_is_touched(world: World, due_only: bool) -> None:
    administer(world)
    apply(world)
    before = where(world)
    world.remote.rename_repo("recipes/web", "site")
    world.remote.rename_repo("recipes/app", "web")
    WebhookConfig.objects.exclude(repository=None).update(state="verified")
    for _ in range(3):
        WebhookConfig.objects.filter(repository__name="web").update(next_check_at=None)
        result = reconcile(world.forge, apply=True, due_only=due_only)
        assert result.writes == 0
        assert where(world) == before
    assert "site" in states() or "recipes/site" in states()
    assert result.problems == []


def test_under_a_new_name_a_lost_hook_is_made_again(world: World) -> None:
    administer(world)
    apply(world)
    lost = next(hook for hook in remote(world) if hook.repo_id in of(world, "web"))
    WebhookConfig.objects.exclude(repository=None).update(state="verified")
    world.remote.rename_repo("recipes/web", "site")
    world.remote.rename_repo("recipes/app", "web")
    del world.remote.tables.hooks[lost.id]
    for _ in range(3):
        reconcile(world.forge, apply=True)
    assert set(where(world).values()) == of(world, "site", "web")
    assert states()["recipes/site"] == "registered", "the new one has proved nothing"


def test_watched_no_longer_its_hook_goes_under_its_new_name(world: World) -> None:
    administer(world)
    apply(world)
    Repository.objects.filter(name="web").update(active=False)
    world.remote.rename_repo("recipes/web", "site")
    world.remote.rename_repo("recipes/app", "web")
    for _ in range(3):
        reconcile(world.forge, apply=True)
    assert set(where(world).values()) == of(world, "web")
    assert WebhookConfig.objects.exclude(repository=None).count() == 1


@pytest.mark.parametrize("world", ["1.22"], indirect=True)
@pytest.mark.parametrize("taken", [False, True])
def test_what_is_watched_no_longer_does_not_name_the_organisation(world: World, taken: bool) -> None:
    own_organisation(world)
    apply(world)
    Repository.objects.filter(name="app").update(active=False)
    world.remote.rename_user("recipes", "zoo")
    if taken:
        world.remote.add_org("recipes", world.admin)
    Repository.objects.filter(name="web").update(owner="zoo")
    for _ in range(2):
        assert done(apply(world)) == [("nothing", "zoo")]
    assert states() == {"zoo": "registered"}


@pytest.mark.parametrize("world", ["1.22"], indirect=True)
@pytest.mark.parametrize("taken", ["", "stranger", "owned"])
def test_a_renamed_organisation_is_found_by_id(world: World, taken: str) -> None:
    own_organisation(world)
    apply(world)
    (hook,) = remote(world)
    world.remote.rename_user("recipes", "zoo")
    if taken:
        other = world.remote.add_org("recipes", world.admin)
        if taken == "owned":
            world.remote.add_member(other, world.bot, "owner")
    for _ in range(3):
        reconcile(world.forge, apply=True)
    assert [(one.id, one.org_id) for one in remote(world)] == [(hook.id, world.org.id)]
    # As long as the old name leads to the new one, nothing is amiss.
    assert states() == {"zoo" if taken else "recipes": "registered"}


# --- what nothing is enrolled of any more


def test_an_organisation_without_repositories_loses_its_hook(world: World) -> None:
    own_organisation(world)
    apply(world)
    Repository.objects.update(owner="other", owner_id=999, active=False)
    assert ("delete", "recipes") in done(apply(world))
    assert (remote(world), WebhookConfig.objects.count()) == ([], 0)


def test_where_nothing_is_enrolled_only_its_own_goes(world: World) -> None:
    """Somebody else of ours may be called so by now, and no id can be asked for."""
    own_organisation(world)
    apply(world)
    root = GiteaClient(world.server.url, world.remote.add_token(world.admin))
    other = root.create_hook(
        "recipes", "", url=f"{hooks_address(world.forge.pk)}?hook=other", secret="x", events=GITEA.event_names
    )
    Repository.objects.update(owner="other", owner_id=999, active=False)
    apply(world)
    assert [hook.id for hook in remote(world)] == [other.id]


@pytest.mark.parametrize("who", ["organisation", "repositories"])
@pytest.mark.parametrize("how", ["row", "queryset"])
def test_with_the_rows_of_repositories_their_hooks_go(world: World, who: str, how: str) -> None:
    own_organisation(world) if who == "organisation" else administer(world)
    apply(world)
    if how == "row":
        for row in Repository.objects.all():
            row.delete()
    else:
        Repository.objects.all().delete()
    assert len(remote(world)) == (1 if who == "organisation" else 2)
    all_due()
    apply(world, due_only=True)
    assert remote(world) == []
    assert not WebhookConfig.objects.exclude(state="refused").exists()


def test_enrolled_again_after_its_row_was_deleted_it_has_one_hook(world: World) -> None:
    administer(world, "recipes/web")
    apply(world)
    Repository.objects.filter(name="web").delete()
    world.enroll("recipes/web")
    for _ in range(2):
        apply(world)
    (hook,) = remote(world)
    assert as_desired(world, hook)
    assert not WebhookConfig.objects.filter(state="rotating").exists()


def test_deleting_a_forge_leaves_nothing_behind(world: World) -> None:
    administer(world)
    apply(world)
    world.forge.delete()
    assert not WebhookConfig.objects.exists()


# --- the lease


def test_a_pass_that_lost_its_lease_writes_nothing(world: World) -> None:
    administer(world)
    client = world.client()
    listing = client.hooks

    def taken_meanwhile(owner: str, name: str) -> Iterator[Any]:
        Lease.objects.update(owner="somebody else", fence=99, expires_at=timezone.now() + timedelta(minutes=5))
        return listing(owner, name)

    with mock.patch.object(client, "hooks", taken_meanwhile):
        result = reconcile(world.forge, client, apply=True)
    assert (result.writes, remote(world)) == (0, [])
    assert result.skipped == "another process has taken over its hooks"


def test_a_pass_that_was_held_up_for_long_makes_no_second_hook(world: World) -> None:
    own_organisation(world)
    client = world.client()
    listing, calls = client.hooks, []

    def slow(owner: str, name: str) -> Iterator[Any]:
        found = list(listing(owner, name))
        calls.append(name)
        if len(calls) == 1:
            Lease.objects.update(expires_at=timezone.now())
            apply(world)
        return iter(found)

    with mock.patch.object(client, "hooks", slow):
        reconcile(world.forge, client, apply=True)
    assert len(remote(world)) == 1
    assert apply(world).writes == 0


def test_the_lease_is_held_for_as_long_as_a_write_may_wait(world: World) -> None:
    own_organisation(world)
    client = world.client()
    making, left = client.create_hook, []

    def wait(*args: Any, **more: Any) -> Any:
        left.append(Lease.objects.get().expires_at - timezone.now())
        return making(*args, **more)

    with mock.patch.object(client, "create_hook", wait):
        reconcile(world.forge, client, apply=True)
    assert left[0] > timedelta(minutes=10)


def test_the_lease_is_renewed_from_place_to_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    administer(world)
    apply(world)
    monkeypatch.setattr(hook_reconcile, "LEASE_SECONDS", 0.001)
    with mock.patch.object(Held, "renew", return_value=True) as renew:
        assert apply(world).writes == 0
    assert renew.call_count >= 2
    with mock.patch.object(Held, "renew", return_value=False):
        assert reconcile(world.forge, apply=True).skipped


# --- what the forge does not take


def test_a_hook_that_the_forge_rejects_is_shown_with_the_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "base_url", "https://ci.example.org")
    administer(world, "recipes/web")
    Repository.objects.filter(name="app").update(active=False)
    rejected = Fault(status=422, body='{"message":"Invalid url"}')
    world.remote.faults = lambda request: rejected if request.method == "POST" else None
    result = reconcile(world.forge, apply=True)
    assert not [text for text in result.problems if "report it" in text]
    (words,) = [action.text() for action in result.actions if action.do.value == "refused" and action.place == "recipes/web"]
    assert "Invalid url" in words and "CC_CI_BASE_URL" in words
    row = WebhookConfig.objects.get(repository__name="web")
    assert row.state == "refused"
    assert "The forge rejected the hook" in row.reason and "Invalid url" in row.reason
    assert row.next_check_at > timezone.now() + timedelta(hours=5), "not a try each quarter of an hour"
    (finding,) = check_webhooks()
    assert finding.level == "warning" and "Invalid url" in finding.text
    plan = [action.text() for action in reconcile(world.forge, apply=False).actions]
    assert any(line.startswith("create") and "Invalid url" in line for line in plan)
    world.remote.faults = None
    apply(world)
    assert states()["recipes/web"] == "registered"


def test_one_that_vanished_and_is_not_taken_again_is_verified_no_more(world: World) -> None:
    administer(world, "recipes/web")
    apply(world)
    WebhookConfig.objects.filter(repository__name="web").update(state="verified")
    world.remote.tables.hooks.clear()
    world.remote.faults = lambda request: Fault(status=422) if request.method == "POST" else None
    reconcile(world.forge, apply=True)
    assert states()["recipes/web"] == "refused"


def test_a_repair_that_the_forge_rejects(world: World) -> None:
    administer(world, "recipes/web")
    apply(world)
    (hook,) = remote(world)
    hook.content_type = "form"
    world.remote.faults = lambda request: Fault(status=422) if request.method == "PATCH" else None
    reconcile(world.forge, apply=True)
    assert states()["recipes/web"] == "refused"
    with writes(world) as made:
        reconcile(world.forge, apply=True, due_only=True)
    assert made == []


def test_events_that_the_forge_does_not_know_are_seen_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes any name, and drops what it does not know."""
    administer(world, "recipes/web")
    with monkeypatch.context() as patch:
        patch.setattr(ForgeKind, "event_names", ("comments_on_pulls",))
        result = reconcile(world.forge, apply=True)
    assert remote(world)[0].events == []
    assert "it lacks the event issue_comment and pull_request_comment" in result.problems[0]
    assert states()["recipes/web"] == "drifted"
    apply(world)
    assert states()["recipes/web"] == "registered"
    assert as_desired(world, remote(world)[0])


@pytest.mark.parametrize("world", [FORGEJO], indirect=True)
def test_what_a_proxy_needs_is_kept_through_a_repair(world: World) -> None:
    administer(world, "recipes/web")
    apply(world)
    (hook,) = remote(world)
    hook.content_type = "form"
    client = world.client()
    listing = client.hooks

    def as_forgejo_tells(owner: str, name: str) -> Iterator[Any]:
        return (replace(found, authorization_header="Bearer of-the-proxy") for found in listing(owner, name))

    with mock.patch.object(client, "hooks", as_forgejo_tells):
        assert ("update", "recipes/web") in done(reconcile(world.forge, client, apply=True))
    (sent,) = [request for request in world.own_requests() if request.method == "PATCH"]
    assert json.loads(sent.body)["authorization_header"] == "Bearer of-the-proxy"


# --- the schedule


def test_it_is_on_the_schedule() -> None:
    recurring = registry.recurring["enrollment.tasks.see_to_hooks"]
    assert (recurring.task, recurring.every_seconds <= 60) == ("enrollment.tasks.see_to_hooks", True)


def test_a_transferred_repository_is_known_under_its_new_owner_at_its_listing(world: World) -> None:
    verified(world)
    other = world.remote.add_org("other", world.admin)
    world.remote.add_member(other, world.bot, "read")
    world.remote.transfer("recipes/web", "other")
    Repository.objects.update(net_due_at=timezone.now() - timedelta(minutes=1))
    said = world.say("other/web", "!testme", "root")
    world.poll()
    world.poll()
    row = Repository.objects.get(name="web")
    assert (row.owner, row.owner_id) == ("other", other.id)
    assert said.id in Comment.objects.values_list("forge_comment_id", flat=True)
