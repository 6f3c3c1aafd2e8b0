"""Deleting a forge or a repository: a page that says what goes, and a task that may be killed and does the rest the next time."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from enrollment import removal
from enrollment.models import Comment, Delivery, Forge, PullRequest, Repository, WebhookConfig
from enrollment.repositories import add_forge, enroll
from runs import tasks
from runs.models import CaseResult, Report, RunEvent, State, TestRun
from tests.bench.seed import seed
from tests.factories import (
    CommentFactory,
    DeferredItemFactory,
    DeliveryFactory,
    ForgeFactory,
    RepositoryFactory,
    TestRunFactory,
    WebhookConfigFactory,
)

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.6)]


def page_of(row: Any) -> str:
    return reverse(f"admin:enrollment_{row._meta.model_name}_delete", args=[row.pk])


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.both_databases
@pytest.mark.parametrize("kind", [Forge, Repository])
def test_killed_half_way_it_goes_on_until_nothing_is_left(kind: type[Any], data_dir: Path) -> None:
    seed(60, repositories=2)
    kept = TestRunFactory(passed=True)
    row = kind.objects.order_by("pk").first()
    folder = data_dir / "runs" / str(TestRun.objects.filter(repository__forge__name="seed.example.org").first().pk)  # type: ignore[union-attr]
    folder.mkdir(parents=True)
    assert removal.begin(row) and not removal.begin(row)
    for number in range(1, 60):
        deaths = iter([None] * number)

        def delete(run: TestRun, whole: Any = TestRun.delete, deaths: Any = deaths) -> Any:
            if next(deaths, "dead"):
                raise Killed
            return whole(run)

        with mock.patch.object(TestRun, "delete", delete), mock.patch.object(removal, "BATCH", 7):
            try:
                removal.step()
                break
            except Killed:
                assert kind.objects.filter(pk=row.pk).exists(), "the row itself goes last"
    assert number > 2, "it was killed"
    assert not kind.objects.filter(pk=row.pk).exists()
    others = 0 if kind is Forge else 30
    assert TestRun.objects.exclude(pk=kept.pk).count() == others
    assert PullRequest.objects.exclude(pk=kept.pull_request_id).count() == others // 10
    if kind is Forge:
        for model in (Comment, Delivery, WebhookConfig, CaseResult, Report, RunEvent):
            assert not model.objects.exists(), model  # type: ignore[attr-defined]
        assert not folder.exists()
    assert TestRun.objects.filter(pk=kept.pk).exists()


def test_a_run_under_way_ends_first(db: None) -> None:
    run = TestRunFactory(running=True)
    waiting = TestRunFactory(repository=run.repository)
    done = TestRunFactory(repository=run.repository, passed=True)
    removal.begin(run.repository)
    removal.step()
    run.refresh_from_db()
    assert (run.state, run.stop_wanted) == (State.RUNNING, State.CANCELLED), "its machine tears it down"
    assert not TestRun.objects.filter(pk__in=[waiting.pk, done.pk]).exists()
    TestRun.objects.update(state=State.CANCELLED)
    removal.step()
    assert not Repository.objects.filter(pk=run.repository_id).exists()


def test_a_task_ends_in_time(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    row = RepositoryFactory()
    for _ in range(5):
        TestRunFactory(repository=row, passed=True)
    monkeypatch.setattr(tasks.delete_runs, "__defaults__", (2,))
    removal.begin(row)
    assert removal.step(seconds=-1) == "nothing finished"
    assert TestRun.objects.count() == 3


def test_what_refers_to_it_stays(db: None) -> None:
    """Entries of DEFERRED.md, and the hook that is still to be deleted at the forge."""
    hook = WebhookConfigFactory()
    row = hook.repository
    item, delivery = DeferredItemFactory(recipe=row), DeliveryFactory(hook=hook)
    CommentFactory(pull_request__repository=row)
    removal.begin(row)
    assert removal.step() == f"deleted {row}"
    item.refresh_from_db()
    delivery.refresh_from_db()
    assert (item.recipe, delivery.repository) == (None, None)
    left = WebhookConfig.objects.get()
    assert (left.key, left.state, left.owner) == (hook.key, "rotating", row.full_name)


def test_nothing_brings_it_back_meanwhile(db: None) -> None:
    row = RepositoryFactory()
    removal.begin(row)
    removal.begin(row.forge)
    with mock.patch("enrollment.repositories.server_now"):
        assert enroll(row.forge, mock.Mock(id=row.forge_repo_id), "hand", mock.Mock()) == (row, False)
    row.refresh_from_db()
    assert not row.active and not row.forge.__class__.objects.get().enabled
    with pytest.raises(ValueError, match="is being deleted"):
        add_forge(row.forge.url, "token")


def test_the_page_says_what_goes_in_few_queries(admin_client: Client) -> None:
    seed(40, repositories=2)
    for row, words in (
        (Forge.objects.get(), ("2 repositories", "40 runs")),
        (Repository.objects.first(), ("20 runs", "2 pull req")),
    ):
        with CaptureQueriesContext(connection) as queries:
            text = admin_client.get(page_of(row)).content.decode()
        assert all(word in text for word in words), text
        assert "Switch off instead" in text
        assert len(queries) <= 20
        with mock.patch.object(removal, "COUNTED", 5):
            assert "more than 5 runs" in admin_client.get(page_of(row)).content.decode()


def test_deleting_takes_no_time_in_the_browser_and_leaves_a_trace(admin_client: Client) -> None:
    row = RepositoryFactory()
    TestRunFactory(repository=row, passed=True)
    with CaptureQueriesContext(connection) as queries:
        answer = admin_client.post(page_of(row), {"do": "delete"}, follow=True)
    assert len(queries) < 30
    assert "being deleted" in answer.content.decode()
    assert LogEntry.objects.get().action_flag == 3
    row.refresh_from_db()
    assert row.removal_at and not row.active
    change = reverse("admin:enrollment_repository_change", args=[row.pk])
    assert admin_client.post(change, {"active": "on", "allow": ""}).status_code == 403
    assert "delete_selected" not in admin_client.get(reverse("admin:enrollment_repository_changelist")).content.decode()


@pytest.mark.parametrize("make", [ForgeFactory, RepositoryFactory])
def test_switched_off_instead(admin_client: Client, make: Any) -> None:
    row = make()
    admin_client.post(page_of(row), {"do": "switch off"})
    row.refresh_from_db()
    assert row.removal_at is None
    assert not (row.enabled if isinstance(row, Forge) else row.active)
    assert removal.step() == "nothing finished"


def test_who_may_not_delete_cannot(client: Client, django_user_model: Any) -> None:
    row = RepositoryFactory()
    client.force_login(django_user_model.objects.create_user("eve", is_staff=True))
    for do in ("delete", "switch off"):
        assert client.post(page_of(row), {"do": do}).status_code == 403
    row.refresh_from_db()
    assert row.active
