"""The page of deployments on this machine, with real Docker."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from controlplane.installation import installation_id
from infra.deployers.docker import stacks
from infra.deployers.docker.cli import LABEL_INSTALLATION, LABEL_RUN
from runs.models import TestRun
from tests.docker import IMAGE, docker, need_swarm
from tests.factories import TestRunFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(1)]
PAGE = "/runs/deployments/"


def deployed(run_id: str) -> None:
    """A service and a volume, marked as those of a run."""
    labels = (f"--label={LABEL_INSTALLATION}={installation_id()}", f"--label={LABEL_RUN}={run_id}")
    docker("volume", "create", *labels, f"cc-ci-test-{run_id[:8]}")
    command = ("sh", "-c", "echo the app says '<b>so</b>'; exec sleep 1000")
    name, marks = f"--name=cc-ci-test-{run_id[:8]}", [f"--container-{label.removeprefix('--')}" for label in labels]
    docker("service", "create", "--detach", "--quiet", "--no-resolve-image", name, *labels, *marks, IMAGE, *command, timeout=120)


@pytest.fixture
def run() -> Iterator[TestRun]:
    need_swarm()
    run = TestRunFactory(failed=True)
    deployed(str(run.pk))
    yield run
    assert stacks.remove_run(installation_id(), str(run.pk)) == []


@pytest.mark.docker
def test_what_a_run_left_is_shown_and_removed(run: TestRun, admin_client: Client) -> None:
    listed = admin_client.get(PAGE).content.decode()
    assert run.repository.full_name in listed and f"cc-ci-test-{run.pk.hex[:8]}" in listed
    shown = ""
    while "the app says &lt;b&gt;so&lt;/b&gt;" not in shown:
        shown = admin_client.get(f"{PAGE}{run.pk}/").content.decode()
    assert "volumes with their data" in shown
    reader = User.objects.create_user("reader", is_staff=True)
    reader.user_permissions.add(Permission.objects.get(codename="view_testrun"))
    client = Client()
    client.force_login(reader)
    assert "Remove it" not in client.get(f"{PAGE}{run.pk}/").content.decode()
    assert client.post(f"{PAGE}{run.pk}/").status_code == 403
    TestRun.objects.update(state="running")
    assert "Cancel the run" in admin_client.get(f"{PAGE}{run.pk}/").content.decode()
    assert "cancel it" in admin_client.post(f"{PAGE}{run.pk}/", follow=True).content.decode()
    TestRun.objects.update(state="failed")
    answer = admin_client.post(f"{PAGE}{run.pk}/", follow=True).content.decode()
    assert f"Everything of {run} was removed." in answer and str(run.pk) not in answer
    assert stacks.list_ours(installation_id()) == {}
    assert "Removed its deployment from" in LogEntry.objects.get().change_message
    assert admin_client.post(f"{PAGE}{run.pk}/").status_code == 404, "removed twice"


@pytest.mark.docker
def test_a_deployment_whose_run_was_deleted(run: TestRun, admin_client: Client) -> None:
    TestRun.objects.all().delete()
    assert "its run was deleted" in admin_client.get(PAGE).content.decode()
    assert "was removed" in admin_client.post(f"{PAGE}{run.pk}/", follow=True).content.decode()


def test_without_docker_the_page_says_so(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    assert "Docker cannot be asked here." in admin_client.get(PAGE).content.decode()
    assert "Docker cannot be asked here." in admin_client.post(f"{PAGE}{uuid.uuid4()}/", follow=True).content.decode()


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}00000000-0000-4000-8000-000000000000/"])
def test_nobody_else_sees_it(client: Client, path: str) -> None:
    assert "/login/" in client.get(path)["Location"]
    client.force_login(User.objects.create_user("somebody"))
    assert client.get(path).status_code in (302, 403)
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert client.get(path).status_code == 403 and client.post(path).status_code in (403, 405)
