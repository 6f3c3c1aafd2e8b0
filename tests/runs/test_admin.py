"""Runs asked for, repeated and cancelled in the admin."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from enrollment.fakeforge.faults import Fault
from enrollment.models import Repository
from runs.harness.stage_table import DEFAULT_STAGES
from runs.models import Report, State, TestRun
from tests.factories import CaseResultFactory, StageResultFactory, TestRunFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]


def act(client: Client, model: str, action: str, *rows: Any) -> str:
    """Choose an action for rows of a list, confirm it, and give the page that comes back."""
    data = {"action": action, "_selected_action": [row.pk for row in rows], "sure": "yes"}
    return client.post(reverse(f"admin:{model}_changelist"), data, follow=True).content.decode()


def test_run_a_repository(world: World, admin_client: Client) -> None:
    page = act(admin_client, "enrollment_repository", "run", Repository.objects.get())
    run = TestRun.objects.get()
    assert run.sha == world.client().branch_head("recipes", "web", "main")
    assert (run.ref, run.stages, run.requested_by, run.trusted) == ("refs/heads/main", list(DEFAULT_STAGES), "admin", True)
    assert run.get_absolute_url() in page
    world.report()
    assert not Report.objects.filter(kind="run").exists(), "there is no pull request to comment on"
    assert world.remote.statuses_of("recipes/web", run.sha)[0].state == "pending"


def test_run_a_repository_with_extra_tests(world: World, admin_client: Client) -> None:
    act(admin_client, "enrollment_repository", "run_with_extra_tests", Repository.objects.get())
    assert TestRun.objects.get().stages == [*DEFAULT_STAGES, "extra"]


def test_a_forge_that_fails_is_told(world: World, admin_client: Client) -> None:
    world.remote.faults = lambda request: Fault(status=500)
    assert "500" in act(admin_client, "enrollment_repository", "run", Repository.objects.get())
    assert not TestRun.objects.exists()


def test_run_again(world: World, admin_client: Client) -> None:
    world.say("recipes/web", "!testme --stages install")
    world.hear()
    TestRun.objects.update(state=State.FAILED)
    old = TestRun.objects.get()
    act(admin_client, "runs_testrun", "run", old)
    new = TestRun.objects.exclude(pk=old.pk).get()
    assert (new.sha, new.ref, new.pull_request, new.retry_of) == (old.sha, old.ref, old.pull_request, old)
    assert new.stages == list(DEFAULT_STAGES)
    act(admin_client, "runs_testrun", "run_with_extra_tests", old)
    assert TestRun.objects.latest("created_at").stages == [*DEFAULT_STAGES, "extra"]


def test_cancel(admin_client: Client, db: None) -> None:
    waiting, done = TestRunFactory(state=State.QUEUED), TestRunFactory(passed=True)
    page = act(admin_client, "runs_testrun", "cancel", waiting, done)
    assert "is being stopped" in page and "is passed already" in page
    waiting.refresh_from_db()
    assert waiting.state == State.CANCELLED
    assert "admin" in waiting.reason


@pytest.mark.parametrize("action", ["run", "run_with_extra_tests", "cancel"])
def test_who_may_only_look_may_not_ask(client: Client, db: None, action: str) -> None:
    user = User.objects.create_user("visitor", password="x", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    run = TestRunFactory(state=State.QUEUED)
    assert client.get(reverse("admin:runs_testrun_changelist")).status_code == 200
    act(client, "runs_testrun", action, run)
    run.refresh_from_db()
    assert run.state == State.QUEUED
    assert TestRun.objects.count() == 1


def test_a_report_is_tried_now(world: World, admin_client: Client) -> None:
    world.remote.faults = lambda request: Fault(status=500)
    world.say("recipes/web")
    world.remote.faults = None
    world.poll()
    from enrollment.models import Comment
    from runs import intake

    intake.handle(Comment.objects.get().pk)
    world.remote.faults = lambda request: Fault(status=500)
    world.report()
    report = Report.objects.get(kind="run")
    assert report.next_try_at and report.next_try_at > timezone.now()
    world.remote.faults = None
    act(admin_client, "runs_report", "try_now", report)
    report.refresh_from_db()
    assert report.next_try_at and report.next_try_at <= timezone.now()


def test_what_starts_or_stops_something_says_what_will_happen_and_leaves_a_trace(admin_client: Client, db: None) -> None:
    run = TestRunFactory(state=State.QUEUED)
    data = {"action": "cancel", "_selected_action": [run.pk]}
    page = admin_client.post(reverse("admin:runs_testrun_changelist"), data).content.decode()
    run.refresh_from_db()
    assert run.state == State.QUEUED, "it asks first"
    assert f"{run} ends now without a verdict." in page and 'name="sure"' in page
    act(admin_client, "runs_testrun", "cancel", run)
    entry = LogEntry.objects.get()
    assert (entry.user.get_username(), entry.object_id) == ("admin", str(run.pk))
    assert entry.change_message == f"Cancel: {run}: {run} is being stopped."
    assert "Cancel: " in admin_client.get(reverse("admin:runs_testrun_history", args=[run.pk])).content.decode()
    act(admin_client, "runs_testrun", "cancel", run)
    assert LogEntry.objects.count() == 1, "what was not done leaves none"


def test_no_action_is_done_to_more_than_a_page(admin_client: Client, db: None) -> None:
    TestRunFactory.create_batch(3, state=State.QUEUED)
    data = {"action": "cancel", "_selected_action": [str(TestRun.objects.first().pk)], "select_across": "1", "sure": "yes"}  # type: ignore[union-attr]
    with mock.patch("controlplane.adminsite.AT_ONCE", 2):
        page = admin_client.post(reverse("admin:runs_testrun_changelist"), data, follow=True).content.decode()
    assert "Select at most 2 at once." in page
    assert TestRun.objects.filter(state=State.QUEUED).count() == 3


@pytest.mark.parametrize("page", ["caseresult", "stageresult"])
def test_a_list_is_filtered_by_every_status_that_there_is(admin_client: Client, db: None, page: str) -> None:
    for number, status in enumerate(("passed", "failed", "errored", "skipped")):
        stage = StageResultFactory(status=status, reason=f"it-is-{number}")
        CaseResultFactory(stage=stage, status=status, name=f"it-is-{number}")
        shown = admin_client.get(f"/admin/runs/{page}/?status={status}").content.decode()
        assert re.findall(r"it-is-\d", shown) == [f"it-is-{number}"] * shown.count("it-is-") and f"it-is-{number}" in shown
