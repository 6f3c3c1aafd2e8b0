"""The admin's lists, with a million rows as with a hundred: few queries, each by an index, and what they find."""

from __future__ import annotations

import re
from html import unescape

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import BooleanField
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from controlplane import adminsite
from controlplane.adminsite import BigAdmin
from runs.models import CaseResult, TestRun
from tests.bench.seed import PEOPLE, seed
from tests.factories import InfraAppFactory, SnapshotFactory, TestRunFactory, UpgradeFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(6)]

MOST_QUERIES = 15
RUNS = 120


@pytest.fixture
def operator(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(BigAdmin, "list_per_page", 10)
    client.force_login(User.objects.create_superuser("operator"))
    return client


def in_use(sql: str) -> str:
    """How SQLite answers a query."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
        return "; ".join(row[3] for row in cursor.fetchall())


def test_few_queries_each_by_an_index(operator: Client) -> None:
    seed(RUNS, repositories=20)
    for _ in range(20):
        SnapshotFactory(upgrade=UpgradeFactory(app=InfraAppFactory()))
    too_many, slow = [], []
    for model, page in admin.site._registry.items():
        address = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        with CaptureQueriesContext(connection) as queries:
            assert operator.get(address).status_code == 200, address
        if len(queries) > MOST_QUERIES:
            too_many.append((address, len(queries)))
        if isinstance(page, BigAdmin):
            asked = [query["sql"] for query in queries if f'FROM "{model._meta.db_table}"' in query["sql"]]
            assert asked and all("LIMIT" in sql for sql in asked if "COUNT(" in sql), asked
            assert not any("DISTINCT" in sql for sql in asked), asked
            slow += [(address, plan) for sql in asked if "TEMP B-TREE" in (plan := in_use(sql))]
    assert too_many == []
    assert slow == []


def test_no_public_list_reads_all_runs(client: Client) -> None:
    """Anybody can ask for these, and pages that are open ask for them every few seconds."""
    seed(RUNS, repositories=20)
    lists = ("", "state=active", "state=active&search=recipe", "state=passed", "repository=recipes/recipe-001", "repository=x/y")
    for address in ("/", *(f"/runs/?{query}" for query in lists)):
        with CaptureQueriesContext(connection) as queries:
            client.get(address)
        of_runs = [query["sql"] for query in queries if 'FROM "runs_testrun"' in query["sql"]]
        keys = [sql for sql in of_runs if sql.startswith('SELECT "runs_testrun"."id" AS "pk" FROM')]
        assert keys or address.endswith("x/y"), address
        for sql in keys:
            plan = in_use(sql)
            assert "JOIN" not in sql and "TEMP B-TREE FOR ORDER BY" not in plan, (address, sql, plan)
            assert "LIMIT" in sql or "SCAN runs_testrun" not in plan, (address, sql, plan)
        rows = [sql for sql in of_runs if '"runs_testrun"."requested_by",' in sql]
        assert all('"runs_testrun"."id" IN (' in sql for sql in rows), (address, rows)


def test_no_red_cross_for_a_harmless_no_and_no_raw_id() -> None:
    """A list says in a word what is so; only whether a task is enabled is a mark."""
    marks, numbers = [], []
    for model, page in admin.site._registry.items():
        if model._meta.app_label == "auth":
            continue  # Django's own
        fields = {field.name: field for field in model._meta.get_fields()}
        columns = [name for name in page.list_display if isinstance(name, str)]
        marks += [f"{model.__name__}.{name}" for name in columns if isinstance(fields.get(name), BooleanField)]
        numbers += [f"{model.__name__}.{name}" for name in columns if name in ("id", "pk") or name.endswith("_id")]
        marks += [f"{model.__name__}.{name}" for name in columns if getattr(getattr(page, name, None), "boolean", False)]
    assert (marks, numbers) == (["RecurringTask.enabled"], [])


BIG = ["testrun", "stageresult", "caseresult", "artefact", "runevent", "report"]


@pytest.mark.both_databases
def test_runs_are_found_by_what_one_has_in_hand(operator: Client) -> None:
    seed(RUNS, repositories=20)
    run = TestRun.objects.select_related("repository").order_by("pk")[3]
    for term in (run.short_id, str(run.pk), run.sha[:9], run.repository.full_name):
        for name in BIG:
            text = operator.get(f"/admin/runs/{name}/", {"q": term}).content.decode()
            assert run.get_absolute_url() in text, (name, term)
    assert "1 run" in " ".join(operator.get("/admin/runs/testrun/", {"q": run.short_id}).content.decode().split())
    assert run.get_absolute_url() in operator.get("/admin/runs/testrun/", {"q": run.requested_by}).content.decode()
    assert PEOPLE[59] in operator.get("/admin/enrollment/comment/", {"q": "#1"}).content.decode()
    for hostile in ("\"'><b>%_\\", "#99999999999", "f" * 200, "a/b/c/", "/"):
        for name in (*(f"runs/{name}" for name in BIG), "enrollment/comment", "enrollment/pullrequest", "enrollment/delivery"):
            assert operator.get(f"/admin/{name}/", {"q": hostile}).status_code == 200, (name, hostile)


def test_what_is_not_counted_is_said(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(RUNS, repositories=20)
    monkeypatch.setattr(adminsite, "COUNTED", 50)
    text = " ".join(unescape(operator.get("/admin/runs/testrun/").content.decode()).split())
    assert "The newest 50 runs; search or filter for older ones" in text
    assert operator.get("/admin/runs/testrun/?p=5").status_code == 200
    assert operator.get("/admin/runs/testrun/?p=6").status_code == 302, "an error page of the theme"


def test_a_text_is_searched_in_the_newest_rows(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(RUNS, repositories=20)
    first = CaseResult.objects.order_by("pk").first()
    CaseResult.objects.filter(pk=first.pk).update(name="test_of_long_ago")  # type: ignore[union-attr]
    assert "test_of_long_ago" in operator.get("/admin/runs/caseresult/", {"q": "of_long"}).content.decode()
    monkeypatch.setattr(adminsite, "SEARCHED", 100)
    assert ">test_of_long_ago<" not in operator.get("/admin/runs/caseresult/", {"q": "of_long"}).content.decode()


def test_no_list_and_no_row_marks_a_no_in_red(operator: Client) -> None:
    seed(20, repositories=2)
    for model in admin.site._registry:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        pages = [reverse(f"{name}_changelist")]
        if row := model._default_manager.first():
            pages.append(reverse(f"{name}_change", args=[row.pk]))
        for page in pages:
            assert "close_small" not in operator.get(page, follow=True).content.decode(), page
    run = TestRun.objects.earliest("pk")
    text = " ".join(operator.get(reverse("admin:runs_testrun_change", args=[run.pk])).content.decode().split())
    for label, value in (("Commit", run.sha), ("Stages", "install, upgrade, custom"), ("Quick", "no"), ("Trusted", "yes")):
        assert re.search(rf">{label}<.{{0,1000}}?>\s*{value}\s*<", text), label


def test_times_have_24_hours_and_a_zone_in_one_line(operator: Client) -> None:
    run = TestRunFactory(passed=True)
    text = operator.get("/admin/runs/testrun/").content.decode()
    assert f"{run.created_at:%Y-%m-%d\u00a0%H:%M:%S\u00a0UTC}" in text
    assert "p.m." not in text and "a.m." not in text
