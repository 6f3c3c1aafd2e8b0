"""A hook that a maintainer adds by hand: the steps on two pages, and a secret that is shown once."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from django_q.models import OrmQ

from enrollment.fakeforge.routes_hooks import read_back
from enrollment.forges.gitea.kind import GITEA
from enrollment.models import Comment, Delivery, Repository, WebhookConfig
from enrollment.webhooks import receiver
from enrollment.webhooks.reconcile import Pass, reconcile
from enrollment.webhooks.registration import OVERLAP_BY_HAND, SeenTo, secret_by_hand
from tests.enrollment.hooks import Bridge
from tests.factories import CommentFactory, DeliveryFactory, RepositoryFactory, TestRunFactory, WebhookConfigFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]


@pytest.fixture(autouse=True)
def nothing_believed(data_dir: Path) -> Iterator[None]:
    receiver.forget()
    yield
    receiver.forget()


@pytest.fixture
def row() -> Repository:
    made: Repository = RepositoryFactory(name="web", html_url="https://git.example.org/recipes/web")
    return made


@pytest.fixture
def reader(client: Client) -> Client:
    """Somebody of the staff who may look, and change nothing."""
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_repository"))
    client.force_login(user)
    return client


def page(row: Repository) -> str:
    return f"/repositories/{row.pk}/webhook/"


def admin_page(row: Repository) -> str:
    return f"/admin/enrollment/repository/{row.pk}/change/"


def text(response: HttpResponse) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", response.content.decode()))


def shown_secret(response: HttpResponse) -> str:
    (secret,) = re.findall(r"\b[0-9a-f]{64}\b", text(response))
    return secret


def test_both_pages_show_the_steps_with_this_repositorys_url_and_events(row: Repository, admin_client: Client) -> None:
    secret_by_hand(row)
    hook = WebhookConfig.objects.get()
    for path in (page(row), admin_page(row)):
        words = text(admin_client.get(path))
        assert hook.url in words
        assert f"{settings.CC_CI.base_url}/hooks/{row.forge_id}/?hook={hook.key}" == hook.url
        for wanted in (
            "Issue Comment",
            "Pull Request Comment",
            "Pull Request Reviewed",
            "application/json",
            "POST",
            "Settings → Webhooks",
        ):
            assert wanted in words
        assert 'href="https://git.example.org/recipes/web/settings/hooks"' in admin_client.get(path).content.decode()
    assert page(row) in admin_client.get(admin_page(row)).content.decode()


def test_the_docs_say_the_same() -> None:
    said = (
        "Create secret",
        "Issue Comment",
        "Pull Request Comment",
        "Pull Request Reviewed",
        "application/json",
        "POST",
        "Custom events",
        "once",
    )
    for name in ("enroll-recipe.md", "webhooks.md"):
        words = (settings.BASE_DIR / "docs" / name).read_text()
        assert [wanted for wanted in said if wanted not in words] == [], name


# --- who may


def test_it_needs_a_login(row: Repository, client: Client) -> None:
    for answer in (client.get(page(row)), client.post(page(row))):
        assert (answer.status_code, answer["Location"]) == (302, f"/login/?next=/repositories/{row.pk}/webhook/")
    client.force_login(User.objects.create_user("nobody"))
    assert client.get(page(row)).status_code == 404
    assert not WebhookConfig.objects.exists()


def test_who_may_only_look_makes_no_secret(row: Repository, reader: Client) -> None:
    assert "You need the permission to change repositories" in text(reader.get(page(row)))
    assert "<button" not in reader.get(page(row)).content.decode().partition('id="content"')[2]
    assert reader.post(page(row)).status_code == 403
    assert not WebhookConfig.objects.exists()


def test_staff_without_the_right_to_see_repositories_sees_nothing(row: Repository, client: Client) -> None:
    client.force_login(User.objects.create_user("nobody", is_staff=True))
    for path in (page(row), "/repositories/99/webhook/"):
        answer = client.get(path)
        assert answer.status_code == 403, "and not even whether there is one"
        assert row.full_name not in answer.content.decode()
    assert client.post(page(row)).status_code == 403


def test_a_form_of_another_site_makes_no_secret(row: Repository, admin_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(page(row)).status_code == 403
    assert not WebhookConfig.objects.exists()


def test_no_such_repository(admin_client: Client) -> None:
    assert admin_client.get("/repositories/99/webhook/").status_code == 404
    assert admin_client.delete("/repositories/99/webhook/").status_code == 405


# --- the secret


def test_the_secret_is_shown_once_and_kept_sealed(row: Repository, admin_client: Client) -> None:
    assert not WebhookConfig.objects.exists(), "looking at the page makes nothing"
    assert admin_client.post(page(row)).status_code == 302, "reloading the page that follows makes no other"
    answer = admin_client.get(page(row))
    secret = shown_secret(answer)
    assert "no-store" in answer["Cache-Control"]
    hook = WebhookConfig.objects.get()
    assert (hook.reveal_secret(), hook.by_hand, hook.state, hook.repository) == (secret, True, "absent", row)
    hooks = "/admin/enrollment/webhookconfig/"
    for path in (page(row), admin_page(row), hooks, f"{hooks}{hook.pk}/change/"):
        words = admin_client.get(path).content.decode()
        assert secret not in words
        assert hook.secret.token not in words
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM enrollment_webhookconfig")
        assert secret not in str(cursor.fetchall())


def test_nobody_else_sees_it_nor_who_looks_elsewhere_first(row: Repository, admin_client: Client, reader: Client) -> None:
    admin_client.post(page(row))
    assert WebhookConfig.objects.get().reveal_secret() not in text(reader.get(page(row)))
    for answer in (admin_client.get(page(RepositoryFactory())), admin_client.get(page(row))):
        assert not re.search(r"\b[0-9a-f]{64}\b", text(answer))


def test_a_new_one_takes_its_place_and_both_count_for_a_day(row: Repository, admin_client: Client) -> None:
    first = shown_secret(admin_client.post(page(row), follow=True))
    before = WebhookConfig.objects.get()
    assert "Create new secret" in text(admin_client.get(page(row)))
    second = shown_secret(admin_client.post(page(row), follow=True))
    assert first != second
    before.refresh_from_db()
    now = WebhookConfig.objects.exclude(pk=before.pk).get()
    assert (before.state, now.state, now.by_hand) == ("rotating", "absent", True)
    assert timezone.now() < before.ends_at <= timezone.now() + OVERLAP_BY_HAND
    assert now.key != before.key


def test_two_at_once_get_one_secret(row: Repository, admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    secret_by_hand(row)
    monkeypatch.setattr("enrollment.webhooks.registration.move", lambda *args, **more: False)
    answer = admin_client.post(page(row))
    assert answer.status_code == 409
    assert "Somebody else requested a secret" in text(answer)


# --- from refused to verified


@pytest.fixture
def refused(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", True)
    reconcile(world.forge, apply=True)
    return world


def by_hand_at_the_forge(world: World, url: str, secret: str) -> Any:
    from enrollment.fakeforge.model import Hook

    now, repo = world.clock(), world.remote.repo("recipes/web")
    tables = world.remote.tables
    hook = Hook(tables.next_id("hooks"), repo.id, 0, "gitea", url, "json", secret, list(GITEA.event_names), True, now, now)
    tables.hooks[hook.id] = hook
    return hook


def test_refused_then_by_hand_then_verified(refused: World, admin_client: Client) -> None:
    row = Repository.objects.get()
    for path in (page(row), admin_page(row)):
        assert "refused: The token lacks the admin permission on recipes/web" in text(admin_client.get(path))
    secret = shown_secret(admin_client.post(page(row), follow=True))
    hook = WebhookConfig.objects.get(repository=row)
    assert (hook.state, hook.by_hand) == ("refused", True)
    bridge = Bridge(refused)
    by_hand_at_the_forge(refused, hook.url, secret)
    said = refused.say("recipes/web")
    bridge.carry()
    assert Comment.objects.get().forge_comment_id == said.id
    hook.refresh_from_db()
    assert hook.state == "verified"
    assert "State: verified" in text(admin_client.get(page(row)))
    reconcile(refused.forge, apply=True)
    hook.refresh_from_db()
    assert hook.state == "verified", "that nobody may look at it is no reason to doubt it"


def test_one_that_is_renewed_by_hand(refused: World, admin_client: Client) -> None:
    row = Repository.objects.get()
    bridge = Bridge(refused)
    for _ in range(2):
        secret = shown_secret(admin_client.post(page(row), follow=True))
        hook = WebhookConfig.objects.exclude(state="rotating").get(repository=row)
        assert hook.state == "refused"
        by_hand_at_the_forge(refused, hook.url, secret)
    refused.say("recipes/web")
    bridge.carry()
    assert bridge.statuses == [202, 202]
    assert Comment.objects.count() == 1
    hook.refresh_from_db()
    assert hook.state == "verified"
    WebhookConfig.objects.filter(state="rotating").update(ends_at=timezone.now())
    refused.say("recipes/web")
    bridge.carry()
    assert sorted(bridge.statuses[2:]) == [202, 401]


def test_by_hand_works_where_nothing_is_registered_by_itself(world: World, admin_client: Client) -> None:
    assert settings.CC_CI.webhook_autoregister is False
    secret = shown_secret(admin_client.post(page(Repository.objects.get()), follow=True))
    hook = WebhookConfig.objects.get()
    bridge = Bridge(world)
    by_hand_at_the_forge(world, hook.url, secret)
    world.say("recipes/web")
    bridge.carry()
    assert bridge.statuses == [202]
    before = len(world.own_requests())
    assert reconcile(world.forge, apply=True).writes == 0
    assert WebhookConfig.objects.get().state == "verified"
    assert len(world.remote.tables.hooks) == 1
    assert len(world.own_requests()) <= before + 1


def test_given_the_right_later_the_one_by_hand_is_kept_well(refused: World, admin_client: Client) -> None:
    row = Repository.objects.get()
    secret = shown_secret(admin_client.post(page(row), follow=True))
    hook = by_hand_at_the_forge(refused, WebhookConfig.objects.get(repository=row).url, secret)
    hook.events = ["issue_comment"]
    refused.remote.add_collaborator("recipes/web", refused.bot, "admin")
    reconcile(refused.forge, apply=True)
    assert hook.events == read_back(list(GITEA.event_names))
    assert len(refused.remote.tables.hooks) == 1
    assert WebhookConfig.objects.get(repository=row).state == "registered"


def test_what_cc_ci_registered_itself_needs_no_hand(world: World, admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", True)
    world.remote.add_collaborator("recipes/web", world.bot, "admin")
    reconcile(world.forge, apply=True)
    row = Repository.objects.get()
    words = text(admin_client.get(page(row)))
    assert "there is nothing to do manually" in words
    assert "Create secret" not in words
    answer = admin_client.post(page(row))
    assert answer.status_code == 409
    assert "rotate_webhook_secret recipes/web" in text(answer)
    with pytest.raises(SeenTo):
        secret_by_hand(row)


def test_an_organisations_hook_shows_on_the_page(row: Repository, admin_client: Client) -> None:
    WebhookConfigFactory(repository=None, forge=row.forge, owner="recipes", owner_id=row.owner_id)
    assert "organisation recipes covers all its repositories and is verified" in text(admin_client.get(page(row)))


def test_an_unhealthy_hook_shows_on_the_page(row: Repository, admin_client: Client) -> None:
    WebhookConfigFactory(repository=row, state="unhealthy", reason="polling found <b>comment 7</b>")
    for path in (page(row), admin_page(row)):
        assert "State: unhealthy: polling found <b>comment 7</b>" in text_of_escaped(admin_client.get(path))


def text_of_escaped(response: HttpResponse) -> str:
    body = response.content.decode()
    assert "<b>comment 7</b>" not in body
    return text(response)


# --- the admin of hooks and deliveries


def act(client: Client, where: str, action: str, *rows: Any) -> str:
    form = {"action": action, "_selected_action": [row.pk for row in rows], "sure": "yes"}
    return text(client.post(f"/admin/enrollment/{where}/", form, follow=True))


def test_hooks_and_deliveries_are_read_only(admin_client: Client) -> None:
    hook = WebhookConfigFactory(secret="s3cret-of-the-hook")
    delivery = DeliveryFactory(hook=hook)
    for name, made in (("webhookconfig", hook), ("delivery", delivery)):
        where = f"/admin/enrollment/{name}/"
        for path in ("", f"{made.pk}/change/", "?q=recipe"):
            answer = admin_client.get(where + path)
            assert answer.status_code == 200
            assert "s3cret-of-the-hook" not in answer.content.decode()
        assert admin_client.get(f"{where}add/").status_code == 403
        assert admin_client.get(f"{where}{made.pk}/delete/").status_code == 403


def test_a_delivery_shows_the_run_that_it_caused(admin_client: Client) -> None:
    comment = CommentFactory()
    run = TestRunFactory(pull_request=comment.pull_request, comment=comment)
    delivery = DeliveryFactory(hook__repository=comment.pull_request.repository, comment=comment)
    for path in ("", f"{delivery.pk}/change/"):
        assert run.get_absolute_url() in admin_client.get(f"/admin/enrollment/delivery/{path}").content.decode()


def test_a_delivery_is_replayed_from_the_admin(admin_client: Client) -> None:
    kept, empty = DeliveryFactory(), DeliveryFactory(body="", outcome="foreign")
    words = act(admin_client, "delivery", "take_again", kept, empty)
    assert "1 queued for replay" in words
    assert f"{empty} was outside the hook's scope: its content was not kept" in words
    assert Delivery.objects.get(pk=kept.pk).outcome == "accepted"


def test_all_that_are_chosen_are_replayed_with_one_task(admin_client: Client) -> None:
    hook = WebhookConfigFactory()
    kept = DeliveryFactory.create_batch(103, hook=hook, outcome="known")
    empty = DeliveryFactory.create_batch(22, hook=hook, body="", outcome="foreign")
    form = {"action": "take_again", "_selected_action": [row.pk for row in kept + empty], "select_across": "1"}
    words = text(admin_client.post("/admin/enrollment/delivery/", form, follow=True))
    assert "103 queued for replay" in words
    assert words.count("its content was not kept, so it cannot be replayed") == 20
    assert "And 2 more" in words
    assert Delivery.objects.filter(outcome="accepted").count() == 103
    assert OrmQ.objects.count() == 1


def test_hooks_are_put_in_order_and_renewed_from_the_admin(
    world: World, admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.CC_CI, "webhook_autoregister", True)
    world.remote.add_member(world.org, world.bot, "owner")
    reconcile(world.forge, apply=True)
    hook = WebhookConfig.objects.get()
    world.remote.tables.hooks.clear()
    assert "create   recipes: it was deleted at the forge" in act(admin_client, "webhookconfig", "put_in_order", hook)
    assert len(world.remote.tables.hooks) == 1
    assert "was rotated; the previous one stays valid" in act(admin_client, "webhookconfig", "new_secret", hook)
    assert len(world.remote.tables.hooks) == 2


RIGHTS = {"put_in_order": "change_webhookconfig", "new_secret": "change_webhookconfig", "take_again": "change_delivery"}


@pytest.mark.parametrize("action", RIGHTS)
def test_who_may_only_look_has_no_actions(client: Client, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    done: list[str] = []

    def reconciled(*args: Any, **more: Any) -> Pass:
        done.append("put_in_order")
        return Pass("forge")

    def rotated(rows: list[WebhookConfig]) -> tuple[list[WebhookConfig], list[str]]:
        done.append("new_secret")
        return [], []

    monkeypatch.setattr("enrollment.webhooks.admin.reconcile", reconciled)
    monkeypatch.setattr("enrollment.webhooks.admin.rotate", rotated)
    delivery = DeliveryFactory(outcome="known")
    model, made = ("delivery", delivery) if action == "take_again" else ("webhookconfig", delivery.hook)
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename=f"view_{model}"))
    client.force_login(user)
    assert f'value="{action}"' not in client.get(f"/admin/enrollment/{model}/").content.decode()
    act(client, model, action, made)
    assert (done, Delivery.objects.get().outcome) == ([], "known")
    user.user_permissions.add(Permission.objects.get(codename=RIGHTS[action]))
    assert f'value="{action}"' in client.get(f"/admin/enrollment/{model}/").content.decode()
    act(client, model, action, made)
    assert done == [action] or Delivery.objects.get().outcome == "accepted"


def test_a_change_of_mind_in_the_admin_is_seen_to_soon(admin_client: Client) -> None:
    hook = WebhookConfigFactory(next_check_at=timezone.now())
    form = {"active": "on", "allow": "", "allowances": "", "webhooks": "off"}
    assert admin_client.post(admin_page(hook.repository), form).status_code == 302
    hook.refresh_from_db()
    hook.repository.refresh_from_db()
    assert (hook.repository.webhooks, hook.next_check_at) == ("off", None)
    WebhookConfig.objects.update(next_check_at=timezone.now())
    forge = hook.forge
    form = {"name": forge.name, "url": forge.url, "token": "", "enabled": "on", "watched_owners": "", "allow": ""}
    answer = admin_client.post(f"/admin/enrollment/forge/{forge.pk}/change/", {**form, "webhooks": "on"})
    assert answer.status_code == 302
    hook.refresh_from_db()
    assert hook.next_check_at is None
