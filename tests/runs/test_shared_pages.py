"""Badges, feeds and previews: what others may show of a recipe, and of a private one nothing."""

from __future__ import annotations

from datetime import timedelta
from io import BytesIO
from xml.etree import ElementTree

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone
from PIL import Image, ImageColor

from runs.card import COLOURS, draw
from runs.models import State
from runs.templatetags.run_pages import tone
from tests.browser.examples import HOSTILE
from tests.factories import ForgeFactory, PullRequestFactory, RepositoryFactory, StageResultFactory, TestRunFactory

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
    run = TestRunFactory(repository=row, pull_request=pull, failed=True, reason=f"<img src=x> {HOSTILE}")
    TestRunFactory(repository=row, running=True)
    TestRunFactory(passed=True)
    response = client.get(f"/recipes/{row.pk}/feed/")
    assert response["Content-Type"].startswith("application/atom+xml")
    (entry,) = ElementTree.fromstring(response.content).findall(f"{ATOM}entry")
    assert run.get_absolute_url() in str(entry.find(f"{ATOM}link").attrib["href"])  # type: ignore[union-attr]
    assert "web failed: pull request" in str(entry.findtext(f"{ATOM}title"))
    summary = entry.find(f"{ATOM}summary")
    assert summary is not None and summary.attrib["type"] == "html" and str(summary.text).startswith("&lt;img src=x&gt;")
    assert client.get(f"/recipes/{RepositoryFactory(private=True).pk}/feed/").status_code == 404


def test_a_recipes_page_has_its_badge_to_paste(client: Client) -> None:
    row = RepositoryFactory(owner="recipes", name="web")
    page = client.get(f"/recipes/{row.pk}/").content.decode()
    assert f"[![cc-ci](http://127.0.0.1:8000/badge/recipes/web.svg)](http://127.0.0.1:8000/recipes/{row.pk}/)" in page
    assert f'href="/recipes/{row.pk}/feed/"' in page


def test_links_have_a_preview_unless_they_are_private(client: Client) -> None:
    run = TestRunFactory(failed=True, reason='"><script>')
    page = client.get(run.get_absolute_url()).content.decode()
    assert f'<meta property="og:image" content="{run.card_url}">' in page
    assert '<meta property="og:description" content="&quot;&gt;&lt;script&gt;">' in page
    pull = PullRequestFactory(repository=run.repository, title="Update \u202eexe.fdp\u2066 @everyone")
    page = client.get(f"/recipes/{pull.repository_id}/pulls/{pull.number}/").content.decode()
    assert '<meta property="og:title" content="Update exe.fdp @\u200beveryone">' in page, "as in all that we say elsewhere"
    client.force_login(User.objects.create_superuser("operator"))
    private = TestRunFactory(failed=True, repository=RepositoryFactory(private=True))
    assert "og:" not in client.get(private.get_absolute_url()).content.decode()


def test_a_preview_with_no_room_for_its_stages_is_drawn() -> None:
    assert draw("web", "failed", "bad", [("install", "passed", "good")] * 100, "").startswith(b"\x89PNG")


@pytest.mark.parametrize("state", State.values)
def test_the_picture_of_a_preview(client: Client, state: str) -> None:
    run = TestRunFactory(state=state, repository=RepositoryFactory(owner="recipes" * 30, name="ж\u202e<b>"), level=3)
    for order, (name, status) in enumerate({"install": "passed", "upgrade": "not_applicable", "custom": "failed"}.items()):
        StageResultFactory(run=run, name=name, status=status, order=order)
    response = client.get(f"/recipes/runs/{run.pk}.png")
    assert response["Content-Type"] == "image/png"
    with Image.open(BytesIO(response.content)) as picture:
        assert picture.size == (1200, 630)
        colours = {colour for _, colour in picture.getcolors(1 << 20) or ()}
    wanted = {tone(state), "good", "quiet", "bad"}
    assert {ImageColor.getrgb(COLOURS[name]) for name in wanted} <= colours


def test_a_private_run_has_no_picture_whoever_asks(client: Client) -> None:
    run = TestRunFactory(failed=True, repository=RepositoryFactory(private=True))
    client.force_login(User.objects.create_superuser("operator"))
    assert client.get(f"/recipes/runs/{run.pk}.png").status_code == 404


def test_robots_are_kept_from_what_is_endless(client: Client) -> None:
    response = client.get("/robots.txt")
    assert response["Content-Type"] == "text/plain; charset=utf-8" and b"Disallow: /admin/" in response.content
