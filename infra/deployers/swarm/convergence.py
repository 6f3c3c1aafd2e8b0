"""Whether a stack has converged, and if not, whether it ever will."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from infra.deployers import messages
from infra.deployers.context import Service
from infra.deployers.docker.addresses import Use
from infra.deployers.docker.api import listed
from infra.deployers.docker.cli import LABEL_DEPLOYMENT
from infra.deployers.errors import DeployError
from infra.deployers.swarm import patience

#: So often may a service's tasks end before it can be given up; when it is, `patience` says.
MOST_FAILURES = 3
#: The same where Swarm killed them since their health check stayed red. Once may be a slow start.
MOST_UNHEALTHY = 2
#: So long may a task stay without a node before we believe it, in seconds.
MOST_HOMELESS = 5.0
#: So long may it stay where it waits for an address before we ask, in seconds: where it needs nothing else, and while a node
#: prepares it, which takes its time for other reasons too.
MOST_NEW = 10.0
MOST_PREPARING = 20.0
#: With so long between its restarts, in nanoseconds, a service works in rounds: a task that exits with 0 has done its work.
#: (Swarm's own delay is 5 s.)
ROUNDS = 10 * 10**9
#: One that failed is given up if its next round begins only after so many seconds.
LONG_PAUSE = 60
#: For so long what may be a job has to run before it counts as up, in seconds: many that fail do so at once.
MAYBE_JOB = 10.0
#: How Swarm tells of a task that somebody ended by a signal, as a hook does that restarts its app.
_BY_SIGNAL = re.compile(r"non-zero exit \(1(?:29|[3-5]\d)\)")  # 128 and the signal's number


@dataclass(frozen=True)
class Task:
    """One task, with states as in `docker stack ps`."""

    id: str
    service: str
    desired: str
    state: str
    error: str
    current: bool = True  #: whether it was made of what its service asks for now
    age: float = 0.0  #: for how long it has been in this state, in seconds
    slot: str = ""  #: which of the service's replicas it is

    @property
    def failed(self) -> bool:
        return self.state in ("Failed", "Rejected")

    @property
    def over(self) -> bool:
        """Whether the task has no future. (The desired state of a job's task is `Complete` from the start.)

        A task that is `Ready` is started when the restart delay is over.
        """
        return self.desired not in ("Running", "Ready", "Complete") or self.desired == self.state == "Complete"


@dataclass(frozen=True)
class Spec:
    """What a service was asked to be, to tell later whether a deployment changed it."""

    template: str
    update: str  #: when its last update began; empty without one


@dataclass
class Poll:
    """A stack's state at one moment."""

    services: list[Service]
    specs: dict[str, Spec]
    marks: dict[str, str]  #: which deployment each service's spec is from
    updates: dict[str, Mapping[str, Any]]
    tasks: list[Task]
    version: str
    inspected: dict[str, Mapping[str, Any]] = field(default_factory=dict)  #: what docker says of each service
    stack: str = ""

    def short(self, name: str) -> str:
        """A service's name in the recipe."""
        return name.removeprefix(f"{self.stack}_")

    def service(self, name: str) -> Service:
        return next(one for one in self.services if one.name == self.short(name))

    def through(self, name: str) -> bool:
        """Whether as many of the service's tasks run, or have completed, as requested."""
        service = self.service(name)
        return service.running >= service.wanted

    def update(self, name: str) -> str:
        """The state of a service's update. A paused one counts as completed once all requested tasks are there."""
        state = str(self.updates[name].get("State", ""))
        return "completed" if state == "paused" and self.through(name) and not self.left_behind(name) else state

    def left_behind(self, name: str) -> bool:
        """Whether tasks of an earlier spec are still supposed to run."""
        return any(task.service == name and task.desired == "Running" and not task.current for task in self.tasks)

    def ended_well(self, name: str) -> bool:
        """Whether a task of the service's current spec ended with 0."""
        return any(task.service == name and task.current and task.state == "Complete" for task in self.tasks)

    def runs_on(self, name: str) -> bool:
        """Whether Swarm still starts tasks of the service, or lets them finish."""
        return any(task.service == name and not task.over for task in self.tasks)


def specs(services: list[dict[str, Any]]) -> dict[str, Spec]:
    """The specs of inspected services, by service name in the swarm."""
    return {service["Spec"]["Name"]: _spec(service) for service in services}


def _spec(service: dict[str, Any]) -> Spec:
    asked = {key: value for key, value in (service["Spec"].get("TaskTemplate") or {}).items() if key != "ForceUpdate"}
    template = json.dumps(asked, sort_keys=True)
    return Spec(template, str((service.get("UpdateStatus") or {}).get("StartedAt", "")))


def fingerprint(services: list[dict[str, Any]], networks: Mapping[str, str]) -> str:
    """A hash over the specs of the inspected services, without our own deployment number.

    `networks`: names of networks by id; ids change when a stack is recreated, names do not.
    """
    parts = []
    for service in sorted(services, key=lambda service: str(service["Spec"]["Name"])):
        spec = json.loads(json.dumps(service["Spec"]))
        (spec.get("Labels") or {}).pop(LABEL_DEPLOYMENT, None)
        template = spec.get("TaskTemplate") or {}
        template.pop("ForceUpdate", None)
        for network in template.get("Networks") or []:
            network["Target"] = networks.get(network.get("Target", ""), network.get("Target", ""))
        container = template.get("ContainerSpec") or {}
        for kind in ("Config", "Secret"):
            for file in container.get(f"{kind}s") or []:
                file.pop(f"{kind}ID", None)
        parts.append(spec)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest() if parts else ""


def poll(stack: str, services: list[dict[str, Any]]) -> Poll:
    """Ask docker about the tasks and containers of these inspected services."""
    short = {service["Spec"]["Name"]: service["Spec"]["Name"].removeprefix(f"{stack}_") for service in services}
    tasks, health = _tasks(services), _health(stack)
    seen = [_service(short[service["Spec"]["Name"]], service, tasks, health) for service in services]
    label = f"coop-cloud.{stack}.version"
    labels = {service["Spec"]["Name"]: service["Spec"].get("Labels") or {} for service in services}
    app_first = sorted(labels, key=lambda name: (short[name] != "app", name))
    return Poll(
        services=seen,
        specs=specs(services),
        marks={name: str(own.get(LABEL_DEPLOYMENT, "")) for name, own in labels.items()},
        updates={s["Spec"]["Name"]: s.get("UpdateStatus") or {} for s in services},
        tasks=tasks,
        version=next((labels[name][label] for name in app_first if label in labels[name]), ""),
        inspected={service["Spec"]["Name"]: service["Spec"] for service in services},
        stack=stack,
    )


def _tasks(services: list[dict[str, Any]]) -> list[Task]:
    """All tasks of the inspected services, newest first."""
    if not services:
        return []
    by_id = {str(service["ID"]): service for service in services}
    return [
        Task(
            str(task["ID"]),
            str(by_id[task["ServiceID"]]["Spec"]["Name"]),
            str(task["DesiredState"]).capitalize(),
            str(task["Status"]["State"]).capitalize(),
            str(task["Status"].get("Err") or ""),
            _current(task, by_id[task["ServiceID"]]),
            _age(str(task["Status"].get("Timestamp") or "")),
            str(task.get("Slot") or task.get("NodeID") or ""),
        )
        for task in sorted(listed("task", service=list(by_id)), key=lambda task: str(task["CreatedAt"]), reverse=True)
        if task["ServiceID"] in by_id
    ]


def _age(since: str) -> float:
    try:
        return max(time.time() - datetime.fromisoformat(since).timestamp(), 0.0)
    except ValueError:
        return 0.0


def _current(task: Mapping[str, Any], service: Mapping[str, Any]) -> bool:
    """Whether a task was created from its service's current spec. Swarm compares specs in the same way: a change
    of placement alone does not count. Each update of a job starts its tasks again, in another iteration.
    """
    if (task.get("JobIteration") or {}).get("Index") != ((service.get("JobStatus") or {}).get("JobIteration") or {}).get("Index"):
        return False
    template = service["Spec"].get("TaskTemplate") or {}
    return all(template.get(key) == value for key, value in (task.get("Spec") or {}).items() if key != "Placement")


def _health(stack: str) -> dict[str, str]:
    """The health of each running task by id, from Docker's status line."""
    health = {}
    for one in listed("container", label=[f"com.docker.stack.namespace={stack}"], status=["running"]):
        task, status = str((one.get("Labels") or {}).get("com.docker.swarm.task.id", "")), str(one["Status"])
        for word, meaning in (("(healthy)", "healthy"), ("(unhealthy)", "unhealthy"), ("(health: starting)", "starting")):
            if word in status:
                health[task] = meaning
    return health


def _service(name: str, service: dict[str, Any], tasks: list[Task], health: dict[str, str]) -> Service:
    spec = service["Spec"]
    own = [task for task in tasks if task.service == spec["Name"]]
    now = [task for task in own if task.current]
    wanted_tasks = [task for task in now if task.desired == "Running"]
    mode = spec.get("Mode") or {}
    wanted = max(len([task for task in now if task.desired in ("Running", "Complete")]), 1)  # global: as many as Swarm started
    if "Replicated" in mode:
        wanted = int((mode["Replicated"] or {}).get("Replicas", 1))
    elif "ReplicatedJob" in mode:
        wanted = int((mode["ReplicatedJob"] or {}).get("TotalCompletions", 1))
    running = sum(task.state == "Running" for task in wanted_tasks)
    running = min(wanted, running + _completed(spec, now))
    problem = next((task.error.removeprefix("task: ") for task in own if task.error), "")
    return Service(
        name,
        wanted=wanted,
        running=running,
        restarts=sum(task.failed for task in own),
        health=_worst([health[task.id] for task in wanted_tasks if task.id in health]),
        image=str(((spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}).get("Image", "")),
        problem=problem,
    )


def _completed(spec: Mapping[str, Any], now: Sequence[Task]) -> int:
    """How many of the current tasks, newest first, have done their work. Of rounds the last of each replica counts."""
    if restarts(spec):
        return 0
    ended = [task for task in now if task.failed or task.state == "Complete"]
    if _restarted(spec):
        running = {task.slot for task in now if task.state == "Running"}
        ended = list({task.slot: task for task in reversed(ended) if task.slot not in running}.values())
    return sum(task.state == "Complete" for task in ended)


def restarts(spec: Mapping[str, Any]) -> bool:
    """Whether a task of the service should keep running: one that exits with 0 is restarted, and not to do its next round."""
    return _restarted(spec) and not pause_of(spec)


def pause_of(spec: Mapping[str, Any]) -> int:
    """The seconds between the rounds of a service that works so; 0 for one that should keep running.

    What is asked for anything does: a service with a health check, a port, or a route of the proxy.
    """
    delay = int(_policy(spec).get("Delay") or 0)
    return delay // 10**9 if _restarted(spec) and delay >= ROUNDS and not (_checked(spec) or _serves(spec)) else 0


def _checked(spec: Mapping[str, Any]) -> bool:
    """Whether the recipe itself gives a service a health check."""
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    return bool(((container.get("Healthcheck") or {}).get("Test") or ["NONE"])[0] != "NONE")


def _serves(spec: Mapping[str, Any]) -> bool:
    """Whether a service has a port, or a route of the proxy."""
    labels = {label.lower(): str(value).lower() for label, value in (spec.get("Labels") or {}).items()}
    routed = any(label.startswith("traefik.") for label in labels) and labels.get("traefik.enable") != "false"
    return bool((spec.get("EndpointSpec") or {}).get("Ports")) or routed


def _restarted(spec: Mapping[str, Any]) -> bool:
    """Whether Swarm restarts a task of the service that exited with 0. It never restarts completed jobs."""
    mode = spec.get("Mode") or {}
    return not ("ReplicatedJob" in mode or "GlobalJob" in mode) and _policy(spec).get("Condition", "any") == "any"


def _policy(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return (spec.get("TaskTemplate") or {}).get("RestartPolicy") or {}


def _worst(found: list[str]) -> Literal["", "starting", "healthy", "unhealthy"]:
    if "unhealthy" in found:
        return "unhealthy"
    if "starting" in found:
        return "starting"
    return "healthy" if found else ""


@dataclass
class Settler:
    """Judges successive polls, and remembers failures that Swarm forgets.

    `mark`: this deployment's number; `before`: the specs before it; `last_lines`: returns a service's last output;
    `out_of_memory`: whether the kernel killed the container of one of these tasks for lack of memory; `version`: the version to
    be read back; `asked`: the seconds that the recipe asks for to come up; `tell`: called with each failure; `networks`: how full
    a service's networks are; `web`: the service that has to answer; `healthy`: the services, each with its template, whose health
    check was seen to pass, in earlier deployments too; `fell_before`: whether this judges what fell after it had been up, and
    `hook`: whether a hook of the recipe ran meanwhile, which may have restarted something on purpose.
    """

    mark: str
    before: Mapping[str, Spec]
    last_lines: Callable[[str], str]
    out_of_memory: Callable[[Collection[str]], bool] = lambda tasks: False
    version: str = ""
    asked: float = 0.0
    tell: Callable[[str], None] = lambda text: None
    networks: Callable[[str], Sequence[Use]] = lambda service: ()
    clock: Callable[[], float] = time.monotonic
    web: str = ""
    fell_before: bool = False
    hook: bool = False
    on_purpose: bool = False  #: whether the hook seems to have restarted something: it ended with 0, or by a signal
    healthy: set[tuple[str, str]] = field(default_factory=set)
    _failed: dict[str, dict[str, Task]] = field(default_factory=dict)
    _homeless: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, float] = field(default_factory=dict)
    _lost: dict[str, float] = field(default_factory=dict)
    _old: set[str] | None = None

    def __post_init__(self) -> None:
        self._courses = patience.Courses(lambda: self.clock())

    def judge(self, poll: Poll) -> bool:
        """True when everything is as requested. Raises DeployError if it never will be."""
        if self._old is None:  # failures of an earlier deployment are not this one's
            self._old = {task.id for task in poll.tasks if task.failed or task.state == "Complete"} if self.before else set()
        self.healthy |= {(name, spec.template) for name, spec in poll.specs.items() if poll.service(name).health == "healthy"}
        rolled_back = self._rolled_back(poll)
        self._give_up(poll)
        if rolled_back:
            raise rolled_back
        if not poll.services:
            return False
        updated = all(
            self._updated(name, poll) and not self._down(name, poll) and not self._young(name, poll) for name in poll.specs
        )
        settled = updated and all(
            s.running == s.wanted and s.health in ("", "healthy") and not self.in_doubt(s.name) for s in poll.services
        )
        if settled and self.version and poll.version != self.version:
            raise DeployError(
                "rolled_back",
                f"The running version is {poll.version or 'unknown'}, not {self.version}, which was deployed.",
                "Check that every service finished its update.",
            )
        return settled

    @property
    def failures(self) -> int:
        """How many tasks have failed so far."""
        return sum(task.failed for tasks in self._failed.values() for task in tasks.values())

    def in_doubt(self, service: str) -> bool:
        """Whether a service that failed runs, but not for long enough to count as up."""
        fell = patience.STAYS if self.on_purpose else patience.STAYS_AGAIN
        return self._courses.in_doubt(service, fell if self.fell_before else 0.0)

    def fell(self, poll: Poll) -> dict[str, str]:
        """The services of which a task ended since the last poll though it should keep running, each with the newest error."""
        return {poll.short(task.service): self._why(task, poll) for task in reversed(poll.tasks) if self._ended(task, poll)}

    @property
    def fallen(self) -> dict[str, str]:
        """The services of which this one has seen a task end though it should keep running, each with the newest error."""
        return {service: list(tasks.values())[-1].error for service, tasks in self._failed.items()}

    def after(self, hook: bool = False) -> Settler:
        """One for what fell after this one had judged it to be up: nothing before speaks for it or against it."""
        known = {*(self._old or ()), *(task for tasks in self._failed.values() for task in tasks)}
        return replace(
            self, fell_before=True, hook=hook, on_purpose=False, _failed={}, _homeless={}, _waiting={}, _lost={}, _old=known
        )

    def _ended(self, task: Task, poll: Poll) -> bool:
        """Whether this task, which was not seen so before, ended though it should keep running."""
        # One of the version before that ends while it is being replaced says nothing about the one that replaces it.
        state, mark = str(poll.updates[task.service].get("State", "")), poll.marks[task.service]
        ours = task.current or not self.before or state.startswith("rollback") or mark != self.mark
        ended = (task.failed and ours) or (task.current and task.state == "Complete" and self._stays(task.service, poll))
        return ended and task.id not in (self._old or ()) and task.id not in self._failed.get(poll.short(task.service), {})

    def _stays(self, name: str, poll: Poll) -> bool:
        """Whether a service should keep running: what has to answer, or was healthy, even if Swarm leaves it ended."""
        spec = poll.inspected.get(name, {})
        # With the condition `none` the recipe itself says that one ends, whatever its image checks.
        may_end = pause_of(spec) or _policy(spec).get("Condition") == "none"
        return self._never_ends(name, poll) or (self._was_healthy(name, poll) and not may_end)

    def _never_ends(self, name: str, poll: Poll) -> bool:
        """Whether a service should keep running whatever is known of its health."""
        spec = poll.inspected.get(name, {})
        return poll.short(name) == self.web or restarts(spec) or _serves(spec)

    def _was_healthy(self, name: str, poll: Poll) -> bool:
        if _checked(poll.inspected.get(name, {})):  # however the version before made it
            return any(known == name for known, _ in self.healthy)
        return (name, poll.specs[name].template) in self.healthy

    def _down(self, name: str, poll: Poll) -> bool:
        """Whether a service that should keep running does not: to Swarm one that ended with 0 may have done its work."""
        runs = sum(task.service == name and task.current and task.state == "Running" for task in poll.tasks)
        return poll.ended_well(name) and runs < poll.service(name).wanted and self._stays(name, poll)

    def _young(self, name: str, poll: Poll) -> bool:
        """Whether a service may be a job, of which it is too early to say that it is up: nothing shows that it stays."""
        ages = [task.age for task in poll.tasks if task.service == name and task.current and task.state == "Running"]
        return bool(ages) and min(ages) < MAYBE_JOB and not self._stays(name, poll) and not pause_of(poll.inspected.get(name, {}))

    def _gone(self, name: str, poll: Poll) -> bool:
        """Whether tasks of a service have ended that Swarm does not start again, or not for a long time, whenever that was."""
        waits = pause_of(poll.inspected.get(name, {})) > LONG_PAUSE
        coming = any(
            task.service == name and not task.over and task.state != "Running" and not (waits and task.desired == "Ready")
            for task in poll.tasks
        )
        ended = any(task.service == name and task.current and (task.failed or task.state == "Complete") for task in poll.tasks)
        if coming or not ended or self._moving(name, poll) or (poll.through(name) and not self._down(name, poll)):
            self._lost.pop(name, None)
            return False
        # A service that was just scaled up has no task for a moment.
        return self.clock() - self._lost.setdefault(name, self.clock()) > MOST_HOMELESS

    @staticmethod
    def _moving(name: str, poll: Poll) -> bool:
        """Whether a service is in the middle of an update, so that Swarm has not had its last word yet."""
        state = str(poll.updates[name].get("State", ""))
        return state == "updating" or state.startswith("rollback")

    def _why(self, task: Task, poll: Poll) -> str:
        """Why a task ended, for an error message."""
        if task.error:
            return task.error.removeprefix("task: ")
        if self._never_ends(task.service, poll):
            return "it exited with code 0, but should keep running"
        return (
            "it exited with code 0 after its health check had passed, so it should keep running (a job that is done with its "
            "work has none: `healthcheck: {disable: true}`)"
        )

    def _updated(self, name: str, poll: Poll) -> bool:
        """Whether a service has finished its update: the right number of tasks may still be old ones.

        Swarm reports *paused* if a new task ended at once, as a job's does, and nothing if there was no task to replace, or
        for a job. So only the tasks count: `Poll.services` counts those created from the current spec.
        """
        return poll.update(name) not in ("updating", "rollback_started") and not poll.left_behind(name)

    def _rolled_back(self, poll: Poll) -> DeployError | None:
        """The error for a rollback: Swarm restores the former spec and labels while the old task passes its health checks."""
        for name, mark in poll.marks.items():
            status = str(poll.updates[name].get("State", ""))
            moved = poll.specs[name].update != (self.before[name].update if name in self.before else "")
            if mark != self.mark or (moved and status.startswith("rollback")):
                service = poll.short(name)
                if status == "rollback_started":  # let it end, or its teardown meets half of each version
                    return None
                problem = next((s.problem for s in poll.services if s.name == service and s.problem), "")
                return DeployError(
                    "rolled_back",
                    f"Swarm rolled {service} back by itself (silent rollback){': ' + problem if problem else ''}. "
                    f"The old version is what answers.{self.last_lines(service)}",
                    "Check why the new version's tasks fail.",
                )
            # A single new task is started again and again all the same: that is for `patience`.
            if moved and poll.update(name) == "paused" and (poll.left_behind(name) or not poll.runs_on(name)):
                return self._paused(name, poll)
        return None

    def _paused(self, name: str, poll: Poll) -> DeployError:
        service, message = poll.short(name), str(poll.updates[name].get("Message", ""))
        problem = next((s.problem for s in poll.services if s.name == service and s.problem), "")
        return DeployError(
            "never_healthy",
            f"Swarm paused the update of {service}: {message}{f' ({problem})' if problem else ''}.{self.last_lines(service)}",
            "Check why the new version's tasks fail.",
        )

    def _give_up(self, poll: Poll) -> None:
        ended_now = set()
        for task in poll.tasks:
            service = poll.short(task.service)
            spec = poll.inspected.get(task.service, {})
            if self._ended(task, poll):
                ended_now.add(service)
                why = self._why(task, poll)
                self._failed.setdefault(service, {})[task.id] = replace(task, error=why)
                if self.hook and (not task.failed or (_BY_SIGNAL.fullmatch(why) and not self.out_of_memory([task.id]))):
                    self.on_purpose = True
                counts = task.failed or service == self.web or _serves(spec) or self._was_healthy(task.service, poll)
                self._courses.ended(service, task.id, why, counts, task.age)
                self.tell(f"task of {service} {'failed' if task.failed else 'ended'}: {why}")
            self._without_address(task, poll)
            trouble = messages.pending(service, task.error, spec)
            if task.state != "Pending" or not trouble:
                self._homeless.pop(task.id, None)
                continue
            if self.clock() - self._homeless.setdefault(task.id, self.clock()) > MOST_HOMELESS:
                raise trouble.error()
        for name in poll.specs:
            own = [task for task in poll.tasks if task.service == name and task.current and not task.over]
            running = {task.id: task.age for task in own if task.state == "Running"}
            self._courses.ran(poll.short(name), running)
        for name in poll.specs:
            service, gone = poll.short(name), self._gone(name, poll)
            if not gone and service not in ended_now and self._courses.runs_again(service):
                continue
            failed = list(self._failed.get(service, {}).values())
            if gone and not failed:  # it ended before this deployment was looked at
                ended = [task for task in poll.tasks if task.service == name and task.current and task.state != "Running"]
                failed = [replace(task, error=self._why(task, poll)) for task in ended[:1]]
            if failed:
                self._judge_failures(name, failed, poll, gone)

    def _without_address(self, task: Task, poll: Poll) -> None:
        """Raises DeployError for a task that gets no address: it stays new, or its node waits for one."""
        most = {"New": MOST_NEW, "Assigned": MOST_PREPARING, "Accepted": MOST_PREPARING, "Preparing": MOST_PREPARING}
        if task.over or task.state not in most:
            self._waiting.pop(task.id, None)
            return
        if self.clock() - self._waiting.setdefault(task.id, self.clock()) <= most[task.state]:
            return
        networks = self.networks(task.service)
        if task.state == "New" or any(one.full for one in networks):
            raise messages.unallocated(poll.short(task.service), poll.stack, networks)
        self._waiting[task.id] = self.clock()  # to be asked again after as long a time

    def _judge_failures(self, name: str, failed: Sequence[Task], poll: Poll, gone: bool) -> None:
        service, spec = poll.short(name), poll.inspected.get(name, {})
        if not self._stays(name, poll) and poll.through(name):  # a job that failed before it was through
            return
        errors = [task.error for task in failed]
        gone = gone or not (self._moving(name, poll) or poll.runs_on(name))
        known = [messages.failure(service, error, spec) for error in errors]
        understood = next((trouble for trouble in known if trouble), None)
        if not understood and (len(errors) > 1 or gone) and self.out_of_memory([task.id for task in failed]):
            known = [messages.failure(service, error, spec, out_of_memory=True) for error in errors]
            understood = known[0]
        if understood and (gone or sum(one is not None and one.kind == understood.kind for one in known) >= understood.times):
            raise understood.error(self.last_lines(service) if understood.kind in ("out_of_memory", "exits") else "")
        done = [poll.short(one) for one in poll.inspected if not self._stays(one, poll) and poll.through(one)]
        unhealthy = sum("unhealthy" in error for error in errors) >= MOST_UNHEALTHY
        standing = replace(self._courses.standing(service, poll.services, done, self.asked), unhealthy=unhealthy)
        if not gone and not patience.hopeless(standing, MOST_UNHEALTHY if unhealthy else MOST_FAILURES):
            return
        if unhealthy:
            raise DeployError(
                "never_healthy",
                f"The health check of {service} never passes: Swarm killed {len(errors)} tasks because of "
                f"it.{self.last_lines(service)}",
                "Try the health check's command inside the container.",
            )
        what = "keeps failing" if len(errors) > 1 else "failed" if failed[0].failed else "is down"
        again = f"; its next round is {pause} s later" if (pause := pause_of(spec)) > LONG_PAUSE else ""
        raise DeployError(
            "exits", f"The service {service} {what}: {errors[-1]}{again}.{self.last_lines(service)}", "See its log."
        )
