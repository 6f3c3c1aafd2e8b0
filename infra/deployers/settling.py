"""Whether a stack has come to rest, and if not, whether it ever will."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.deployers import words
from infra.deployers.base import DeployError, Service
from infra.deployers.docker_cli import LABEL_DEPLOYMENT
from infra.deployers.engine import listed

#: So often may a service's tasks fail before it is given up. Apps that start before their database fail a few times.
MOST_FAILURES = 5
#: Swarm kills a task whose health check stays red. Once may be a slow start.
MOST_UNHEALTHY = 2
#: So long may a task stay without a node before we believe it, in seconds.
MOST_HOMELESS = 5.0


@dataclass(frozen=True)
class Task:
    """One task, its states as `docker stack ps` writes them."""

    id: str
    service: str
    desired: str
    state: str
    error: str

    @property
    def failed(self) -> bool:
        return self.state in ("Failed", "Rejected")


@dataclass(frozen=True)
class Spec:
    """What a service was asked to be, to see later whether a deployment changed it."""

    template: str
    update: str  #: when its last update began; empty without one


@dataclass
class Look:
    """A stack at one moment."""

    services: list[Service]
    specs: dict[str, Spec]
    marks: dict[str, str]  #: which deployment each service's spec is from
    updates: dict[str, Mapping[str, Any]]
    tasks: list[Task]
    version: str
    inspected: dict[str, Mapping[str, Any]] = field(default_factory=dict)  #: what docker says of each service


def specs(services: list[dict[str, Any]]) -> dict[str, Spec]:
    """The specs of inspected services, by their name in the swarm."""
    return {service["Spec"]["Name"]: _spec(service) for service in services}


def _spec(service: dict[str, Any]) -> Spec:
    template = json.dumps(service["Spec"].get("TaskTemplate"), sort_keys=True)
    return Spec(template, str((service.get("UpdateStatus") or {}).get("StartedAt", "")))


def fingerprint(services: list[dict[str, Any]], networks: Mapping[str, str]) -> str:
    """A hash over all that was asked of the inspected services, but for our own number of the deployment.

    `networks` gives the names of networks by id: ids change when a stack is made anew, names do not.
    """
    said = []
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
        said.append(spec)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest() if said else ""


def look(stack: str, services: list[dict[str, Any]]) -> Look:
    """Ask docker about the tasks and containers of these inspected services."""
    short = {service["Spec"]["Name"]: service["Spec"]["Name"].removeprefix(f"{stack}_") for service in services}
    tasks, health = _tasks(services), _health(stack)
    seen = [_service(short[service["Spec"]["Name"]], service, tasks, health) for service in services]
    label = f"coop-cloud.{stack}.version"
    labels = {service["Spec"]["Name"]: service["Spec"].get("Labels") or {} for service in services}
    app_first = sorted(labels, key=lambda name: (short[name] != "app", name))
    return Look(
        services=seen,
        specs=specs(services),
        marks={name: str(own.get(LABEL_DEPLOYMENT, "")) for name, own in labels.items()},
        updates={s["Spec"]["Name"]: s.get("UpdateStatus") or {} for s in services},
        tasks=tasks,
        version=next((labels[name][label] for name in app_first if label in labels[name]), ""),
        inspected={service["Spec"]["Name"]: service["Spec"] for service in services},
    )


def _tasks(services: list[dict[str, Any]]) -> list[Task]:
    """All tasks of the inspected services, the youngest first."""
    if not services:
        return []
    names = {str(service["ID"]): str(service["Spec"]["Name"]) for service in services}
    return [
        Task(
            str(task["ID"]),
            names[task["ServiceID"]],
            str(task["DesiredState"]).capitalize(),
            str(task["Status"]["State"]).capitalize(),
            str(task["Status"].get("Err") or ""),
        )
        for task in sorted(listed("task", service=list(names)), key=lambda task: str(task["CreatedAt"]), reverse=True)
        if task["ServiceID"] in names
    ]


def _health(stack: str) -> dict[str, str]:
    """The health of each running task by its id, from docker's own status line."""
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
    wanted_tasks = [task for task in own if task.desired == "Running"]
    mode = spec.get("Mode") or {}
    wanted = int((mode.get("Replicated") or {}).get("Replicas", 1)) if "Replicated" in mode else max(len(wanted_tasks), 1)
    running = sum(task.state == "Running" for task in wanted_tasks)
    restart = ((spec.get("TaskTemplate") or {}).get("RestartPolicy") or {}).get("Condition", "any")
    is_job = "ReplicatedJob" in mode or "GlobalJob" in mode  # Swarm never starts these again once they are through
    wanted = int((mode.get("ReplicatedJob") or {}).get("TotalCompletions") or wanted)
    if (is_job or restart != "any") and running < wanted:  # has done its work
        running = min(wanted, running + sum(task.state == "Complete" for task in own))
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


def _worst(found: list[str]) -> Literal["", "starting", "healthy", "unhealthy"]:
    if "unhealthy" in found:
        return "unhealthy"
    if "starting" in found:
        return "starting"
    return "healthy" if found else ""


@dataclass
class Settler:
    """Judges looks in a row, and remembers the failures that swarm forgets.

    `mark` is the number of this deployment, `before` the specs before it, `words` gives a service's last words,
    `out_of_memory` says whether the kernel killed a service's container for its hunger. `version` is the one that has to be
    read back, `tell` is told of each failure.
    """

    mark: str
    before: Mapping[str, Spec]
    words: Callable[[str], str]
    out_of_memory: Callable[[str], bool] = lambda service: False
    version: str = ""
    tell: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic
    _failed: dict[str, dict[str, Task]] = field(default_factory=dict)
    _homeless: dict[str, float] = field(default_factory=dict)
    _old: set[str] | None = None

    def judge(self, look: Look) -> bool:
        """True when everything is as asked for. Raises DeployError when it will never be."""
        if self._old is None:  # failures of an earlier deployment are not this one's
            self._old = {task.id for task in look.tasks if task.failed} if self.before else set()
        rolled_back = self._rolled_back(look)
        self._give_up(look)
        if rolled_back:
            raise rolled_back
        if not look.services:
            return False
        updated = all(self._updated(name, look) for name in look.specs)
        settled = updated and all(s.running == s.wanted and s.health in ("", "healthy") for s in look.services)
        if settled and self.version and look.version != self.version:
            raise DeployError(
                "rolled_back",
                f"What runs is version {look.version or 'nothing'}, and not {self.version}, which was deployed.",
                "See whether every service got through its update.",
            )
        return settled

    def _updated(self, name: str, look: Look) -> bool:
        """Whether a changed service has got through its update: the right number of tasks may still be the old ones."""
        before, now = self.before.get(name), look.specs[name]
        status = look.updates[name].get("State", "")
        if before is None or before.template == now.template:
            return status not in ("updating", "rollback_started")
        return status == "completed" and now.update != before.update

    def _rolled_back(self, look: Look) -> DeployError | None:
        """Swarm puts the former spec back, labels included, while the former task answers every health check."""
        for name, mark in look.marks.items():
            status = str(look.updates[name].get("State", ""))
            moved = look.specs[name].update != (self.before[name].update if name in self.before else "")
            if mark != self.mark or (moved and status.startswith("rollback")):
                service = _short(name)
                if status == "rollback_started":  # let it end, or its teardown meets half of each version
                    return None
                problem = next((s.problem for s in look.services if s.name == service and s.problem), "")
                return DeployError(
                    "rolled_back",
                    f"Swarm rolled {service} back to the former version without a word"
                    f"{': ' + problem if problem else ''}. What answers is the old one.{self.words(service)}",
                    "See why the new version's tasks fail.",
                )
            if moved and status == "paused":
                message = str(look.updates[name].get("Message", ""))
                raise DeployError("never_healthy", f"Swarm paused the update of {_short(name)}: {message}.")
        return None

    def _give_up(self, look: Look) -> None:
        for task in look.tasks:
            service = _short(task.service)
            if task.failed and task.id not in (self._old or ()) and task.id not in self._failed.get(service, {}):
                self._failed.setdefault(service, {})[task.id] = task
                self.tell(f"task of {service} failed: {_error(task)}")
            trouble = words.pending(service, task.error, look.inspected.get(task.service, {}))
            if task.state != "Pending" or not trouble:
                self._homeless.pop(task.id, None)
                continue
            if self.clock() - self._homeless.setdefault(task.id, self.clock()) > MOST_HOMELESS:
                raise trouble.error()
        for service, failed in self._failed.items():
            self._judge_failures(service, [_error(task) for task in failed.values()], look)

    def _judge_failures(self, service: str, errors: list[str], look: Look) -> None:
        states = [str(update.get("State", "")) for name, update in look.updates.items() if _short(name) == service]
        moving = any(state == "updating" or state.startswith("rollback") for state in states)
        # In the middle of an update Swarm has not had its last word yet.
        # One that is `Ready` is started when the restart delay is over: many apps fail once before their database is up.
        gone = not moving and not any(_short(t.service) == service and t.desired in ("Running", "Ready") for t in look.tasks)
        spec = next((spec for name, spec in look.inspected.items() if _short(name) == service), {})
        known = [words.failure(service, error, spec) for error in errors]
        understood = next((trouble for trouble in known if trouble), None)
        if not understood and (len(errors) > 1 or gone) and self.out_of_memory(service):
            known = [words.failure(service, error, spec, out_of_memory=True) for error in errors]
            understood = known[0]
        if understood and (gone or sum(one is not None and one.kind == understood.kind for one in known) >= understood.times):
            raise understood.error(self.words(service) if understood.kind in ("out_of_memory", "exits") else "")
        if sum("unhealthy" in error for error in errors) >= MOST_UNHEALTHY:
            raise DeployError(
                "never_healthy",
                f"The health check of {service} never becomes green: Swarm killed {len(errors)} tasks for it."
                f"{self.words(service)}",
                "Try the health check's command inside the container.",
            )
        if len(errors) >= MOST_FAILURES or gone:
            raise DeployError(
                "exits", f"The service {service} fails again and again: {errors[-1]}.{self.words(service)}", "See its log."
            )


def _error(task: Task) -> str:
    return task.error.removeprefix("task: ")


def _short(name: str) -> str:
    return name.partition("_")[2] or name
