"""How long to wait for a service that keeps exiting: by time, and by signs of progress. Pure.

Many apps have no wait loop: they exit until their database answers. The number of exits does not tell that from a crash loop,
only the circumstances do: another service is still coming up, or may be; a task lived longer than those before; an exit had a
new message. Without any such sign for a while, the service is given up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from infra.deployers.context import Service

#: What is known of the rest of the stack: there is nobody to wait for; all are ready by their own health checks (or through, as
#: jobs are); some run, and nothing tells whether they are ready; some are still coming up.
Others = Literal["none", "ready", "untold", "coming"]

#: For so long nothing may speak for a service that ends again and again, in seconds. Others that come up have their own time.
PATIENCE: Mapping[Others, float] = {"none": 20.0, "ready": 45.0, "untold": 90.0, "coming": float("inf")}
#: A task lived longer than the ones before when it did so by this factor, and by these seconds.
_LONGER = 1.5
_LONGER_SECONDS = 2.0
#: One that runs for so long is no longer in doubt, however long those before it lived.
STAYS = 15.0
#: One that fell after it had been up has to run for so long: how long it lived before says nothing then.
STAYS_AGAIN = 60.0


@dataclass(frozen=True)
class Standing:
    """The evidence for or against a service that keeps exiting."""

    exits: int
    quiet: float  #: seconds in which nothing spoke for it
    others: Others = "none"
    asked: float = 0.0  #: seconds that the recipe asks for to come up, in its label or its settings
    unhealthy: bool = False  #: whether Swarm killed it, again and again, since its health check stayed red


def hopeless(standing: Standing, exits: int) -> bool:
    """Whether to give up the service, after at least `exits` exits.

    The time that a recipe asks for is granted only while there may be something to wait for: when it is unknown whether the other
    services are ready. If there are no others, or all are ready, its label changes nothing. A health check that kills has already
    taken its time, and gets no more of it in those cases.
    """
    patience = PATIENCE[standing.others]
    if standing.unhealthy and standing.others in ("none", "ready"):
        return standing.exits >= exits
    if standing.others == "untold":
        patience = max(patience, standing.asked)
    return standing.exits >= exits and standing.quiet > patience


@dataclass
class _Course:
    """The history of one service."""

    ended: set[str] = field(default_factory=set)
    began: dict[str, float] = field(default_factory=dict)  #: when each task was first seen running
    longest: float | None = None  #: the longest life of a task that ended
    lives: Sequence[float] = ()  #: how long each running task has lived that came after one that ended
    failed: bool = False  #: whether one ended by a failure
    first: float | None = None  #: when one ended first
    messages: set[str] = field(default_factory=set)
    news: float = 0.0  #: when something spoke for it last
    seen: object = None  #: what the others were then

    def lives_longer(self) -> bool:
        """Whether a current task has lived longer than all before."""
        return self.longest is not None and _longer(max(self.lives, default=0.0), self.longest)

    def loops(self) -> bool:
        return len(self.ended) > 1 and not self.lives_longer()


class Courses:
    """The history of a stack's services, as far as it was seen: call it for every poll, in order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._all: dict[str, _Course] = {}

    def ran(self, service: str, tasks: Mapping[str, float]) -> None:
        """Record the running tasks of a service, and for how long each has run."""
        course, now = self._all.setdefault(service, _Course()), self._clock()
        for task, age in tasks.items():
            course.began.setdefault(task, now - age)
        after = [course.began[task] for task in tasks if course.first is not None and course.began[task] >= course.first]
        course.lives = [now - began for began in after]
        if course.lives_longer():
            course.news = now

    def ended(self, service: str, task: str, message: str, failed: bool = True, ago: float = 0.0) -> None:
        """Record a task that ended some seconds `ago` although it should keep running, with its error."""
        course, now = self._all.setdefault(service, _Course()), self._clock()
        life = now - course.began[task] if task in course.began else 0.0
        message = re.sub(r"[0-9a-f]{8,}", "", message)  # a container's id says nothing new
        if course.longest is None or _longer(life, course.longest) or message not in course.messages:
            course.news = now
        course.longest = max(life, course.longest or 0.0)
        course.messages.add(message)
        course.ended.add(task)
        course.first = now - ago if course.first is None else course.first
        course.failed = course.failed or failed

    def runs_again(self, service: str) -> bool:
        """Whether a service that ended runs again: perhaps this is the task that stays."""
        return service in self._all and bool(self._all[service].lives)

    def in_doubt(self, service: str, stay: float = 0.0) -> bool:
        """Whether a service runs again after it failed, and not yet longer than before: a crash loop runs now and then, too.

        `stay`: for how many seconds it has to run since it had been up before; 0 if it had not.
        """
        if not self.runs_again(service):
            return False
        course = self._all[service]
        youngest = min(course.lives)
        if stay:
            return course.failed and youngest < stay
        return course.failed and youngest < STAYS and not _longer(youngest, course.longest or 0.0)

    def standing(self, name: str, services: Sequence[Service], done: Sequence[str], asked: float) -> Standing:
        """The evidence for a service that ended at least once. `done`: the completed jobs."""
        course, now = self._all[name], self._clock()
        others = [one for one in services if one.name != name and one.wanted and not self._loops(one.name)]
        seen = sorted((one.name, one.running >= one.wanted, one.health) for one in others)
        if seen != course.seen:
            course.seen, course.news = seen, now
        return Standing(len(course.ended), now - course.news, _others(others, done), asked)

    def _loops(self, name: str) -> bool:
        return name in self._all and self._all[name].loops()


def _others(others: Sequence[Service], done: Sequence[str]) -> Others:
    if any(one.running < one.wanted or one.health in ("starting", "unhealthy") for one in others):
        return "coming"
    if any(not one.health and one.name not in done for one in others):
        return "untold"
    return "ready" if others else "none"


def _longer(life: float, than: float) -> bool:
    return life > than * _LONGER and life > than + _LONGER_SECONDS
