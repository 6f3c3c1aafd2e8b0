"""An enrolment's allowances apply to trusted commits; to a stranger's only if a second switch says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.test import Client

from runs.executors.local import request_for
from runs.harness.deadlines import Deadlines
from runs.harness.events import Journal
from runs.harness.prepare import context_of
from runs.harness.protocol import RunFolder
from runs.models import TestRun
from tests.factories import RepositoryFactory, TestRunFactory

pytestmark = pytest.mark.django_db
SOCKET = "services.app: a bind mount of /var/run/docker.sock (the docker socket)"
REPOSITORIES = "/admin/enrollment/repository/"


def run_of(*, trusted: bool, strangers: bool = False) -> TestRun:
    row = RepositoryFactory(allowances=[SOCKET], allowances_for_strangers=strangers)
    run: TestRun = TestRunFactory(repository=row, trusted=trusted)
    return run


@pytest.mark.parametrize(
    ("trusted", "strangers", "counts"), [(True, False, True), (True, True, True), (False, True, True), (False, False, False)]
)
def test_which_commits_get_what_is_allowed(trusted: bool, strangers: bool, counts: bool) -> None:
    request = request_for(run_of(trusted=trusted, strangers=strangers))
    assert (request.allow, request.withheld) == (([SOCKET], []) if counts else ([], [SOCKET]))
    assert request.trusted is trusted


def test_the_deployer_gets_both(tmp_path: Path) -> None:
    request = request_for(run_of(trusted=False))
    folder = RunFolder(tmp_path / "run")
    folder.write_request(request)
    context = context_of(folder.request(), tmp_path, {}, Journal(folder), Deadlines(folder.cancel, 60))
    assert (list(context.allow), list(context.withheld), context.trusted) == ([], [SOCKET], False)


def test_a_new_enrolment_gives_strangers_nothing() -> None:
    assert RepositoryFactory().allowances_for_strangers is False


def test_the_switch_in_the_admin_says_what_it_means(admin_client: Client) -> None:
    row = RepositoryFactory()
    page = f"{REPOSITORIES}{row.pk}/change/"
    words = " ".join(admin_client.get(page).content.decode().split())
    assert "anybody who can open a pull request and have it run is root on this server" in words
    form = {"active": "on", "allow": "", "allowances": SOCKET}
    assert admin_client.post(page, form).status_code == 302
    row.refresh_from_db()
    assert (row.allowances, row.allowances_for_strangers) == ([SOCKET], False)
    assert admin_client.post(page, {**form, "allowances_for_strangers": "on"}).status_code == 302
    row.refresh_from_db()
    assert row.allowances_for_strangers is True
