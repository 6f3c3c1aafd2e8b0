"""Which queued run starts next: fairness as a pure decision, slots of executors and repositories, places and estimates."""

from __future__ import annotations

import heapq
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from enrollment.models import Repository
from runs import approval, dispatcher, lifecycle, reporting, scheduling
from runs.models import ExecutorChoice, RemoteExecutor, Report, State, TestRun
from runs.scheduling import Load, Waiting, in_turn
from tests.factories import PullRequestFactory, RepositoryFactory, TestRunFactory
from tests.world import decided

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.2)]

START = datetime(2026, 11, 29, tzinfo=UTC)


def waiting(number: int, repository: int, minutes: float = 0, **more: int) -> Waiting:
    return Waiting(UUID(int=number), repository, START + timedelta(minutes=minutes), **more)


def order(rows: list[Waiting], load: Load) -> list[int]:
    found = []
    for one in in_turn(rows, load):
        load.take(one)
        found.append(one.run.int)
    return found


# --- the pure decision


def test_the_repository_with_the_fewest_slots_comes_first_then_who_was_served_longest_ago() -> None:
    rows = [waiting(1, 1), waiting(2, 2, 1), waiting(3, 3, 2), waiting(4, 3, 3)]
    load = Load({None: 4}, held=Counter({1: 1}), served={2: START, 3: START - timedelta(hours=1)}, now=START)
    assert order(rows, load) == [3, 2, 1, 4]


def test_within_a_repository_the_oldest_comes_first() -> None:
    assert order([waiting(2, 1, 1), waiting(1, 1, 0), waiting(3, 1, 2)], Load({None: 2})) == [1, 2]


def test_a_full_executor_holds_up_no_other() -> None:
    rows = [waiting(1, 1, executor=7), waiting(2, 1, 1, executor=7), waiting(3, 1, 2), waiting(4, 2, 3, executor=8)]
    assert order(rows, Load({None: 1, 7: 1, 8: 0})) == [1, 3]


def test_a_repository_at_its_limit_waits() -> None:
    rows = [waiting(1, 1), waiting(2, 1, 1), waiting(3, 2, 2)]
    assert order(rows, Load({None: 3}, limits={1: 1})) == [1, 3]


def test_runs_of_one_pull_request_take_turns() -> None:
    rows = [waiting(1, 1, pull_request=5), waiting(2, 1, 1, pull_request=5), waiting(3, 1, 2), waiting(4, 1, 3)]
    assert order(rows, Load({None: 9})) == [1, 3, 4]


def test_scheduled_runs_come_after_those_that_people_asked_for() -> None:
    rows = [waiting(1, 1, scheduled=True), waiting(2, 2, 1), waiting(3, 2, 2)]
    load = Load({None: 9}, held=Counter({2: 5}))
    assert order(rows, load) == [2, 3, 1]


def test_a_run_that_may_not_start_takes_no_slot() -> None:
    load, found = Load({None: 1}), []
    for one in in_turn([waiting(1, 1), waiting(2, 2, 1)], load):
        if one.run.int != 1:
            load.take(one)
            found.append(one.run.int)
    assert found == [2]


@given(
    shares=st.lists(st.integers(1, 60), min_size=20, max_size=20),
    seconds=st.lists(st.integers(30, 1800), min_size=50, max_size=50),
    spread=st.sampled_from([0, 3600]),
)
@examples(max_examples=5)
def test_no_repository_waits_more_than_twice_anothers_share(shares: list[int], seconds: list[int], spread: int) -> None:
    """500 requests of 20 repositories, 4 slots: while several have something to run, none starts more than another by more than
    one run, and so a repository's share of the starts is never more than twice another's (and one).
    """
    total = sum(shares)
    rows: list[Waiting] = []
    for repository, share in enumerate(shares):
        for _ in range(max(1, 500 * share // total)):
            number = len(rows)
            rows.append(waiting(number, repository, minutes=spread / 60 * (number * 7919 % 97) / 97))
    coming = sorted(rows, key=lambda one: one.since, reverse=True)
    queue: list[Waiting] = []
    ends: list[tuple[datetime, int, int]] = []
    served: dict[int, datetime] = {}
    started: Counter[int] = Counter()
    since: dict[int, Counter[int]] = {}  # starts of all when a repository began to have something to run
    now = START
    while coming or queue or ends:
        while coming and coming[-1].since <= now:
            one = coming.pop()
            if one.repository not in since:
                since[one.repository] = started.copy()
            queue.append(one)
        load = Load({None: 4 - len(ends)}, held=Counter(repository for _, _, repository in ends), served=served, now=now)
        begun = set()
        for one in in_turn(queue[:], load):
            load.take(one)
            begun.add(one.repository)
            queue.remove(one)
            number = one.run.int
            heapq.heappush(ends, (now + timedelta(seconds=seconds[number * 31 % 50]), number, one.repository))
            started[one.repository] += 1
        assert len(ends) <= 4
        assert len(ends) == 4 or not queue, "no slot stays empty"
        hungry = {one.repository for one in queue}
        since = {repository: counts for repository, counts in since.items() if repository in hungry}
        for mine in hungry:
            for other in hungry & begun:
                ours, theirs = started[mine] - since[mine][mine], started[other] - since[mine][other]
                if since[other][mine] <= since[mine][mine]:  # both had something to run all the time
                    assert theirs <= 2 * ours + 2, (mine, other)
        now = min([end for end, *_ in ends[:1]] + [one.since for one in coming[-1:]], default=now)
        while ends and ends[0][0] <= now:
            heapq.heappop(ends)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 300))
@examples(max_examples=25)
def test_the_edits_of_a_place_are_few(steps: list[int], place: int) -> None:
    shown, edits, now = place, 0, place
    for step in steps * 5:
        now = max(1, now + (1 if step == 3 else -step))
        if scheduling.moved_up(shown, now):
            assert now < shown
            shown, edits = now, edits + 1
    assert edits <= place.bit_length()


# --- with rows


@pytest.fixture
def remote(data_dir: object) -> RemoteExecutor:
    return RemoteExecutor.objects.create(name="ours", url="https://drone.example.org", repository="ci/runner", slots=2)


def test_a_run_elsewhere_takes_no_slot_of_the_machine_that_watches_it(remote: RemoteExecutor) -> None:
    here, there = RepositoryFactory(), RepositoryFactory()
    ExecutorChoice.objects.create(repository=there, executor=remote)
    for _ in range(3):
        TestRunFactory(repository=there, host="")
        TestRunFactory(repository=here, host="")
    claimed = dispatcher._claim()
    assert Counter(run.executor_name for run in claimed) == {"ours": 2, "": settings.CC_CI.slots}
    assert dispatcher._claim() == []
    lifecycle.move(next(run for run in claimed if run.executor), "pass")
    (next_one,) = dispatcher._claim()
    assert next_one.executor == remote


def test_slots_of_an_executor_are_shared_by_all_machines(remote: RemoteExecutor) -> None:
    row = RepositoryFactory()
    ExecutorChoice.objects.create(repository=row, executor=remote)
    TestRunFactory(repository=row, running=True, host="another", executor=remote, executor_name="ours")
    for _ in range(2):
        TestRunFactory(repository=row, host="")
    assert len(dispatcher._claim()) == 1


@pytest.mark.parametrize(("default", "own", "starts"), [(0, None, 3), (2, None, 2), (2, 1, 1), (1, 0, 3)])
def test_a_repository_has_a_limit_of_its_own_or_the_default(
    data_dir: object, monkeypatch: pytest.MonkeyPatch, default: int, own: int | None, starts: int
) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 5)
    monkeypatch.setattr(settings.CC_CI, "repository_slots", default)
    row = RepositoryFactory(slots=own)
    for _ in range(3):
        TestRunFactory(repository=row, host="")
    assert len(dispatcher._claim()) == starts


def test_who_was_served_longest_ago_is_read_from_the_history(data_dir: object) -> None:
    early, late = RepositoryFactory(), RepositoryFactory()
    now = timezone.now()
    TestRunFactory(repository=late, passed=True, started_at=now - timedelta(minutes=1))
    TestRunFactory(repository=early, passed=True, started_at=now - timedelta(hours=2))
    older = TestRunFactory(repository=late, created_at=now - timedelta(minutes=30))
    newer = TestRunFactory(repository=early, created_at=now)
    assert scheduling.places() == {newer.pk: 1, older.pk: 2}


def dispatch_queries() -> int:
    with CaptureQueriesContext(connection) as seen:
        dispatcher.dispatch()
    return len(seen)


def test_a_dispatch_costs_the_same_however_long_queue_and_history_are(data_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 1)
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    rows = [RepositoryFactory() for _ in range(4)]

    def longer(pulls: int) -> None:
        for row in rows:
            for pull in [PullRequestFactory(repository=row) for _ in range(pulls)]:
                TestRunFactory(pull_request=pull)
                TestRunFactory(pull_request=pull, passed=True)

    def starts_one() -> int:
        TestRun.objects.filter(state=State.STARTING).update(state=State.PASSED)
        with CaptureQueriesContext(connection) as seen:
            assert len(dispatcher.dispatch()) == 1
        return len(seen)

    longer(1)
    starts_one()  # also makes this machine's row
    few = starts_one(), dispatch_queries()
    longer(10)
    assert (starts_one(), dispatch_queries()) == few
    assert few[0] <= 40


def test_only_runs_that_were_checked_are_claimed(data_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots are free when the slots are given, and only one was when the runs were checked."""
    monkeypatch.setattr(settings.CC_CI, "slots", 2)
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    checked, unchecked = TestRunFactory(created_at=START), TestRunFactory()
    monkeypatch.setattr(approval, "ask_again", lambda skip: {checked.pk})
    assert dispatcher.dispatch() == [checked]
    unchecked.refresh_from_db()
    assert unchecked.state == State.QUEUED


# --- what people are told


def test_the_estimate_is_the_median_of_the_last_runs_with_the_same_stages(db: None) -> None:
    row: Repository = RepositoryFactory()
    now = timezone.now()
    run = TestRunFactory(repository=row, stages=["install"])
    assert scheduling.usual_seconds(run) is None
    past = [("passed", 100, "install"), ("failed", 60, "install"), ("passed", 80, "install")]
    past += [("passed", 9, "custom"), ("errored", 1, "install")]
    for number, (state, seconds, stage) in enumerate(past):
        start = now - timedelta(hours=5 - number)
        times = {"started_at": start, "finished_at": start + timedelta(seconds=seconds)}
        TestRunFactory(repository=row, state=state, stages=[stage], **times)
    TestRunFactory(passed=True, stages=["install"])
    assert scheduling.usual_seconds(run) == 80


def queued(row: Repository, minutes: int) -> TestRun:
    """A queued run of a pull request of its own, with its comment in the outbox."""
    run = TestRunFactory(repository=row, comment=None, created_at=timezone.now() - timedelta(minutes=minutes))
    reporting.enqueue_run(run)
    return run


def test_the_comment_is_edited_when_the_place_has_halved_or_is_the_first(
    data_dir: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 0)
    row = RepositoryFactory()
    runs = [queued(row, 60 - number) for number in range(5)]
    last = f"run:{runs[-1].pull_request_id}"
    shown = []
    for run in runs[:-1]:
        if Report.objects.get(key=last).next_try_at:
            report = decided(last)
            shown.append(report.wanted["place"])
            Report.objects.filter(key=last).update(next_try_at=None)
        assert lifecycle.want_stop(run, State.CANCELLED, "enough")
        dispatcher.dispatch()
    assert [*shown, decided(last).wanted["place"]] == [5, 2, 1]
    assert "It is next in the queue." in decided(last).wanted["body"]
