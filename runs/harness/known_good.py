"""Known-good data: what a full run that passed leaves of its app, for quick runs to start on.

A folder with a tar file for each volume, `secrets.json` while it is in the run's folder (the control plane encrypts it), and
`known-good.json`, which is written last: without it there is nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from infra.deployers.base import Deployer, SavedData, SavedVolume
from infra.deployers.isolation import trees
from runs.harness.protocol import KnownGood, write_atomically

FOLDER = "known-good"
FILE = "known-good.json"
SECRETS = "secrets.json"


class Unusable(Exception):
    """There is no data to start on, or it cannot be used; the message says why."""


class Volume(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    file: str
    sha256: str
    bytes: int


class Description(KnownGood):
    """`known-good.json`. `stack` and `domain` are what the data may refer to, so quick runs use the same."""

    stack: str
    domain: str
    volumes: list[Volume]


def save(deployer: Deployer, target: Path, sha: str, most: int) -> int:
    """Save the data of a run that passed; this stops its app. Returns its bytes. Raises DeployError and OSError."""
    target.mkdir(mode=0o700)
    data, context = deployer.save(target, most), deployer.context
    write_atomically(target / SECRETS, json.dumps(dict(data.secrets)), 0o600)
    description = Description(
        run_id=UUID(context.run_id),
        sha=sha,
        made=datetime.now(UTC),
        stack=context.stack,
        domain=context.domain,
        volumes=[Volume(**asdict(volume)) for volume in data.volumes],
    )
    write_atomically(target / FILE, description.model_dump_json(indent=1), 0o600)
    return sum(volume.bytes for volume in data.volumes)


class Taken:
    """Known-good data in use. Holds a lock until `release`: one run at a time has its stack name, and nobody deletes it."""

    def __init__(self, folder: Path, handle: int, description: Description) -> None:
        self._folder, self._handle, self._description = folder, handle, description

    @property
    def stack(self) -> str:
        return self._description.stack

    @property
    def domain(self) -> str:
        return self._description.domain

    @property
    def origin(self) -> KnownGood:
        return KnownGood.model_validate(self._description.model_dump(include=set(KnownGood.model_fields)))

    def data(self, secrets: Mapping[str, str]) -> SavedData:
        volumes = [SavedVolume(**volume.model_dump()) for volume in self._description.volumes]
        return SavedData(self._folder, volumes, secrets)

    def release(self) -> None:
        os.close(self._handle)


def take(folder: str, seconds: float, check: Callable[[], None]) -> Taken:
    """Wait at most `seconds` until no other run uses this data. Raises Unusable, and what `check` raises."""
    if not folder:
        raise Unusable("This machine has no known-good data of this recipe.")
    path, until = Path(folder), time.monotonic() + seconds
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unusable("The known-good data of this recipe is no longer there.") from error
    try:
        while not _locked(handle):
            check()
            if time.monotonic() > until:
                raise Unusable(f"Other quick runs of this recipe used its known-good data for {seconds:g} s.")
            time.sleep(0.2)
        return Taken(path, handle, read(path))
    except BaseException:
        os.close(handle)
        raise


def read(folder: Path) -> Description:
    """Raises Unusable."""
    try:
        return Description.model_validate_json((folder / FILE).read_text())
    except (OSError, ValueError) as error:
        raise Unusable("The known-good data of this recipe cannot be read, or is no longer there.") from error


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def delete(folder: Path) -> None:
    """Delete data, unless a run uses it. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _locked(handle):
            (folder / FILE).unlink(missing_ok=True)  # first: the rest is nothing without it
            trees.remove(folder)
    finally:
        os.close(handle)
