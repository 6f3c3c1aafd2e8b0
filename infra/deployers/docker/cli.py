"""Runs the docker command, with a timeout on every call and readable errors."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from infra.deployers.errors import DeployError
from infra.deployers.isolation import children

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
    """The environment that docker gets: nothing else of ours."""
    env = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME") or key.startswith("DOCKER_")}
    return {**env, "LC_ALL": "C"}


def stack_deploy(*arguments: str, host: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run `docker stack deploy`, at `host`, on a document whose variables are expanded.

    The command looks up a service's empty variables in its own environment, so that is empty.
    """
    return call("--config=/nonexistent", f"--host={host}", "stack", "deploy", *arguments, timeout=timeout, env={})


def call(
    *arguments: str, timeout: float = 30.0, given: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run docker. Raises DeployError if it is missing or hangs; the caller judges a failure."""
    done = _run(arguments, environment() if env is None else env, timeout, given=(given or "").encode())
    out, err = (text.decode(errors="replace") for text in (done.out, done.err))
    return subprocess.CompletedProcess(["docker", *arguments], done.code, out, err)


def tail(*arguments: str, timeout: float = 30.0, keep: int = 100_000) -> tuple[int, str]:
    """Run docker for a container's output, which may be endless: exit code and the last `keep` bytes."""
    done = _run(arguments, environment(), timeout, last=keep, stderr=subprocess.STDOUT)
    return done.code, done.out.decode(errors="replace")


def _run(arguments: Sequence[str], env: Mapping[str, str], timeout: float, **options: Any) -> children.Done:
    command = f"docker {' '.join(arguments[:2])}"
    try:
        # By its path: what it is given for an environment may have no PATH.
        return children.run([shutil.which("docker") or "docker", *arguments], env=env, seconds=timeout, **options)
    except FileNotFoundError as error:
        raise DeployError("tool_missing", "The docker command is not installed.", "Install Docker.") from error
    except (OSError, ValueError) as error:  # an argument that is too long, say, or no text: a stranger's name or label
        raise DeployError("tool_failed", f"{command} could not be started: {getattr(error, 'strerror', error)}.") from error
    except children.TooLong as error:
        raise DeployError(
            "tool_failed", f"{command} did not finish within {timeout:g} s.", "Check the Docker daemon's log."
        ) from error
    except children.TooMuch as error:
        raise DeployError("tool_failed", f"{command}: {error}.") from error


def docker(*arguments: str, timeout: float = 30.0, given: str | None = None) -> str:
    """Run docker: its output. Raises DeployError tool_failed with docker's message."""
    done = call(*arguments, timeout=timeout, given=given)
    if done.returncode:
        raise DeployError("tool_failed", f"docker {' '.join(arguments[:2])}: {last_line(done.stderr)}")
    return done.stdout


def away(message: str) -> bool:
    """Whether docker's message only means that Docker is unreachable, and says nothing about the request."""
    return bool(_AWAY.search(message))


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no error message")


def labels_of(kind: str, item: dict[str, Any]) -> dict[str, str]:
    """The labels of an inspected object, which each kind keeps somewhere else."""
    if kind == "container":
        item = item.get("Config") or {}
    elif kind in ("service", "config", "secret"):
        item = item.get("Spec") or {}
    return item.get("Labels") or {}


@dataclass(frozen=True)
class Problem:
    """Something missing on this machine, and the command that fixes it."""

    text: str
    fix: str


def reader_problem() -> Problem | None:
    """Why the docker command cannot read compose files (`docker stack config`); None if it can."""
    program = shutil.which("docker")
    return _reader_problem(program) if program else Problem("The docker command is not installed.", _INSTALL)


_INSTALL = (
    "Install the Docker CLI 23.0 or newer from Docker's own packages: apt-get install docker-ce-cli (see "
    "https://docs.docker.com/engine/install/; the daemon may be older)."
)


@cache
def _reader_problem(program: str) -> Problem | None:
    done = call("stack", "config", "--help", timeout=60)
    if "docker stack config" in done.stdout:
        return None
    version = call("--version", timeout=60).stdout.strip() or program
    return Problem(f"The docker command is too old to read compose files ({version}).", _INSTALL)
