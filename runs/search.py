"""Finds runs by what people have in hand: a recipe, a pull request, a commit, a run's id, or who asked.

Each kind is answered by an index, however many runs there are.
"""

from __future__ import annotations

import re
from uuid import UUID

from django.db.models import QuerySet

from controlplane.pages import first_of
from enrollment.lookup import MOST, like
from enrollment.models import PullRequest, Repository
from runs.models import ACTIVE, TestRun

_HEX = re.compile(r"[0-9a-f]{7,64}")
_NUMBER = re.compile(r"#?([0-9]{1,9})")


def found(runs: QuerySet[TestRun], text: str, repositories: QuerySet[Repository]) -> QuerySet[TestRun]:
    """Those of `runs` that the text means: `#12`, at least 7 digits of a commit or run, (part of) the name of one of the
    repositories, a person.
    """
    text = text.strip()
    if number := _NUMBER.fullmatch(text):
        pulls = PullRequest.objects.filter(number=int(number[1])).order_by("-pk").values_list("pk", flat=True)
        by_pull = runs.filter(pull_request__in=list(pulls[:MOST]))
        if text.startswith("#") or len(text) < 7:
            return by_pull
    digits = text.lower().replace("-", "")
    if _HEX.fullmatch(digits):
        commits = runs.filter(sha__gte=digits, sha__lt=digits + "g")
        return commits if len(digits) > 32 or commits.exists() else runs.filter(pk__range=_ids(digits))
    recipes = like(text, repositories)
    return runs.filter(repository__in=recipes) if recipes else runs.filter(requested_by=text)


def active(runs: QuerySet[TestRun]) -> QuerySet[TestRun]:
    """Those of `runs` that have not ended. Their keys are read first, without an order: in one, SQLite may read all runs."""
    return runs.filter(pk__in=list(runs.filter(state__in=ACTIVE).order_by().values_list("pk", flat=True)))


def newest_ended(runs: QuerySet[TestRun], number: int) -> list[TestRun]:
    """The newest of `runs` that have ended."""
    return first_of(runs.exclude(state__in=ACTIVE).order_by("-created_at", "-pk"), number)


def _ids(digits: str) -> tuple[UUID, UUID]:
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
