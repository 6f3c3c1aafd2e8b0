"""Copies Docker volumes to tar files and back, through a container that is never started: its image needs no program.

Owners, permissions, links and times are kept; sockets are not: they mean nothing without their process.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from infra.deployers.docker import files
from infra.deployers.docker.api import ids, inspect
from infra.deployers.docker.cli import call, docker, last_line
from infra.deployers.docker.tar_manifest import Manifest
from infra.deployers.errors import DeployError

_PLACE = "/cc-ci-volume"
#: On what is made only for the moment, so that a killed worker's rest is known.
LABEL_SCRATCH = "cc-ci.scratch"


@dataclass(frozen=True)
class Volume:
    """How a volume was created, to recreate it."""

    name: str
    driver: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "driver": self.driver, "options": dict(self.options), "labels": dict(self.labels)}


def described(names: Sequence[str]) -> list[Volume]:
    """Those of these volumes that exist, by name."""
    return [
        Volume(item["Name"], item.get("Driver") or "local", item.get("Options") or {}, item.get("Labels") or {})
        for item in inspect("volume", sorted(set(names)))
    ]


class _CheckedStream:
    """A stream that calls `check` on each read."""

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
    """Copies volumes. `image`: any image on this machine; `check` is called on the way and may raise to stop."""

    labels: Mapping[str, str]  #: of whose they are, on what is made for the moment
    image: str
    check: Callable[[], None] = lambda: None
    seconds: float = 3600.0

    def pack(self, volume: str, target: Path) -> Manifest:
        """Write a volume to a tar file. Returns its manifest. Raises DeployError, and OSError if the disk is full."""
        with self._container(volume) as container, target.open("xb") as file:
            manifest = self._read(container, file)
            file.flush()
        return manifest

    def manifest(self, volume: str, path: str = ".") -> Manifest | None:
        """The manifest of a volume, or of a path in it, as it is now; None if nothing is there."""
        with self._container(volume) as container:
            where = f"{_PLACE}/{path}"
            if not (entry := files.entry_at(container, where)):
                return None
            return self._read(container, path=f"{path}/." if entry.folder else path)

    def replace(self, volume: Volume, source: Path) -> Manifest:
        """Replace the content of a volume, which no container may use, with a tar's. Returns the new manifest."""
        if inspect("volume", [volume.name]):
            docker("volume", "rm", volume.name)
        self._make(volume)
        return self._fill(volume.name, source)

    def extracted(self, source: Path) -> Manifest:
        """Unpack a tar into a temporary volume and return the manifest read back from it."""
        name = f"cc-ci-scratch-{uuid.uuid4().hex[:12]}"
        self._make(Volume(name, labels={LABEL_SCRATCH: "true"}))
        try:
            return self._fill(name, source)
        finally:
            call("volume", "rm", "--force", name)

    def sweep(self) -> None:
        """Remove this app's temporary containers and volumes that a killed worker left."""
        labels = [f"{key}={value}" for key, value in {**self.labels, LABEL_SCRATCH: "true"}.items()]
        if left := ids("container", *labels):
            call("rm", "--force", "--volumes", *left)
        if left := ids("volume", *labels):
            call("volume", "rm", "--force", *left)

    def _make(self, volume: Volume) -> None:
        labels = volume.labels if LABEL_SCRATCH not in volume.labels else {**volume.labels, **self.labels}
        options = [f"--opt={key}={value}" for key, value in volume.options.items()]
        options += [f"--label={key}={value}" for key, value in labels.items()]
        docker("volume", "create", f"--driver={volume.driver}", *options, volume.name)

    def _fill(self, volume: str, source: Path) -> Manifest:
        with self._container(volume) as container:
            with source.open("rb") as file:
                files.unpack_stream(container, _PLACE, _CheckedStream(file, self.check), self.seconds)
            return self._read(container)

    def _read(self, container: str, copy: IO[bytes] | None = None, path: str = ".") -> Manifest:
        with files.stream(container, f"{_PLACE}/{path}", self.seconds) as stream:
            return Manifest.of_tar(_CheckedStream(stream, self.check, copy))  # type: ignore[arg-type]

    @contextmanager
    def _container(self, volume: str) -> Iterator[str]:
        """A container with the volume mounted, which is never started."""
        labels = [f"--label={key}={value}" for key, value in {**self.labels, LABEL_SCRATCH: "true"}.items()]
        mount = f"--mount=type=volume,source={volume},target={_PLACE},volume-nocopy"
        done = call("create", "--network=none", *labels, mount, self.image, "true")
        if done.returncode:
            raise DeployError("tool_failed", f"docker create for the volume {volume}: {last_line(done.stderr)}")
        container = done.stdout.strip()
        try:
            yield container
        finally:
            call("rm", "--force", "--volumes", container)  # with those that its image had Docker make; named ones stay
