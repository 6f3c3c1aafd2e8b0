"""A run's volumes, copied into a folder and back into new volumes of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.deployers.base import SavedData, SavedVolume
from infra.deployers.docker.api import inspect
from infra.deployers.docker.stacks import Owned
from infra.deployers.docker.volumes import Volume, Volumes, described
from infra.deployers.errors import DeployError

#: The longest that one volume may take to be copied.
_SECONDS = 600.0


def save(owned: Owned, copies: Volumes, folder: Path, most: int) -> list[SavedVolume]:
    """Copy the volumes, which no service may use, as tar files of at most `most` bytes in all. Raises DeployError and OSError."""
    saved: list[SavedVolume] = []
    for number, volume in enumerate(described(owned.ids("volume"))):
        if volume.driver != "local" or volume.options:
            message = f"The volume {volume.name} has a driver or options of its own: its content alone does not recreate it."
            raise DeployError("not_applicable", message)
        target, room = folder / f"{number:02}.tar", most - sum(one.bytes for one in saved)

        def check(target: Path = target, room: int = room) -> None:
            copies.check()
            if target.exists() and target.stat().st_size > room:
                raise DeployError("not_applicable", f"The volumes hold more than {most >> 20} MB.")

        manifest = replace(copies, check=check, seconds=_SECONDS).pack(volume.name, target)
        check()
        target.chmod(0o600)
        saved.append(SavedVolume(volume.name, target.name, manifest.sha256, target.stat().st_size))
    return saved


def load(data: SavedData, copies: Volumes, labels: Mapping[str, str]) -> None:
    """Make the volumes and fill them. Raises DeployError, also if what is in them then is not what was saved."""
    for saved in data.volumes:
        if inspect("volume", [saved.name]):
            raise DeployError("tool_failed", f"There is a volume {saved.name} already, which is not this run's.")
        manifest = copies.replace(Volume(saved.name, labels=dict(labels)), data.folder / saved.file)
        if manifest.sha256 != saved.sha256:
            raise DeployError("tool_failed", f"The content of the volume {saved.name} is not what was saved.")
