"""Flaky tests: what makes one, whose runs count, what it costs to know, and where it is shown."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from enrollment.models import Repository
from runs import case_history, lifecycle, render, reporting
from runs.case_history import Case
from runs.models import CaseResult, StageResult, State, TestRun
from tests.factories import CaseResultFactory, RepositoryFactory, StageResultFactory, TestRunFactory, ago, sha_of
from tests.world import decided

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

A, B = sha_of(1), sha_of(2)
HOSTILE = "</summary>\n</details><script>alert(1)</script> @alice `x` | [x](http://evil.example) !testme " + "n" * 600


@pytest.fixture
def repository() -> Any:
    return RepositoryFactory()


def ran(
    row: Repository, status: str, sha: str = A, *, state: str = "", name: str = "test_page", minutes: int = 5, **more: Any
) -> TestRun:
    """A run in which one test ended this way."""
    state = state or (State.PASSED if status == "passed" else State.FAILED)
    run = TestRunFactory(repository=row, sha=sha, state=state, created_at=ago(minutes=minutes), **more)
    CaseResultFactory(
        stage=StageResultFactory(run=run, name="custom", status=status), name=name[:500], status=status, output="boom"
    )
    return run


def test_a_test_that_changed_its_verdict_on_one_commit_is_flaky(repository: Repository) -> None:
    ran(repository, "passed")
    ran(repository, "errored")
    ran(repository, "failed", B)
    [(case, history)] = case_history.flaky(repository.pk).items()
    assert case == Case("custom", "tests/test_page.py", "test_page")
    assert history.rate == "failed in 2 of 3 runs, 1 commit changed verdict"


@pytest.mark.parametrize(
    "rows",
    [
        [("passed", A, {}), ("failed", B, {})],
        [("passed", A, {}), ("skipped", A, {})],
        [("passed", A, {}), ("failed", A, {"state": State.ERRORED})],
        [("passed", A, {}), ("failed", A, {"state": State.CANCELLED})],
        [("passed", A, {}), ("failed", A, {"trusted": False})],
        [("passed", A, {}), ("failed", A, {"name": "test_other"})],
    ],
    ids=["by another commit", "skipped", "our error", "cancelled", "a stranger's", "another test"],
)
def test_what_makes_no_test_flaky(repository: Repository, rows: list[Any]) -> None:
    for status, sha, more in rows:
        ran(repository, status, sha, **more)
    assert not case_history.flaky(repository.pk)


def test_another_repositorys_test_of_the_same_name_is_another_test(repository: Repository) -> None:
    ran(repository, "passed")
    ran(RepositoryFactory(), "failed")
    assert not case_history.flaky(repository.pk)


def test_strangers_code_counts_for_its_own_commit_only(repository: Repository) -> None:
    for status in ("passed", "failed"):
        ran(repository, status, B, trusted=False)
    ran(repository, "failed", A)
    assert not case_history.flaky(repository.pk) and not case_history.flaky(repository.pk, A)
    assert [history.changed for history in case_history.flaky(repository.pk, B).values()] == [1]
    [whole] = case_history.of_repository(repository.pk).values()
    assert (whole.runs, whole.failed) == (1, 1)


def test_two_results_of_one_run_are_the_worse_one_and_no_change(repository: Repository) -> None:
    run = ran(repository, "failed")
    CaseResultFactory(stage=run.stage_results.get(), name="test_page", status="passed")
    assert not case_history.flaky(repository.pk)
    [history] = case_history.of_repository(repository.pk).values()
    assert (history.runs, history.failed) == (1, 1)


def test_a_result_that_a_retry_took_over_counts_once(repository: Repository) -> None:
    run = ran(repository, "passed", minutes=9)
    again = ran(repository, "passed")
    again.stage_results.update(taken_from=run.pk)
    [history] = case_history.of_repository(repository.pk).values()
    assert [verdict.run for verdict in history.verdicts] == [run.pk]


def test_the_newest_runs_count_and_the_cost_does_not_grow(repository: Repository, django_assert_num_queries: Any) -> None:
    runs = TestRun.objects.bulk_create(
        TestRun(repository=repository, sha=A, ref="x", trusted=True, state=State.PASSED if n else State.FAILED)
        for n in range(case_history.RUNS + 5)
    )
    for number, run in enumerate(runs):
        TestRun.objects.filter(pk=run.pk).update(created_at=ago(minutes=1000 - number).function())
    stages = StageResult.objects.bulk_create(StageResult(run=run, name="custom", order=0, status="passed") for run in runs)
    CaseResult.objects.bulk_create(
        CaseResult(stage=stage, name="test_page", status="passed" if number else "failed") for number, stage in enumerate(stages)
    )
    with django_assert_num_queries(2):
        assert not case_history.flaky(repository.pk), "the one failure is older than the newest runs"
    with django_assert_num_queries(2):
        [history] = case_history.of_repository(repository.pk).values()
    assert (history.runs, history.failed, len(history.newest)) == (case_history.RUNS, 0, case_history.SHOWN)
    assert history.newest[0].run == runs[-1].pk


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.sampled_from(["passed", "failed", "errored", "skipped"]))))
def test_the_order_of_the_rows_does_not_matter(results: list[tuple[str, int, str]]) -> None:
    at = ago(minutes=1).function()
    run_of = [TestRun().pk for _ in range(6)]
    rows = [
        case_history.Row(Case("custom", "f.py", name), run_of[number], at, "ab"[number % 2], status)
        for name, number, status in results
    ]
    found = case_history.histories(rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert case_history.histories(shuffled) == found
    for case, history in found.items():
        mine = [row for row in rows if row.case == case and row.status != "skipped"]
        assert history.runs == len({row.run for row in mine}) and 0 <= history.failed <= history.runs
        assert not history.flaky or {row.status == "passed" for row in mine} == {True, False}


def test_the_report_names_each_flaky_test_and_keeps_the_verdict(repository: Repository) -> None:
    ran(repository, "passed", minutes=9)
    run = ran(repository, "failed", reason="1 test failed.")
    text = render.report(run, flaky=case_history.flaky(repository.pk, run.sha))
    assert "failed" in text.splitlines()[0] and "(flaky)" in text
    assert "flaky: failed in 1 of 2 runs, 1 commit changed verdict" in text
    assert f"({settings.CC_CI.base_url}/runs/tests/{repository.pk}/)" in text
    again = ran(repository, "passed", minutes=1)
    lifecycle.note(again, State.QUEUED)
    reporting.enqueue_run(again)
    body = decided(f"run:{again.pull_request_id}").wanted["body"]
    assert "flaky: failed in 1 of 3 runs" in body, "a passing one is marked as well"
    # Whatever is said of flaky tests, the status is the verdict.
    assert decided(f"status:{repository.pk}:{again.sha}").wanted["state"] == "success"


def test_a_hostile_name_acts_nowhere(repository: Repository, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    ran(repository, "passed", name=HOSTILE, minutes=9)
    run = ran(repository, "failed", name=HOSTILE)
    text = render.report(run, flaky=case_history.flaky(repository.pk))
    assert "<script" not in text and "@alice" not in text and "http://evil" not in text and "flaky: failed in 1 of 2 runs" in text
    for url in (reverse("test-history", args=[repository.pk]), run.get_absolute_url()):
        page = client.get(url).content.decode()
        assert "<script>alert" not in page and "ailed in 1 of 2 runs" in page
    call_command("flaky")
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{repository.full_name}\tcustom\t") and line.endswith("1 commit changed verdict")


def test_the_page_shows_flaky_tests_first_with_their_verdicts(repository: Repository, client: Client) -> None:
    ran(repository, "failed", B, name="test_broken")
    ran(repository, "passed", name="test_shaky", minutes=9)
    run = ran(repository, "failed", name="test_shaky")
    page = client.get(reverse("test-history", args=[repository.pk])).content.decode()
    assert page.index("test_shaky") < page.index("test_broken") and run.get_absolute_url() in page
    assert reverse("test-history", args=[repository.pk]) in client.get(run.get_absolute_url()).content.decode()


def test_a_private_repositorys_tests_need_a_login(client: Client) -> None:
    row = RepositoryFactory(private=True)
    ran(row, "failed", name="test_secret_plan")
    url = reverse("test-history", args=[row.pk])
    assert "/login/" in client.get(url)["Location"]
    client.force_login(User.objects.create_user("nobody"))
    assert client.get(url).status_code == 404
    client.force_login(User.objects.create_user("staff", is_staff=True))
    assert "test_secret_plan" in client.get(url).content.decode()


def test_the_command_lists_flaky_tests_of_one_or_all(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("flaky")
    assert capsys.readouterr().out == "No test is known to be flaky.\n"
    ran(repository, "passed")
    ran(repository, "failed")
    ran(RepositoryFactory(forge=repository.forge, active=False), "failed")
    call_command("flaky", repository.full_name, "--json")
    [row] = json.loads(capsys.readouterr().out)
    assert (row["repository"], row["name"], row["failed"], row["runs"], row["commits"]) == (
        repository.full_name,
        "test_page",
        1,
        2,
        1,
    )
    with pytest.raises(CommandError, match="is not enrolled"):
        call_command("flaky", "recipes/nothing")
