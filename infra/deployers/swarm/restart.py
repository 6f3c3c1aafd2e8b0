"""Stops services of a stack for a moment and starts them again, as an operator does after a restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from infra.deployers.docker.api import inspect, listed
from infra.deployers.docker.cli import docker
from infra.deployers.docker.stacks import LABEL_SERVICE, Owned
from infra.deployers.errors import DeployError


@contextmanager
def down(owned: Owned, names: Sequence[str], check: Callable[[], None], seconds: float) -> Iterator[None]:
    """Within the block the services `names` have no container, as far as their mode allows.

    A service that runs once on every node can only be restarted, after the block. Raises DeployError after `seconds`.
    """
    specs = {str(item["Spec"]["Name"]): item["Spec"] for item in inspect("service", list(names))}
    replicas = {
        name: int(mode["Replicas"]) for name, spec in specs.items() if (mode := (spec.get("Mode") or {}).get("Replicated"))
    }
    everywhere = [name for name, spec in specs.items() if "Global" in (spec.get("Mode") or {})]
    try:
        if replicas:
            docker("service", "scale", "--detach", *(f"{name}=0" for name in replicas))
            _wait(owned, list(replicas), check, seconds)
        yield
    finally:
        if replicas:
            docker("service", "scale", "--detach", *(f"{name}={number}" for name, number in replicas.items()))
        for name in everywhere:
            docker("service", "update", "--detach", "--force", name)


def _wait(owned: Owned, names: Sequence[str], check: Callable[[], None], seconds: float) -> None:
    """Until no container runs, and Swarm has forgotten its tasks: while one is being removed, a service that is never restarted
    gets no new one, however many replicas are asked for.
    """
    until = time.monotonic() + seconds
    while any(
        (one.get("Labels") or {}).get(LABEL_SERVICE) in names
        for one in listed("container", label=owned.labels, status=["running"])
    ) or any(task["DesiredState"] == "remove" for task in listed("task", service=names)):
        check()
        if time.monotonic() > until:
            raise DeployError("restore_failed", f"{', '.join(names)} did not stop within {seconds:g} s for the restart.")
        time.sleep(0.2)
