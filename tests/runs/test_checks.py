"""doctor's line on what ran and was not judged."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from infra.deployers.swarm import readback
from runs.checks import check_judged
from runs.models import State
from tests.factories import TestRunFactory

pytestmark = pytest.mark.django_db


def test_a_run_with_more_than_was_judged_is_an_error_for_two_weeks() -> None:
    [finding] = check_judged()
    assert finding.level == "ok"
    reason = f"upgrade: {readback.BEGINS}: app: a bind mount of / at /host, writable."
    run = TestRunFactory(state=State.ERRORED, reason=reason, finished_at=timezone.now() - timedelta(days=1))
    TestRunFactory(state=State.ERRORED, reason="Docker was away.", finished_at=timezone.now())
    [finding] = check_judged()
    assert finding.level == "error" and finding.fix
    assert run.url in finding.text and finding.text.count("http") == 1
    type(run).objects.filter(pk=run.pk).update(finished_at=timezone.now() - timedelta(days=20))
    [finding] = check_judged()
    assert finding.level == "ok"
