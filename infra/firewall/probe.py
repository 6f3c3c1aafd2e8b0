"""Tests what a container on a run's network path can reach, and cleans up afterwards.

The container's image is empty: the host's Python is mounted into it.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.deployers.docker.api import ids
from infra.deployers.docker.cli import call, docker
from infra.deployers.docker.egress import NOTHING, PREFIX
from infra.deployers.errors import DeployError

LABEL = "cc-ci.doctor"
#: Timeout of each attempt; they run concurrently.
TRY_SECONDS = 2.0
_SECONDS = 30.0
#: A tar archive with no file in it.
_EMPTY_TAR = "\0" * 10240
#: Runs in the container. A closed port counts as reached, too, unless a firewall on the way refused it.
_SCRIPT = """
import json, selectors, socket, sys, time
seconds, targets = json.loads(sys.argv[1])
waiting, found = selectors.DefaultSelector(), []
for number, (address, port) in enumerate(targets):
    six = ":" in address
    try:
        stream = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
        stream.setblocking(False)
        stream.setsockopt(*((socket.IPPROTO_IPV6, 25) if six else (socket.IPPROTO_IP, 11)), 1)
        if stream.connect_ex((address, port)) in (0, 115):
            waiting.register(stream, selectors.EVENT_WRITE, number)
    except OSError:
        pass
until = time.monotonic() + seconds
while waiting.get_map() and (left := until - time.monotonic()) > 0:
    for key, _ in waiting.select(left):
        stream = key.fileobj
        waiting.unregister(stream)
        error = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            told = bool(stream.recvmsg(0, 512, socket.MSG_ERRQUEUE)[1])
        except OSError:
            told = False
        if not error or (error == 111 and not told):
            found.append((key.data, not error))
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Target:
    name: str  #: in words
    address: str
    port: int
    closed_counts: bool = True  #: whether a port that is closed is an answer too


def reached(targets: Sequence[Target], several_machines: bool = False) -> list[Target]:
    """The targets a container reaches from a bridge like a run's (or docker_gwbridge, if runs leave by that).

    Raises DeployError if the test cannot run.
    """
    _clear()
    name = f"cc-ci-doctor-{secrets.token_hex(4)}"
    driver = (
        ("--driver=overlay", "--attachable")
        if several_machines
        else ("--driver=bridge", f"--opt=com.docker.network.bridge.name={PREFIX}{NOTHING}{secrets.token_hex(3)}")
    )
    asked = json.dumps([TRY_SECONDS, [[target.address, target.port] for target in targets]])
    try:
        docker("import", f"--change=LABEL {LABEL}=", "-", name, timeout=_SECONDS, given=_EMPTY_TAR)
        docker("network", "create", f"--label={LABEL}", *driver, name)
        said = docker(
            *("run", "--rm", f"--name={name}", f"--label={LABEL}", f"--network={name}", "--log-driver=none"),
            *("--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--user=65534:65534", "--memory=128m"),
            *(f"--mount=type=bind,source={path},target={path},readonly" for path in _python_folders()),
            *("--entrypoint", str(Path(sys.executable).resolve()), name, "-I", "-c", _SCRIPT, asked),
            timeout=_SECONDS,
        )
        found = {int(number): bool(is_open) for number, is_open in json.loads(said)}
        return [target for n, target in enumerate(targets) if found.get(n, False) or (n in found and target.closed_counts)]
    except ValueError as error:
        raise DeployError("tool_failed", f"the container's output is invalid: {error}") from error
    finally:
        _clear()


def _python_folders() -> list[str]:
    """The host paths that the Python interpreter needs."""
    wanted = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix]
    return [path for path in dict.fromkeys(wanted) if Path(path).exists() and (path == "/usr" or not path.startswith("/usr"))]


def _clear() -> None:
    """Remove what this test created, or one that was killed. (Docker refuses to remove what another test is using.)"""
    for container in ids("container", LABEL):
        call("rm", "--force", container)
    for network in ids("network", LABEL):
        call("network", "rm", network)
    for image in docker("image", "ls", "--quiet", f"--filter=label={LABEL}").split():
        call("image", "rm", "--force", image)
