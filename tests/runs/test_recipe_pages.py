"""The table of recipes, and the pages of a recipe and a pull request: what they say, to whom, and at what cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from enrollment.models import PullRequest, Repository
from runs.comparison import compare
from runs.harness.stage_table import DEFAULT_STAGES
from runs.models import State, TestRun
from runs.overview import chosen, overviews
from runs.recipe_pages import obstacles
from tests.factories import (
    CaseResultFactory,
    DeferredItemFactory,
    PullRequestFactory,
    RepositoryFactory,
    StageResultFactory,
    TestRunFactory,
)

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

HOSTILE = "<script>alert(1)</script>{{ 7|add:7 }}"


def ran(row: Repository, state: str, hours: float, **more: Any) -> TestRun:
    """A run so many hours ago, with a verdict on each stage: custom failed if it failed."""
    at = timezone.now() - timedelta(hours=hours)
    times = {"created_at": at, "started_at": at, "finished_at": at + timedelta(minutes=1)}
    run: TestRun = TestRunFactory(repository=row, state=state, **{"stages": list(DEFAULT_STAGES), **times, **more})
    for order, stage in enumerate(run.stages):
        status = "failed" if stage == "custom" and state == State.FAILED else "passed"
        StageResultFactory(run=run, name=stage, order=order, status=status, seconds=10)
    return run


def cells(row: Repository) -> dict[str, str]:
    (found,) = overviews([row])
    return {cell.stage: cell.status for cell in found.cells}


# --- the table


def test_each_stage_has_its_newest_verdict_and_the_trend_its_last_runs() -> None:
    row = RepositoryFactory()
    extra = ran(row, State.PASSED, 100, stages=["extra"])
    for hours in range(30, 5, -1):
        ran(row, State.PASSED, hours)
    ran(row, State.PASSED, 5.5, stages=["install", "extra"])
    failed = ran(row, State.FAILED, 4, level=3, details={"version": "1.2.0+3"})
    ran(row, State.ERRORED, 3)
    ran(row, State.CANCELLED, 2)
    (found,) = overviews([row])
    assert len(found.trend) == 20 and found.trend[-1].state == State.ERRORED
    assert found.last and (found.last.pk, found.last.version, found.state, found.level) == (failed.pk, "1.2.0+3", "failed", 3)
    assert cells(row)["custom"] == "failed" and cells(row)["install"] == "passed"
    assert next(cell for cell in found.cells if cell.stage == "extra").run not in (None, extra.pk)
    assert "18 passed, 1 failed, 1 errored" in found.words or "18 passed" in found.words


def test_what_strangers_run_and_quick_runs_say_nothing_of_a_recipe() -> None:
    row = RepositoryFactory()
    ran(row, State.PASSED, 3)
    ran(row, State.FAILED, 2, trusted=False)
    ran(row, State.FAILED, 1, quick=True)
    assert overviews([row])[0].state == State.PASSED


def test_a_recipe_without_runs_has_a_row() -> None:
    (found,) = overviews([RepositoryFactory()])
    assert (found.last, found.level, found.state, found.words, found.trend) == (None, None, "", "", ())


def test_rows_are_filtered_sorted_and_searched() -> None:
    good, bad, new = (RepositoryFactory(name=name) for name in ("a-good", "b-bad", "c-new"))
    ran(good, State.PASSED, 1)
    ran(bad, State.FAILED, 9, level=2)
    DeferredItemFactory(recipe=new)
    rows = overviews([good, bad, new])

    def names(show: str = "", sort: str = "", search: str = "") -> str:
        return " ".join(row.repository.name for row in chosen(rows, show=show, sort=sort, search=search))

    assert names() == names("odd", "odd") == "a-good b-bad c-new"
    assert names(sort="attention") == "b-bad c-new a-good"
    assert names(sort="oldest") == "c-new b-bad a-good"
    assert (names("failing"), names("passing"), names("untested"), names("deferred")) == ("b-bad", "a-good", "c-new", "c-new")
    assert names(search=" B-BA ") == "b-bad" and not names(search="%")


def test_the_start_page_costs_the_same_with_many_recipes(client: Client, django_assert_max_num_queries: Any) -> None:
    for number in range(60):
        row = RepositoryFactory(name=f"recipe-{number}")
        ran(row, State.PASSED, number + 1)
        TestRunFactory(repository=row, stages=list(DEFAULT_STAGES))
    with django_assert_max_num_queries(20):
        page = client.get("/").content.decode()
    assert page.count("matrix-name") == 60 and "40 more are waiting or running" in page
    assert "Such a run usually takes 1 min" in page
    assert client.get("/?search=recipe-7&show=passing&sort=attention").content.decode().count("matrix-name") == 1
    assert "No matching recipes" in client.get("/", {"search": HOSTILE}).content.decode()


def test_what_an_open_start_page_asks_for_again_is_little(client: Client) -> None:
    """Each visitor's browser does, every few seconds."""
    ran(RepositoryFactory(name="web"), State.PASSED, 1)
    TestRunFactory()
    page = client.get("/?sort=name&fresh=").content.decode()
    assert 'data-refresh="now"' in page and 'data-refresh="recent"' in page and page.count("row-link") == 2
    assert "matrix" not in page and "matrix" in client.get("/").content.decode()


def test_private_recipes_are_for_those_who_may_see_them(client: Client) -> None:
    row = RepositoryFactory(private=True, name="secret-plans")
    pull = PullRequestFactory(repository=row)
    ran(row, State.PASSED, 1, pull_request=pull)
    forms = ("/recipes/{0}/", "/recipes/{0}/pulls/{1}/", "/runs/tests/{0}/")
    pages, nowhere = [form.format(row.pk, pull.number) for form in forms], [form.format(2**63, 1) for form in forms]
    no_pull = f"/recipes/{row.pk}/pulls/{pull.number + 1}/"
    assert "secret-plans" not in client.get("/").content.decode()
    # What is private looks like what is not there.
    for page in (*pages, *nowhere, no_pull):
        assert client.get(page)["Location"] == f"/login/?next={page}"
    client.force_login(User.objects.create_user("viewer"))
    assert {client.get(page).status_code for page in (*pages, *nowhere, no_pull)} == {404}
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert "secret-plans" in client.get("/").content.decode()
    assert [client.get(page).status_code for page in (*pages, *nowhere, no_pull)] == [200] * 3 + [404] * 4


def test_deferred_tests_from_private_repositories_are_not_counted_for_strangers(client: Client) -> None:
    row, secret = RepositoryFactory(), RepositoryFactory(private=True)
    DeferredItemFactory(recipe=row, source_repository=secret, slug="hush")
    DeferredItemFactory(recipe=secret, source_repository=secret, slug="mine")
    assert overviews([row])[0].deferred == 0
    assert [found.deferred for found in overviews([row, secret])] == [1, 1], "for who sees both"
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert "mine" in client.get(f"/recipes/{secret.pk}/").content.decode()


# --- a recipe


def test_a_recipes_page_says_what_is_known_of_it(client: Client, django_assert_max_num_queries: Any) -> None:
    row = RepositoryFactory(name="web")
    pull = PullRequestFactory(repository=row, number=7, state="open", title=HOSTILE)
    ran(row, State.PASSED, 9, details={"version": "1.0.0+1"}, pull_request=pull)
    run = ran(row, State.FAILED, 1, reason=HOSTILE, pull_request=pull, details={"images": [{"name": "nginx:1.27", "digest": ""}]})
    CaseResultFactory(stage=run.stage_results.get(name="install"), name=HOSTILE, seconds=77)
    DeferredItemFactory(recipe=row, slug="restore-is-slow")
    with django_assert_max_num_queries(22):
        page = client.get(f"/recipes/{row.pk}/").content.decode()
    for text in ("50 %", "100 %", "1.0.0+1", "nginx:1.27", "restore-is-slow", "1 min 17 s on average", "#7"):
        assert text in page, text
    assert "<script>alert" not in page and "14" not in page.partition("alert(1)")[2][:40]
    assert client.get(f"/recipes/{row.pk + 1}/")["Location"].startswith("/login/"), "as if it were private"


def test_a_recipe_without_runs_says_how_to_begin(client: Client) -> None:
    page = client.get(f"/recipes/{RepositoryFactory().pk}/").content.decode()
    assert "There are no runs yet" in page and "!testme" in page


# --- a pull request


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (None, "has not been tested"),
        ({"sha": "b" * 40, "state": State.PASSED}, "aaaaaaaaaa, has not been tested"),
        ({"state": State.PASSED, "quick": True}, "has not been tested"),
        ({"state": State.AWAITING_APPROVAL}, "waits for a maintainer"),
        ({"state": State.QUEUED}, "in progress"),
        ({"state": State.RUNNING}, "in progress"),
        ({"state": State.FAILED, "reason": "custom: 1 of 3 tests failed."}, "1 of 3 tests failed"),
        ({"state": State.TIMED_OUT}, "timed out"),
        ({"state": State.ERRORED, "reason": "No disk."}, "not the recipe's fault. No disk."),
        ({"state": State.CANCELLED}, "was cancelled"),
        ({"state": State.PASSED, "stages": ["install"]}, "without these stages: upgrade, backup, restore, custom"),
        ({"state": State.PASSED, "teardown": {"clean": False}}, "left something behind"),
        ({"state": State.PASSED, "stages": ["custom"], "taken_over": list(DEFAULT_STAGES[:-1])}, ""),
        ({"state": State.PASSED}, ""),
    ],
)
def test_what_stands_between_it_and_a_merge(run: dict[str, Any] | None, says: str) -> None:
    pull = PullRequest(head_sha="a" * 40, state="open")
    runs = [TestRun(**{"sha": "a" * 40, "stages": list(DEFAULT_STAGES), **run})] if run else []
    found = obstacles(pull, runs)
    assert says in " ".join(found) and bool(found) == bool(says)


def test_every_state_of_a_run_has_its_sentence() -> None:
    for state in State.values:
        run = TestRun(sha="a" * 40, stages=list(DEFAULT_STAGES), state=state)
        assert (obstacles(PullRequest(head_sha="a" * 40), [run]) == []) == (state == State.PASSED)


def test_a_closed_one_waits_for_nothing() -> None:
    assert obstacles(PullRequest(state="closed"), []) == ["The pull request is closed."]


def test_a_pull_requests_page_says_what_changed_since_a_run_passed(client: Client, django_assert_max_num_queries: Any) -> None:
    row = RepositoryFactory(default_branch="main")
    pull = PullRequestFactory(repository=row, number=3, state="open", head_sha="b" * 40, base_ref="main")
    images = [{"name": "registry:5000/app:1.0", "digest": "sha256:" + "1" * 64}]
    before = ran(row, State.PASSED, 9, pull_request=None, ref="refs/heads/main", details={"images": images})
    now = ran(
        row,
        State.FAILED,
        1,
        pull_request=pull,
        sha="b" * 40,
        reason="It broke.",
        details={"images": [{"name": "registry:5000/app:2.0", "digest": "sha256:" + "2" * 64}]},
    )
    for run, status in ((before, "passed"), (now, "failed")):
        CaseResultFactory(stage=run.stage_results.get(name="custom"), name="test_login", status=status)
    with django_assert_max_num_queries(16):
        page = client.get(f"/recipes/{row.pk}/pulls/3/").content.decode()
    images = "registry:5000/app", "1.0 111111111111", "2.0 222222222222"
    for text in ("It broke.", "test_login", *images, "of the branch", "/compare/"):
        assert text in page, text
    assert client.get(f"/recipes/{row.pk}/pulls/4/").status_code == 404
    assert client.get(f"/recipes/{RepositoryFactory().pk}/pulls/3/").status_code == 404


def test_two_runs_are_compared_by_their_tests_and_images() -> None:
    row = RepositoryFactory()
    before, now = ran(row, State.FAILED, 2), ran(row, State.FAILED, 1)
    verdicts = {
        "a": ("passed", "failed"),
        "b": ("failed", "passed"),
        "c": ("passed", "passed"),
        "d": ("failed", "failed"),
        "e": ("skipped", "failed"),
        "f": ("failed", "skipped"),
    }
    for name, of_each in verdicts.items():
        for run, status in zip((before, now), of_each, strict=True):
            CaseResultFactory(stage=run.stage_results.get(name="custom"), name=name, status=status, file="t.py")
    CaseResultFactory(stage=now.stage_results.get(name="custom"), name="c", status="errored", file="t.py")
    before.details = {"images": [{"name": "app"}, {"name": "db:1"}, {"name": "old@sha256:1"}]}
    now.details = {"images": [{"name": "app"}, {"name": "db:2"}, {"name": "h:5/new"}]}
    found = compare(before, now)
    assert [case.name for case in found.now_failing] == ["a", "c", "e"]
    assert [case.name for case in found.now_passing] == ["b"]
    assert found.images == (("db", "1", "2"), ("h:5/new", "", ""), ("old", "", ""))
    assert compare(now, now).same
