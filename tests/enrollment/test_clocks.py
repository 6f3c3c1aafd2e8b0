"""A forge whose clock is wrong, for one answer or for good: nothing is lost, and people are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from enrollment import comments
from enrollment.checks import check_forges
from enrollment.fakeforge.faults import Fault
from enrollment.forge_access import clock_skew
from enrollment.forge_access.clock_skew import AHEAD, believed, server_now
from enrollment.models import Comment, Forge, PullRequest, Repository
from tests.chaos.air import Air, Strike
from tests.world import World

pytestmark = pytest.mark.django_db
CENTURY = timedelta(days=36500)


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """Version 1.22, or another by indirect parametrisation. No net is due."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, getattr(request, "param", "1.22"))
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    Repository.objects.update(net_due_at=timezone.now() + timedelta(hours=6))
    yield world
    world.remote.faults = None
    world.close()


@contextmanager
def astray(world: World, away: timedelta) -> Iterator[None]:
    """The forge's clock is wrong by so much."""
    world.clock.offset += away
    try:
        yield
    finally:
        world.clock.offset -= away


def stored() -> list[int]:
    return sorted(Comment.objects.values_list("forge_comment_id", flat=True))


def problems() -> str:
    return Forge.objects.get().last_error


class Told:
    """A client that was told a time."""

    def __init__(self, server_time: datetime | None) -> None:
        self.server_time = server_time


@pytest.mark.parametrize(("ahead", "counts"), [(0, True), (9, True), (-3000, True), (11, False), (10**8, False)])
def test_a_time_from_the_future_is_not_believed(ahead: int, counts: bool) -> None:
    now = timezone.now()
    told = now + timedelta(minutes=ahead)
    client = Told(told)
    assert (server_now(client) == told) is counts  # type: ignore[arg-type]
    assert server_now(client) < now + AHEAD + timedelta(seconds=5)  # type: ignore[arg-type]
    assert believed(told) == (told if counts else None)
    assert bool(clock_skew.skew_message(client)) is (abs(ahead) > 10)  # type: ignore[arg-type]


def test_a_forge_that_tells_no_time() -> None:
    assert abs(server_now(Told(None)) - timezone.now()) < timedelta(seconds=5)  # type: ignore[arg-type]
    assert clock_skew.skew_message(Told(None)) == ""  # type: ignore[arg-type]
    assert believed(None) is None


@pytest.mark.parametrize("world", ["1.15", "1.22"], indirect=True)
def test_one_look_in_the_far_future_hides_nothing(world: World) -> None:
    world.poll()
    with astray(world, CENTURY):
        world.poll()
        assert "minutes ahead of this server's" in problems()
    cursor = Forge.objects.get().cursor
    assert cursor is not None
    assert cursor < timezone.now() + AHEAD
    said = world.say("recipes/web")
    world.poll()
    assert stored() == [said.id]
    assert problems() == ""


@pytest.mark.parametrize("world", ["1.22"], indirect=True)
def test_one_listing_in_the_far_future_hides_nothing(world: World) -> None:
    with astray(world, CENTURY):
        Repository.objects.update(net_due_at=None)
        world.poll()
    said = world.say("recipes/web", "Looks good")
    world.remote.edit_comment(said, "!testme")  # which the search does not tell of
    Repository.objects.update(net_due_at=None)
    world.poll()
    assert stored() == [said.id]


def test_enrolled_by_an_answer_from_the_far_future(world: World) -> None:
    Repository.objects.all().delete()
    with astray(world, CENTURY):
        world.enroll("recipes/web")
    said = world.say("recipes/web")
    world.poll()
    assert stored() == [said.id]


@pytest.mark.parametrize("what", ["cursor", "rarely", "net_cursor"])
def test_a_time_from_the_future_that_is_in_the_database_hides_nothing(world: World, what: str) -> None:
    world.poll()
    said, later = world.say("recipes/web"), timezone.now() + CENTURY
    if what == "cursor":
        Forge.objects.update(cursor=later)
    elif what == "rarely":
        entry = [later.isoformat(), timezone.now().isoformat()]
        Forge.objects.update(rarely={str(world.org.id): entry})
    else:
        world.remote.faults = lambda request: Fault(status=404) if "search" in request.path else None
        Repository.objects.update(net_cursor=later)
    world.poll()
    assert stored() == [said.id]


def test_a_wish_for_the_future_is_one_for_now(world: World) -> None:
    world.poll()
    pull = PullRequest.objects.get()
    said = world.say("recipes/web")
    comments.wake(pull, timezone.now() + CENTURY)
    assert comments.read_now(pull).comments == 1
    assert stored() == [said.id]


@pytest.mark.parametrize("world", ["1.15", "1.22"], indirect=True)
@pytest.mark.parametrize("days", [1, -1, 4000])
def test_a_forge_whose_clock_is_wrong_for_good_loses_nothing_and_doubles_nothing(world: World, days: int) -> None:
    Repository.objects.all().delete()
    with astray(world, timedelta(days=days)):
        world.enroll("recipes/web")
        said = []
        for _ in range(3):
            world.clock.move(seconds=40)
            said.append(world.say("recipes/web").id)
            world.poll()
            world.poll()
            assert stored() == said
        assert ("ahead of" if days > 0 else "behind") in problems()
        finding = next(row for row in check_forges() if row.name == "forge sandbox clock")
        assert (finding.level, finding.fix) == ("warning", "timedatectl")
        assert "correct the wrong clock" in finding.text
    world.poll()
    assert problems() == ""
    assert "forge sandbox clock" not in {row.name for row in check_forges()}


@pytest.mark.parametrize("date", ["Fri, 31 Dec 9999 23:59:59 -0100", "Sat, 01 Jan 0001 00:00:00 +0100", "", "soon"])
def test_a_date_that_is_none(world: World, date: str) -> None:
    air = Air(world.remote, lambda seconds: None)

    def change(response):  # type: ignore[no-untyped-def]
        response.headers["Date"] = date
        return response

    air.strike = lambda request: Strike("date", change=change)
    with air.carrying():
        assert world.client().version()
        world.poll()
    cursor = Forge.objects.get().cursor
    assert cursor is not None
    assert cursor < timezone.now() + AHEAD
