"""The admin's start page: what needs a person, each one click from where it is put right, and one name for each thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.text import capfirst

from controlplane import sidebar, tokens
from controlplane.models import Host, RecurringTask
from enrollment.models import Right
from infra.models import AlertSent
from runs.models import RemoteExecutor, State
from tests.browser.examples import HOSTILE, worker
from tests.factories import (
    CommentFactory,
    ForgeFactory,
    InfraAppFactory,
    InfraReleaseFactory,
    ReportFactory,
    RepositoryFactory,
    SnapshotFactory,
    TestRunFactory,
    UpgradeFactory,
    WebhookConfigFactory,
)

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.5)]

MOST_QUERIES = 15


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def troubles() -> None:
    """One of everything that can need a person."""
    now = timezone.now()
    worker()
    Host.objects.create(name="ci-2", ticked_at=now - timedelta(hours=3))
    RecurringTask.objects.update_or_create(name="poll", defaults={"every_seconds": 1, "due_at": now, "last_error": HOSTILE})
    tokens.make(User.objects.create_user("kim"), "the monitor", ["read"], 3)
    forge = ForgeFactory(name="git.example.org")
    ForgeFactory(name="old.example.org", failures=4, last_error="GET /api/v1/user: 401 token is required")
    Right.objects.create(forge=forge, name="read", held="no", at=now)
    CommentFactory(pull_request__repository__forge=forge, last_error=HOSTILE)
    RepositoryFactory(forge=forge, last_error="GET: 404")
    for state in ("refused", "unhealthy", "drifted", "disabled"):
        WebhookConfigFactory(repository=RepositoryFactory(forge=forge, name=state), state=state)
    InfraAppFactory(name="drifted", state="contested")
    held = InfraAppFactory(name="held", snapshots={"of": "volumes", "store": "local", "keep": 3}, discovery_error="no such tag")
    InfraReleaseFactory(app=held, state="held")
    SnapshotFactory(app=InfraAppFactory(name="saved"))
    UpgradeFactory(app=InfraAppFactory(name="lost"), state="rollback_failed")
    AlertSent.objects.create(key="k", kind="k", text="t", at=now, problem="no route")
    RemoteExecutor.objects.create(name="drone", url="http://d", repository="a/b", failures=2, last_error="no answer")
    ReportFactory(last_error="GET: 500", run__passed=True)
    TestRunFactory(state=State.ERRORED, reason=HOSTILE)
    TestRunFactory(running=True, started_at=now - timedelta(hours=9))
    TestRunFactory(state=State.QUEUED, created_at=now - timedelta(hours=9))
    TestRunFactory(state=State.AWAITING_APPROVAL)


WORDS = [
    "The machine ci-2 does not work",
    "The task poll failed",
    "The API token the monitor of kim expires",
    "old.example.org refuses our token",
    "git.example.org: the token may not read 1",
    "git.example.org: 1 repositories have a problem",
    "git.example.org: 1 comments could not be handled yet",
    "The webhook of recipes/refused is refused",
    "The webhook of recipes/unhealthy is unhealthy",
    "The webhook of recipes/drifted is changed at the forge",
    "The webhook of recipes/disabled is disabled",
    "drifted was changed without cc-ci",
    "held: 1 release is held",
    "held: its releases cannot be read",
    "held has no verified snapshot",
    "lost: the rollback failed",
    "Alerts could not be delivered",
    "The executor drone does not answer",
    "A report to a forge fails",
    "ended by a fault of ours",
    "has been running for hours",
    "has waited for hours",
    "awaits approval",
]


@pytest.mark.both_databases
def test_what_needs_a_person_is_there_and_one_click_from_its_fix(admin_client: Client) -> None:
    troubles()
    with CaptureQueriesContext(connection) as queries:
        page = admin_client.get("/admin/").content.decode()
    assert len(queries) <= MOST_QUERIES, "\n".join(query["sql"][:150] for query in queries)
    text = unescape(page)
    assert [words for words in WORDS if words not in text] == []
    assert "<script>document.title" not in page
    assert text.index("old.example.org refuses") < text.index("held: 1 release"), "errors come first"
    content = page.partition('class="cc-start"')[2]
    addresses = {unescape(found).partition("#")[0] for found in re.findall(r'<a href="([^"]+)"', content)}
    assert len(addresses) > 25
    for address in addresses:
        answer = admin_client.get(address)
        assert answer.status_code == 200, f"{address}: {answer.status_code} {answer.headers.get('Location')}"


def test_as_many_queries_however_much_there_is(admin_client: Client) -> None:
    for _ in range(8):
        TestRunFactory(state=State.ERRORED)
        WebhookConfigFactory(state="refused")
        InfraAppFactory(state="contested")
    with CaptureQueriesContext(connection) as queries:
        text = unescape(admin_client.get("/admin/").content.decode())
    assert len(queries) <= MOST_QUERIES
    assert "3 more runs: each ended by a fault of ours" in text and "More webhooks have a problem" in text


def test_no_query_reads_all_runs(admin_client: Client) -> None:
    troubles()
    with CaptureQueriesContext(connection) as queries:
        admin_client.get("/admin/")
    asked = [query["sql"] for query in queries if 'FROM "runs_' in query["sql"]]
    assert len(asked) > 3
    for sql in asked:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
            plan = [row[3] for row in cursor.fetchall()]
        assert not {"SCAN runs_testrun", "SCAN runs_report"} & set(plan), (plan, sql)


def test_a_quiet_server_says_so(admin_client: Client, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "base_url", "http://ci.example.org")
    RecurringTask.objects.all().delete()
    worker()
    assert "Nothing needs a person" in admin_client.get("/admin/").content.decode()
    Host.objects.all().delete()
    assert "No worker is running" in admin_client.get("/admin/").content.decode()


def test_each_sees_what_he_may(client: Client) -> None:
    troubles()
    user = User.objects.create_user("eve", is_staff=True)
    client.force_login(user)
    text = unescape(client.get("/admin/").content.decode())
    assert [words for words in WORDS if words in text] == []
    user.user_permissions.add(Permission.objects.get(codename="view_infraapp"))
    text = unescape(client.get("/admin/").content.decode())
    assert "held: 1 release is held" in text and "refuses our token" not in text


def test_one_name_for_each_thing(admin_client: Client) -> None:
    """The sidebar, a list's title and the path above a page say the same."""
    shown = {model for entries in sidebar.GROUPS.values() for _, model in entries}
    assert shown == {model._meta.label_lower for model in admin.site._registry}
    page = unescape(admin_client.get("/admin/").content.decode())
    for model in admin.site._registry:
        name = str(model._meta.verbose_name_plural)
        assert capfirst(name) in page
        assert not re.search(r"test run|alert sent|infra |rights", name), name
    apps = {model._meta.app_config.verbose_name for model in admin.site._registry}
    assert {"Runs", "Watched", "Own apps", "Machinery"} <= apps & set(sidebar.GROUPS)


def test_the_trend_is_counted_once_a_minute(admin_client: Client) -> None:
    TestRunFactory(passed=True)
    assert "1 passed" in admin_client.get("/admin/").content.decode()
    TestRunFactory(passed=True)
    with CaptureQueriesContext(connection) as queries:
        assert "2 passed" not in admin_client.get("/admin/").content.decode()
    assert not any("SUBSTR" in query["sql"].upper() for query in queries)
    cache.clear()
    assert "2 passed" in admin_client.get("/admin/").content.decode()
