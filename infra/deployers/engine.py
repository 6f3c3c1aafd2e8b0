"""Docker's own API over its unix socket, for what the docker command cannot do: give a service a whole spec.

The paths and bodies are those of the Engine API 1.41 (`/services/{id}/update`, `/services/create`, `/networks/create`); a path
without a version means the newest that the daemon knows.
"""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from infra.deployers.base import DeployError, connect_unix
from infra.deployers.docker_cli import docker

_SECONDS = 60.0
_UNIX = "unix:///var/run/docker.sock"


def socket_path() -> str:
    """The unix socket of the Docker that the docker command speaks to; empty when it is reached in another way.

    Raises DeployError.
    """
    host = docker("context", "inspect", "--format={{.Endpoints.docker.Host}}").strip()
    return host.removeprefix("unix://") if host.startswith("unix://") else ""


class Connection(http.client.HTTPConnection):
    """HTTP over Docker's unix socket at `path`."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path
        self._seconds = timeout

    def connect(self) -> None:
        self.sock = connect_unix(self._path, self._seconds)


def post(path: str, body: Any, seconds: float = _SECONDS, **query: str) -> Any:
    """POST a body as JSON: the answer. Raises DeployError tool_failed with Docker's own words."""
    where = socket_path()
    if not where:
        raise DeployError(
            "tool_failed",
            "Docker is reached by no unix socket here, so no spec can be given to it.",
            f"Set DOCKER_HOST to {_UNIX}.",
        )
    connection = Connection(where, seconds)
    # A daemon that drips bytes would outlast the socket's own timeout.
    watchdog = threading.Timer(seconds, connection.close)
    watchdog.daemon = True
    watchdog.start()
    asked = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
    try:
        connection.request(
            "POST", f"{path}?{asked}" if asked else path, json.dumps(body), headers={"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
        raise DeployError("tool_failed", f"Docker's socket {where}: {error or type(error).__name__}.") from error
    finally:
        watchdog.cancel()
        connection.close()
    found: Any = None
    with suppress(ValueError):
        found = json.loads(said)
    if answer.status >= 300:
        words = found.get("message", "") if isinstance(found, dict) else said.decode(errors="replace")[:200]
        raise DeployError("tool_failed", f"Docker refused {path} with {answer.status}: {words}")
    return found
