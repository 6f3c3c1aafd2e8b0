"""Kind to the forge: connections, the budget and its sharing, Retry-After, the circuit, and the table of requests."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Thread

import pytest
import requests
import time_machine
from django.conf import settings
from django.db import connections
from django.test import Client
from django.utils import timezone
from django_q.exceptions import TimeoutException

from controlplane.registry import registry
from enrollment import checks
from enrollment.fakeforge.faults import Fault, Request
from enrollment.fakeforge.server import serve
from enrollment.forge_access import rate_limit
from enrollment.forge_access.clients import client_for, rate_limiter
from enrollment.forge_access.rate_limit import (
    FIRST_WAIT,
    KEPT,
    ONE_PIECE,
    OPENS_AFTER,
    SLICE,
    SLICES,
    Purpose,
    circuit_message,
    circuit_state,
    may_ask,
)
from enrollment.forges.base import Ask, CircuitOpen, ForgeError, NotFound, OverBudget, RateLimited, Unavailable
from enrollment.forges.gitea import client as gitea
from enrollment.forges.gitea.request_kinds import ask_of
from enrollment.models import Comment, Forge, RequestCount, Right, Traffic
from tests.factories import ForgeFactory
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]
Requests = dict[str, dict[str, int]]
NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing counted by another test, and no pause before a read is repeated."""
    rate_limit.request_stats.drop()
    monkeypatch.setattr(gitea, "wait_random_exponential", lambda *args, **more: lambda state: 0)
    yield
    rate_limit.request_stats.drop()


# --- sharing a minute: pure


def ask_all(
    limit: int, plan: list[tuple[str, str]], before: dict[str, dict[str, int]] | None = None
) -> dict[str, dict[str, int]]:
    """What of these requests goes through in one minute, in this order, behind those that were made `before`."""
    used: Requests = deepcopy(before or {})
    for purpose, repository in plan:
        if may_ask(used, limit, purpose, repository):
            mine = used.setdefault(purpose, {})
            mine[repository] = mine.get(repository, 0) + 1
    return used


@pytest.mark.parametrize("greedy", list(Purpose))
def test_no_purpose_takes_what_is_kept_for_another(greedy: str) -> None:
    others = [name for name in Purpose if name != greedy]
    plan = [(greedy, "")] * 1000 + [(name, "") for name in others for _ in range(1000)]
    used = ask_all(600, plan)
    assert sum(sum(rows.values()) for rows in used.values()) <= 600
    assert all(used[name][""] >= int(600 * KEPT[name]) for name in Purpose)


def test_who_is_alone_gets_all_but_what_is_kept() -> None:
    used = ask_all(600, [(Purpose.POLLING, "")] * 1000)
    kept = sum(int(600 * share) for name, share in KEPT.items() if name != Purpose.POLLING)
    assert used == {Purpose.POLLING: {"": 600 - kept}}
    assert sum(KEPT.values()) < 1


def test_one_busy_repository_leaves_room_for_others() -> None:
    busy = [(Purpose.POLLING, "o/busy")] * 1000
    calm = [(Purpose.POLLING, f"o/r{number}") for number in range(20) for _ in range(3)]
    used = ask_all(600, busy + calm)
    assert all(used[Purpose.POLLING][f"o/r{number}"] == 3 for number in range(20))
    assert used[Purpose.POLLING]["o/busy"] >= 100


def test_repositories_that_asked_in_the_last_minute_have_their_part_kept() -> None:
    before = {Purpose.POLLING: {f"o/r{number}": 1 for number in range(9)}}
    used = ask_all(600, [(Purpose.POLLING, "o/busy")] * 1000, before)
    alone = ask_all(600, [(Purpose.POLLING, "o/busy")] * 1000)
    assert used[Purpose.POLLING]["o/busy"] < alone[Purpose.POLLING]["o/busy"] / 4


def test_a_repository_can_always_finish_one_piece_of_work() -> None:
    before = {Purpose.ANSWERS: {f"o/r{number}": 1 for number in range(20)}}
    assert ask_all(100, [(Purpose.ANSWERS, "o/web")] * 100, before)[Purpose.ANSWERS]["o/web"] >= ONE_PIECE


def test_never_more_than_the_budget_whatever_comes() -> None:
    dice = random.Random(5)
    for limit in (60, 61, 600):
        plan = [(dice.choice(list(Purpose)), dice.choice(["", "o/a", "o/b", "o/c"])) for _ in range(3000)]
        used = ask_all(limit, plan)
        assert sum(sum(rows.values()) for rows in used.values()) <= limit
        assert sum(sum(rows.values()) for rows in used.values()) > limit * 0.9


@pytest.mark.parametrize(
    ("method", "path", "kind", "repository"),
    [
        ("GET", "/repos/issues/search", "search", ""),
        ("GET", "/repos/search", "search", ""),
        ("GET", "/repos/Recipes/web/issues/3/comments", "read comments", "recipes/web"),
        ("GET", "/repos/recipes/web/issues/comments", "read comments", "recipes/web"),
        ("GET", "/repos/recipes/web/pulls/3", "read pull", "recipes/web"),
        ("GET", "/repos/recipes/web/issues/3/timeline", "read pull", "recipes/web"),
        ("GET", "/orgs/recipes/members/alice", "people", ""),
        ("GET", "/users/alice", "people", ""),
        ("GET", "/repos/recipes/web/collaborators/alice", "people", "recipes/web"),
        ("GET", "/repos/recipes/web", "read", "recipes/web"),
        ("GET", "/version", "read", ""),
        ("GET", "/orgs/recipes/hooks", "hooks", ""),
        ("POST", "/repos/recipes/web/hooks", "hooks", "recipes/web"),
        ("POST", "/repos/recipes/web/issues/3/comments", "comment", "recipes/web"),
        ("PATCH", "/repos/recipes/web/issues/comments/7", "comment", "recipes/web"),
        ("POST", "/repos/recipes/web/issues/comments/7/reactions", "react", "recipes/web"),
        ("POST", "/repos/recipes/web/statuses/abc", "status", "recipes/web"),
        ("PUT", "/repos/recipes/web/contents/a.txt", "push", "recipes/web"),
        ("POST", "/repos/recipes/web/pulls", "push", "recipes/web"),
    ],
)
def test_what_a_request_is_for(method: str, path: str, kind: str, repository: str) -> None:
    assert ask_of(method, path) == Ask(kind, repository)


# --- sharing a minute: over all processes


def go_through(forge: Forge, purpose: Purpose, times: int, repository: str = "") -> int:
    """How many of so many requests a process may make."""
    gate, through = rate_limiter(forge.pk, purpose), 0
    for _ in range(times):
        try:
            gate.enter(Ask("read", repository))
        except OverBudget:
            continue
        gate.leave(Ask("read", repository), 0.01, None)
        through += 1
    return through


def test_the_budget_is_one_for_all_clients_and_comes_back_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    forge, other = ForgeFactory(), ForgeFactory()
    with time_machine.travel(NOW, tick=False) as clock:
        polls = go_through(forge, Purpose.POLLING, 100) + go_through(forge, Purpose.POLLING, 100)
        assert polls == 60 - sum(int(60 * share) for name, share in KEPT.items() if name != Purpose.POLLING)
        assert go_through(forge, Purpose.REPORTS, 100) == int(60 * KEPT[Purpose.REPORTS]), "polling never starves reports"
        assert go_through(other, Purpose.POLLING, 100) == polls, "one forge's budget is not another's"
        clock.shift(timedelta(seconds=59))
        assert go_through(forge, Purpose.POLLING, 100) == 0
        clock.shift(timedelta(seconds=6 + SLICE))
        assert go_through(forge, Purpose.POLLING, 100) == polls
        row = Traffic.objects.get(forge=forge)
        assert row.refused_at == timezone.now()


def test_what_is_held_back_says_for_how_long_and_costs_the_forge_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    with time_machine.travel(NOW + timedelta(seconds=20), tick=False):
        client = client_for(world.forge, Purpose.UPKEEP)
        with pytest.raises(OverBudget) as held_back:
            for _ in range(100):
                client.version()
        asked = len(world.own_requests())
        with pytest.raises(OverBudget):
            client.version()
        assert len(world.own_requests()) == asked
        assert held_back.value.retry_after == 60 + SLICE
        assert "CC_CI_REQUESTS_PER_MINUTE" in held_back.value.advice


def test_a_command_waits_for_its_share(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    slept: list[float] = []
    with time_machine.travel(NOW + timedelta(seconds=50), tick=False) as clock:

        def sleep(seconds: float) -> None:
            slept.extend([seconds] if seconds else [])  # the server beside us sleeps, too
            clock.shift(timedelta(seconds=seconds))

        monkeypatch.setattr(rate_limit.time, "sleep", sleep)
        client = client_for(world.forge, Purpose.UPKEEP)
        with rate_limit.patient():
            for _ in range(40):
                client.version()
    assert slept == [60 + SLICE] * 2


def test_polling_that_is_held_back_is_no_failure_of_the_forge(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    with time_machine.travel(timezone.now().replace(second=1) + timedelta(minutes=1), tick=False) as clock:
        for _ in range(10):
            world.poll()
        go_through(world.forge, Purpose.POLLING, 100)
        said = world.say("recipes/web")
        look = world.poll()
        forge = Forge.objects.get()
        assert look.problems and (forge.failures, forge.backoff_until) == (0, None)
        assert any(finding.name.endswith(" budget") for finding in checks.check_forges())
        clock.shift(timedelta(seconds=61 + SLICE))
        world.poll()
        assert Comment.objects.get().forge_comment_id == said.id


def test_a_repository_that_has_had_its_part_holds_up_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    world.add_recipe("app")
    world.enroll("recipes/app")
    with time_machine.travel(timezone.now().replace(second=1) + timedelta(minutes=1), tick=False) as clock:
        world.poll()
        busy = {"polling": {"": 1, "recipes/web": 15}}
        Traffic.objects.update(used={str(int(timezone.now().timestamp()) // SLICE): busy})
        app, web = world.say("recipes/app"), world.say("recipes/web")
        look = world.poll()
        assert [row.forge_comment_id for row in Comment.objects.all()] == [app.id]
        assert any("recipes/web#1" in problem for problem in look.problems)
        clock.shift(timedelta(seconds=61 + SLICE))
        world.poll()
        assert {row.forge_comment_id for row in Comment.objects.all()} == {app.id, web.id}


@pytest.mark.parametrize("second", [0, 3, 29, 58])
def test_any_sixty_seconds_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch, second: int) -> None:
    """Not only those of the clock's minute: no burst of two budgets when a new one begins."""
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    forge, dice = ForgeFactory(), random.Random(second)
    made: deque[float] = deque()
    most = total = 0
    with time_machine.travel(NOW + timedelta(seconds=second), tick=False) as clock:
        for _ in range(120):
            for _ in range(go_through(forge, dice.choice(list(Purpose)), dice.choice((0, 1, 40)))):
                made.append(timezone.now().timestamp())
                total += 1
            while made and made[0] <= timezone.now().timestamp() - 60:
                made.popleft()
            most = max(most, len(made))
            clock.shift(timedelta(seconds=dice.choice((0.5, 1, 4))))
        minutes = (timezone.now() - NOW).total_seconds() / 60
    assert 40 < most <= 60
    assert total > 0.6 * 60 * minutes, "what is held back is not lost"


def test_what_was_counted_before_our_clock_was_set_back_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    forge = ForgeFactory()
    with time_machine.travel(NOW, tick=False) as clock:
        polls = go_through(forge, Purpose.POLLING, 100)
        clock.shift(timedelta(hours=-1))
        assert go_through(forge, Purpose.POLLING, 100) == polls
        assert len(Traffic.objects.get(forge=forge).used) == 1


def test_only_the_last_minute_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    forge = ForgeFactory()
    with time_machine.travel(NOW, tick=False) as clock:
        for _ in range(100):
            go_through(forge, Purpose.POLLING, 1)
            clock.shift(timedelta(seconds=3))
    assert len(Traffic.objects.get(forge=forge).used) <= SLICES + 1


@pytest.mark.django_db(transaction=True)
def test_many_processes_at_once_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    with time_machine.travel(NOW, tick=False):
        forge, through = ForgeFactory(), []

        def process() -> None:
            try:
                through.append(go_through(forge, Purpose.PEOPLE, 20))
            finally:
                connections.close_all()

        threads = [Thread(target=process) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(through) == 60 - sum(int(60 * share) for name, share in KEPT.items() if name != Purpose.PEOPLE)


# --- Retry-After


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_for_every_process(world: World, status: int, form: str) -> None:
    value = "90" if form == "seconds" else format_datetime(world.clock() + timedelta(seconds=90), usegmt=True)
    world.remote.faults = lambda request: Fault(status=status, headers={"Retry-After": value})
    with pytest.raises(ForgeError) as refused:
        world.client().react("recipes", "web", 1, "eyes")
    assert refused.value.retry_after is not None and 85 <= refused.value.retry_after <= 90
    world.remote.faults = None
    asked = len(world.own_requests())
    with pytest.raises(RateLimited, match="asked us to wait"):
        client_for(world.forge, Purpose.REPORTS).version()
    assert len(world.own_requests()) == asked
    with time_machine.travel(timezone.now() + timedelta(seconds=91)):
        assert world.client().version() == "1.15"


def test_no_forge_makes_us_wait_for_longer_than_an_hour(world: World) -> None:
    world.remote.faults = lambda request: Fault(status=429, headers={"Retry-After": "9999999"})
    with pytest.raises(RateLimited):
        world.client().version()
    until = Traffic.objects.get().paused_until
    assert until is not None and until <= timezone.now() + timedelta(hours=1)


# --- the circuit


def fail_until_open(world: World) -> None:
    world.remote.faults = lambda request: Fault(status=500)
    client = world.client()
    for _ in range(OPENS_AFTER // 2):  # each read is tried twice
        with pytest.raises(Unavailable):
            client.version()
    assert Traffic.objects.get().opened == 1


def test_the_circuit_opens_tries_once_and_closes(world: World) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        fail_until_open(world)
        asked = len(world.own_requests())
        with pytest.raises(CircuitOpen) as left_alone:
            client_for(world.forge, Purpose.POLLING).version()
        assert len(world.own_requests()) == asked
        assert 0 < (left_alone.value.retry_after or 0) <= FIRST_WAIT.total_seconds() * 1.25
        # Half open: one request tries, and fails; it stays open for longer.
        clock.shift(FIRST_WAIT * 1.3)
        with pytest.raises(Unavailable):
            world.client().version()
        assert len(world.own_requests()) == asked + 1
        row = Traffic.objects.get()
        assert row.opened == 2 and row.open_until is not None
        assert row.open_until > timezone.now() + FIRST_WAIT
        # And tries again, when it is back.
        clock.shift(FIRST_WAIT * 3)
        world.remote.faults = None
        assert world.client().version() == "1.15"
        row.refresh_from_db()
        assert (row.opened, row.failures, row.open_until, row.trial_until) == (0, 0, None, None)


def test_only_one_of_several_processes_tries(world: World) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        fail_until_open(world)
        clock.shift(FIRST_WAIT * 2)
        first, second = rate_limiter(world.forge.pk, Purpose.POLLING), rate_limiter(world.forge.pk, Purpose.REPORTS)
        first.enter(Ask("read"))
        with pytest.raises(CircuitOpen):
            second.enter(Ask("read"))
        # The one that tries was killed: another tries after a while.
        clock.shift(rate_limit.TRIAL + timedelta(seconds=1))
        second.enter(Ask("read"))


def test_an_answer_that_refuses_is_an_answer(world: World) -> None:
    world.remote.faults = lambda request: Fault(status=404)
    for _ in range(OPENS_AFTER + 2):
        with pytest.raises(NotFound):
            world.client().version()
    assert Traffic.objects.get().failures == 0


@pytest.mark.parametrize(
    "error", [TimeoutException("the task's time is up"), KeyboardInterrupt(), SystemExit(), MemoryError()], ids=repr
)
def test_an_interrupted_request_is_neither_success_nor_failure(
    world: World, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Here the one that tries whether the forge is back, by a write: it closes no circuit, and shows no right."""
    opened_until = timezone.now() - timedelta(seconds=1)
    Traffic.objects.update_or_create(
        forge=world.forge, defaults={"failures": 9, "opened": 2, "open_until": opened_until, "last_failure": "500"}
    )
    Right.objects.all().delete()
    with monkeypatch.context() as patch:

        def interrupt(*args: object, **more: object) -> None:
            raise error

        patch.setattr(requests.Session, "request", interrupt)
        with pytest.raises(type(error)):
            world.client().post_comment("recipes", "web", 1, "x")
    row = Traffic.objects.get()
    assert (row.failures, row.opened, row.open_until, row.last_failure) == (9, 2, opened_until, "500")
    assert not Right.objects.exists()
    # Another tries when this one has had its time.
    with pytest.raises(CircuitOpen):
        world.client().version()
    with time_machine.travel(timezone.now() + rate_limit.TRIAL + timedelta(seconds=1)):
        assert world.client().version() == "1.15"
    assert Traffic.objects.get().opened == 0


def test_failures_count_in_a_row_only(world: World) -> None:
    turns = [500, 500, 500, 200] * 6

    def plan(request: Request) -> Fault | None:
        status = turns.pop(0) if turns else 200
        return Fault(status=500) if status == 500 else None

    world.remote.faults = plan
    client = world.client()
    for _ in range(20):
        try:
            client.version()
        except Unavailable:
            pass
    assert Traffic.objects.get().opened == 0


# --- the circuit: a forge that is down, or a few things of it that always fail


def bad_pulls(world: World, first: int, last: int, also: Callable[[Request], bool] = lambda request: False) -> None:
    """The comment lists of these pull requests are 500 from now on."""
    paths = {f"/issues/{number}/comments" for number in range(first, last + 1)}

    def plan(request: Request) -> Fault | None:
        bad = request.method == "GET" and any(request.path.endswith(path) for path in paths)
        return Fault(status=500) if bad or also(request) else None

    world.remote.faults = plan


def read_bad_pull(world: World, times: int, purpose: Purpose = Purpose.ANSWERS) -> None:
    for _ in range(times):  # each read is tried twice
        with pytest.raises(Unavailable):
            list(client_for(world.forge, purpose).pull_comments("recipes", "web", 1, None))


def asked_who(world: World, since: int = 0) -> int:
    """How often the forge was asked who we are."""
    return sum(request.path.endswith("/user") for request in world.own_requests()[since:])


def test_a_few_bad_pull_requests_stop_no_forge(world: World) -> None:
    for number in range(2, 9):
        world.remote.push("recipes/web", f"b{number}", {"x": str(number)}, "x", world.alice)
        world.remote.open_pull("recipes/web", "recipes/web", f"b{number}", world.alice)
        world.say("recipes/web", number=number)
    before = len(world.own_requests())
    bad_pulls(world, 2, 8)
    look = world.poll()
    assert len(look.problems) == 7, "each is tried by itself"
    row = Traffic.objects.get()
    assert (row.opened, row.trial_until) == (0, None)
    assert asked_who(world, before) == 14 // OPENS_AFTER
    said = world.say("recipes/web")
    world.poll()
    assert Comment.objects.get().forge_comment_id == said.id


def test_the_forge_itself_is_asked_no_more_often_than_each_so_many_failures(world: World) -> None:
    bad_pulls(world, 1, 1)
    before = len(world.own_requests())
    read_bad_pull(world, 3 * OPENS_AFTER // 2)
    assert asked_who(world, before) == 3
    assert Traffic.objects.get().failures == 0
    assert len(world.own_requests()) - before == 3 * OPENS_AFTER + 3


def test_that_counts_in_the_budget_and_waits_for_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "requests_per_minute", 60)
    world.remote.faults = lambda request: Fault(status=500)
    with time_machine.travel(NOW, tick=False) as clock:
        read_bad_pull(world, OPENS_AFTER // 2)
        now_used = rate_limit.add_up(Traffic.objects.get().used.values())
        assert now_used[Purpose.ANSWERS] == {"recipes/web": OPENS_AFTER, "": 1}

        # Down, and no room left to find out: nothing is said of it before that is done.
        clock.shift(timedelta(hours=1))
        room = 60 - sum(int(60 * share) for name, share in KEPT.items() if name != Purpose.ANSWERS)
        used = {str(int(NOW.timestamp() + 3600) // SLICE): {Purpose.ANSWERS: {"": room - 1}}}
        Traffic.objects.update(failures=OPENS_AFTER - 1, opened=0, open_until=None, used=used)
        before = len(world.own_requests())
        with rate_limit.patient(), pytest.raises(Unavailable):  # nobody's patience is used up for it
            client_for(world.forge, Purpose.ANSWERS).react("recipes", "web", 1, "eyes")
        row = Traffic.objects.get()
        assert (row.failures, row.opened, row.trial_until) == (OPENS_AFTER, 0, None)
        assert asked_who(world, before) == 0
        clock.shift(timedelta(seconds=61 + SLICE))
        with pytest.raises(Unavailable):
            client_for(world.forge, Purpose.ANSWERS).react("recipes", "web", 1, "eyes")
        assert (asked_who(world, before), Traffic.objects.get().opened) == (1, 1)


@pytest.mark.parametrize("fault", [Fault(status=502), Fault(close="before")], ids=["502", "no answer"])
def test_a_forge_that_is_down_is_left_alone_at_once(world: World, fault: Fault) -> None:
    world.remote.faults = lambda request: fault
    before = len(world.own_requests())
    read_bad_pull(world, OPENS_AFTER // 2)
    row = Traffic.objects.get()
    assert (row.opened, row.trial_until, row.failures) == (1, None, OPENS_AFTER + 1)
    assert len(world.own_requests()) - before == OPENS_AFTER + 1, "the forge itself is asked once, and no second time"
    assert circuit_message(row, timezone.now()).endswith(row.last_failure) and "GET /user" in row.last_failure


def test_an_answer_overlooked_between_failures_of_other_processes_opens_no_circuit(world: World) -> None:
    """It was asked for before they failed, so its process knows of no failures to end. To look for some at each answer would cost
    a query; the forge itself is asked before that matters."""
    world.poll()
    gate = rate_limiter(world.forge.pk, Purpose.POLLING)
    gate.enter(Ask("search"))
    others = [rate_limiter(world.forge.pk, Purpose.REPORTS) for _ in range(OPENS_AFTER)]
    for number, other in enumerate(others):
        if number == OPENS_AFTER - 1:
            gate.leave(Ask("search"), 5, None)
        other.enter(Ask("comment", "recipes/web"))
        other.leave(Ask("comment", "recipes/web"), 1, Unavailable("500"))
    row = Traffic.objects.get()
    assert row.opened == 0 and row.failures < OPENS_AFTER


def test_while_one_process_asks_the_forge_itself_no_other_does(world: World) -> None:
    bad_pulls(world, 1, 1)
    world.poll()
    until = timezone.now() + rate_limit.TRIAL
    Traffic.objects.update(failures=OPENS_AFTER, trial_until=until)
    before = len(world.own_requests())
    read_bad_pull(world, 1)
    row = Traffic.objects.get()
    assert (asked_who(world, before), row.opened, row.trial_until) == (0, 0, until)
    # That one was killed: another asks after a while.
    with time_machine.travel(until + timedelta(seconds=1)):
        read_bad_pull(world, 1)
    row = Traffic.objects.get()
    assert asked_who(world, before) == 1
    assert (row.opened, row.trial_until) == (0, None)


def test_it_is_not_asked_while_it_wants_us_to_wait(world: World) -> None:
    world.poll()
    Traffic.objects.update(failures=OPENS_AFTER - 1)
    before = len(world.own_requests())
    world.remote.faults = lambda request: Fault(status=503, headers={"Retry-After": "90"})
    with pytest.raises(Unavailable):
        world.client().react("recipes", "web", 1, "eyes")
    assert len(world.own_requests()) - before == 1
    assert Traffic.objects.get().opened == 0


@pytest.mark.parametrize("is_back", [True, False], ids=["it is back", "it is down"])
def test_a_trial_of_a_bad_pull_request_is_decided_by_the_forge_itself(world: World, is_back: bool) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        fail_until_open(world)
        clock.shift(FIRST_WAIT * 2)
        bad_pulls(world, 1, 1, also=lambda request: not is_back)
        before = len(world.own_requests())
        with pytest.raises(Unavailable):
            list(world.client().pull_comments("recipes", "web", 1, None))
        row = Traffic.objects.get()
        assert row.opened == (0 if is_back else 2)
        assert (asked_who(world, before), row.trial_until) == (1, None)
        assert len(world.own_requests()) - before == (3 if is_back else 2)


def test_a_forge_that_was_removed_while_it_failed(world: World) -> None:
    bad_pulls(world, 1, 1)
    client = world.client()
    gate = rate_limiter(world.forge.pk, Purpose.REPORTS)
    Traffic.objects.update_or_create(forge=world.forge, defaults={"failures": OPENS_AFTER})
    gate.enter(Ask("read"))
    Forge.objects.all().delete()
    gate.leave(Ask("read"), 0.1, Unavailable("no answer"))
    with pytest.raises(Unavailable):
        list(client.pull_comments("recipes", "web", 1, None))


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (Traffic(), "go"),
        (Traffic(failures=8, trial_until=NOW + FIRST_WAIT), "go"),
        (Traffic(failures=7), "go"),
        (Traffic(opened=1, open_until=NOW + FIRST_WAIT), "open"),
        (Traffic(opened=1, open_until=NOW - FIRST_WAIT), "try"),
        (Traffic(opened=1, open_until=NOW - FIRST_WAIT, trial_until=NOW + FIRST_WAIT), "open"),
        (Traffic(opened=1, open_until=NOW - FIRST_WAIT, trial_until=NOW - FIRST_WAIT), "try"),
        (Traffic(paused_until=NOW + FIRST_WAIT), "paused"),
        (Traffic(paused_until=NOW - FIRST_WAIT), "go"),
    ],
)
def test_standing(row: Traffic, word: str) -> None:
    assert circuit_state(row, NOW).word == word


def test_people_are_told(world: World, admin_client: Client) -> None:
    world.poll()
    start = admin_client.get("/").content.decode()
    assert "does not answer" not in start
    fail_until_open(world)
    assert "sandbox does not answer" in admin_client.get("/").content.decode()
    assert "forges in trouble" in registry.cards
    page = admin_client.get(f"/admin/enrollment/forge/{world.forge.pk}/change/").content.decode()
    assert "no requests until" in page
    (finding,) = [row for row in checks.check_forges() if row.level == "error"]
    assert f"{OPENS_AFTER + 1} requests in a row failed" in finding.text
    assert finding.fix == "cc-ci poll --once --now"
    # Who says "now" means it.
    world.remote.faults = None
    admin_client.post("/admin/enrollment/forge/", {"action": "poll_now", "_selected_action": [world.forge.pk]}, follow=True)
    assert Traffic.objects.get().opened == 0
    assert "does not answer" not in admin_client.get("/").content.decode()


def test_a_forge_that_is_down_for_an_hour_is_asked_little_and_found_again_soon(world: World) -> None:
    world.poll()
    with time_machine.travel(timezone.now(), tick=False) as clock:
        world.remote.faults = lambda request: Fault(close="before")
        before = len(world.own_requests())
        for _ in range(360):
            clock.shift(timedelta(seconds=10))
            world.poll()
        assert 5 < len(world.own_requests()) - before < 40
        world.remote.faults = None
        said = world.say("recipes/web")
        for _ in range(120):  # no wait on top of another
            clock.shift(timedelta(seconds=10))
            world.poll()
            if Comment.objects.exists():
                break
        assert Comment.objects.get().forge_comment_id == said.id


# --- connections


def test_one_connection_serves_all_clients_of_a_process(world: World) -> None:
    before = world.server.connections
    for _ in range(5):
        world.client().whoami()
        world.poll()
    assert world.server.connections - before <= 1
    assert len(world.own_requests()) > 10


def test_a_connection_that_the_server_has_closed_is_opened_anew(world: World) -> None:
    world.client().version()
    port = world.server.port
    world.server.stop()
    world.server = serve(world.remote, port=port)
    assert world.client().version() == "1.15"


def test_clients_with_different_tokens_share_a_connection_and_nothing_else(world: World) -> None:
    alice = gitea.GiteaClient(world.server.url, world.remote.add_token("alice"), user_agent="cc-ci/test")
    before = world.server.connections
    world.remote.faults = lambda request: Fault(headers={"Set-Cookie": "session=of-another; Path=/"})
    assert [world.client().whoami().login, alice.whoami().login, world.client().whoami().login] == ["cc-ci", "alice", "cc-ci"]
    assert world.server.connections == before
    assert not any(request.header("Cookie") for request in world.own_requests())


# --- the table of requests


def test_requests_errors_and_latency_add_up(world: World) -> None:
    world.poll()
    world.remote.faults = lambda request: Fault(status=500) if request.method == "POST" else Fault(delay=0.02)
    client = world.client()
    for _ in range(3):
        with pytest.raises(Unavailable):
            client.post_comment("recipes", "web", 1, "x")
        client.pull("recipes", "web", 1)
    rate_limit.request_stats.write()
    rate_limit.request_stats.write()
    rows = {row.kind: row for row in RequestCount.objects.filter(forge=world.forge)}
    assert (rows["comment"].requests, rows["comment"].errors) == (3, 3)
    assert (rows["read pull"].requests, rows["read pull"].errors) == (3, 0)
    assert rows["read pull"].seconds >= 0.06 and rows["read pull"].slowest >= 0.02
    assert rows["search"].requests == 1


def test_counting_writes_far_fewer_rows_than_there_are_requests(django_assert_num_queries, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    forge = ForgeFactory()
    gate = rate_limiter(forge.pk, Purpose.POLLING)
    gate.enter(Ask("read"))
    gate.leave(Ask("read"), 0.01, None)
    rate_limit.request_stats.write()
    monkeypatch.setattr(rate_limit.request_stats, "written", rate_limit.time.monotonic())
    with django_assert_num_queries(20):  # one look at the forge's row for each, and nothing written
        for _ in range(20):
            gate.enter(Ask("read"))
            gate.leave(Ask("read"), 0.01, None)


def test_old_rows_go(world: World, admin_client: Client) -> None:
    old = timezone.now() - timedelta(days=rate_limit.KEEP_DAYS + 1)
    RequestCount.objects.create(forge=world.forge, hour=old, kind="read", requests=1)
    world.poll()
    assert rate_limit.drop_old() == 1
    assert RequestCount.objects.exists()
    assert "search" in admin_client.get("/admin/enrollment/requestcount/").content.decode()


def test_a_forge_that_was_removed_meanwhile_counts_for_nobody(world: World) -> None:
    client = world.client()
    client.version()
    world.forge.delete()
    client.version()
    rate_limit.request_stats.write()
    assert not RequestCount.objects.exists()
