"""Markers: small data written into an app before something happens to it, to check afterwards that it is still there.

There is a file in each volume, for every recipe, and what the recipe's own hooks `write_marker` and `read_marker` keep in the
app itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from infra.deployers.base import BackupPart, Deployer
from infra.deployers.errors import DeployError, NotRunning

FILE = ".cc-ci-marker"


@dataclass
class DataMarkers:
    """The marker files of one deployment."""

    deployer: Deployer
    places: list[BackupPart] = field(default_factory=list)  #: where the last `write` succeeded

    def write(self, parts: Sequence[BackupPart], value: str) -> list[BackupPart]:
        """Write `value` to each volume, at the first part that is writable. Returns the places.

        Skips read-only volumes, single files, and volumes of services that are not running.
        """
        self.places = []
        for part in parts:
            if part.volume and any(place.volume == part.volume and not _apart(place, part) for place in self.places):
                continue
            try:
                self.deployer.write(part.service, path_of(part), value.encode())
            except DeployError:
                continue
            self.places.append(part)
        return self.places

    def lost(self, value: str, parts: Sequence[BackupPart] | None = None) -> list[str]:
        """The places where `value` is missing, each with what is there instead."""
        return [problem for part in (self.places if parts is None else parts) if (problem := self._problem(part, value))]

    def _problem(self, part: BackupPart, value: str) -> str:
        for one in self._ways(part):
            try:
                found = self.deployer.read(one.service, path_of(one))
            except NotRunning:  # a finished job; whether the app runs is checked elsewhere
                continue
            except DeployError as error:
                return f"cannot read {one.service}:{one.path}: {error}".rstrip(".")
            if found is None:
                return f"it is gone from {one.service}:{one.path}"
            return "" if found == value.encode() else f"{one.service}:{one.path} has a different one"
        return ""

    def _ways(self, part: BackupPart) -> Iterator[BackupPart]:
        """The part, then the same place of its volume in other services, determined only when needed."""
        yield part
        for mount in self.deployer.mounts():
            if mount.volume and (mount.volume, mount.path) == (part.volume, part.path):
                yield mount


def _apart(one: BackupPart, other: BackupPart) -> bool:
    """Whether two parts of a volume are different folders, as far as one service shows."""
    return one.service == other.service and one.path != other.path


def path_of(part: BackupPart) -> str:
    return f"{part.path.rstrip('/')}/{FILE}"
