"""Badges, feeds and previews: what others may show of a recipe, and of a private one nothing."""

from __future__ import annotations

from datetime import timedelta
from xml.etree import ElementTree

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from runs.models import State
from tests.browser.examples import HOSTILE
from tests.factories import ArtefactFactory, ForgeFactory, PullRequestFactory, RepositoryFactory, TestRunFactory

pytestmark = pytest.mark.django_db
ATOM = "{http://www.w3.org/2005/Atom}"


def badge(client: Client, path: str) -> str:
    response = client.get(path)
    assert response.status_code == 200 and response["Content-Type"].startswith("image/svg+xml")
    root = ElementTree.fromstring(response.content)
    return str(root.findtext("{http://www.w3.org/2000/svg}title"))


def test_a_badge_says_the_newest_verdict_and_level(client: Client) -> None:
    row = RepositoryFactory(owner="recipes", name="web")
    assert badge(client, "/badge/recipes/web.svg") == "cc-ci: not tested yet"
    TestRunFactory(repository=row, state=State.TIMED_OUT, created_at=timezone.now() - timedelta(days=1))
    assert badge(client, "/badge/Recipes/WEB.svg") == "cc-ci: timed out"
    TestRunFactory(repository=row, passed=True, level=4, created_at=timezone.now())
    assert badge(client, "/badge/recipes/web.svg") == "cc-ci: passed, level 4"
    TestRunFactory(repository=row, failed=True, trusted=False)
    assert badge(client, "/badge/recipes/web.svg") == "cc-ci: passed, level 4", "a stranger's run says nothing of a recipe"


def test_a_badge_tells_forges_apart_and_of_private_ones_nothing(client: Client) -> None:
    for number, state in enumerate((State.PASSED, State.FAILED)):
        row = RepositoryFactory(forge=ForgeFactory(name=f"forge-{number}"), owner="recipes", name="web")
        TestRunFactory(repository=row, state=state, finished_at=timezone.now())
    assert badge(client, "/badge/recipes/web.svg") == "cc-ci: passed"
    assert badge(client, "/badge/recipes/web.svg?forge=forge-1") == "cc-ci: failed"
    assert badge(client, "/badge/recipes/web.svg?forge=odd") == "cc-ci: unknown"
    private = RepositoryFactory(owner="recipes", name="secret", private=True)
    TestRunFactory(repository=private, passed=True)
    client.force_login(User.objects.create_superuser("operator"))
    there, nowhere = (client.get(f"/badge/recipes/{name}.svg").content for name in ("secret", "nowhere"))
    assert there == nowhere
    assert b"<b>" not in client.get("/badge/%3Cb%3E/x.svg").content


def test_a_feed_has_the_runs_that_ended(client: Client) -> None:
    row = RepositoryFactory(name="web")
    pull = PullRequestFactory(repository=row, title=HOSTILE + "\x0b\ud7ff")
    run = TestRunFactory(repository=row, pull_request=pull, failed=True, reason=HOSTILE)
    TestRunFactory(repository=row, running=True)
    TestRunFactory(passed=True)
    response = client.get(f"/recipes/{row.pk}/feed/")
    assert response["Content-Type"].startswith("application/atom+xml")
    (entry,) = ElementTree.fromstring(response.content).findall(f"{ATOM}entry")
    assert run.get_absolute_url() in str(entry.find(f"{ATOM}link").attrib["href"])  # type: ignore[union-attr]
    assert "web failed: pull request" in str(entry.findtext(f"{ATOM}title"))
    assert client.get(f"/recipes/{RepositoryFactory(private=True).pk}/feed/").status_code == 404


def test_a_recipes_page_has_its_badge_to_paste(client: Client) -> None:
    row = RepositoryFactory(owner="recipes", name="web")
    page = client.get(f"/recipes/{row.pk}/").content.decode()
    assert f"[![cc-ci](http://127.0.0.1:8000/badge/recipes/web.svg)](http://127.0.0.1:8000/recipes/{row.pk}/)" in page
    assert f'href="/recipes/{row.pk}/feed/"' in page


def test_links_have_a_preview_unless_they_are_private(client: Client) -> None:
    run = TestRunFactory(failed=True, reason='"><script>')
    picture = ArtefactFactory(run=run, name="picture.png", kind="picture")
    page = client.get(run.get_absolute_url()).content.decode()
    assert f'<meta property="og:image" content="{picture.url}">' in page
    assert '<meta property="og:description" content="&quot;&gt;&lt;script&gt;">' in page
    client.force_login(User.objects.create_superuser("operator"))
    private = TestRunFactory(failed=True, repository=RepositoryFactory(private=True))
    assert "og:" not in client.get(private.get_absolute_url()).content.decode()


def test_robots_are_kept_from_what_is_endless(client: Client) -> None:
    response = client.get("/robots.txt")
    assert response["Content-Type"] == "text/plain; charset=utf-8" and b"Disallow: /admin/" in response.content
