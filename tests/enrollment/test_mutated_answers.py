"""Answers of the forge that are not as promised: keys missing, types wrong, ids swapped, bodies cut, HTML, clocks astray.

The first test holds the client to its word: it gives what it should, or raises its own errors. The second lets the whole path,
from polling to the report, live through such answers: never a second run, never an exception out of a task and, once the forge
answers well again, never a lost comment.

Both have 500 mutated answers, of which each run draws others, and their long forms 100,000.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from controlplane.models import Lease
from enrollment.fakeforge.faults import Request, Response
from enrollment.fakeforge.model import Comment as RemoteComment
from enrollment.forge_access.clock_skew import AHEAD
from enrollment.forges.base import ForgeClient, ForgeError, Hook
from enrollment.forges.gitea.kind import GITEA
from enrollment.forges.gitea.request_kinds import ask_of
from enrollment.models import Comment, Delivery, Forge, PullRequest, Repository, Traffic
from enrollment.polling import poller
from runs import intake, lifecycle, reporting
from runs.models import FINAL, Report, State, TestRun
from tests.chaos.air import FAIR, Air, Strike, VirtualTime
from tests.enrollment.hooks import commit_at_once
from tests.world import World

pytestmark = pytest.mark.django_db

START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
quick = profile(
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# --- mutations

ODD: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, "", "\0", "\ud800", "x" * 600, [], [[]], {}, {"id": {}}]
ODD += ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "yesterday", "2026-11-23T12:00:00"]
BODIES = [
    b"",
    b"null",
    b"{}",
    b"[]",
    b"[null]",
    b"<!doctype html><p>Sign in",
    b'{"message": "oops"}',
    b"[" * 4000,
    b"\xff\xfe",
    b"NaN",
]
HEADERS: dict[str, list[str]] = {
    "Date": [
        "",
        "yesterday",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 -0100",
        "Mon, 23 Nov 2126 12:00:00 GMT",
    ],
    "X-Total-Count": ["", "-1", "0", "1", "9" * 30],
    "Content-Type": ["text/html", "", "application/json;;"],
    "Link": ["<x>; rel=next"],
}


@dataclass(frozen=True)
class Mutation:
    """What is done to one answer. `where` picks the place in it."""

    kind: str
    where: int
    odd: Any = None

    def __call__(self, right: Response) -> Response:
        headers, body = dict(right.headers), right.body
        if self.kind == "header":
            name = list(HEADERS)[self.where % len(HEADERS)]
            headers[name] = HEADERS[name][self.where // len(HEADERS) % len(HEADERS[name])]
        elif self.kind == "body":
            body = BODIES[self.where % len(BODIES)]
        elif self.kind == "cut":
            body = body[: self.where % (len(body) + 1)]
        elif self.kind == "status":
            return Response((200, 204, 301, 400, 404, 418, 429, 500)[self.where % 8], body, headers)
        else:
            body = self._tree(body)
        headers.pop("Content-Length", None)
        return Response(right.status, body, headers)

    def _tree(self, body: bytes) -> bytes:
        try:
            data = [json.loads(body)]
        except ValueError:
            return body
        places = list(_places(data))
        place, key = places[self.where % len(places)]
        if self.kind == "drop" and isinstance(place, dict):
            del place[key]
        elif self.kind == "swap":
            # Two numbers of the answer change places: ids of comments, people and repositories, numbers of pull requests.
            numbers = [(p, k) for p, k in places if type(p[k]) is int] or [(place, key)]
            one, two = numbers[self.where % len(numbers)], numbers[self.where // 7 % len(numbers)]
            one[0][one[1]], two[0][two[1]] = two[0][two[1]], one[0][one[1]]
        else:
            place[key] = self.odd
        return json.dumps(data[0]).encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _places(tree[key])


KINDS = ["set", "set", "set", "drop", "drop", "swap", "swap", "body", "cut", "header", "status"]
mutations = st.builds(Mutation, st.sampled_from(KINDS), st.integers(0, 5000), st.sampled_from(ODD))


@dataclass
class Liar:
    """A world whose forge's answers are mutated: after each so many right ones the next mutation of a list."""

    world: World
    clock: VirtualTime
    air: Air
    queue: list[tuple[int, Mutation]] = field(default_factory=list)
    lives: int = 0
    doubles: int = 0  #: replies that stand there more than once
    kinds: Counter[str] = field(default_factory=Counter)  #: mutated answers of all examples, by what was asked

    @property
    def told(self) -> int:
        return self.kinds.total()

    def words(self) -> str:
        """What there was, in figures."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        return f"{self.told} mutated answers ({kinds}) of {self.air.counts.total()}" + (
            f", {self.lives} lives, {self.doubles} replies twice" if self.lives else ""
        )

    def lie(self, queue: list[tuple[int, Mutation]]) -> None:
        self.queue = list(reversed(queue))
        self.air.strike = self._strike

    def be_honest(self) -> None:
        self.air.strike = lambda request: FAIR

    def _strike(self, request: Request) -> Strike:
        if not self.queue:
            return FAIR
        right, mutation = self.queue[-1]
        if right:
            self.queue[-1] = (right - 1, mutation)
            return FAIR
        self.queue.pop()
        self.kinds[ask_of(request.method, request.path.removeprefix("/api/v1")).kind] += 1
        return Strike("mutated", change=mutation)


@pytest.fixture
def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Liar]:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(settings.CC_CI, "http_timeout", 5.0)
    world, clock = World(tmp_path, "1.22"), VirtualTime(START)
    air = Air(world.remote, clock.wait)
    with clock.running(), air.carrying(), commit_at_once():
        world.connect()
        for name in ("a", "b"):
            world.add_recipe(name)
            world.enroll(f"recipes/{name}")
            world.remote.add_collaborator(f"recipes/{name}", world.bot, "admin")
        world.remote.add_member(world.org, world.bot, "owner")
        yield Liar(world, clock, air)
    air.strike = lambda request: FAIR
    world.close()


# --- the client

SINCE = START - timedelta(days=1)
#: Of hooks; nothing is delivered there.
NOWHERE = "http://127.0.0.1:9/"
ASK: list[Callable[[ForgeClient], object]] = [
    lambda client: client.version(),
    lambda client: client.whoami(),
    lambda client: client.user("alice"),
    lambda client: client.repository("recipes", "a"),
    lambda client: client.repository_by_id(1),
    lambda client: list(client.repositories_with_topic("recipes", "cc-ci")),
    lambda client: client.branch_head("recipes", "a", "main"),
    lambda client: client.read_file("recipes", "a", "compose.yml", "main"),
    lambda client: list(client.changed_pulls(SINCE, "recipes")),
    lambda client: client.pull("recipes", "a", 1),
    lambda client: client.pull_commits("recipes", "a", 1),
    lambda client: list(client.pull_comments("recipes", "a", 1, SINCE)),
    lambda client: list(client.pull_reviews("recipes", "a", 1, SINCE)),
    lambda client: list(client.repository_pulls("recipes", "a", SINCE)),
    lambda client: list(client.repository_comments("recipes", "a", SINCE)),
    lambda client: client.is_member("recipes", "alice"),
    lambda client: client.in_team("recipes", "Owners", "alice"),
    lambda client: client.is_collaborator("recipes", "a", "alice"),
    lambda client: client.is_site_admin(),
    lambda client: client.last_push("recipes", "a", 1),
    lambda client: client.post_comment("recipes", "a", 1, "Hello"),
    lambda client: client.set_status(
        "recipes", "a", "0" * 40, state="success", context="x", description="", target_url="http://127.0.0.1/"
    ),
    lambda client: list(client.hooks("recipes", "a")),
    lambda client: list(client.hooks("recipes", "")),
    lambda client: client.create_hook("recipes", "a", url=NOWHERE, secret="x", events=GITEA.event_names),
    lambda client: client.create_hook("recipes", "", url=NOWHERE, secret="x", events=GITEA.event_names),
    lambda client: client.edit_hook("recipes", "a", Hook(1, NOWHERE, frozenset(GITEA.event_names), active=False)),
    lambda client: client.delete_hook("recipes", "a", 1),
]


def ask_and_hear(liar: Liar, number: int, mutation: Mutation) -> None:
    comments = liar.world.remote.tables.comments
    if not 0 < len(comments) < 50:  # each post_comment brings one more, and lists of thousands take their time
        comments.clear()
        liar.world.say("recipes/a")
    liar.world.remote.tables.hooks.clear()
    client = liar.world.client()
    liar.lie([(0, mutation)])
    try:
        ASK[number](client)
    except ForgeError as error:
        assert len(str(error)) < 2000
    finally:
        liar.be_honest()


@pytest.mark.slow(3)
@given(number=st.integers(0, len(ASK) - 1), mutation=mutations)
@profile(quick, max_examples=500)
def test_the_client_raises_nothing_but_its_own_errors(liar: Liar, number: int, mutation: Mutation) -> None:
    ask_and_hear(liar, number, mutation)


@pytest.mark.long
@pytest.mark.timeout(7200)
@given(number=st.integers(0, len(ASK) - 1), mutation=mutations)
@profile(quick, max_examples=100_000)
def test_the_client_and_long(liar: Liar, number: int, mutation: Mutation) -> None:
    ask_and_hear(liar, number, mutation)


# --- the whole path


def begin_anew(liar: Liar) -> None:
    """The same repositories, enrolled now; nothing said, nothing known."""
    for model in (Report, TestRun, Delivery, Comment, PullRequest, Lease, OrmQ):
        model.objects.all().delete()
    Traffic.objects.all().delete()
    tables = liar.world.remote.tables
    tables.comments.clear()
    tables.reactions.clear()
    liar.clock.wait(600)
    now, forge = timezone.now(), liar.world.forge
    for row in Repository.objects.all():
        remote = tables.repos[row.forge_repo_id]
        row.owner, row.owner_id, row.name, row.private = remote.owner, remote.owner_id, remote.name, False
        row.enrolled_at, row.net_cursor, row.net_due_at, row.last_error = now, now, now + timedelta(hours=3), ""
        row.save()
    type(forge).objects.filter(pk=forge.pk).update(
        cursor=None, failures=0, backoff_until=None, search="unknown", search_probed_at=None, rarely={}, last_error=""
    )


def work(liar: Liar) -> None:
    """What the workers do in a while. Whatever is raised here would have stopped one."""
    liar.world.forge.refresh_from_db()
    poller.poll(liar.world.forge)
    now = timezone.now()
    for row in Comment.objects.filter(outcome="").exclude(next_try_at__gt=now):
        intake.handle(row.pk)
    reporting.send_due()
    for run in TestRun.objects.filter(state=State.QUEUED):
        lifecycle.move(run, "claim", host="here", attempt=1, started_at=now)
        lifecycle.move(run, "begin")
    for run in TestRun.objects.exclude(state__in=FINAL):
        stopped = "supersede" if run.stop_wanted == State.SUPERSEDED else "cancel"
        lifecycle.move(run, stopped if run.stop_wanted else "pass")
    reporting.send_due()
    OrmQ.objects.all().delete()


#: Seconds before each round of work while the forge may lie, and what is said after some of them.
ROUNDS = (30, 30, 30, 60, 120, 300, 300, 300, 600)
LATER = {
    0: ("recipes/b", "!testme", "alice"),
    1: ("recipes/a", "!testme status", "alice"),
    3: ("recipes/a", "!testme --stages install", "alice"),
    5: ("recipes/b", "!testme cancel", "alice"),
    6: ("recipes/a", "!testme", "mallory"),
}


def live(liar: Liar, queue: list[tuple[int, Mutation]]) -> None:
    begin_anew(liar)
    liar.lives += 1
    world = liar.world
    said = [world.say("recipes/a"), world.say("recipes/a", "!testme help"), world.say("recipes/b", user="mallory")]
    liar.lie(queue)
    for number, seconds in enumerate(ROUNDS):
        liar.clock.wait(seconds)
        work(liar)
        if number in LATER:
            said.append(world.say(*LATER[number]))
    liar.be_honest()
    for minutes in (20, 20, 7 * 60, 20):  # the longest wait, and the listing of whole repositories
        liar.clock.wait(minutes * 60)
        work(liar)
    check(liar, said)


def check(liar: Liar, said: list[RemoteComment]) -> None:
    real = {row.id for row in said}
    rows = {row.forge_comment_id: row for row in Comment.objects.all()}
    assert real <= rows.keys(), f"lost: {real - rows.keys()}"
    for number, row in rows.items():
        if number not in real:
            continue  # the forge told of a comment that is not there; it is one more comment then
        assert row.outcome, f"{number} is not answered: {row.last_error}"
        runs = TestRun.objects.filter(comment=row).count()
        assert runs == (row.outcome == "run"), f"{number}, {row.outcome}: {runs} runs"
        mark = f"<!-- cc-ci:reply:{number} -->"
        replies = [c for c in liar.world.remote.tables.comments.values() if c.body.startswith(mark)]
        assert bool(replies) == (row.outcome == "reply"), f"{number}, {row.outcome}: {len(replies)} replies"
        # A list that hides our comment each time that it is asked for cannot be told from one where it is not.
        liar.doubles += max(len(replies) - 1, 0)
    assert not TestRun.objects.exclude(state__in=FINAL).exists()
    cursors = [*Forge.objects.values_list("cursor", flat=True), *Repository.objects.values_list("net_cursor", flat=True)]
    # None: the search was seen to be refused, and is asked again tomorrow.
    assert all(cursor is None or cursor < timezone.now() + AHEAD for cursor in cursors), cursors


def queue_of(dice: random.Random) -> list[tuple[int, Mutation]]:
    """Mutations of a life, each behind so many right answers. In some lives there are hardly any of those; in others it is every
    fourth answer that lies, and they get further. (To have hypothesis draw a hundred of them takes as long as the life.)"""
    most = dice.choice((0, 1, 1, 2, 2, 6))
    return [
        (dice.randint(0, most), Mutation(dice.choice(KINDS), dice.randint(0, 5000), dice.choice(ODD)))
        for _ in range(dice.randint(30, 120))
    ]


def live_until(liar: Liar, answers: int) -> None:
    """Lives, until so many answers were mutated in them."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(10**9))
    dice = random.Random(seed)
    random.seed(seed)  # of the waits between tries
    begun, said = time.perf_counter(), 0
    while liar.told < answers:
        if liar.told >= said + 10_000:
            said = liar.told
            print(f"seed {seed}: {liar.words()}; {time.perf_counter() - begun:.0f} s", flush=True)
        try:
            live(liar, queue_of(dice))
        except BaseException:
            print(f"TEST_SEED={seed}, in life {liar.lives}")
            raise
    print(f"{liar.words()}; {time.perf_counter() - begun:.0f} s, seed {seed}")


@pytest.mark.slow(8)
def test_mutated_answers_lose_nothing_and_run_nothing_twice(liar: Liar) -> None:
    live_until(liar, 500)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(10))
def test_mutated_answers_and_long(liar: Liar, part: int) -> None:
    """100,000 in ten parts, each with dice of its own."""
    live_until(liar, 10_000)
