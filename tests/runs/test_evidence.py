"""What is known here of a recipe's version."""

from __future__ import annotations

import pytest
from django.utils import timezone

from controlplane.registry import registry
from enrollment.models import Repository
from runs.models import State, TestRun
from tests.factories import RepositoryFactory, TestRunFactory, details

pytestmark = pytest.mark.django_db
VERSION = "1.1.0+2.1"


def finished(recipe: Repository, state: str, minutes: int, **changes: object) -> TestRun:
    """A run of a branch that ended so many minutes ago."""
    ended = timezone.now() - timezone.timedelta(minutes=minutes)
    values = {"repository": recipe, "pull_request": None, "state": state, "finished_at": ended, "details": details(), **changes}
    run: TestRun = TestRunFactory(**values)
    return run


def test_a_version_that_was_never_tested_here() -> None:
    assert registry.ask("version_evidence", "web", VERSION) is None


def test_the_newest_test_of_just_this_version_counts() -> None:
    recipe = RepositoryFactory(name="web")
    finished(recipe, State.PASSED, 30)
    newest = finished(recipe, State.FAILED, 20)
    finished(recipe, State.PASSED, 10, details=details(version="2.0.0+1.0"))
    finished(recipe, State.ERRORED, 5)  # our fault says nothing of the version
    finished(RepositoryFactory(name="other"), State.PASSED, 1)
    found = registry.ask("version_evidence", "web", VERSION)
    assert found["passed"] is False
    assert (found["run"], found["commit"]) == (newest.url, newest.sha)
    assert found["lint"] == []


def test_a_pull_request_that_calls_itself_so_proves_nothing() -> None:
    TestRunFactory(passed=True, pull_request__repository__name="web", details=details())
    assert registry.ask("version_evidence", "web", VERSION) is None


def test_errors_of_lint_are_told() -> None:
    finding = {"rule": "C006", "level": "error", "text": "The image is pinned to no version.", "file": "", "line": 0}
    finished(RepositoryFactory(name="web"), State.PASSED, 1, details=details(lint=[finding, {**finding, "level": "warning"}]))
    assert registry.ask("version_evidence", "web", VERSION)["lint"] == ["C006: The image is pinned to no version."]
