"""doctor's lines on runs: what a run found on this server that has to be looked at by a person."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.utils import timezone

from controlplane.registry import Finding
from infra.deployers import readback
from runs.models import State, TestRun

_DAYS = 14
_SHOWN = 5


def check_judged() -> Iterable[Finding]:
    """Runs that ended because the Swarm had more of them than was judged: a hole, or a hand in between."""
    since = timezone.now() - timedelta(days=_DAYS)
    found = TestRun.objects.filter(state=State.ERRORED, reason__contains=readback.BEGINS, finished_at__gte=since)
    runs = list(found.select_related("repository").order_by("-finished_at")[:_SHOWN])
    if not runs:
        return [Finding("deployments", "ok", f"in {_DAYS} days nothing ran on the Swarm that was not judged before")]
    listed = "; ".join(f"{run.repository} {run.url}" for run in runs)
    text = f"the Swarm had more of a run than was judged before it: {listed}"
    fix = "read each run's reason; find out who else changes services on this Swarm"
    return [Finding("deployments", "error", text, fix)]
