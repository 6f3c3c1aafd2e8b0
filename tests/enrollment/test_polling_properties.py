"""Under any order, overlap, repetition, page size and fault: every comment exactly once."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from controlplane.models import Lease
from enrollment.fakeforge import api
from enrollment.fakeforge.faults import Fault, Request
from enrollment.forges.gitea import client as gitea
from enrollment.models import Comment, Forge, PullRequest, Repository, Traffic
from enrollment.polling import poller
from enrollment.repositories import enroll
from tests.world import World

pytestmark = pytest.mark.django_db

START = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
#: Of the usual form; the long one has more, and longer ones.
EXAMPLES = int(os.environ.get("POLLING_EXAMPLES", "10"))
FAULTS = (
    Fault(status=500),
    Fault(status=502, body="<html>"),
    Fault(status=404),
    Fault(status=403),
    Fault(status=401),
    Fault(status=429, headers={"Retry-After": "30"}),
    Fault(close="before"),
    Fault(close="after"),
    Fault(cut=7),
    Fault(body="<html>"),
    Fault(body="[null]"),
)
#: repository, pull request: two watched by one owner, one by another, and one that nobody watches.
PLACES = (("recipes/web", 1), ("recipes/web", 2), ("recipes/app", 1), ("other/app", 1), ("foreign/app", 1))


@dataclass(frozen=True)
class Said:
    """A comment: where, how many seconds after the last step it was written, and after how many more it shows."""

    place: int
    after: int
    late: int
    trigger: bool


@dataclass(frozen=True)
class Tick:
    """A look: after so many seconds, perhaps twice at once, with these of its requests going wrong."""

    after: int
    twice: bool
    faults: dict[int, Fault]


said = st.builds(Said, st.integers(0, len(PLACES) - 1), st.integers(0, 40), st.integers(0, 60), st.booleans())
faulty = st.dictionaries(st.integers(0, 8), st.sampled_from(FAULTS), max_size=3)
tick = st.builds(Tick, st.sampled_from((0, 1, 5, 20, 20, 61, 300, 20_000)), st.booleans(), st.one_of(st.just({}), faulty))
steps = st.lists(st.one_of(said, said, tick), min_size=1, max_size=25)


class Stage(World):
    """A world with a clock that stands still. Each example plays on a day of its own, with none of our rows left."""

    def __init__(self, root: Path, version: str) -> None:
        super().__init__(root, version)
        self.clock.fixed = START
        for owner in ("other", "foreign"):
            self.remote.add_org(owner, self.admin)
        self.recipes = [self.add_recipe(name, owner) for owner, name in (("recipes", "web"), ("recipes", "app"))]
        self.recipes += [self.add_recipe("app", "other"), self.add_recipe("app", "foreign")]
        web = self.remote.repo("recipes/web")
        self.remote.open_pull(web, web, "change", self.alice)
        self.wanted: list[int] = []

    def begin(self, page: int) -> None:
        """A day later: comments older than the enrolment, and then the enrolment."""
        api.MAX_ITEMS = page
        self.clock.move(days=1)
        self.remote.tables.comments.clear()
        for name in self.recipes:
            self.say(name)
        self.clock.move(seconds=5)
        for model in (Comment, PullRequest, Repository, Forge, Lease):
            model.objects.all().delete()
        self.connect()
        client = self.client()  # one, since it is the forge's clock that counts
        for name in self.recipes[:3]:
            owner, short = name.split("/")
            enroll(self.forge, client.repository(owner, short), Repository.Source.HAND, client)
        self.wanted = []

    def tell(self, step: Said | Tick) -> None:
        self.clock.move(seconds=step.after)
        if isinstance(step, Tick):
            self.look(step)
            return
        recipe, number = PLACES[step.place]
        words = "!testme" if step.trigger else "Looks good"
        comment = self.say(recipe, words, number=number, visible_after=step.late)
        if step.trigger and recipe != "foreign/app":
            self.wanted.append(comment.id)

    def look(self, tick: Tick) -> None:
        count = itertools.count()

        def plan(request: Request) -> Fault | None:
            return tick.faults.get(next(count))

        self.remote.faults = plan
        # What a failure asks to wait is long over when the clock was moved by hours; this machine's own clock was not.
        Forge.objects.update(backoff_until=None)
        Traffic.objects.all().delete()
        for _ in range(1 + tick.twice):
            poller.poll(Forge.objects.get())
        self.remote.faults = None

    def calm(self) -> None:
        """The forge is well again: looks go on for some minutes, and all waits end."""
        for _ in range(5):
            self.clock.move(seconds=25)
            Forge.objects.update(backoff_until=None)
            Traffic.objects.all().delete()
            PullRequest.objects.update(comments_next_try_at=None)
            self.poll()


@pytest.fixture
def stage(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Stage]:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(gitea, "wait_random_exponential", lambda *args, **more: lambda state: 0)
    monkeypatch.setattr(api, "MAX_ITEMS", api.MAX_ITEMS)
    stage = Stage(tmp_path, request.param)
    yield stage
    stage.close()


def check(stage: Stage, page: int, plot: list[Said | Tick], nets: bool) -> None:
    stage.begin(page)
    if not nets:
        Repository.objects.update(net_due_at=timezone.now() + timedelta(days=1))
    for step in plot:
        stage.tell(step)
        kept = list(Comment.objects.values_list("forge_comment_id", flat=True))
        assert set(kept) <= set(stage.wanted), "one that is none of ours"
    stage.calm()
    assert sorted(Comment.objects.values_list("forge_comment_id", flat=True)) == sorted(stage.wanted)


quick = profile(
    max_examples=EXAMPLES,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.slow(4)
@pytest.mark.parametrize("stage", ["1.15", "13.0.0+gitea-1.22.0"], indirect=True)
@given(plot=steps, page=st.sampled_from((1, 2, 3, 7, 50)), nets=st.booleans(), seed=st.integers(0, 2**16))
@quick
def test_every_comment_exactly_once(stage: Stage, plot: list[Said | Tick], page: int, nets: bool, seed: int) -> None:
    random.seed(seed)
    check(stage, page, plot, nets)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["1.15", "1.22", "13.0.0+gitea-1.22.0"], indirect=True)
@given(plot=st.lists(st.one_of(said, said, tick), min_size=20, max_size=120), page=st.sampled_from((1, 3, 50)))
@profile(quick, max_examples=max(EXAMPLES, 25))
def test_every_comment_exactly_once_over_longer_times(stage: Stage, plot: list[Said | Tick], page: int) -> None:
    check(stage, page, plot, nets=True)
