"""Removes what runs that live no more left on this machine."""

from __future__ import annotations

from infra.deployers import process, swarm
from infra.deployers.base import DeployError, stack_name


def sweep(installation: str, alive: set[str]) -> int:
    """Ask every deployer for what is this installation's and of no living run; 0 when nothing of it is left."""
    removed = process.sweep({stack_name(run) for run in alive})
    left: list[str] = []
    if not swarm.swarm_problem():
        try:
            gone, left = swarm.sweep(installation, alive)
            removed += gone
        except DeployError as error:
            left = [str(error)]
    for line in [*(f"removed {name}" for name in removed), *(f"left {name}" for name in left)]:
        print(line)  # noqa: T201
    return 1 if left else 0
