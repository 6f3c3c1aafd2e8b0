"""The admin: tokens go in and never come out, and what is wrong is told in the form."""

from __future__ import annotations

import html
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from enrollment.fakeforge.faults import Fault
from enrollment.models import Comment, Forge, PullRequest, Repository
from tests.factories import RepositoryFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

FORGES, REPOSITORIES, COMMENTS = (f"/admin/enrollment/{name}/" for name in ("forge", "repository", "comment"))


def text(response: HttpResponse) -> str:
    return html.unescape(response.content.decode())


def save_forge(client: Client, world: World, **fields: Any) -> HttpResponse:
    """Send the form of the forge as a browser would: the token's field is empty."""
    form = {"name": "sandbox", "url": world.server.url, "token": "", "enabled": "on", "watched_owners": "", "allow": ""}
    form = {name: value for name, value in {**form, **fields}.items() if value is not None}
    return client.post(f"{FORGES}{world.forge.pk}/change/", form)


def enroll(client: Client, world: World, full_name: str, allow: str = "") -> HttpResponse:
    return client.post(f"{REPOSITORIES}add/", {"forge": world.forge.pk, "full_name": full_name, "allow": allow})


def act(client: Client, where: str, action: str, *rows: Any) -> HttpResponse:
    return client.post(where, {"action": action, "_selected_action": [row.pk for row in rows]}, follow=True)


@pytest.mark.parametrize("name", ["forge", "repository", "pullrequest", "comment"])
def test_each_page_opens_and_holds_no_token(world: World, admin_client: Client, name: str) -> None:
    world.say("recipes/web")
    world.poll()
    row = {"forge": Forge, "repository": Repository, "pullrequest": PullRequest, "comment": Comment}[name].objects.get()
    sealed = Forge.objects.get().token.token
    for path in ("", "?q=web", f"{row.pk}/change/", f"{row.pk}/history/", f"{row.pk}/delete/", "add/"):
        response = admin_client.get(f"/admin/enrollment/{name}/{path}", follow=True)
        assert response.status_code in (200, 403)
        assert world.token not in text(response)
        assert sealed not in text(response)


@pytest.mark.parametrize("path", [f"{FORGES}1/change/", f"{REPOSITORIES}add/", COMMENTS])
def test_nobody_sees_them_without_a_login(db: None, client: Client, path: str) -> None:
    assert client.get(path).status_code == 302


# --- the forge's form


def test_an_empty_token_keeps_the_one_there_is(world: World, admin_client: Client) -> None:
    before = len(world.own_requests())
    assert save_forge(admin_client, world, allow="17", watched_owners="recipes\n\n other ").status_code == 302
    world.forge.refresh_from_db()
    assert world.forge.reveal_token() == world.token
    assert world.forge.allow == [17]
    assert world.forge.watched_owners == ["recipes", "other"]
    assert len(world.own_requests()) == before, "nothing to ask for"
    assert "token" not in LogEntry.objects.get().get_change_message().lower()


def test_people_are_taken_and_shown_by_name_and_kept_by_id(world: World, admin_client: Client) -> None:
    assert save_forge(admin_client, world, allow="alice\n17\nAlice", block="mallory").status_code == 302
    world.forge.refresh_from_db()
    assert (world.forge.allow, world.forge.block) == ([world.alice.id, 17], [world.mallory.id])
    world.remote.rename_user(world.alice, "alicia")
    world.remote.add_user("alice")
    page = text(admin_client.get(f"{FORGES}{world.forge.pk}/change/"))
    assert f"{world.alice.id} alice\n17</textarea>" in page
    assert save_forge(admin_client, world, allow=f"{world.alice.id} alice\n17").status_code == 302
    world.forge.refresh_from_db()
    assert world.forge.allow == [world.alice.id, 17], "who took over the name got nothing"
    row = Repository.objects.get()
    change(admin_client, row, active="on", allow="alicia", block="recipes")
    row.refresh_from_db()
    assert (row.allow, row.block) == ([world.alice.id], [world.org.id])
    page = text(admin_client.get(f"{REPOSITORIES}{row.pk}/change/"))
    assert f"{world.alice.id} alicia</textarea>" in page and f"{world.org.id} recipes</textarea>" in page


def test_a_name_that_is_a_number_is_entered_as_a_name(world: World, admin_client: Client) -> None:
    somebody = world.remote.add_user("17")
    assert save_forge(admin_client, world, allow="17\n@17\n@alice").status_code == 302
    world.forge.refresh_from_db()
    assert world.forge.allow == [17, somebody.id, world.alice.id]


def test_a_name_while_the_forge_is_down(world: World, admin_client: Client) -> None:
    world.remote.faults = lambda request: Fault(status=502)
    assert "continues by itself" in text(save_forge(admin_client, world, allow="alice"))
    assert save_forge(admin_client, world, allow="17").status_code == 302


def test_a_new_token_is_tried_and_kept(world: World, admin_client: Client) -> None:
    Forge.objects.update(
        failures=3, backoff_until=timezone.now() + timedelta(hours=1), last_error="401", search="refused", bot_id=99
    )
    new = world.remote.add_token(world.bot)
    assert save_forge(admin_client, world, token=f" {new} ").status_code == 302
    forge = Forge.objects.get()
    assert forge.reveal_token() == new
    assert (forge.bot_id, forge.failures, forge.backoff_until, forge.last_error) == (world.bot.id, 0, None, "")
    assert forge.search == "unknown"
    assert new not in LogEntry.objects.get().change_message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "https://evil.example.org"}, "enter the token again"),
        ({"token": "wrong-token"}, "The forge does not accept the token"),
        ({"token": "wrong token"}, "the token contains a space"),
        ({"url": "http://127.0.0.1:9", "token": "some-token"}, "No forge answers at http://127.0.0.1:9; is the address right?"),
        ({"url": "nonsense of an address"}, "expected the forge"),
        ({"watched_owners": '["recipes"]'}, "one owner per line, without quotes and commas"),
        ({"watched_owners": "recipes, infra"}, "one owner per line, without quotes and commas"),
        ({"allow": "nobody"}, "Nobody at the forge has the name 'nobody'."),
        ({"allow": "17\nalice mallory"}, "Nobody at the forge has the name 'alice mallory'."),
        ({"block": "../alice"}, "Nobody at the forge has the name '../alice'."),
    ],
)
def test_what_is_wrong_is_told_in_the_form(world: World, admin_client: Client, fields: dict[str, str], words: str) -> None:
    response = save_forge(admin_client, world, **fields)
    assert response.status_code == 200
    assert words in text(response)
    if "token" in fields:
        assert fields["token"] not in text(response)
    forge = Forge.objects.get()
    assert (forge.url, forge.reveal_token(), forge.allow) == (world.server.url, world.token, [])


def test_something_that_is_no_forge(world: World, admin_client: Client) -> None:
    world.remote.faults = lambda request: Fault(status=200, body="<html>")
    assert "is the address right?" in text(save_forge(admin_client, world, token="abc"))


def test_a_dead_forge_can_be_switched_off(world: World, admin_client: Client) -> None:
    world.remote.faults = lambda request: Fault(status=500)
    assert save_forge(admin_client, world, enabled=None).status_code == 302
    assert not Forge.objects.get().enabled


def test_a_token_without_its_key_can_be_given_again(world: World, admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="])
    assert save_forge(admin_client, world, token=world.token).status_code == 302
    assert Forge.objects.get().reveal_token() == world.token


def test_a_forge_is_added_with_all_that_it_says(world: World, admin_client: Client) -> None:
    address = world.server.url.replace("127.0.0.1", "localhost")
    form = {"name": "second", "url": f"{address}/api/v1/", "token": world.token, "enabled": "on"}
    response = admin_client.post(f"{FORGES}add/", {**form, "watched_owners": "", "allow": ""})
    assert response.status_code == 302
    forge = Forge.objects.get(name="second")
    assert (forge.url, forge.bot_login, forge.version) == (address, "cc-ci", "1.15")


# --- the state of a forge


@pytest.mark.parametrize(
    ("fields", "health"),
    [
        ({"last_ok_at": None}, "not polled yet"),
        ({"last_ok_at": timezone.now()}, "healthy"),
        ({"last_ok_at": timezone.now(), "failures": 1, "last_error": "GET /user: 401"}, "failing"),
        ({"last_ok_at": timezone.now(), "last_error": "recipes/web#1: 404"}, "failing"),
        ({"enabled": False, "failures": 1}, "off"),
    ],
)
def test_the_health_of_a_forge_shows(world: World, admin_client: Client, fields: dict[str, Any], health: str) -> None:
    Forge.objects.update(**fields)
    assert health in text(admin_client.get(FORGES))
    page = text(admin_client.get(f"{FORGES}{world.forge.pk}/change/"))
    assert health in page
    assert fields.get("last_error", "") in page


def test_look_now(world: World, admin_client: Client) -> None:
    said = world.say("recipes/web")
    Forge.objects.update(backoff_until=timezone.now() + timedelta(hours=1))
    assert "1 new comments" in text(act(admin_client, FORGES, "poll_now", world.forge))
    assert Comment.objects.get().forge_comment_id == said.id


# --- enrolling by hand


def test_a_repository_is_enrolled_by_its_name(world: World, admin_client: Client) -> None:
    world.add_recipe("app")
    assert enroll(admin_client, world, " recipes/app ", "17").status_code == 302
    row = Repository.objects.get(name="app")
    assert (row.active, row.source, row.allow, row.owner_id) == (True, "hand", [17], world.org.id)
    assert abs(row.enrolled_at - world.clock()) < timedelta(seconds=5)
    assert "recipes/app" in LogEntry.objects.get().object_repr


@pytest.mark.parametrize(
    ("name", "allow", "words"),
    [
        ("recipes/none", "", "It was deleted or renamed, or the token may not see it"),
        ("web", "", "expected OWNER/REPO"),
        ("recipes/web", "", "recipes/web is already watched"),
        ("recipes/app", "nobody", "Nobody at the forge has the name"),
        ("", "", "This field is required"),
    ],
)
def test_enrolling_what_cannot_be(world: World, admin_client: Client, name: str, allow: str, words: str) -> None:
    response = enroll(admin_client, world, name, allow)
    assert response.status_code == 200
    assert words in text(response)
    assert Repository.objects.count() == 1


def test_enrolling_while_the_forge_is_down(world: World, admin_client: Client) -> None:
    world.remote.faults = lambda request: Fault(status=502)
    assert "continues by itself" in text(enroll(admin_client, world, "recipes/app"))


def change(client: Client, row: Repository, **fields: Any) -> HttpResponse:
    form = {"allow": "", **fields}
    return client.post(f"{REPOSITORIES}{row.pk}/change/", form, follow=True)


def test_watched_no_longer_and_again(world: World, admin_client: Client) -> None:
    row = Repository.objects.get()
    before = row.enrolled_at
    Repository.objects.update(source="topic")
    change(admin_client, row)
    row.refresh_from_db()
    assert (row.active, row.source) == (False, "hand")
    assert row.enrolled_at == before
    world.clock.move(minutes=4)
    between = world.say("recipes/web")
    world.clock.move(minutes=4)
    change(admin_client, row, active="on", allow="17")
    row.refresh_from_db()
    assert row.active
    assert row.allow == [17]
    assert abs(row.enrolled_at - world.clock()) < timedelta(seconds=5)
    world.poll()
    assert between.created < row.enrolled_at
    assert not Comment.objects.exists()


@pytest.mark.parametrize("trouble", ["down", "no key"])
def test_watched_again_without_the_forge(
    world: World, admin_client: Client, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    Repository.objects.update(active=False)
    world.remote.faults = lambda request: Fault(status=500)
    if trouble == "no key":
        monkeypatch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="])
    response = change(admin_client, Repository.objects.get(), active="on")
    assert "counts from this server's clock" in text(response)
    assert Repository.objects.get().active


# --- comments


def test_comments_are_read_and_tried_again_and_not_written(world: World, admin_client: Client) -> None:
    world.say("recipes/web", "!testme <script>alert(1)</script>")
    world.poll()
    row = Comment.objects.get()
    Comment.objects.update(next_try_at=timezone.now() + timedelta(hours=1), last_error="GET /user: 500")
    page = admin_client.get(COMMENTS).content.decode()
    assert "<script>alert(1)" not in page
    assert "GET /user: 500" in page
    assert "will be retried within" in text(act(admin_client, COMMENTS, "handle_again", row))
    row.refresh_from_db()
    assert row.next_try_at <= timezone.now()
    for path in ("add/", f"{row.pk}/delete/"):
        assert admin_client.get(COMMENTS + path).status_code == 403
    assert admin_client.post(f"{COMMENTS}{row.pk}/change/", {"body": "!testme else"}).status_code == 403


def test_what_a_recipe_may_ask_for_is_written_one_a_line(admin_client: Client, world: World) -> None:
    row = RepositoryFactory(forge=world.forge)
    lines = "services.app: cap_add NET_ADMIN\r\n\r\n  services.app: privileged "
    form = {"active": "on", "allow": "", "allowances": lines}
    assert admin_client.post(f"{REPOSITORIES}{row.pk}/change/", form).status_code == 302
    row.refresh_from_db()
    assert row.allowances == ["services.app: cap_add NET_ADMIN", "services.app: privileged"]
    page = admin_client.get(f"{REPOSITORIES}{row.pk}/change/").content.decode()
    assert "services.app: cap_add NET_ADMIN\nservices.app: privileged</textarea>" in page
