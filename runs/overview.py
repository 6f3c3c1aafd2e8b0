"""The recipes at a glance: of each the newest verdict of every stage, how its last runs ended, and what is deferred.

Only runs of trusted code count, for with a pull request a stranger could make any recipe look broken; and no quick ones.
The number of queries depends neither on the number of runs nor, but for one per some hundred recipes, on that of the recipes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

from enrollment.models import Repository
from runs.deferred import registry
from runs.harness.stage_table import STAGES, StageName
from runs.models import JUDGED, DeferredItem, StageResult, State, TestRun
from runs.track_record import newest

#: Runs of the trend, and the newest ones among them that are asked for their stages.
TREND, STAGED = 20, 3
#: Statuses of a stage that are a verdict on the recipe.
VERDICTS = ("passed", "failed")


class Past(NamedTuple):
    """A run that ended."""

    pk: UUID
    state: str
    finished_at: datetime | None
    level: int | None
    version: str | None
    sha: str
    stages: list[str]

    @property
    def judged(self) -> bool:
        return self.state in JUDGED


class Cell(NamedTuple):
    """The newest verdict of a stage. `status`: passed, failed; empty if there is none. `run`: where."""

    stage: str
    status: str = ""
    run: UUID | None = None


@dataclass(frozen=True)
class Overview:
    """Of one recipe. `trend`: the oldest first. `cells`: one for each stage. `deferred`: open entries."""

    repository: Repository
    trend: tuple[Past, ...] = ()
    cells: tuple[Cell, ...] = ()
    deferred: int = 0

    @property
    def last(self) -> Past | None:
        """The newest run with a verdict on the recipe."""
        return next((run for run in reversed(self.trend) if run.judged), None)

    @property
    def state(self) -> str:
        """Of the newest verdict; empty if there is none."""
        return self.last.state if self.last else ""

    @property
    def level(self) -> int | None:
        """The newest that was determined: a run of some stages has none."""
        return next((run.level for run in reversed(self.trend) if run.judged and run.level is not None), None)

    @property
    def words(self) -> str:
        """The trend for those who cannot see it."""
        counts = Counter(run.state.replace("_", " ") for run in self.trend)
        return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def overviews(repositories: Iterable[Repository]) -> list[Overview]:
    """The overview of each of these recipes, in their order."""
    rows = list(repositories)
    keys = [row.pk for row in rows]
    ended = TestRun.objects.filter(trusted=True, quick=False, state__in=(*JUDGED, State.ERRORED))
    columns = ("pk", "state", "finished_at", "level", "details__version", "sha", "stages")
    trends: dict[int, list[Past]] = defaultdict(list)
    for repository, *values in newest(ended, keys, TREND, ("repository_id", *columns)):
        trends[repository].append(Past(*values))
    cells = _cells(trends)
    # For who sees these repositories, and maybe no others.
    open_items = registry.public(DeferredItem.objects.filter(recipe__in=keys, state=DeferredItem.State.OPEN), keys).order_by()
    deferred = Counter(open_items.values_list("recipe", flat=True))
    return [Overview(row, tuple(reversed(trends[row.pk])), cells.get(row.pk, ()), deferred[row.pk]) for row in rows]


def _cells(trends: Mapping[int, Sequence[Past]]) -> dict[int, tuple[Cell, ...]]:
    """For each stage the newest of some runs that came to a verdict. The newest run is first in a trend."""
    asked = {key: _staged(trend) for key, trend in trends.items()}
    runs = [run.pk for of_one in asked.values() for run in of_one]
    rows = StageResult.objects.filter(run__in=runs, status__in=VERDICTS).order_by().values_list("run", "name", "status")
    found: dict[UUID, dict[str, str]] = defaultdict(dict)
    for run, name, status in rows:
        found[run][name] = status
    return {key: tuple(_cell(stage, of_one, found) for stage in STAGES) for key, of_one in asked.items()}


def _staged(trend: Sequence[Past]) -> list[Past]:
    judged = [run for run in trend if run.judged]
    extra = [run for run in judged[STAGED:] if StageName.EXTRA in run.stages]
    return [*judged[:STAGED], *extra[:1]]


def _cell(stage: str, runs: Sequence[Past], found: Mapping[UUID, Mapping[str, str]]) -> Cell:
    run = next((run for run in runs if stage in found[run.pk]), None)
    return Cell(stage, found[run.pk][stage], run.pk) if run else Cell(stage)


#: How the table can be sorted: a label, and the key.
SORTS: dict[str, tuple[str, Callable[[Overview], tuple[Any, ...]]]] = {
    "name": ("Name", lambda row: (row.repository.full_name.lower(),)),
    "attention": ("Needs attention first", lambda row: (_worry(row), row.repository.full_name.lower())),
    "oldest": ("Tested longest ago first", lambda row: (row.last is not None, _at(row), row.repository.full_name.lower())),
    "level": ("Lowest level first", lambda row: (-1 if row.level is None else row.level, row.repository.full_name.lower())),
}
#: Which rows can be shown: a label, and the test.
SHOWN: dict[str, tuple[str, Callable[[Overview], bool]]] = {
    "": ("All", lambda row: True),
    "failing": ("Not passing", lambda row: row.state not in ("", State.PASSED)),
    "passing": ("Passing", lambda row: row.state == State.PASSED),
    "untested": ("Without a verdict", lambda row: not row.state),
    "deferred": ("With deferred tests", lambda row: row.deferred > 0),
}


def _worry(row: Overview) -> int:
    return 2 if row.state == State.PASSED else 0 if row.state else 1


def _at(row: Overview) -> float:
    return row.last.finished_at.timestamp() if row.last and row.last.finished_at else 0


def chosen(rows: Iterable[Overview], *, show: str, sort: str, search: str) -> list[Overview]:
    """The rows to show, in their order. What is not offered counts as the first choice."""
    wanted, key = SHOWN.get(show, SHOWN[""])[1], SORTS.get(sort, SORTS["name"])[1]
    text = search.strip().lower()
    return sorted((row for row in rows if wanted(row) and text in row.repository.full_name.lower()), key=key)


@dataclass(frozen=True)
class StageChart:
    """A stage in a recipe's newest runs. `points`: (seconds, status) of each, the oldest first."""

    name: str
    points: tuple[tuple[float, str], ...]

    @property
    def rate(self) -> int:
        """Percent."""
        return round(100 * sum(status == "passed" for _, status in self.points) / len(self.points))

    @property
    def usual(self) -> float:
        return median(seconds for seconds, _ in self.points)


def charts(rows: Sequence[tuple[str, str, float]]) -> list[StageChart]:
    """Of (stage, status, seconds), the oldest first. Pure."""
    points = defaultdict(list)
    for name, status, seconds in rows:
        points[name].append((seconds or 0.0, status))
    return [StageChart(name, tuple(points[name])) for name in STAGES if points[name]]
