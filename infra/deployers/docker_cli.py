"""The docker command, with a timeout on every call and errors in words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from infra.deployers import children
from infra.deployers.base import DeployError

LABEL_INSTALLATION = "cc-ci.installation"
LABEL_RUN = "cc-ci.run"
LABEL_APP = "cc-ci.app"
LABEL_KEEP = "cc-ci.keep"
LABEL_DEPLOYMENT = "cc-ci.deployment"

#: What docker says when Docker itself, or the manager of its Swarm, does not answer.
_AWAY = re.compile(
    r"Cannot connect to the Docker daemon|error during connect|context deadline exceeded|context canceled|connection refused"
    r"|connection reset|broken pipe|\bEOF\b|does not have a leader|is not a swarm manager|code = Unavailable|Docker's socket",
    re.IGNORECASE,
)


def environment() -> dict[str, str]:
    """All that docker gets to know of our environment."""
    env = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME") or key.startswith("DOCKER_")}
    return {**env, "LC_ALL": "C"}


def stack_deploy(*arguments: str, host: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """`docker stack deploy`, at `host`, of a document whose variables are filled in.

    A variable of a service that is empty or has no value is looked up in the command's own environment, so it has none.
    """
    return call("--config=/nonexistent", f"--host={host}", "stack", "deploy", *arguments, timeout=timeout, env={})


def call(
    *arguments: str, timeout: float = 30.0, given: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run docker. Raises DeployError when there is none or when it hangs; a failure is for the caller to judge."""
    done = _run(arguments, environment() if env is None else env, timeout, given=(given or "").encode())
    out, err = (text.decode(errors="replace") for text in (done.out, done.err))
    return subprocess.CompletedProcess(["docker", *arguments], done.code, out, err)


def tail(*arguments: str, timeout: float = 30.0, keep: int = 100_000) -> tuple[int, str]:
    """Run docker for what a recipe's container prints, which may be endless: exit code and the last `keep` bytes."""
    done = _run(arguments, environment(), timeout, last=keep, stderr=subprocess.STDOUT)
    return done.code, done.out.decode(errors="replace")


def _run(arguments: Sequence[str], env: Mapping[str, str], timeout: float, **options: Any) -> children.Done:
    said = f"docker {' '.join(arguments[:2])}"
    try:
        # By its path: what it is given for an environment may have no PATH.
        return children.run([shutil.which("docker") or "docker", *arguments], env=env, seconds=timeout, **options)
    except FileNotFoundError as error:
        raise DeployError("tool_missing", "There is no docker command here.", "Install Docker.") from error
    except children.TooLong as error:
        raise DeployError(
            "tool_failed", f"{said} did not end within {timeout:g} s.", "Look at the Docker daemon's log."
        ) from error
    except children.TooMuch as error:
        raise DeployError("tool_failed", f"{said}: {error}.") from error


def docker(*arguments: str, timeout: float = 30.0, given: str | None = None) -> str:
    """Run docker: its output. Raises DeployError tool_failed with docker's own words."""
    done = call(*arguments, timeout=timeout, given=given)
    if done.returncode:
        raise DeployError("tool_failed", f"docker {' '.join(arguments[:2])}: {last_line(done.stderr)}")
    return done.stdout


def away(said: str) -> bool:
    """Whether docker's words mean that Docker is away, and nothing else: it says nothing of what was asked for."""
    return bool(_AWAY.search(said))


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no word of why")


def labels_of(kind: str, item: dict[str, Any]) -> dict[str, str]:
    """The labels of an inspected thing, which each kind keeps somewhere else."""
    if kind == "container":
        item = item.get("Config") or {}
    elif kind in ("service", "config", "secret"):
        item = item.get("Spec") or {}
    return item.get("Labels") or {}


@dataclass(frozen=True)
class Problem:
    """Something that is missing on this machine, and the line to type."""

    text: str
    fix: str


def reader_problem() -> Problem | None:
    """Why the docker command here cannot read compose files (`docker stack config`); None when it can."""
    program = shutil.which("docker")
    return _reader_problem(program) if program else Problem("There is no docker command here.", _INSTALL)


_INSTALL = (
    "Install Docker's command from 23.0 on, from Docker's own packages: apt-get install docker-ce-cli "
    "(see https://docs.docker.com/engine/install/; the daemon may be older)."
)


@cache
def _reader_problem(program: str) -> Problem | None:
    done = call("stack", "config", "--help", timeout=60)
    if "docker stack config" in done.stdout:
        return None
    version = call("--version", timeout=60).stdout.strip() or program
    return Problem(f"The docker command here is too old to read compose files ({version}).", _INSTALL)
