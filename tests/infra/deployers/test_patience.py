"""When a service that ends again and again is given up, as a table; and how what speaks for it is seen."""

from __future__ import annotations

import pytest

from infra.deployers.context import Service
from infra.deployers.swarm.patience import PATIENCE, Courses, Others, Standing, hopeless

_DEFAULT = 300.0  #: what an app has to come up when nobody asks for more


@pytest.mark.parametrize(
    ("others", "quiet", "asked", "given_up"),
    [
        # A plain crash loop: nobody to wait for. A label asks for time, and everything speaks against it.
        ("none", 10, 0, False),
        ("none", 21, 0, True),
        ("none", 21, 900, True),
        # All others say that they are ready.
        ("ready", 30, 0, False),
        ("ready", 46, 0, True),
        ("ready", 46, 900, True),
        # A database without a health check: it runs, and nothing tells since when it answers.
        ("untold", 60, 0, False),
        ("untold", 91, 0, True),
        ("untold", 91, 300, False),
        ("untold", 91, 30, True),
        ("untold", 301, 300, True),
        # Something is still coming up: it has its own time, and the app all of it.
        ("coming", 299, 0, False),
        ("coming", 899, 900, False),
    ],
)
def test_a_service_is_given_up_by_time_and_by_what_speaks_for_it(
    others: Others, quiet: float, asked: float, given_up: bool
) -> None:
    assert hopeless(Standing(9, quiet, others, asked), 3) is given_up
    assert not hopeless(Standing(2, quiet, others, asked), 3)


@pytest.mark.parametrize(("others", "given_up"), [("none", True), ("ready", True), ("untold", False), ("coming", False)])
def test_a_health_check_that_kills_has_taken_its_time(others: Others, given_up: bool) -> None:
    assert hopeless(Standing(2, 0.1, others, unhealthy=True), 2) is given_up


def test_without_a_word_of_the_recipe_a_crash_loop_ends_well_before_its_time() -> None:
    assert max(seconds for others, seconds in PATIENCE.items() if others != "coming") < _DEFAULT / 3


class Stack:
    """A stack with a clock: an app that ends, and others."""

    def __init__(self, *others: Service) -> None:
        self.now, self.others, self.tasks = 0.0, list(others), 0
        self.courses = Courses(lambda: self.now)

    def lives(self, seconds: float, name: str = "app", said: str = "exit (1)") -> None:
        """A task that lives so long, and ends; with the delay after it."""
        self.tasks += 1
        self.courses.ran(name, {f"t{self.tasks}": 0.0})
        self.now += seconds
        self.courses.ran(name, {f"t{self.tasks}": 0.0})
        self.courses.ended(name, f"t{self.tasks}", said)
        self.courses.ran(name, {})
        self.now += 5

    def standing(self, asked: float = 0) -> Standing:
        services = [Service("app", wanted=1, running=0), *self.others]
        return self.courses.standing("app", services, ["job"], asked)


DB = Service("db", wanted=1, running=1)
GREEN = Service("db", wanted=1, running=1, health="healthy")


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ([], "none"),
        ([Service("cron", wanted=0, running=0)], "none"),
        ([GREEN], "ready"),
        ([GREEN, Service("job", wanted=1, running=1)], "ready"),
        ([DB], "untold"),
        ([DB, GREEN], "untold"),
        ([DB, Service("cache", wanted=1, running=0)], "coming"),
        ([Service("db", wanted=1, running=1, health="starting")], "coming"),
    ],
)
def test_what_is_known_of_the_others(others: list[Service], found: Others) -> None:
    stack = Stack(*others)
    stack.lives(1)
    assert stack.standing().others == found


def test_a_loop_goes_quiet() -> None:
    stack = Stack()
    for _ in range(4):
        stack.lives(0.5)
    stack.standing()
    assert stack.standing().exits == 4
    quiet = stack.standing().quiet
    stack.lives(0.9)  # a slow moment of the machine is no longer life
    assert stack.standing().quiet > quiet + 5


def test_a_longer_life_speaks_for_it_when_it_ended_and_while_it_lasts() -> None:
    stack = Stack()
    for _ in range(4):
        stack.lives(1)
    stack.standing()
    stack.now += 60
    stack.lives(8)
    assert stack.standing().quiet == 5
    stack.now += 60
    stack.courses.ran("app", {"last": 0.0})
    stack.now += 20
    stack.courses.ran("app", {"last": 0.0})
    assert stack.standing().quiet == 0


def test_another_way_to_end_speaks_for_it_and_another_container_does_not() -> None:
    stack = Stack()
    stack.lives(1, said="container 0123456789ab: exit (1)")
    stack.standing()
    stack.lives(1, said="container ba9876543210: exit (1)")
    assert stack.standing().quiet >= 6
    stack.lives(1, said="exit (2)")
    assert stack.standing().quiet == 5


def test_another_service_that_comes_up_speaks_for_it() -> None:
    stack = Stack(Service("db", wanted=1, running=1, health="starting"))
    stack.lives(1)
    stack.standing()
    stack.now += 100
    assert stack.standing().quiet == 105 - 5
    stack.others = [GREEN]
    assert stack.standing().quiet == 0


def test_two_services_that_loop_do_not_wait_for_each_other() -> None:
    stack = Stack(Service("worker", wanted=1, running=0))
    stack.lives(1)
    stack.lives(1, "worker")
    assert stack.standing().others == "coming"
    stack.lives(1, "worker")
    assert stack.standing().others == "none"
