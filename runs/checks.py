"""`doctor`'s checks of runs: findings on this server that a person has to look into."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.utils import timezone

from controlplane.registry import Finding
from infra.deployers.swarm import readback
from runs.models import State, TestRun

_DAYS = 14
_SHOWN = 5


def check_judged() -> Iterable[Finding]:
    """Runs that ended because unapproved services of theirs ran on the Swarm: a hole, or somebody else's change."""
    since = timezone.now() - timedelta(days=_DAYS)
    found = TestRun.objects.filter(state=State.ERRORED, reason__contains=readback.BEGINS, finished_at__gte=since)
    runs = list(found.select_related("repository").order_by("-finished_at")[:_SHOWN])
    if not runs:
        return [Finding("deployments", "ok", f"in the last {_DAYS} days nothing ran on the Swarm that cc-ci had not checked")]
    listed = "; ".join(f"{run.repository} {run.url}" for run in runs)
    text = f"a run had more on the Swarm than cc-ci had checked: {listed}"
    fix = "read each run's reason, and find out who else changes services on this Swarm"
    return [Finding("deployments", "error", text, fix)]
