"""Deliveries that a forge really sends, over the network, to a server that really listens; see also tests/real."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from django.conf import settings
from pytest_django.live_server_helper import LiveServer

from enrollment.models import Comment, Delivery, WebhookConfig
from enrollment.webhooks import process, receiver
from enrollment.webhooks.reconcile import reconcile
from tests.world import World

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow(1)]


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end, [(row.outcome, row.reason) for row in Delivery.objects.all()]
        time.sleep(0.05)
        process.take_waiting()


def test_comments_and_reviews_come_by_a_hook_that_was_registered(
    world: World, live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", True)
    monkeypatch.setattr(settings.CC_CI, "base_url", live_server.url)
    receiver.forget()
    world.remote.add_collaborator("recipes/web", world.bot, "admin")
    world.forge.refresh_from_db()
    assert not reconcile(world.forge, apply=True).problems
    said = world.say("recipes/web", "!testme")
    until(lambda: Comment.objects.filter(forge_comment_id=said.id).exists())
    assert WebhookConfig.objects.get(repository__name="web").state == "verified"
    world.remote.edit_comment(said, "!testme --extra-tests")
    # Somebody takes the hook away at the forge; the next pass puts it back.
    client = world.client()
    [hook] = client.hooks("recipes", "web")
    client.delete_hook("recipes", "web", hook.id)
    world.forge.refresh_from_db()
    assert not reconcile(world.forge, apply=True).problems
    other = world.say("recipes/web", "!testme help")
    until(lambda: Comment.objects.filter(forge_comment_id=other.id).exists())
    # A review; and comments under another name, and at another owner.
    carol = world.remote.add_user("carol")
    world.remote.add_member(world.org, carol, "write")
    review = world.remote.review("recipes/web", 1, carol, "!testme", "APPROVED")
    until(lambda: Comment.objects.filter(forge_comment_id=review.id).exists())
    world.remote.rename_repo("recipes/web", "site")
    renamed = world.say("recipes/site", "!testme help")
    until(lambda: Comment.objects.filter(forge_comment_id=renamed.id).exists())
    world.remote.add_org("other", world.admin)
    world.remote.transfer("recipes/site", "other")
    moved = world.say("other/site", "!testme help", "root")
    until(lambda: Comment.objects.filter(forge_comment_id=moved.id).exists())
    receiver.forget()
