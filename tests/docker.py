"""A local Docker Swarm and an image for tests, with no registry: busybox, imported from a tar."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest

from enrollment.fakeforge.image import NoImage, import_busybox
from infra.deployers.swarm import convergence, patience

IMAGE = "cc-ci-test/busybox:1"


def docker(*arguments: str, timeout: float = 30, check: bool = True) -> str:
    """Run the docker command: its standard output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments[:3])}: {done.stderr.strip()}")
    return done.stdout.strip()


def impatient(monkeypatch: pytest.MonkeyPatch, exits: int = 3) -> None:
    """Let a service that ends again and again be given up after so many exits, whatever speaks for it."""
    monkeypatch.setattr(convergence, "MOST_FAILURES", exits)
    monkeypatch.setattr(patience, "PATIENCE", dict.fromkeys(patience.PATIENCE, 0.0))


def need_swarm() -> None:
    """Make sure that a swarm and the test's image are there; else skip, or fail when CI=true."""
    if problem := _problem():
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)


@functools.cache
def _problem() -> str:
    if not shutil.which("docker"):
        return "there is no docker command here"
    try:
        state = docker("info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return f"no Docker daemon answers: {error}"
    if state.startswith("inactive"):
        docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    elif state != "active true":
        return f"this node is no manager of a swarm: {state}"
    try:
        import_busybox(IMAGE)
    except NoImage as problem:
        return str(problem)
    return ""
