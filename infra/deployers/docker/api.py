"""Docker's API over its unix socket: reads state, and does what the docker command cannot (give a service a whole spec).

Polling a stack takes a dozen requests, and starting a command for each takes twenty times as long. Paths and bodies are those of
the Engine API 1.41; a path without a version means the newest that the daemon supports.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra.deployers.docker.cli import docker, reader_problem
from infra.deployers.errors import DeployError
from infra.deployers.probe import TimedConnection, connect_unix

#: What can carry our labels, in the order in which it is removed.
KINDS = ("service", "container", "network", "volume", "config", "secret")
#: Where the API lists each kind, and under which key each has the name by which it is asked for and removed.
_LISTS = {kind: (f"/{kind}s", "ID") for kind in ("service", "config", "secret")} | {
    "container": ("/containers/json", "Id"),
    "network": ("/networks", "Id"),
    "volume": ("/volumes", "Name"),
}
#: What one of a kind is asked for by, where it is not its list's path and the name.
_ONE = {"container": "/containers/{}/json", "image": "/images/{}/json"}
_NOT_THERE = (404,)
#: Of a name that can be no image's, Docker says 400, and of one with `..` in it that it is elsewhere.
_NO_IMAGE = (301, 400, 404)
#: The last states of a task.
_LAST = frozenset({"complete", "shutdown", "failed", "rejected", "remove", "orphaned"})

_SECONDS = 60.0
_MOST = 64 << 20  #: bytes of an answer
_NO_SOCKET, _SET_IT = "Docker is not reached through a unix socket here.", "Set DOCKER_HOST to unix:///var/run/docker.sock."
_JOIN_GROUP = "Type `sudo usermod -aG docker $USER`, and log in again."


def socket_path() -> str:
    """The unix socket of the Docker that the docker command uses; empty if it uses another transport.

    Raises DeployError.
    """
    variables = tuple(os.environ.get(name, "") for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "HOME"))
    config = Path(variables[2] or Path(variables[3], ".docker"), "config.json")
    return _socket_path(variables, config.stat().st_mtime_ns if config.exists() else 0)


@lru_cache(maxsize=8)
def _socket_path(_environment: tuple[str, ...], _changed: int) -> str:
    host = docker("context", "inspect", "--format={{.Endpoints.docker.Host}}").strip()
    return host.removeprefix("unix://") if host.startswith("unix://") else ""


class Connection(TimedConnection):
    """HTTP over Docker's unix socket at `path`."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", partial(connect_unix, path), timeout)


def ids(kind: str, *labels: str) -> list[str]:
    """The ids of all objects of a kind that have all these labels (`key` or `key=value`)."""
    return [str(one[_LISTS[kind][1]]) for one in listed(kind, label=labels)]


def listed(kind: str, **filters: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a kind (also `task`) that match the filters, including stopped containers."""
    path = "/tasks" if kind == "task" else _LISTS[kind][0]
    chosen = {name: list(values) for name, values in filters.items() if values}
    query = {"filters": json.dumps(chosen)} if chosen else {}
    found = get(path, {**query, "all": "1"} if kind == "container" else query)
    if kind == "volume" and isinstance(found, dict):
        found = found.get("Volumes") or []
    if found is None:  # what a filter names has gone meanwhile
        return []
    if not isinstance(found, list):
        raise DeployError("tool_failed", f"Docker's answer to {path} is not a list.")
    return [one for one in found if isinstance(one, dict)]


def has_ended(task: Mapping[str, Any]) -> bool:
    """Whether a task is in one of Swarm's last states: it runs nothing, and never will."""
    return (task.get("Status") or {}).get("State") in _LAST


def inspect(kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The inspected objects; those that no longer exist are left out. Raises DeployError if Docker cannot tell."""
    found = []
    for name in names:
        path = _ONE.get(kind, f"/{kind}s/{{}}").format(quote(name, safe=""))
        if isinstance(one := get(path, missing=_NO_IMAGE if kind == "image" else _NOT_THERE), dict):
            found.append(one)
    return found


def began() -> str:
    """When this Docker was started; empty if that cannot be determined. Raises DeployError if Docker does not answer.

    Docker does not report it, but recreates its network `bridge` at each start, unless it is configured to have none.
    """
    return next((str(network.get("Created", "")) for network in inspect("network", ["bridge"])), "")


def get(path: str, query: Mapping[str, str] | None = None, missing: Sequence[int] = _NOT_THERE) -> Any:
    """GET a path: the parsed JSON; None if it does not exist. Raises DeployError tool_failed."""
    return _asked("GET", path, None, _SECONDS, missing, query or {})


def post(path: str, body: Any, seconds: float = _SECONDS, **query: str) -> Any:
    """POST a body as JSON: the answer. Raises DeployError tool_failed with Docker's message."""
    return _asked("POST", path, body, seconds, (), query)


def remove(kind: str, name: str, **query: str) -> None:
    """Remove one object, which may be gone already. Raises DeployError tool_failed, for example if it is in use."""
    _asked("DELETE", f"/{kind}s/{quote(name, safe='')}", None, _SECONDS, _NOT_THERE, query)


def prune_networks(labels: Iterable[str]) -> None:
    """Remove the networks with all these labels (`key=value`) that nothing uses, those that a swarm left on this node included.

    Docker does one prune at a time, and refuses others meanwhile: whoever needs them gone asks again.
    """
    with suppress(DeployError):
        post("/networks/prune", None, filters=json.dumps({"label": list(labels)}))


def _asked(method: str, path: str, body: Any, seconds: float, missing: Sequence[int], query: Mapping[str, str]) -> Any:
    where = socket_path()
    if not where:
        raise DeployError("tool_failed", _NO_SOCKET, _SET_IT)
    asked = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
    given = None if body is None else json.dumps(body)
    late = f"Docker's socket {where} did not answer {path} within {seconds:g} s."
    with Connection(where, seconds) as connection:
        try:
            connection.request(method, f"{path}?{asked}" if asked else path, given, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body_text = answer.read(_MOST + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            known = late if connection.late or isinstance(error, TimeoutError) else ""
            advice = _JOIN_GROUP if isinstance(error, PermissionError) else ""
            problem = known or f"Docker's socket {where}: {error or type(error).__name__}."
            raise DeployError("tool_failed", problem, advice) from error
        if connection.late:
            raise DeployError("tool_failed", late)
    if len(body_text) > _MOST:
        raise DeployError("tool_failed", f"Docker's answer to {path} is longer than {_MOST >> 20} MB.")
    if answer.length:
        raise DeployError("tool_failed", f"Docker's socket {where} closed the connection before the end of its answer to {path}.")
    if answer.status in missing:
        return None
    start = body_text[:200].decode(errors="replace")
    try:
        found = json.loads(body_text) if body_text or method == "GET" else None
    except (ValueError, RecursionError) as error:
        if answer.status < 300:
            raise DeployError("tool_failed", f"Docker's answer to {path} is not valid JSON: {start}") from error
        found = None
    if answer.status >= 300:
        message = found.get("message", "") if isinstance(found, dict) else start
        raise DeployError("tool_failed", f"Docker refused {path} with {answer.status}: {message}")
    return found


def swarm_problem() -> str:
    """Why there is no Docker Swarm to deploy to; empty if there is one."""
    if problem := reader_problem():
        return f"{problem.text} {problem.fix}"
    try:
        if not socket_path():
            return f"{_NO_SOCKET} {_SET_IT}"
        return _no_manager(_swarm())
    except DeployError as error:
        return f"Docker does not answer: {error}"


def nodes() -> int:
    """How many machines are in the swarm that this Docker manages. Raises DeployError if it manages none."""
    swarm = _swarm()
    if problem := _no_manager(swarm):
        raise DeployError("tool_failed", problem, "Run `docker swarm init`, or see `docker node ls` on a manager.")
    return int(swarm["Nodes"])


def _swarm() -> Mapping[str, Any]:
    info = get("/info")
    swarm = info.get("Swarm") if isinstance(info, dict) else None
    return swarm if isinstance(swarm, dict) else {}


def _no_manager(swarm: Mapping[str, Any]) -> str:
    if swarm.get("LocalNodeState") != "active":
        return "Docker on this host is not part of a swarm."
    if not swarm.get("ControlAvailable"):
        return "Docker on this host is a worker of its swarm, not a manager."
    if not swarm.get("Nodes"):  # as when most managers are away
        return f"Docker on this host manages a swarm that does not answer: {swarm.get('Error', '')}".rstrip(": ") + "."
    return ""
