"""What the runs on this server show about a recipe, and about a version of it for the gate of infra's upgrades."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import OuterRef, Q, QuerySet, Subquery

from enrollment.models import Repository
from runs.models import State, TestRun

#: Recipes in one query.
AT_ONCE = 200


def newest(runs: QuerySet[TestRun], repositories: Collection[int], count: int, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """These columns of the newest `count` of `runs` in each of these repositories, the newest first.

    Costs the same however many older ones there are: first it is asked from when on, which the index answers.
    """
    if len(repositories) == 1:
        return list(runs.filter(repository__in=repositories).order_by("-created_at").values_list(*columns)[:count])
    found: list[tuple[Any, ...]] = []
    of_one = runs.filter(repository=OuterRef("pk")).order_by("-created_at").values("created_at")
    keys = list(repositories)
    for start in range(0, len(keys), AT_ONCE):
        rows = Repository.objects.filter(pk__in=keys[start : start + AT_ONCE]).annotate(since=Subquery(of_one[count - 1 : count]))
        since = [
            Q(repository=key, created_at__gte=first) if first else Q(repository=key)
            for key, first in rows.values_list("pk", "since")
        ]
        if since:
            found += runs.filter(reduce(or_, since)).order_by("-created_at").values_list(*columns)
    return found


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
