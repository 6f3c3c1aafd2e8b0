"""Deployments for tests: each has a stack and a folder of its own, and is gone afterwards."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.base import Deployer
from infra.deployers.context import Context
from infra.deployers.docker.api import KINDS, ids
from infra.deployers.docker.cli import LABEL_RUN
from infra.deployers.swarm.ephemeral import SwarmDeployer

RECIPES = Path(__file__).resolve().parents[2] / "data" / "recipes"
INSTALLATION = f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def deployer(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a deployer for a recipe (a name of tests/data/recipes or a folder); keywords go into its context."""
    with deployers(tmp_path) as make:
        yield make


@contextmanager
def deployers(folder: Path) -> Iterator[Callable[..., Any]]:
    """The same, for as long as it is needed."""
    made: list[Deployer] = []

    def make(recipe: str | Path, kind: type[Deployer] = SwarmDeployer, **changes: Any) -> Deployer:
        work = folder / f"work-{len(made)}"
        work.mkdir()
        run_id = uuid.uuid4().hex
        given = {"domain": f"{run_id[:12]}.example.com", "settle_seconds": 300, **changes}
        made.append(kind(Context(run_id, INSTALLATION, "x", RECIPES / recipe, work, **given)))
        return made[-1]

    yield make
    for one in made:
        assert one.teardown() == []


def left(deployer: Any) -> list[str]:
    """All that docker still has of a run."""
    return [f"{kind} {name}" for kind in KINDS for name in ids(kind, f"{LABEL_RUN}={deployer.context.run_id}")]
