"""Docker's volumes as tar files and back, through a container that is made and never started: its image needs no program.

Owners, rights, links and times are kept; sockets are not, which mean nothing without the process behind them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from infra.deployers import containers
from infra.deployers.base import DeployError
from infra.deployers.docker_cli import LABEL_APP, LABEL_INSTALLATION, call, docker, last_line
from infra.deployers.engine import ids, inspect
from infra.deployers.manifest import Manifest

_PLACE = "/cc-ci-volume"
#: On what is made only for the moment, so that a killed worker's rest is known.
LABEL_SCRATCH = "cc-ci.scratch"


@dataclass(frozen=True)
class Volume:
    """How a volume was made, to make it again."""

    name: str
    driver: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "driver": self.driver, "options": dict(self.options), "labels": dict(self.labels)}


def described(names: Sequence[str]) -> list[Volume]:
    """Those volumes that are there, by name."""
    return [
        Volume(item["Name"], item.get("Driver") or "local", item.get("Options") or {}, item.get("Labels") or {})
        for item in inspect("volume", sorted(set(names)))
    ]


class _Told:
    """A stream that calls `check` at each read."""

    def __init__(self, stream: IO[bytes], check: Callable[[], None], copy: IO[bytes] | None = None) -> None:
        self._stream, self._check, self._copy = stream, check, copy

    def read(self, size: int = -1) -> bytes:
        self._check()
        block = self._stream.read(size)
        if self._copy and block:
            self._copy.write(block)
        return block


@dataclass
class Volumes:
    """Copies volumes. `image` is any image of this machine; `check` is called on the way, and may end it by raising."""

    installation: str
    app: str
    image: str
    check: Callable[[], None] = lambda: None
    seconds: float = 3600.0

    def pack(self, volume: str, target: Path) -> Manifest:
        """Write a volume to a tar file: what went into it. Raises DeployError, and OSError when the disk is full."""
        with self._container(volume) as container, target.open("xb") as file:
            manifest = self._read(container, file)
            file.flush()
        return manifest

    def look(self, volume: str) -> Manifest:
        """What is in a volume now."""
        with self._container(volume) as container:
            return self._read(container)

    def replace(self, volume: Volume, source: Path) -> Manifest:
        """Put a tar's content in the place of all that is in a volume, which no container may use: what is there then."""
        if inspect("volume", [volume.name]):
            docker("volume", "rm", volume.name)
        self._make(volume)
        return self._fill(volume.name, source)

    def extracted(self, source: Path) -> Manifest:
        """Unpack a tar into a volume made for it alone, and read that back."""
        name = f"cc-ci-scratch-{uuid.uuid4().hex[:12]}"
        self._make(Volume(name, labels={LABEL_SCRATCH: "true"}))
        try:
            return self._fill(name, source)
        finally:
            call("volume", "rm", "--force", name)

    def sweep(self) -> None:
        """Remove what a killed worker left: containers and volumes made for the moment, of this app."""
        labels = [f"{key}={value}" for key, value in {**self._labels, LABEL_SCRATCH: "true"}.items()]
        if left := ids("container", *labels):
            call("rm", "--force", *left)
        if left := ids("volume", *labels):
            call("volume", "rm", "--force", *left)

    @property
    def _labels(self) -> dict[str, str]:
        return {LABEL_INSTALLATION: self.installation, LABEL_APP: self.app}

    def _make(self, volume: Volume) -> None:
        labels = volume.labels if LABEL_SCRATCH not in volume.labels else {**volume.labels, **self._labels}
        options = [f"--opt={key}={value}" for key, value in volume.options.items()]
        options += [f"--label={key}={value}" for key, value in labels.items()]
        docker("volume", "create", f"--driver={volume.driver}", *options, volume.name)

    def _fill(self, volume: str, source: Path) -> Manifest:
        with self._container(volume) as container:
            with source.open("rb") as file:
                containers.unpack_stream(container, _PLACE, _Told(file, self.check), self.seconds)
            return self._read(container)

    def _read(self, container: str, copy: IO[bytes] | None = None) -> Manifest:
        with containers.stream(container, f"{_PLACE}/.", self.seconds) as stream:
            return Manifest.of_tar(_Told(stream, self.check, copy))  # type: ignore[arg-type]

    @contextmanager
    def _container(self, volume: str) -> Iterator[str]:
        """A container with the volume in it, that is never started."""
        labels = [f"--label={key}={value}" for key, value in {**self._labels, LABEL_SCRATCH: "true"}.items()]
        mount = f"--mount=type=volume,source={volume},target={_PLACE},volume-nocopy"
        done = call("create", "--network=none", *labels, mount, self.image, "true")
        if done.returncode:
            raise DeployError("tool_failed", f"docker create for the volume {volume}: {last_line(done.stderr)}")
        container = done.stdout.strip()
        try:
            yield container
        finally:
            call("rm", "--force", container)
