"""The frame's own pages: start, health, errors; and every page of the admin."""

from __future__ import annotations

import io
import logging
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import DatabaseError
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.urls import resolve, reverse
from django.utils import timezone
from django.views.defaults import permission_denied, server_error

from controlplane import pages, sidebar
from controlplane.config import BASE_DIR
from controlplane.models import Host
from tests.browser.examples import examples, hostile, worker
from tests.factories import ReportFactory, RepositoryFactory, TestRunFactory

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.5)]


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("operator"))
    return client


# --- start


def test_an_empty_server_says_how_to_begin(client: Client) -> None:
    text = client.get("/").content.decode()
    assert "First steps" in text
    assert "cc-ci forge add --url" in text
    assert "cc-ci enroll OWNER/REPO" in text


def test_every_page_links_the_glossary_which_is_the_one_of_the_docs(client: Client) -> None:
    assert 'href="/glossary/"' in client.get("/").content.decode()
    text = client.get("/glossary/").content.decode()
    assert "<h1>Glossary</h1>" in text
    assert text.count("<tr>") - 1 == (BASE_DIR / "docs/glossary.md").read_text().count("\n| **")


def test_without_a_worker_it_warns(client: Client) -> None:
    assert "No worker is running." in client.get("/").content.decode()
    worker()
    assert "No worker is running." not in client.get("/").content.decode()
    Host.objects.update(ticked_at=timezone.now() - timedelta(minutes=5))
    assert "cc-ci work --web" in client.get("/").content.decode()


def test_runs_recipes_and_what_to_write(client: Client) -> None:
    made = examples()
    text = client.get("/").content.decode()
    assert "First steps" not in text
    for run in (made.running, made.failed, made.passed):
        assert run.get_absolute_url() in text
    assert text.index(made.running.get_absolute_url()) < text.index(made.failed.get_absolute_url())
    assert "!testme --extra-tests" in text


def test_a_recipe_shows_its_newest_verdict(client: Client) -> None:
    row = RepositoryFactory()
    assert "no verdict yet" in client.get("/").content.decode()
    run = TestRunFactory(repository=row, passed=True)
    TestRunFactory(repository=row)  # queued: no verdict
    row_shown = client.get("/").content.decode().partition("matrix-name")[2]
    assert f'href="{run.get_absolute_url()}"' in row_shown and "passed" in row_shown


def test_the_head_of_the_page_follows_the_login(client: Client) -> None:
    text = client.get("/runs/").content.decode()
    assert f'href="{reverse("login")}?next=/runs/"' in text
    assert "Log out" not in text
    assert reverse("admin:index") + '"' not in text
    client.force_login(User.objects.create_user("somebody"))
    text = client.get("/").content.decode()
    assert "Log out" in text
    assert reverse("admin:index") + '"' not in text
    client.force_login(User.objects.create_superuser("operator"))
    assert reverse("admin:index") + '"' in client.get("/").content.decode()


def test_logging_out_leads_to_the_start_page(operator: Client) -> None:
    answer = operator.post(reverse("logout"))
    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert "Log in" in operator.get("/").content.decode()


def test_logging_in_leads_back(client: Client) -> None:
    User.objects.create_superuser("operator", password="secret")
    form = {"username": "operator", "password": "secret"}
    answer = client.post(reverse("login"), {**form, "next": "/runs/"})
    assert (answer.status_code, answer["Location"]) == (302, "/runs/")
    assert client.post(reverse("login"), form)["Location"] == "/"


# --- health


def test_health_tells_of_the_workers(client: Client) -> None:
    assert client.get("/healthz").json()["working"] is False
    worker()
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json()["working"] is True


def test_health_without_a_database(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise DatabaseError

    monkeypatch.setattr(pages, "working", broken)
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json() == {"database": False}


def test_pages_are_for_reading(client: Client) -> None:
    for address in ("/", "/runs/", "/healthz"):
        assert client.post(address).status_code == 405


# --- errors


def test_not_found(client: Client) -> None:
    answer = client.get("/nowhere/")
    assert answer.status_code == 404
    assert "Page not found" in answer.content.decode()


def test_not_allowed(rf: RequestFactory) -> None:
    answer = permission_denied(rf.get("/"), Exception())
    assert "You are not allowed to do this" in answer.content.decode()


def test_a_form_that_is_too_old() -> None:
    answer = Client(enforce_csrf_checks=True).post(reverse("admin:logout"))
    assert answer.status_code == 403
    assert "This form has expired" in answer.content.decode()


def test_the_page_for_our_own_faults_needs_no_database(rf: RequestFactory, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        answer = server_error(rf.get("/"))
        assert render_to_string("500.html")
    assert answer.status_code == 500
    assert "Internal server error" in answer.content.decode()


# --- the admin

MODELS = [pytest.param(model, id=model._meta.label) for model in admin.site._registry]


def fine(client: Client, address: str) -> str:
    """The page, after redirects; nothing on it is loaded from elsewhere."""
    answer = client.get(address, follow=True)
    assert answer.status_code == 200, address
    text = answer.content.decode()
    loaded = re.findall(r"""<(?:script|img|iframe|source)[^>]+src=["']([^"']+)|<link[^>]+href=["']([^"']+)""", text)
    for one, other in loaded:
        assert not urlsplit(one or other).netloc, f"{address} loads {one or other}"
    return text


def walk(client: Client, model: Any) -> None:
    """Each page that the admin has for this model."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    row = admin.site._registry[model]
    request = RequestFactory().get("/")
    request.user = User.objects.get(username="operator")
    listing = fine(client, reverse(f"{name}_changelist"))
    fine(client, reverse(f"{name}_changelist") + "?q=a%27b+%C3%A9")
    links = set(re.findall(r'href="(\?[^"]+)"', listing))
    if not model._default_manager.exists():  # nothing is nothing, whatever else it were
        links = set({re.sub("=[^&]*", "", link): link for link in links}.values())
    for link in links:
        fine(client, reverse(f"{name}_changelist") + link.replace("&amp;", "&"))
    if row.has_add_permission(request):
        fine(client, reverse(f"{name}_add"))
    for one in model._default_manager.all()[:3]:
        fine(client, reverse(f"{name}_change", args=[one.pk]))
        fine(client, reverse(f"{name}_history", args=[one.pk]))


@pytest.mark.parametrize("model", MODELS)
def test_every_page_of_the_admin_when_empty(operator: Client, model: Any) -> None:
    walk(operator, model)


@pytest.mark.parametrize("model", MODELS)
def test_every_page_of_the_admin_with_data(operator: Client, model: Any) -> None:
    made = examples()
    hostile()
    ReportFactory(run=made.failed)
    walk(operator, model)


def test_the_sidebar_leads_to_everything(operator: Client) -> None:
    listed = {model for entries in sidebar.GROUPS.values() for _, model in entries}
    assert listed == {model._meta.label_lower for model in admin.site._registry}
    text = operator.get(reverse("admin:index")).content.decode()
    for group in sidebar.navigation():
        for item in group["items"]:
            assert resolve(str(item["link"]))
            assert str(item["link"]) in text


def test_the_sidebar_hides_what_one_may_not_see(client: Client) -> None:
    client.force_login(User.objects.create_user("reader", is_staff=True))
    assert reverse("admin:runs_testrun_changelist") not in client.get(reverse("admin:index")).content.decode()


# --- CC_CI_PUBLIC


def test_without_public_pages_all_need_a_login_but_what_programs_ask(
    client: Client, monkeypatch: pytest.MonkeyPatch, operator: Client
) -> None:
    row, run = RepositoryFactory(), TestRunFactory(passed=True)
    pages = ["/", "/runs/", run.get_absolute_url(), f"{run.get_absolute_url()}log/", f"/recipes/{row.pk}/", "/glossary/", "/api/"]
    pages += [f"/badge/{row.full_name}.svg", f"/recipes/{row.pk}/feed/", f"/runs/tests/{row.pk}/", "/deferred/"]
    nobody = Client()
    assert [nobody.get(page).status_code for page in pages] == [200] * len(pages)
    monkeypatch.setattr(settings.CC_CI, "public", False)
    for page in pages:
        assert nobody.get(page)["Location"] == f"/login/?next={page}"
        assert operator.get(page).status_code == 200, page
    assert nobody.get("/healthz").status_code in (200, 503) and nobody.get("/robots.txt").status_code == 200
    assert nobody.get("/admin/login/").status_code == 200 and nobody.get("/login/").status_code == 200
    assert nobody.get("/api/runs").status_code == 401, "which knows its callers by their token"
    assert nobody.post("/hooks/none/", b"{}", content_type="application/json").status_code in (401, 403, 404)
    assert nobody.get("/static/controlplane/cc-ci.css").status_code == 200


def test_every_page_has_an_icon(client: Client) -> None:
    for page in ("/", "/admin/login/", "/nowhere", "/api/", "/docs/"):
        text = client.get(page, headers={"accept": "text/html"}).content.decode()
        assert re.search(r'<link rel="icon"[^>]* href="/static/controlplane/favicon', text), page
    answer = client.get("/favicon.ico")
    assert (answer.status_code, answer["Location"]) == (302, "/static/controlplane/favicon.svg")


def test_a_foreign_host_gets_a_400_and_one_line_in_the_log(client: Client) -> None:
    log = logging.getLogger("django.security")
    handler = next(one for one in log.handlers if one.filters)
    stream, handler.stream = handler.stream, io.StringIO()  # type: ignore[attr-defined]
    try:
        assert client.get("/", headers={"host": "evil.example.org"}).status_code == 400
        lines = handler.stream.getvalue().splitlines()  # type: ignore[attr-defined]
    finally:
        handler.stream = stream  # type: ignore[attr-defined]
    assert len(lines) == 1 and "WARNING django.security.DisallowedHost: Invalid HTTP_HOST header: 'evil.example.org'" in lines[0]
    assert not log.propagate
