"""Chooses the deployer for a recipe."""

from __future__ import annotations

from contextlib import suppress

from infra.deployers.base import Deployer
from infra.deployers.compose import plain
from infra.deployers.context import Context
from infra.deployers.errors import DeployError
from infra.deployers.process.deployer import ProcessDeployer
from infra.deployers.swarm.ephemeral import SwarmDeployer, swarm_problem

NAMES = ("auto", "swarm", "process")


def choose(name: str, context: Context) -> Deployer:
    """The deployer called `name`. `auto`: the Swarm if there is one, else plain processes if the recipe supports them.

    Raises DeployError with advice if none is suitable.
    """
    if name == "swarm":
        if problem := swarm_problem():
            raise DeployError("tool_missing", problem, "Run `docker swarm init`, or choose another deployer.")
        return SwarmDeployer(context)
    if name == "process":
        return ProcessDeployer(context)
    if name != "auto":
        raise DeployError("tool_missing", f"Unknown deployer {name!r}.", f"Choose one of {', '.join(NAMES)}.")
    return _automatic(context)


def _automatic(context: Context) -> Deployer:
    problem, as_processes = swarm_problem(), False
    with suppress(DeployError):  # what cannot be read that way is Docker's to judge
        as_processes = plain.all_processes(plain.load(context, context.checkout))
    if not problem and (not as_processes or SwarmDeployer(context).images_here()):
        return SwarmDeployer(context)
    if as_processes:
        return ProcessDeployer(context)
    raise DeployError(
        "tool_missing",
        f"No deployer can run this recipe here: {problem}",
        "Start Docker and run `docker swarm init`, or give every service `x-cc-ci-process` (docs/write-tests.md).",
    )
