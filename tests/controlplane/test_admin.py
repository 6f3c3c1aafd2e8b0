"""The admin: recurring tasks with their last run and error; trails that cannot be touched."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from django_q.models import OrmQ, Task
from django_q.signing import SignedPackage

from controlplane import schedules
from controlplane.models import Host, Lease, RecurringTask

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

HEARTBEAT = f"controlplane.tasks.heartbeat@{settings.CC_CI.host}"


@pytest.fixture
def rows() -> None:
    now = timezone.now()
    schedules.sync()
    RecurringTask.objects.filter(name="enrollment.tasks.poll").update(
        last_finished_at=now,
        last_seconds=0.25,
        last_error="ForgeError: <script>alert(1)</script>",
        due_at=now + timedelta(hours=1),
    )
    Lease.objects.create(name="poll:1", owner="me", expires_at=now + timedelta(minutes=1))
    Host.objects.update_or_create(name="here", defaults={"ticked_at": now})
    for number, success in enumerate((True, False)):
        Task.objects.create(
            id=str(number), name=f"task{number}", func="x.y", started=now, stopped=now, success=success, result="so\nand so"
        )
    OrmQ.objects.create(
        key="cc-ci-here", payload=SignedPackage.dumps({"id": "1", "name": "n", "func": "x.y", "args": (1,)}), lock=now
    )


LISTS = [
    "controlplane/recurringtask",
    "controlplane/lease",
    "controlplane/host",
    "django_q/success",
    "django_q/failure",
    "django_q/ormq",
]


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("path", [*LISTS, "auth/user", "auth/group"])
def test_lists_open(admin_client: Client, path: str) -> None:
    assert admin_client.get(f"/admin/{path}/").status_code == 200


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("path", LISTS)
def test_trails_are_read_only(admin_client: Client, path: str) -> None:
    from django.contrib import admin

    assert admin_client.get(f"/admin/{path}/add/").status_code == 403
    model = next(model for model in admin.site._registry if f"{model._meta.app_label}/{model._meta.model_name}" == path)
    row = model._default_manager.first()
    assert row
    pk = str(row.pk).replace("_", "_5F")
    assert admin_client.get(f"/admin/{path}/{pk}/change/", follow=True).status_code == 200
    assert admin_client.post(f"/admin/{path}/{pk}/delete/", {"post": "yes"}).status_code == 403
    assert model._default_manager.filter(pk=row.pk).exists()


@pytest.mark.usefixtures("rows")
def test_recurring_tasks_show_last_run_and_last_error(admin_client: Client) -> None:
    page = admin_client.get("/admin/controlplane/recurringtask/").content.decode()
    assert "enrollment.tasks.poll" in page and "runs.tasks.dispatch" in page
    assert "0.25 s" in page
    assert "ForgeError: &lt;script&gt;" in page and "<script>alert(1)" not in page


@pytest.mark.usefixtures("rows")
def test_a_task_can_be_switched_off_and_nothing_else(admin_client: Client) -> None:
    before = RecurringTask.objects.get(name="enrollment.tasks.poll")
    page = "/admin/controlplane/recurringtask/enrollment.tasks.poll/change/"
    assert admin_client.get(page).status_code == 200
    assert admin_client.post(page, {"every_seconds": "1", "last_error": ""}).status_code == 302
    after = RecurringTask.objects.get(name="enrollment.tasks.poll")
    assert not after.enabled
    assert (after.every_seconds, after.last_error) == (before.every_seconds, before.last_error)


@pytest.mark.usefixtures("rows")
def test_the_heartbeat_cannot_be_switched_off(admin_client: Client) -> None:
    admin_client.post(f"/admin/controlplane/recurringtask/{HEARTBEAT}/change/", {})
    assert RecurringTask.objects.get(name=HEARTBEAT).enabled


def run_now(client: Client, *names: str) -> str:
    answer = client.post("/admin/controlplane/recurringtask/", {"action": "run_now", "_selected_action": names}, follow=True)
    return answer.content.decode()


@pytest.mark.usefixtures("rows")
def test_run_now(admin_client: Client) -> None:
    assert "enrollment.tasks.poll will run as soon as" in run_now(admin_client, "enrollment.tasks.poll")
    OrmQ.objects.all().delete()
    schedules.tick()
    assert "enrollment.tasks.poll" in {task.name() for task in OrmQ.objects.all()}


@pytest.mark.usefixtures("rows")
def test_run_now_of_one_that_is_switched_off(admin_client: Client) -> None:
    RecurringTask.objects.update(enabled=False)
    assert "disabled" in run_now(admin_client, "enrollment.tasks.poll")


@pytest.mark.usefixtures("rows")
def test_who_may_only_look_cannot_run_anything(client: Client) -> None:
    from django.contrib.auth.models import Permission

    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_recurringtask"))
    client.force_login(viewer)
    due = RecurringTask.objects.get(name="enrollment.tasks.poll").due_at
    run_now(client, "enrollment.tasks.poll")
    assert RecurringTask.objects.get(name="enrollment.tasks.poll").due_at == due


def test_djangos_own_schedules_are_not_shown(admin_client: Client) -> None:
    assert admin_client.get("/admin/django_q/schedule/").status_code == 404


def test_users_can_be_made(admin_client: Client) -> None:
    assert admin_client.get("/admin/auth/user/add/").status_code == 200
    values = {"username": "new", "password1": "a-long-pass-phrase", "password2": "a-long-pass-phrase", "usable_password": "true"}
    assert admin_client.post("/admin/auth/user/add/", values).status_code == 302
    assert User.objects.get(username="new").check_password("a-long-pass-phrase")
