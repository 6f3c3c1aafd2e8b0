"""The receiver: every request gets one answer of the table, and a delivery does what polling would do, or wakes it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
import time_machine
from django.conf import settings
from django.db import OperationalError, connections
from django.test import Client
from django.utils import timezone
from django_q.models import OrmQ

from controlplane.config import load
from enrollment import comments, tasks
from enrollment.fakeforge.faults import Fault
from enrollment.fakeforge.render import Renderer
from enrollment.forges.gitea.payloads import SIGNATURES
from enrollment.models import Comment, Delivery, Forge, PullRequest, Repository, WebhookConfig
from enrollment.signals import comment_received
from enrollment.webhooks import process, receiver
from enrollment.webhooks.receiver import OUTCOMES
from enrollment.webhooks.registration import secret_by_hand
from tests.enrollment.hooks import SECRET, Bridge, captured, forge_side, fresh, send, sign, signed
from tests.factories import DeliveryFactory, ForgeFactory, RepositoryFactory, WebhookConfigFactory
from tests.world import World

pytestmark = pytest.mark.django_db

#: Just after the captured deliveries were sent.
THEN = datetime(2026, 11, 23, 20, 46, tzinfo=UTC)
CREATED = "pull_comment_created.issue_comment"
FORGEJO = "13.0.0+gitea-1.22.0"


@pytest.fixture(autouse=True)
def nothing_believed(data_dir: Path) -> Iterator[None]:
    receiver.forget()
    yield
    receiver.forget()


@pytest.fixture
def then() -> Iterator[None]:
    with time_machine.travel(THEN, tick=True):
        yield


@pytest.fixture
def hook(then: None) -> WebhookConfig:
    """The registered hook of the repository that the captured deliveries are about."""
    row = RepositoryFactory(forge_repo_id=3, owner="recipes", name="keycloak", enrolled_at=THEN - timedelta(days=30))
    made: WebhookConfig = WebhookConfigFactory(repository=row, state="registered", state_at=THEN - timedelta(hours=1))
    return made


def take() -> Delivery:
    """Let the task take what waits; the one delivery there is."""
    process.take_waiting()
    return Delivery.objects.get()


# --- the table of outcomes, row by row

Sender = Callable[[WebhookConfig], Any]


def post(hook: WebhookConfig, body: bytes | None = None, given: dict[str, str] | None = None, **more: Any) -> Any:
    headers, real = captured(CREATED)
    body = real if body is None else body
    return send(hook, body, (signed(body) if body != real else headers) if given is None else given, **more)


def relabelled() -> tuple[dict[str, str], bytes]:
    body = fresh(captured("pull_opened.pull_request")[1], action="label_updated")
    return signed(body, event="pull_request"), body


def known_before(hook: WebhookConfig) -> Any:
    post(hook)
    return post(hook)


def database_away(hook: WebhookConfig) -> Any:
    with mock.patch.object(receiver, "insert", side_effect=OperationalError("the server closed the connection")):
        return post(hook)


def fault_of_ours(hook: WebhookConfig) -> Any:
    with mock.patch.object(receiver, "signer", side_effect=RuntimeError("dictionary changed size during iteration")):
        return post(hook)


def plain(hook: WebhookConfig, content_type: str) -> Any:
    return forge_side().post(f"/hooks/{hook.forge_id}/", b"{}", content_type=content_type, headers=signed(b"{}"))


def large(hook: WebhookConfig, size: int) -> Any:
    body = b" " * size
    return post(hook, body, signed(body))


REVIEW = "pull_review_commented.issue_comment"
EVERY: list[tuple[str, str, Sender]] = [
    ("method", "a GET", lambda hook: forge_side().get(f"/hooks/{hook.forge_id}/?hook={hook.key}")),
    ("method", "a PUT", lambda hook: forge_side().put(f"/hooks/{hook.forge_id}/")),
    ("method", "an OPTIONS", lambda hook: forge_side().options(f"/hooks/{hook.forge_id}/")),
    ("type", "a form", lambda hook: plain(hook, "application/x-www-form-urlencoded")),
    ("type", "no type", lambda hook: plain(hook, "")),
    ("large", "more than a megabyte", lambda hook: large(hook, receiver.MAX_BODY + 1)),
    ("large", "more than Django takes", lambda hook: large(hook, 3 * 1024 * 1024)),
    ("unsigned", "no signature", lambda hook: post(hook, given={"X-Gitea-Event": "issue_comment"})),
    ("unsigned", "a wrong one", lambda hook: post(hook, given={"X-Gitea-Signature": sign(b"else")})),
    ("unsigned", "another secret", lambda hook: post(hook, given={"X-Gitea-Signature": sign(captured(CREATED)[1], "x")})),
    ("unsigned", "an empty secret", lambda hook: post(hook, given={"X-Gitea-Signature": sign(captured(CREATED)[1], "")})),
    ("unsigned", "another body", lambda hook: post(hook, captured(CREATED)[1] + b" ", captured(CREATED)[0])),
    ("unsigned", "no ASCII", lambda hook: post(hook, given={"X-Gitea-Signature": "ü" * 64})),
    ("unsigned", "SHA-1", lambda hook: post(hook, given={"X-Hub-Signature": captured(CREATED)[0]["X-Hub-Signature"]})),
    ("unsigned", "no such forge", lambda hook: forge_side().post("/hooks/99/", b"{}", "application/json", headers=signed(b"{}"))),
    ("unreadable", "invalid JSON", lambda hook: post(hook, b"nonsense")),
    ("unreadable", "nothing", lambda hook: post(hook, b" ")),
    ("unreadable", "a list", lambda hook: post(hook, b"[]")),
    ("unreadable", "UTF-16", lambda hook: post(hook, captured(CREATED)[1].decode().encode("utf-16"))),
    ("unreadable", "NUL", lambda hook: post(hook, b'{"a": "\0"}')),
    ("unreadable", "deep", lambda hook: post(hook, b"[" * 100_000)),
    ("unreadable", "a number without end", lambda hook: post(hook, b'{"repository": {"id": ' + b"9" * 10_000 + b"}}")),
    ("unreadable", "no repository", lambda hook: post(hook, b'{"action": "created"}')),
    ("unreadable", "no time", lambda hook: post(hook, fresh(captured(CREATED)[1], comment={"created_at": "soon"}))),
    ("unreadable", "no author", lambda hook: post(hook, fresh(captured(CREATED)[1], comment={"user": None}))),
    ("known", "twice", known_before),
    ("foreign", "not enrolled", lambda hook: post(hook, fresh(captured(CREATED)[1], repository={"id": 4}))),
    ("unwanted", "a push", lambda hook: send(hook, *reversed(captured("pull_head_pushed.push")))),
    ("unwanted", "a pull request", lambda hook: send(hook, *reversed(captured("pull_opened.pull_request")))),
    ("unwanted", "a label", lambda hook: send(hook, *reversed(relabelled()))),
    ("unreadable", "a review of nothing", lambda hook: post(hook, fresh(captured(REVIEW)[1], pull_request=None))),
    ("unreadable", "a review without a text", lambda hook: post(hook, fresh(captured(REVIEW)[1], review={"content": 1}))),
    ("unreadable", "a review of two numbers", lambda hook: post(hook, fresh(captured(REVIEW)[1], number=2))),
    ("unwanted", "deleted", lambda hook: send(hook, *reversed(captured("pull_comment_deleted.issue_comment")))),
    ("unwanted", "an issue", lambda hook: send(hook, *reversed(captured("issue_comment_created.issue_comment")))),
    ("accepted", "a comment", post),
    ("accepted", "a review", lambda hook: send(hook, *reversed(captured(REVIEW)))),
    ("accepted", "a pull request that is closed", lambda hook: send(hook, *reversed(captured("pull_closed.pull_request")))),
    ("accepted", "edited", lambda hook: send(hook, *reversed(captured("pull_comment_edited.issue_comment")))),
    ("unwell", "no database", database_away),
    ("unwell", "a fault of ours", fault_of_ours),
]


@pytest.mark.parametrize(("name", "sender"), [row[::2] for row in EVERY], ids=[f"{row[0]}: {row[1]}" for row in EVERY])
def test_each_outcome(hook: WebhookConfig, name: str, sender: Sender) -> None:
    answer, outcome = sender(hook), OUTCOMES[name]
    assert answer.status_code == outcome.status
    rows = list(Delivery.objects.all())
    if name == "known":
        assert [row.outcome for row in rows] == ["accepted"], "the first of the two"
    else:
        assert [(row.outcome, row.status) for row in rows] == ([(outcome.kept, outcome.status)] if outcome.kept else [])
    assert not Comment.objects.exists(), "the work comes after"
    assert not answer.cookies
    assert answer.content.startswith(name.encode()) or outcome.status == 204
    assert answer.get("Allow") == ("POST" if name == "method" else None)


def test_each_row_of_the_table_is_tested() -> None:
    assert {row[0] for row in EVERY} == set(OUTCOMES)
    assert len({row.status for row in OUTCOMES.values()}) == len(OUTCOMES)


def test_the_docs_show_the_table() -> None:
    text = (settings.BASE_DIR / "docs" / "webhooks.md").read_text()
    rows = "\n".join(f"| {row.status} | {row.name} | {row.when} | {row.kept or 'none'} |" for row in OUTCOMES.values())
    assert rows in text


def test_nothing_is_parsed_and_nothing_written_for_a_stranger(hook: WebhookConfig, django_assert_num_queries: Any) -> None:
    post(hook, given={"X-Gitea-Signature": "0" * 64})
    with mock.patch.object(receiver, "read", side_effect=AssertionError("it was read")), django_assert_num_queries(0):
        for given in ({}, {"X-Gitea-Signature": "0" * 64}, {"X-Hub-Signature-256": "sha256=" + "0" * 64}):
            assert post(hook, given=given).status_code == 401


def test_a_good_one_costs_one_row_and_one_task(hook: WebhookConfig, django_assert_num_queries: Any) -> None:
    post(hook, given={"X-Gitea-Signature": "0" * 64})  # what is believed for some seconds is read now
    with django_assert_num_queries(4) as queries:  # a savepoint, two rows, and its release
        assert post(hook).status_code == 202
    assert sum("INSERT" in query["sql"] for query in queries.captured_queries) == 2
    body = fresh(captured(CREATED)[1], comment={"id": 23})
    with django_assert_num_queries(1):  # in a burst one task is enough, and the row is a transaction by itself
        assert post(hook, body).status_code == 202
    assert OrmQ.objects.count() == 1
    assert tasks.take_deliveries() == "2 processed"


def test_it_needs_no_token_of_ours_and_no_slash(hook: WebhookConfig) -> None:
    headers, body = captured(CREATED)
    given = {"X-Gitea-Event": "issue_comment", "X-Gitea-Signature": headers["X-Gitea-Signature"]}
    strict = Client(enforce_csrf_checks=True)
    assert strict.post(f"/hooks/{hook.forge_id}", body, "application/json; charset=utf-8", headers=given).status_code == 202
    assert strict.post(f"/hooks/{hook.forge.name}/", body, "application/json", headers=given).status_code == 200
    assert Delivery.objects.get().delivery_id.startswith("sha256:"), "without an id it is known by what it says"


@pytest.mark.parametrize(("url", "host"), [("http://ci.internal:8000", "ci.internal:8000"), ("http://[::2]:8000", "[::2]:8000")])
def test_the_forge_may_know_us_by_another_name(hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch, url: str, host: str) -> None:
    assert set(settings.CC_CI.hosts) <= set(settings.ALLOWED_HOSTS)
    body = captured(CREATED)[1]
    given = {**signed(body), "Host": host}
    address = f"/hooks/{hook.forge_id}/?hook={hook.key}"
    for webhook_url, status in (("", 400), (url, 202)):
        hosts = load(base_url="https://ci.example.org", webhook_url=webhook_url).hosts
        monkeypatch.setattr(settings, "ALLOWED_HOSTS", hosts)
        assert forge_side().post(address, body, "application/json", headers=given).status_code == status


# --- who signed it


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("keyed", [True, False])
def test_each_header_will_do(hook: WebhookConfig, name: str, keyed: bool) -> None:
    body = captured(CREATED)[1]
    value = sign(body)
    given = {name: f"sha256={value}" if "256" in name else value, "X-Forgejo-Event": "issue_comment"}
    assert send(hook, body, {**given, "X-Gitea-Signature": given.get("X-Gitea-Signature", "")}, keyed=keyed).status_code == 202
    assert Delivery.objects.get().hook == hook


def test_the_hooks_own_secret_counts_and_no_other(hook: WebhookConfig) -> None:
    other = WebhookConfigFactory(repository__forge=hook.forge, secret="another-secret", state="registered")
    body = captured(CREATED)[1]
    assert send(hook, body, signed(body, "another-secret")).status_code == 401
    assert send(other, body, signed(body, SECRET)).status_code == 401
    assert send(hook, body, signed(body, SECRET)).status_code == 202


def of_another_repository(hook: WebhookConfig) -> WebhookConfig:
    made: WebhookConfig = WebhookConfigFactory(repository__forge=hook.forge, secret="another-secret", state="registered")
    return made


def of_an_organisation(hook: WebhookConfig, owner_id: int | None) -> WebhookConfig:
    made: WebhookConfig = WebhookConfigFactory(
        repository=None, forge=hook.forge, owner="others", owner_id=owner_id, secret="another-secret", state="registered"
    )
    return made


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("which", ["another repository's", "another organisation's", "an organisation's without an id"])
def test_a_hook_speaks_for_no_other_repository(hook: WebhookConfig, which: str, keyed: bool) -> None:
    Repository.objects.update(owner_id=10 if which != "an organisation's without an id" else None)
    if which == "another repository's":
        other = of_another_repository(hook)
    else:
        other = of_an_organisation(hook, 11 if which == "another organisation's" else None)
    body = captured(CREATED)[1]
    answer = send(other, body, signed(body, "another-secret"), keyed=keyed)
    unknown = send(other, fresh(body, repository={"id": 4}), signed(fresh(body, repository={"id": 4}), "another-secret"))
    assert (answer.status_code, answer.content) == (404, unknown.content), (
        "who may not speak of it is not told that it is watched"
    )
    process.take_waiting()
    row = Delivery.objects.order_by("pk")[0]
    assert (row.outcome, row.repository, row.body) == ("foreign", None, "")
    assert "outside this hook's scope" in row.reason
    assert not Comment.objects.exists()
    assert set(WebhookConfig.objects.values_list("state", flat=True)) == {"registered"}


def test_a_repository_that_came_to_another_owner_is_told_of_by_that_ones_hook(hook: WebhookConfig) -> None:
    Repository.objects.update(owner_id=10)
    theirs = of_an_organisation(hook, 11)
    body = captured(CREATED)[1]
    assert send(theirs, body, signed(body, "another-secret")).status_code == 404
    Repository.objects.update(owner_id=11)
    assert send(theirs, body, signed(body, "another-secret")).status_code == 202, "at once"


@pytest.mark.parametrize("known_to", ["people", "nobody any more"])
def test_with_a_secret_that_people_know_a_comment_only_wakes(
    hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch, known_to: str
) -> None:
    looked = asked_of_the_forge(monkeypatch)
    WebhookConfig.objects.update(by_hand=known_to == "people")
    post(hook)
    if known_to == "nobody any more":
        WebhookConfig.objects.all().delete()
    row = take()
    assert (row.outcome, len(looked)) == ("woke", 1)
    assert not Comment.objects.exists()


def test_what_somebody_makes_up_with_a_secret_made_by_hand_starts_nothing(world: World) -> None:
    """A maintainer signs a comment that nobody wrote, in the name of somebody who may ask."""
    made = secret_by_hand(Repository.objects.get())
    now = timezone.now().replace(microsecond=0).isoformat().replace("+00:00", "Z")
    url = f"{world.server.url}/recipes/web/pulls/1"
    said = {"id": 987654, "body": "!testme", "user": {"id": world.alice.id, "login": "alice"}, "pull_request_url": url}
    body = fresh(
        captured(CREATED)[1],
        repository={"id": made.repository.forge_repo_id},
        issue={"number": 1},
        comment={**said, "created_at": now, "updated_at": now},
    )
    assert send(made, body, signed(body, made.reveal_secret())).status_code == 202
    assert take().outcome == "woke"
    world.poll()
    assert not Comment.objects.exists()


def test_a_secret_counts_until_its_time_is_over(hook: WebhookConfig) -> None:
    body = captured(CREATED)[1]
    for ends, status in ((None, 202), (timedelta(minutes=1), 202), (timedelta(seconds=-1), 401)):
        WebhookConfig.objects.update(state="rotating", ends_at=timezone.now() + ends if ends else None)
        receiver.forget()
        assert send(hook, body, signed(body)).status_code == status
        assert send(hook, body, signed(body), keyed=False).status_code == status


def test_a_new_hook_is_known_at_once_and_made_up_keys_ask_the_database_seldom(
    hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    post(hook)
    monkeypatch.setattr(receiver, "ASKED_AGAIN", 0.0)
    new = WebhookConfigFactory(repository__forge=hook.forge, secret="brand-new")
    body = captured(CREATED)[1]
    assert send(new, body, signed(body, "brand-new")).status_code == 404, "rightly signed, and about another's repository"
    monkeypatch.setattr(receiver, "ASKED_AGAIN", 60.0)
    stranger = WebhookConfig(forge=hook.forge, key="made-up")
    with django_assert_num_queries(0):
        for _ in range(5):
            assert send(stranger, body, signed(body)).status_code == 401


def test_without_a_key_not_more_is_hashed_than_is_cheap(hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    WebhookConfigFactory.create_batch(3, repository__forge=hook.forge, secret="another-secret")
    body = captured(CREATED)[1]
    assert send(hook, body, signed(body), keyed=False).status_code == 202
    monkeypatch.setattr(receiver, "HASHED_AT_MOST", 3 * len(body))
    assert send(hook, body, signed(body), keyed=False).status_code == 401
    assert send(hook, body, signed(body)).status_code == 202


def test_a_secret_that_no_key_opens_is_nobodys(hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.secrets.keys", lambda: ["A" * 43 + "="])
    assert post(hook).status_code == 401


def test_a_forge_that_is_switched_off(hook: WebhookConfig) -> None:
    Forge.objects.update(enabled=False)
    assert post(hook).status_code == 401


def ways_to_write(number: int) -> list[str]:
    """Spellings that Python takes for this number, and a database would, too."""
    zeros = [chr(code) for code in range(0x10000) if chr(code).isdecimal() and int(chr(code)) == 0]
    return [f"{zero * times}{number}" for zero in zeros for times in range(1, 9)] + [f"+{number}", f"{number}_0", f" {number}"]


def test_a_forge_has_one_number_and_what_strangers_make_up_costs_nothing_lasting(
    hook: WebhookConfig, django_assert_max_num_queries: Any
) -> None:
    names = ways_to_write(hook.forge_id) + [f"made-up-{number}" for number in range(300)]
    assert len(names) > 500
    with django_assert_max_num_queries(30):
        for name in names:
            answer = forge_side().post(f"/hooks/{quote(name)}/", b"{}", "application/json", headers=signed(b"{}"))
            assert answer.status_code == 401, name
    assert post(hook).status_code == 202
    assert set(receiver._known) == {hook.forge_id}
    assert set(receiver._forges[0]) == {str(hook.forge_id), hook.forge.name}


def test_the_number_of_a_forge_goes_before_a_name_that_looks_like_it(hook: WebhookConfig) -> None:
    ForgeFactory(name=str(hook.forge_id))
    assert post(hook).status_code == 202


def test_a_secret_counts_at_its_own_forge_only(hook: WebhookConfig) -> None:
    other = WebhookConfigFactory(repository__forge=ForgeFactory(), repository__forge_repo_id=3, secret="another-secret")
    body = captured(CREATED)[1]
    for secret in ("another-secret", SECRET):
        address, stranger = (other, hook) if secret == SECRET else (hook, other)
        for query in ("", f"?hook={stranger.key}", f"?hook={address.key}"):
            answer = forge_side().post(
                f"/hooks/{address.forge_id}/{query}", body, "application/json", headers=signed(body, secret)
            )
            assert answer.status_code == 401, query
    assert not Delivery.objects.exists()


def test_threads_may_ask_and_forget_at_once(hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's threads share what is believed. The rows are there already: threads would not see those of this transaction."""
    rows = WebhookConfigFactory.create_batch(20, repository__forge=hook.forge, secret="another-secret")

    class Rows(list[Any]):
        filter = only = lambda self, *args, **more: self
        values_list = lambda self, *names: [(7, 7, 7)] if "forge_repo_id" in names else [(hook.forge_id, "gitea", "forge")]  # noqa: E731

    for model in (Forge, WebhookConfig, Repository):
        monkeypatch.setattr(f"enrollment.webhooks.receiver.{model.__name__}", mock.Mock(objects=Rows(rows)))
    monkeypatch.setattr(receiver, "BELIEVED", 0.0)
    monkeypatch.setattr(receiver, "decrypt", lambda token: "plain")
    wrong, names = [], [str(hook.forge_id), "forge"]

    def one(number: int) -> None:
        try:
            for _ in range(200):
                assert receiver.signer(names[number % 2], rows[number].key, b"{}", {"X-Gitea-Signature": "0"}) is None
                if number % 3 == 0:
                    receiver.forget()
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert wrong == []


def test_signatures_are_compared_in_constant_time(hook: WebhookConfig) -> None:
    with mock.patch("hmac.compare_digest", return_value=False) as compare:
        assert post(hook).status_code == 401
    assert compare.call_count == 2
    assert all(len(side) == 64 for call in compare.call_args_list for side in call.args)


# --- once


@pytest.mark.django_db(transaction=True)
def test_the_same_delivery_five_times_at_once(hook: WebhookConfig) -> None:
    headers, body = captured(CREATED)
    begin, statuses = threading.Barrier(5), []

    def one() -> None:
        begin.wait(60)
        try:
            statuses.append(send(hook, body, headers, client=Client()).status_code)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 200, 200, 200, 202]
    assert Delivery.objects.count() == 1
    process.take_waiting()
    assert Comment.objects.count() == 1


def test_the_same_comment_through_two_hooks_is_one(hook: WebhookConfig) -> None:
    everybodys = WebhookConfigFactory(repository=None, forge=hook.forge, owner="recipes", owner_id=10, state="registered")
    body = captured(CREATED)[1]
    for place in (hook, everybodys):
        assert send(place, body, signed(body)).status_code == 202
    process.take_waiting()
    assert sorted(Delivery.objects.values_list("outcome", flat=True)) == ["known", "stored"]
    assert Comment.objects.count() == 1
    assert set(WebhookConfig.objects.values_list("state", flat=True)) == {"verified"}


# --- one path in


def test_the_very_row_that_polling_would_have_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Repository.objects.get()
    hook = WebhookConfigFactory(repository=row, secret="s3cret")
    told: list[int] = []

    def hear(sender: object, comment_id: int, **more: object) -> None:
        told.append(comment_id)

    bridge = Bridge(world)
    world.remote.tables.hooks[1] = replace(_remote_hook(world, hook))
    world.say("recipes/web", "!testme ✅\r\n> quoted `!testme`")
    comment_received.connect(hear)
    try:
        with mock.patch("django.db.transaction.on_commit", lambda function: function()):
            bridge.carry()
    finally:
        comment_received.disconnect(hear)
    assert bridge.statuses == [202]
    delivered = Comment.objects.get()
    assert (delivered.via, told) == ("delivery", [delivered.pk])
    assert (delivered.pull_request.title, delivered.pull_request.number) == ("A change", 1)
    names = [field.name for field in Comment._meta.fields if field.name not in ("id", "via", "seen_at")]
    by_delivery = {name: getattr(delivered, name) for name in names}
    Delivery.objects.update(comment=None)
    delivered.delete()
    world.poll()
    polled = Comment.objects.get()
    assert {name: getattr(polled, name) for name in names} == by_delivery


def _remote_hook(world: World, hook: WebhookConfig) -> Any:
    from enrollment.fakeforge.model import Hook
    from enrollment.forges.gitea.kind import GITEA

    now = world.clock()
    repo = world.remote.repo("recipes/web")
    return Hook(1, repo.id, 0, "gitea", hook.url, "json", hook.reveal_secret(), list(GITEA.event_names), True, now, now)


def asked_of_the_forge(monkeypatch: pytest.MonkeyPatch) -> list[PullRequest]:
    """The pull requests that are looked at, instead of asking a forge."""
    looked: list[PullRequest] = []

    def look_at(pull: PullRequest) -> comments.PollResult:
        looked.append(pull)
        return comments.PollResult(str(pull))

    monkeypatch.setattr(comments, "read_now", look_at)
    return looked


@pytest.mark.parametrize(
    ("change", "outcome", "looks"),
    [
        ({}, "stored", 0),
        ({"body": "Looks good"}, "ignored", 0),
        ({"user": {"id": 2, "login": "cc-ci"}}, "ignored", 0),
        ({"created_at": "2026-10-01T00:00:00Z", "updated_at": "2026-10-01T00:00:00Z"}, "ignored", 0),
        ({"created_at": "2026-11-22T20:45:00Z", "updated_at": "2026-11-22T20:45:00Z"}, "woke", 1),
        ({"created_at": "2026-11-22T20:48:00Z", "updated_at": "2026-11-22T20:48:00Z"}, "stored", 0),
        ({"created_at": "2026-11-24T20:45:00Z", "updated_at": "2026-11-24T20:45:00Z"}, "woke", 1),
        ({"updated_at": "2026-11-23T20:45:59Z"}, "woke", 1),
        ({"pull_request_url": "https://git.example.org/recipes/keycloak/pulls/2"}, "woke", 1),
        ({"pull_request_url": ""}, "woke", 1),
    ],
    ids=["new", "no command", "our own", "before the enrolment", "old", "nearly old", "future", "edited", "other", "unsaid"],
)
def test_what_a_comment_leads_to(
    hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], outcome: str, looks: int
) -> None:
    looked = asked_of_the_forge(monkeypatch)
    assert post(hook, fresh(captured(CREATED)[1], comment=change)).status_code == 202
    row = take()
    assert row.outcome == outcome
    assert row.reason
    assert row.handled_at
    assert Comment.objects.count() == (outcome == "stored")
    assert row.comment == Comment.objects.first()
    assert [(pull.number, pull.repository_id) for pull in looked] == [(1, hook.repository_id)] * looks
    # What is lost now is read at the next look.
    assert all(pull.comments_wanted_since is not None for pull in PullRequest.objects.filter(pk__in=[p.pk for p in looked]))


def test_an_edited_comment_wakes_the_poller_and_counts_as_edited(world: World) -> None:
    hook = WebhookConfigFactory(repository=Repository.objects.get(), secret="s3cret")
    world.remote.tables.hooks[1] = _remote_hook(world, hook)
    bridge = Bridge(world)
    said = world.say("recipes/web", "Looks good")
    world.clock.move(seconds=5)
    world.remote.edit_comment(said, "!testme")
    bridge.carry()
    assert bridge.statuses == [202, 202]
    row = Comment.objects.get()
    assert (row.via, row.edited, row.forge_comment_id) == ("poll", True, said.id)
    assert Delivery.objects.filter(outcome="woke").get().comment == row


@pytest.mark.parametrize("event", ["issue_comment", "pull_request_comment", "pull_request_approved", "pull_request_rejected"])
def test_a_review_wakes_the_poller(world: World, event: str) -> None:
    """It comes without an id and without a time, so the forge is asked for it."""
    hook = WebhookConfigFactory(repository=Repository.objects.get(), secret="s3cret")
    said = world.remote.review("recipes/web", 1, world.alice, "!testme")
    pull = Renderer(world.remote, None).pull(world.remote.pull("recipes/web", 1))
    body = json.dumps(
        {
            "action": "reviewed",
            "number": 1,
            "pull_request": pull,
            "repository": {"id": Repository.objects.get().forge_repo_id, "full_name": "recipes/web"},
            "review": {"type": "pull_request_comment", "content": "!testme"},
        }
    ).encode()
    assert send(hook, body, signed(body, "s3cret", event)).status_code == 202
    assert take().outcome == "woke"
    assert Comment.objects.get().forge_comment_id == said.id
    quiet = body.replace(b'"!testme"', b'"fine"')
    before = len(world.own_requests())
    send(hook, quiet, signed(quiet, "s3cret", event))
    process.take_waiting()
    assert Delivery.objects.latest("pk").outcome == "ignored"
    assert len(world.own_requests()) == before


def test_a_review_that_the_forge_delivers_is_found(world: World) -> None:
    hook = WebhookConfigFactory(repository=Repository.objects.get(), secret="s3cret")
    remote = _remote_hook(world, hook)
    remote.events = ["issue_comment", "pull_request_comment", "pull_request_review_comment"]  # as they read back
    world.remote.tables.hooks[1] = remote
    bridge = Bridge(world)
    said = world.remote.review("recipes/web", 1, world.alice, "!testme")
    bridge.carry()
    assert bridge.statuses == [202]
    assert Comment.objects.get().forge_comment_id == said.id


def test_a_pull_request_that_is_closed_is_asked_about_at_once(world: World) -> None:
    hook = WebhookConfigFactory(repository=Repository.objects.get(), secret="s3cret")
    headers, real = captured("pull_closed.pull_request")
    body = fresh(real, repository={"id": Repository.objects.get().forge_repo_id})
    number = json.loads(body)["number"]
    assert number == 1
    PullRequest.objects.update_or_create(repository=Repository.objects.get(), number=1, defaults={"state": "open"})
    send(hook, body, signed(body, "s3cret", headers["X-Gitea-Event"], "one"))
    process.take_waiting()
    assert PullRequest.objects.get().state == "open", "the forge says that it is open"
    world.remote.close_pull(world.remote.pull("recipes/web", 1))
    send(hook, body, signed(body, "s3cret", headers["X-Gitea-Event"], "two"))
    process.take_waiting()
    assert PullRequest.objects.get().state == "closed"


def test_woken_while_the_forge_fails_the_wish_stands(world: World) -> None:
    hook = WebhookConfigFactory(repository=Repository.objects.get(), secret="s3cret")
    world.remote.tables.hooks[1] = _remote_hook(world, hook)
    bridge = Bridge(world)
    said = world.say("recipes/web", "Looks good")
    world.clock.move(seconds=5)
    world.remote.edit_comment(said, "!testme")
    world.remote.faults = lambda request: Fault(status=401)
    bridge.carry()
    assert not Comment.objects.exists()
    assert "could not read it yet" in Delivery.objects.get(outcome="woke").reason
    assert Forge.objects.get().failures == 1
    world.remote.faults = None
    Forge.objects.update(backoff_until=None)
    world.poll()
    assert Comment.objects.get().forge_comment_id == said.id


def of_no_pull_request(world: World, number: int = 99) -> WebhookConfig:
    """An edited comment on a pull request that is not there, as it came."""
    row = Repository.objects.get()
    Repository.objects.update(enrolled_at=THEN - timedelta(days=30), net_due_at=timezone.now() + timedelta(hours=3))
    hook = WebhookConfigFactory(repository=row)
    body = fresh(
        captured(CREATED)[1],
        action="edited",
        repository={"id": row.forge_repo_id},
        issue={"number": number},
        comment={
            "body": "!testme",
            "user": {"id": world.alice.id, "login": "alice"},
            "pull_request_url": f"{world.server.url}/recipes/web/pulls/{number}",
        },
    )
    assert send(hook, body, signed(body)).status_code == 202
    return hook


@pytest.mark.parametrize("version", ["1.15", "1.22", FORGEJO])
def test_a_pull_request_that_is_not_there_is_given_up(
    db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, version)
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    of_no_pull_request(world)
    process.take_waiting()
    row = Delivery.objects.get()
    assert row.outcome == "ignored"
    assert "the forge has no pull request 99 in recipes/web" in row.reason
    assert not PullRequest.objects.exclude(comments_wanted_since=None).exists()
    before = len(world.own_requests())
    for _ in range(3):
        world.poll()
    assert not [request for request in world.own_requests()[before:] if "/99" in request.path]
    world.close()


def test_one_that_waited_is_given_up_by_the_next_look(world: World) -> None:
    of_no_pull_request(world)
    Forge.objects.update(backoff_until=timezone.now() + timedelta(minutes=1))
    process.take_waiting()
    assert Delivery.objects.get().outcome == "woke"
    Forge.objects.update(backoff_until=None)
    world.poll()
    row = Delivery.objects.get()
    assert (row.outcome, row.reason) == ("ignored", "the forge has no pull request 99 in recipes/web")
    assert not PullRequest.objects.exclude(comments_wanted_since=None).exists()


@pytest.mark.parametrize("lies", ["the comments alone", "all of the pull request"])
def test_a_forge_that_says_404_by_mistake_loses_nothing(world: World, lies: str) -> None:
    world.poll()
    said = world.say("recipes/web")
    pull = PullRequest.objects.get_or_create(repository=Repository.objects.get(), number=1)[0]
    comments.wake(pull, said.created)
    parts = ("/issues/1/comments", "/pulls/1" if lies == "all of the pull request" else "/issues/1/comments")
    world.remote.faults = lambda request: Fault(status=404) if request.path.endswith(parts) else None
    comments.read_now(pull)
    pull.refresh_from_db()
    assert (pull.comments_wanted_since is None) is (lies == "all of the pull request")
    world.remote.faults = None
    Forge.objects.update(cursor=timezone.now() + timedelta(minutes=5))  # the search tells nothing of it
    PullRequest.objects.update(comments_next_try_at=None)
    world.poll()
    assert Comment.objects.get().forge_comment_id == said.id


def test_a_repository_that_is_not_to_be_seen_gives_up_nothing(world: World) -> None:
    of_no_pull_request(world)
    world.remote.faults = lambda request: Fault(status=404)
    process.take_waiting()
    assert Delivery.objects.get().outcome == "woke"
    assert PullRequest.objects.exclude(comments_wanted_since=None).count() == 1


@pytest.mark.parametrize("version", ["1.15", "1.22", FORGEJO])
def test_what_the_versions_send(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, version)
    world.connect()
    world.add_recipe("web")
    (row,) = world.enroll("recipes/web")
    hook = WebhookConfigFactory(repository=row, secret="s3cret")
    world.remote.tables.hooks[1] = remote = _remote_hook(world, hook)
    remote.events.append("pull_request_review_comment")  # as the server adds it by itself
    bridge = Bridge(world)
    issue = world.remote.open_issue("recipes/web", world.alice, "A question")
    world.say("recipes/web", number=issue.number)
    world.remote.review("recipes/web", 1, "alice", "!testme")
    gone = world.say("recipes/web", "!testme now")
    world.remote.delete_comment(gone)
    bridge.carry()
    found = list(Delivery.objects.order_by("pk").values_list("action", "status", "outcome"))
    assert found == [
        ("created", 204, "unwanted"),
        ("reviewed", 202, "woke"),
        ("created", 202, "stored"),
        ("deleted", 204, "unwanted"),
    ]
    world.close()


# --- proof that a hook works


@pytest.mark.parametrize(
    ("state", "after"),
    [
        ("absent", "verified"),
        ("registered", "verified"),
        ("unhealthy", "verified"),
        ("refused", "verified"),
        ("verified", "verified"),
        ("disabled", "disabled"),
        ("drifted", "drifted"),
        ("rotating", "rotating"),
    ],
)
@pytest.mark.parametrize("name", [CREATED, "pull_comment_edited.issue_comment"], ids=["a comment", "edited"])
def test_a_comment_on_a_pull_request_proves_its_hook(hook: WebhookConfig, state: str, after: str, name: str) -> None:
    WebhookConfig.objects.update(state=state)
    headers, body = captured(name)
    assert send(hook, body, headers).status_code == 202
    process.take_waiting()
    hook.refresh_from_db()
    assert hook.state == after


AT_ODDS = fresh(captured(CREATED)[1], comment={"pull_request_url": ""})
NO_PROOF: list[tuple[str, Sender]] = [
    (f"{row[0]}: {row[1]}", row[2]) for row in EVERY if row[0] in ("unreadable", "foreign", "unwanted", "unsigned")
] + [("accepted: at odds with itself", lambda hook: post(hook, AT_ODDS))]


@pytest.mark.parametrize("state", ["registered", "unhealthy"])
@pytest.mark.parametrize("sender", [row[1] for row in NO_PROOF], ids=[row[0] for row in NO_PROOF])
def test_nothing_else_proves_it(hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch, sender: Sender, state: str) -> None:
    """A hook for pushes, or for comments on issues alone, never tells of a pull request: it must not let polling rest."""
    asked_of_the_forge(monkeypatch)
    WebhookConfig.objects.update(state=state)
    sender(hook)
    process.take_waiting()
    hook.refresh_from_db()
    assert hook.state == state


def test_what_came_before_the_hook_failed_does_not_prove_it(hook: WebhookConfig) -> None:
    post(hook)
    WebhookConfig.objects.update(state="unhealthy", state_at=timezone.now() + timedelta(seconds=5))
    assert take().outcome == "stored"
    hook.refresh_from_db()
    assert hook.state == "unhealthy"


def test_our_own_report_is_the_natural_proof(world: World) -> None:
    hook = WebhookConfigFactory(repository=Repository.objects.get(), secret="s3cret", state="registered")
    WebhookConfig.objects.update(state_at=timezone.now() - timedelta(minutes=1))
    world.remote.tables.hooks[1] = _remote_hook(world, hook)
    bridge = Bridge(world)
    world.say("recipes/web", "### passed", "cc-ci")
    before = len(world.own_requests())
    bridge.carry()
    hook.refresh_from_db()
    assert hook.state == "verified"
    assert len(world.own_requests()) == before, "nothing is asked or posted for it"
    assert not Comment.objects.exists()


# --- kept, taken again, dropped


def test_a_lost_task_is_made_up_for(hook: WebhookConfig) -> None:
    post(hook)
    OrmQ.objects.all().delete()
    assert tasks.take_deliveries() == "1 processed"
    assert Comment.objects.exists()


def test_a_fault_of_ours_is_tried_again_and_then_left_to_polling(hook: WebhookConfig) -> None:
    post(hook)
    with mock.patch.object(comments, "store", side_effect=RuntimeError("a fault of our own")):
        for number in range(process.MAX_TRIES):
            row = take()
            assert (row.tries, row.outcome) == (number + 1, "failed" if number + 1 == process.MAX_TRIES else "accepted")
            assert "a fault of our own" in row.reason
            assert process.take_waiting() == 0, "later, and not in a tight loop"
            Delivery.objects.update(next_try_at=timezone.now())
    assert process.replay_all([row]) == (1, [])
    assert take().outcome == "stored"


def test_a_repository_that_was_let_go_meanwhile(hook: WebhookConfig) -> None:
    post(hook)
    Repository.objects.update(active=False)
    assert take().outcome == "ignored"
    receiver.forget()
    assert post(hook, fresh(captured(CREATED)[1], comment={"id": 23})).status_code == 404


def test_replayed_a_comment_counts_once(hook: WebhookConfig) -> None:
    post(hook)
    row = take()
    for _ in range(2):
        assert process.replay_all([row]) == (1, [])
        row = take()
        assert row.outcome == "known"
        assert row.comment == Comment.objects.get()


def test_replayed_later_a_lost_comment_only_wakes(hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asked_of_the_forge(monkeypatch)
    post(hook)
    Delivery.objects.update(outcome="failed")
    with time_machine.travel(THEN + timedelta(days=2)):
        process.replay_all([Delivery.objects.get()])
        assert take().outcome == "woke"
    assert len(looked) == 1
    assert not Comment.objects.exists()


@pytest.mark.parametrize("outcome", ["foreign", "unwanted", "rejected"])
def test_what_was_not_kept_cannot_be_replayed(hook: WebhookConfig, outcome: str) -> None:
    row = DeliveryFactory(hook=hook, outcome=outcome, body="")
    (left,) = process.replay_all([row])[1]
    assert "content was not kept" in left
    assert not OrmQ.objects.exists()


def test_what_is_not_ours_is_not_kept(hook: WebhookConfig) -> None:
    post(hook, fresh(captured(CREATED)[1], repository={"id": 4, "full_name": "recipes/private"}))
    row = Delivery.objects.get()
    assert (row.body, row.forge_comment_id) == ("", None)
    assert row.reason == "recipes/private is not enrolled"


def test_deliveries_go_after_some_days(hook: WebhookConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BATCH", 2)
    now = timezone.now()
    DeliveryFactory.create_batch(5, hook=hook, received_at=now - timedelta(days=7, minutes=1))
    kept = DeliveryFactory(hook=hook, received_at=now - timedelta(days=6))
    assert tasks.drop_old_deliveries() == "5 dropped"
    assert Delivery.objects.get() == kept


def test_a_name_of_a_forge_that_no_database_takes(db: None) -> None:
    ForgeFactory()
    for name in ("%00", "a%00b", "9" * 40, "٣", "%ff", "x" * 5000):
        answer = forge_side().post(f"/hooks/{name}/", b"{}", "application/json", headers=signed(b"{}"))
        assert answer.status_code == 401
