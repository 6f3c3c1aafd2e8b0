"""`cc-ci reconcile_webhooks`, `rotate_webhook_secret` and `deliveries`: what they print, do, and exit with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from controlplane.cli import DONE, MISUSE, NO, OURS
from enrollment.fakeforge.faults import Fault
from enrollment.models import Comment, Delivery, Forge, Repository, WebhookConfig
from enrollment.webhooks import receiver, registration
from tests.enrollment.hooks import Bridge, writes
from tests.enrollment.test_commands import Shell
from tests.factories import DeliveryFactory, ForgeFactory, WebhookConfigFactory
from tests.world import World

pytestmark = pytest.mark.django_db


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    # A command closes the connections at its end, and with them the test's transaction.
    monkeypatch.setattr("django.core.management.base.connections.close_all", lambda: None)
    return Shell(capsys)


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Iterator[None]:
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", True)
    receiver.forget()
    yield
    receiver.forget()


@pytest.fixture
def owned(world: World) -> World:
    """The token owns the organisation."""
    world.remote.add_member(world.org, world.bot, "owner")
    return world


# --- reconcile_webhooks


def test_the_plan_is_printed_and_done_only_when_asked(owned: World, shell: Shell) -> None:
    with writes(owned) as made:
        assert shell("reconcile-webhooks") == DONE
    assert made == []
    assert shell.out.splitlines() == [
        "create   recipes: none exists yet",
        "sandbox: 1 hooks checked, 1 to change, 0 writes",
        "To apply it, run: cc-ci reconcile_webhooks --apply",
    ]
    assert shell("reconcile_webhooks", "--apply") == DONE
    assert "sandbox: 1 hooks checked, 1 to change, 1 writes" in shell.out
    assert shell("reconcile_webhooks", "--apply") == DONE
    assert shell.out == "sandbox: 1 hooks checked, 0 to change, 0 writes\n"
    assert shell("reconcile_webhooks", "--all") == DONE
    (hook,) = owned.remote.tables.hooks.values()
    assert shell.out.splitlines()[0] == f"nothing  recipes (hook {hook.id}): in sync"


def test_refused_is_printed_with_the_reason(world: World, shell: Shell) -> None:
    assert shell("reconcile_webhooks") == DONE
    assert "refused  recipes/web: The token lacks the admin permission on recipes/web" in shell.out


def test_for_machines(owned: World, shell: Shell) -> None:
    assert shell("reconcile_webhooks", "--json", "--apply", "--forge", "sandbox") == DONE
    (facts,) = json.loads(shell.out)
    assert facts["actions"] == [{"do": "create", "place": "recipes", "hook": None, "reason": "none exists yet"}]
    assert (facts["writes"], facts["problems"], facts["skipped"]) == (1, [], "")


def test_a_forge_in_trouble(owned: World, shell: Shell) -> None:
    owned.remote.faults = lambda request: Fault(status=401)
    assert shell("reconcile_webhooks") == OURS
    assert "The forge does not accept the token" in shell.err


def test_without_a_forge_and_with_an_unknown_one(db: None, shell: Shell) -> None:
    assert shell("reconcile_webhooks") == MISUSE
    assert "cc-ci forge add" in shell.err
    ForgeFactory()
    assert shell("reconcile_webhooks", "--forge", "https://other.example.org") == MISUSE
    assert "There is no forge" in shell.err


# --- rotate_webhook_secret


def test_a_rotation_by_command(owned: World, shell: Shell) -> None:
    shell("reconcile_webhooks", "--apply")
    assert shell("rotate_webhook_secret", "Recipes") == DONE
    assert shell.out.startswith("1 secrets rotated. The old ones stay valid for 15 minutes")
    assert len(owned.remote.tables.hooks) == 2
    assert shell("rotate_webhook_secret", "--all") == DONE
    assert "recipes: a rotation is already in progress" in shell.out
    assert len(owned.remote.tables.hooks) == 2
    WebhookConfig.objects.filter(state="rotating").update(ends_at=timezone.now())
    assert shell("reconcile_webhooks", "--apply") == DONE
    assert "replaced by a hook with a new secret" in shell.out
    assert len(owned.remote.tables.hooks) == 1


def test_without_the_right_none_is_said_to_be_made(owned: World, shell: Shell) -> None:
    shell("reconcile_webhooks", "--apply")
    owned.remote.add_member(owned.org, owned.bot, "read")
    assert shell("rotate_webhook_secret", "recipes") == DONE
    assert "recipes: the token may no longer manage its hooks" in shell.out
    assert "0 secrets rotated" in shell.out
    assert WebhookConfig.objects.filter(state="rotating").count() == 0


def test_with_a_right_to_look_only_no_new_secret_is_counted(owned: World, shell: Shell) -> None:
    shell("reconcile_webhooks", "--apply")
    owned.remote.faults = lambda request: Fault(status=403) if request.method == "POST" else None
    assert shell("rotate_webhook_secret", "recipes") == OURS
    assert "0 secrets rotated" in shell.out
    assert "recipes: the new hook is refused; the old one stays until the new one is registered." in shell.err


def test_an_interrupted_rotation_is_gone_on_with(owned: World, shell: Shell) -> None:
    shell("reconcile_webhooks", "--apply")
    registration.rotate(list(WebhookConfig.objects.all()))  # and killed
    assert len(owned.remote.tables.hooks) == 1
    assert shell("rotate_webhook_secret", "--all") == DONE
    assert len(owned.remote.tables.hooks) == 2
    assert WebhookConfig.objects.count() == 2


def test_what_cannot_be_rotated_is_said(world: World, shell: Shell) -> None:
    shell("reconcile_webhooks", "--apply")
    assert shell("rotate_webhook_secret", "recipes/web") == DONE
    assert "recipes/web: refused; there is no hook to rotate" in shell.out
    WebhookConfigFactory(repository__forge=world.forge, repository__name="app", by_hand=True)
    assert shell("rotate_webhook_secret", "recipes/app") == DONE
    assert "recipes/app: added manually" in shell.out
    assert "0 secrets rotated" in shell.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name repositories"),
        (["recipes/web", "--all"], "Name repositories"),
        (["recipes/none"], "no webhook of recipes/none"),
    ],
)
def test_rotation_misuse(world: World, shell: Shell, words: list[str], message: str) -> None:
    assert shell("rotate_webhook_secret", *words) == MISUSE
    assert message in shell.err


def test_a_rotation_while_the_forge_is_down_keeps_the_old_one(owned: World, shell: Shell) -> None:
    shell("reconcile_webhooks", "--apply")
    owned.remote.faults = lambda request: Fault(status=502)
    assert shell("rotate_webhook_secret", "--all") == OURS
    assert "continues by itself" in shell.err
    assert WebhookConfig.objects.get(state="rotating").ends_at is None, "its secret counts until there is another"
    owned.remote.faults = None
    WebhookConfig.objects.update(next_check_at=None)
    assert shell("rotate_webhook_secret", "--all") == DONE
    assert len(owned.remote.tables.hooks) == 2


# --- deliveries


def test_deliveries_are_listed_newest_first(db: None, shell: Shell) -> None:
    old = DeliveryFactory(hook__repository__name="web", received_at=timezone.now() - timedelta(hours=1), reason="a new comment")
    new = DeliveryFactory(hook=old.hook, outcome="unwanted", status=204, event="push", action="", number=None)
    assert shell("deliveries", "list") == DONE
    lines = shell.out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [new.delivery_id, old.delivery_id]
    assert lines[1].split("\t")[3:] == ["recipes/web#1", "issue_comment created", "202", "stored", "a new comment"]
    assert shell("deliveries", "list", "--json", "--outcome", "unwanted", "--limit", "5") == DONE
    (fact,) = json.loads(shell.out)
    assert (fact["id"], fact["status"], fact["about"]) == (new.delivery_id, 204, "recipes/web")


def test_no_deliveries(db: None, shell: Shell) -> None:
    assert shell("deliveries", "list") == DONE
    assert shell.out == "No deliveries.\n"


def test_a_delivery_is_replayed(owned: World, shell: Shell) -> None:
    shell("reconcile_webhooks", "--apply")
    bridge = Bridge(owned)
    owned.say("recipes/web")
    bridge.carry()
    (comment,) = Comment.objects.all()
    Delivery.objects.update(comment=None)
    comment.delete()
    row = Delivery.objects.get()
    assert shell("deliveries", "replay", row.delivery_id) == DONE
    assert f"{row.delivery_id}\ta comment\ta new comment" in shell.out
    assert Comment.objects.get().forge_comment_id == comment.forge_comment_id
    assert shell("deliveries", "replay", row.delivery_id) == DONE
    assert "a known comment" in shell.out


def test_replaying_what_is_none_or_fails(db: None, shell: Shell) -> None:
    assert shell("deliveries", "replay", "none") == MISUSE
    assert "There is no delivery none" in shell.err
    assert shell("deliveries") == MISUSE
    row = DeliveryFactory(body="nonsense")
    assert shell("deliveries", "replay", row.delivery_id) == NO
    assert "invalid JSON" in shell.out
    assert not Comment.objects.exists()
    assert (Forge.objects.count(), Repository.objects.count()) == (1, 1)


def test_one_bad_row_does_not_hide_the_others(db: None, shell: Shell) -> None:
    now = timezone.now()
    bad = DeliveryFactory(body="nonsense", received_at=now - timedelta(minutes=2))
    others = [DeliveryFactory(hook=bad.hook, received_at=now - timedelta(minutes=1)) for _ in range(2)]
    none = DeliveryFactory(hook=bad.hook, body="", outcome="foreign", received_at=now)
    assert shell("deliveries", "replay", *[row.delivery_id for row in (bad, *others, none)]) == NO
    lines = shell.out.splitlines()
    assert "content was not kept" in lines[0]
    assert [line.split("\t")[0] for line in lines[1:]] == [row.delivery_id for row in (bad, *others, none)]


def test_two_forges_may_send_the_same_id(db: None, shell: Shell) -> None:
    rows = [DeliveryFactory(delivery_id="the-same", outcome="known", hook__repository__forge=ForgeFactory()) for _ in range(2)]
    assert shell("deliveries", "replay", "--forge", rows[1].forge.name, "the-same") in (DONE, NO)
    assert [Delivery.objects.get(pk=row.pk).tries for row in rows] == [0, 1]
    assert shell("deliveries", "replay", "the-same") in (DONE, NO)
    assert [Delivery.objects.get(pk=row.pk).tries for row in rows] == [1, 1]
    assert [line.split("\t")[0] for line in shell.out.splitlines()] == [f"the-same of {row.forge.name}" for row in rows]
    assert shell("deliveries", "replay", "--forge", "another", "the-same") == MISUSE
