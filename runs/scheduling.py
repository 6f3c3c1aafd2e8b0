"""Which queued run starts next, each run's place in the queue, and how long a run usually takes. `in_turn` is pure.

The next free slot goes to the repository that holds the fewest slots and was served longest ago, and there to the oldest run.
Scheduled runs come after those that people asked for.
The number of queries depends neither on the length of the queue nor on that of the history.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush
from math import inf
from statistics import median
from uuid import UUID

from django.conf import settings
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from enrollment.models import Repository
from runs.executors.select import choose_all
from runs.models import HOLDING, RemoteExecutor, State, TestRun
from runs.track_record import newest

#: Ended runs of a recipe that are looked through for those with the same stages, and of these the most that count.
HISTORY, USED = 50, 10
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Waiting:
    """A queued run. `executor`: the key of its remote executor; None is this machine."""

    run: UUID
    repository: int
    since: datetime
    pull_request: int | None = None
    executor: int | None = None
    scheduled: bool = False  #: nobody waits for it: it comes after all others


@dataclass
class Load:
    """What runs now and what more may run, by the keys of executors, repositories and pull requests."""

    free: Mapping[int | None, float]  #: slots of each executor, without those in use
    limits: Mapping[int, float] = field(default_factory=dict)  #: the most slots that a repository may hold; no entry: no limit
    held: Counter[int] = field(default_factory=Counter)  #: slots that each repository holds
    served: dict[int, datetime] = field(default_factory=dict)  #: when each repository got a slot last
    busy: set[int | None] = field(default_factory=set)  #: pull requests with a run under way: one at a time
    taken: Counter[int | None] = field(default_factory=Counter)
    now: datetime = field(default_factory=timezone.now)

    def admits(self, one: Waiting) -> bool:
        room = self.taken[one.executor] < self.free.get(one.executor, 0)
        limit = self.limits.get(one.repository, inf)
        return room and self.held[one.repository] < limit and (one.pull_request is None or one.pull_request not in self.busy)

    def take(self, one: Waiting) -> None:
        """Give a slot to a run that is admitted."""
        self.now += timedelta(microseconds=1)  # of two that get one now, the first was served longer ago
        self.taken[one.executor] += 1
        self.held[one.repository] += 1
        self.served[one.repository] = self.now
        self.busy.add(one.pull_request)


def in_turn(waiting: Iterable[Waiting], load: Load) -> Iterator[Waiting]:
    """The runs that may start now, in the order in which they should. Whoever starts one calls `load.take` before the next."""
    rows = list(waiting)
    yield from _in_turn([one for one in rows if not one.scheduled], load)
    yield from _in_turn([one for one in rows if one.scheduled], load)


def _in_turn(waiting: list[Waiting], load: Load) -> Iterator[Waiting]:
    queues: dict[int, deque[Waiting]] = {}
    for one in sorted(waiting, key=lambda one: (one.since, one.run)):
        queues.setdefault(one.repository, deque()).append(one)

    def turn(repository: int) -> tuple[int, datetime, datetime, int]:
        return load.held[repository], load.served.get(repository, _NEVER), queues[repository][0].since, repository

    turns = [turn(repository) for repository in queues]
    heapify(turns)
    while turns:
        *_, repository = heappop(turns)
        queue = queues[repository]
        # Room only gets less: what is not admitted now is not admitted later.
        while queue and not load.admits(queue[0]):
            queue.popleft()
        if not queue:
            continue
        yield queue.popleft()
        if queue:
            heappush(turns, turn(repository))


def read() -> tuple[list[Waiting], Load]:
    """The queue, and the load of this machine and of all executors."""
    queued = TestRun.objects.filter(state=State.QUEUED)
    rows = list(queued.values_list("pk", "repository_id", "created_at", "pull_request_id", "scheduled"))
    if not rows:
        return [], Load({})
    newest = TestRun.objects.filter(repository=OuterRef("pk"), started_at__isnull=False).order_by("-started_at")
    repositories = {
        key: (forge, slots, served)
        for key, forge, slots, served in Repository.objects.filter(pk__in={repository for _, repository, *_ in rows})
        .annotate(served=Subquery(newest.values("started_at")[:1]))
        .values_list("pk", "forge_id", "slots", "served")
    }
    executors = list(RemoteExecutor.objects.prefetch_related("forges"))
    chosen = choose_all({key: forge for key, (forge, _, _) in repositories.items()}, executors)
    waiting = [
        Waiting(run, repository, since, pull, executor.pk if (executor := chosen[repository]) else None, scheduled)
        for run, repository, since, pull, scheduled in rows
        if repository in repositories
    ]
    columns = ("repository_id", "pull_request_id", "executor_id", "host", "executor_name")
    holding = list(TestRun.objects.filter(state__in=HOLDING).values_list(*columns))
    remote = Counter(executor for _, _, executor, _, _ in holding if executor)
    here = sum(host == settings.CC_CI.host and not name for _, _, _, host, name in holding)
    most = settings.CC_CI.repository_slots or inf
    load = Load(
        free={**{row.pk: row.slots - remote[row.pk] for row in executors}, None: settings.CC_CI.slots - here},
        limits={key: most if slots is None else slots or inf for key, (_, slots, _) in repositories.items()},
        held=Counter(repository for repository, *_ in holding),
        served={key: served for key, (_, _, served) in repositories.items() if served},
        busy={pull for _, pull, *_ in holding if pull is not None},
    )
    return waiting, load


def places() -> dict[UUID, int]:
    """Each queued run's place among those that wait for the same executor, from 1: as if nothing ended and nothing came."""
    waiting, load = read()
    endless = replace(load, free=dict.fromkeys([None, *load.free], inf), limits={}, busy=set())
    found, counts = {}, Counter[int | None]()
    for one in in_turn([replace(one, pull_request=None) for one in waiting], endless):
        endless.take(one)
        counts[one.executor] += 1
        found[one.run] = counts[one.executor]
    return found


def place_of(run: TestRun) -> int:
    """A run's place in the queue, from 1; 0 if it is not queued."""
    return places().get(run.pk, 0) if run.state == State.QUEUED else 0


def usual_seconds(run: TestRun) -> float | None:
    """How long runs of this recipe with these stages take: the median of the last that passed or failed. None without any."""
    return usual([run]).get(run.pk)


def usual(runs: Collection[TestRun]) -> dict[UUID, float]:
    """`usual_seconds` of several runs, without those for which it is not known."""
    ended = TestRun.objects.filter(state__in=(State.PASSED, State.FAILED), started_at__isnull=False, finished_at__isnull=False)
    columns = ("repository_id", "quick", "stages", "started_at", "finished_at")
    took: dict[tuple[int, bool, tuple[str, ...]], list[float]] = defaultdict(list)
    for repository, quick, stages, start, end in newest(ended, {run.repository_id for run in runs}, HISTORY, columns):
        took[repository, quick, tuple(stages)].append((end - start).total_seconds())
    known = {run.pk: took.get((run.repository_id, run.quick, tuple(run.stages)), [])[:USED] for run in runs}
    return {key: median(seconds) for key, seconds in known.items() if seconds}


def moved_up(before: int, now: int) -> bool:
    """Whether a place is worth an edit of the comment: it has halved at least, or is the first.

    From place n that happens at most log2(n) + 1 times.
    """
    return 0 < now < before and (now == 1 or 2 * now <= before)
