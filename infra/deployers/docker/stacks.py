"""Which Docker objects belong to whom: the one place that knows how a deployment's objects are labelled, found and removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from infra.deployers.context import Context
from infra.deployers.docker import api, egress, proxy
from infra.deployers.docker.api import KINDS, has_ended, ids, inspect, listed
from infra.deployers.docker.cli import LABEL_APP, LABEL_INSTALLATION, LABEL_KEEP, LABEL_RUN, labels_of
from infra.deployers.errors import DeployError, NotRunning

LABEL_STACK = "com.docker.stack.namespace"
LABEL_SERVICE = "com.docker.swarm.service.name"
#: What a deployment runs with; the other kinds hold its data and stay when it is merely stopped.
RUNNING = ("service", "container", "network")
SECONDS = 60.0
#: Tasks alone are waited for so long; those on a node that is away stay.
_TASK_SECONDS = 15.0


@dataclass(frozen=True)
class Owned:
    """The objects of one deployment: those with all these labels (`key=value`), never by name alone."""

    stack: str
    labels: tuple[str, ...]

    def ids(self, kind: str, *more: str) -> list[str]:
        return ids(kind, *self.labels, *more)

    def services(self) -> list[dict[str, Any]]:
        """The inspected services, by name."""
        return sorted(listed("service", label=self.labels), key=lambda service: str(service["Spec"]["Name"]))

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        """All containers of one service, or of all: running ones first, then the newest."""
        more = [f"{LABEL_SERVICE}={self.stack}_{service}"] if service else []
        found = inspect("container", self.ids("container", *more))
        return sorted(found, key=lambda item: (item["State"]["Running"], str(item["Created"])), reverse=True)

    def container(self, service: str) -> str:
        """The id of a running container of a service. Raises DeployError."""
        wanted = [*self.labels, f"{LABEL_SERVICE}={self.stack}_{service}"]
        if found := listed("container", label=wanted, status=["running"]):
            return str(found[0]["Id"])
        raise NotRunning(service)


def of_run(installation: str, run_id: str, stack: str = "") -> Owned:
    """What a run of this installation created. Both labels are needed, since a neighbour may know one of them."""
    return Owned(stack, (f"{LABEL_INSTALLATION}={installation}", f"{LABEL_RUN}={run_id}"))


def marks(context: Context) -> dict[str, str]:
    """The labels for everything that a deployer creates for a run, or for an app of the server."""
    if context.app:
        return {LABEL_INSTALLATION: context.installation, LABEL_APP: context.app}
    labels = {LABEL_INSTALLATION: context.installation, LABEL_RUN: context.run_id}
    return {**labels, LABEL_KEEP: "true"} if context.keep else labels


def remove(
    owned: Owned,
    kinds: Sequence[str] = KINDS,
    ephemeral: bool = True,
    seconds: float = SECONDS,
    check: Callable[[], None] = lambda: None,
) -> list[str]:
    """Remove objects of these kinds, and wait until they are gone. Returns what is left after `seconds`.

    Containers of `ephemeral` deployments are killed at once, without a grace period (1 s instead of 16); others get their
    service's grace period, and are removed when they have ended. `check` is called in every round.
    """
    until = time.monotonic() + seconds
    pause, tasks_until = 0.08, time.monotonic() + _TASK_SECONDS
    while True:
        check()
        left = {kind: found for kind in kinds if (found := owned.ids(kind))}
        running = "service" in left or "container" in left
        if running:
            tasks_until = time.monotonic() + _TASK_SECONDS
        elif "service" in kinds and time.monotonic() < tasks_until:
            running = any(map(_may_run, listed("task", label=owned.labels)))
        if not left and not running:
            return []
        if time.monotonic() > until:
            return [f"{kind} {name}" for kind, names in left.items() for name in names]
        if running:  # Docker 20.10 hangs for ever when a network is removed while a container is just joining it
            left.pop("network", None)
        if "network" in left:
            proxy.leave(left["network"])
        for kind, names in left.items():
            query = {"force": "1", "v": "1"} if kind == "container" and ephemeral else {}
            if kind == "container" and not ephemeral:
                # Swarm stops them, their service being gone, but removes them seconds later; if Docker was restarted, never.
                ended = () if "service" in left else listed(kind, label=owned.labels, status=["exited", "created", "dead"])
                names = [str(one["Id"]) for one in ended]
            elif kind == "network":
                names = egress.removable(names)
            with ThreadPoolExecutor(min(len(names) or 1, 16) if kind == "container" else 1) as together:  # each takes a while
                list(together.map(partial(_remove, kind, query), names))
            if kind == "network":
                api.prune_networks(owned.labels)  # Swarm leaves some on this node, with a job's task, and knows them no more
        time.sleep(pause := min(pause * 1.3, 1.0))


def _may_run(task: Mapping[str, Any]) -> bool:
    """Whether a task of a service that was removed may still make its container, or its network again.

    Those of jobs stay with the swarm: ended, or waiting for a node that could take them, which has no such network any more.
    """
    return bool(task.get("NodeID")) and not has_ended(task)


def _remove(kind: str, query: Mapping[str, str], name: str) -> None:
    with suppress(DeployError):  # a network or volume in use says no; the next round asks again
        api.remove(kind, name, **query)


def remove_run(installation: str, run_id: str, seconds: float = SECONDS) -> list[str]:
    """Remove everything that a run created, including data. Returns what is left after `seconds`."""
    return remove(of_run(installation, run_id), seconds=seconds)


def list_ours(installation: str) -> dict[str, Mapping[str, str]]:
    """The runs that have objects on this swarm under this installation's label, each with the labels of one object.

    A container also has the labels of its image, which is a stranger's: whether a run is kept is read from other objects only.
    """
    runs: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        for item in inspect(kind, ids(kind, f"{LABEL_INSTALLATION}={installation}", LABEL_RUN)):
            labels = dict(labels_of(kind, item))
            kept = labels.pop(LABEL_KEEP, "")
            run = runs.setdefault(labels[LABEL_RUN], labels)
            if kept and kind != "container":
                run[LABEL_KEEP] = kept
    return dict(runs)


def sweep(installation: str, alive: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Remove what finished runs left, except those that a person kept. Returns (runs removed, objects left).

    `alive` is asked after listing: a run that begins in between is not on the list.
    """
    removed, left = [], []
    for run_id, labels in list_ours(installation).items():
        if labels.get(LABEL_KEEP) or alive(run_id):
            continue
        still = remove_run(installation, run_id)
        left += still
        removed += [] if still else [f"run {run_id}"]
    return removed, left
