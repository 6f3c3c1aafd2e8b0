"""Markers: small data written into an app before something happens to it, to see afterwards whether it is still there.

A file in each volume, which every recipe gets, and what the recipe's own hooks `write_marker` and `read_marker` keep in the
app itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from infra.deployers.base import BackupPart, Deployer, DeployError

FILE = ".cc-ci-marker"


@dataclass
class Markers:
    """The marker files of one deployment."""

    deployer: Deployer
    places: list[BackupPart] = field(default_factory=list)  #: where the last `write` got through

    def write(self, parts: Sequence[BackupPart], value: str) -> list[BackupPart]:
        """Put `value` wherever it can be written. Gives the places; a read-only volume, or one file, is no place for it."""
        self.places = []
        for part in parts:
            try:
                self.deployer.write(part.service, path_of(part), value.encode())
            except DeployError:
                continue
            self.places.append(part)
        return self.places

    def lost(self, value: str, parts: Sequence[BackupPart] | None = None) -> list[str]:
        """The places where `value` is not (any more), each with what is there instead."""
        return [problem for part in (self.places if parts is None else parts) if (problem := self._problem(part, value))]

    def _problem(self, part: BackupPart, value: str) -> str:
        try:
            found = self.deployer.read(part.service, path_of(part))
        except DeployError as error:
            return f"{part.service}:{part.path} cannot be read: {error}"
        if found is None:
            return f"in {part.service}:{part.path} it is gone"
        return "" if found == value.encode() else f"in {part.service}:{part.path} it is another one"


def path_of(part: BackupPart) -> str:
    return f"{part.path.rstrip('/')}/{FILE}"
