"""What the runs on this server show about a version of a recipe, for the gate of infra's upgrades."""

from __future__ import annotations

from typing import Any

from runs.models import State, TestRun


def version_evidence(recipe: str, version: str) -> dict[str, Any] | None:
    """The newest finished test of a published version: `passed`, `run` (its page), `commit`, `lint` (errors, as sentences).

    None if it was never tested here. Only runs that deployed exactly this version count, and only of the recipe's own branches:
    a pull request can give itself any label.
    """
    tested = TestRun.objects.filter(
        repository__name=recipe,
        pull_request=None,
        quick=False,
        details__version=version,
        state__in=[State.PASSED, State.FAILED, State.TIMED_OUT],
    )
    run = tested.order_by("-finished_at").first()
    if run is None:
        return None
    errors = [finding for finding in run.details.get("lint", []) if finding.get("level") == "error"]
    return {
        "passed": run.state == State.PASSED,
        "run": run.url,
        "commit": run.sha,
        "lint": [f"{finding['rule']}: {finding['text']}" for finding in errors],
    }
