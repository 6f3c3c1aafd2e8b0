"""Backups as a recipe's `backupbot.*` labels ask for them, as backup-bot-two understands these (docs/deployers.md).

`plan` reads the labels and is pure; `Backups` does the work on running containers.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.deployers import containers
from infra.deployers.base import Backup, BackupPart, DeployError, Kind
from infra.deployers.containers import TooBig

_PREFIX = "backupbot."
_HOOK_SECONDS = 600.0
_MOST_OUTPUT = 1500


@dataclass(frozen=True)
class Mount:
    """A named volume where a service has it."""

    key: str  #: the volume's name in the compose file
    source: str  #: its name in Docker
    target: str  #: where it is mounted


@dataclass(frozen=True)
class Labelled:
    """A service with what counts for backups."""

    name: str
    labels: Mapping[str, str]
    mounts: Sequence[Mount]

    @property
    def wanted(self) -> bool:
        return self.labels.get("backupbot.backup", "").strip().lower() == "true"

    def hook(self, when: str) -> str:
        """The command of `backup.pre-hook`, `restore.post-hook` …; empty without one."""
        return self.labels.get(_PREFIX + when, "").strip()


@dataclass
class Plan:
    """What is to be done."""

    parts: list[BackupPart] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  #: labels that cannot be obeyed
    sources: dict[BackupPart, str] = field(default_factory=dict)  #: the label that asked for a path


def labelled(spec: Mapping[str, Any], stack: str, names: Mapping[str, str]) -> Labelled:
    """Read an inspected service's spec. `names` gives the compose names of volumes whose name in Docker is another one.

    Labels of the container count where `deploy.labels` say nothing else.
    """
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    both = {**(container.get("Labels") or {}), **(spec.get("Labels") or {})}
    mounts = [
        Mount(names.get(mount["Source"], str(mount["Source"]).removeprefix(f"{stack}_")), str(mount["Source"]), mount["Target"])
        for mount in container.get("Mounts") or []
        if mount.get("Type") == "volume" and mount.get("Source")
    ]
    labels = {key: str(value) for key, value in both.items() if key.startswith(_PREFIX)}
    return Labelled(str(spec["Name"]).removeprefix(f"{stack}_"), labels, mounts)


def plan(services: Iterable[Labelled]) -> Plan:
    """Which parts the labels ask for: each volume once, though several services may have it.

    The older form `backupbot.backup.path` alone means these paths and nothing else.
    """
    result = Plan()
    seen: dict[tuple[str, str], None] = {}
    for service in services:
        if not service.wanted:
            continue
        hook = service.hook("backup.pre-hook")
        older = _split(service.labels.get("backupbot.backup.path", ""))
        by_volume = any(key.startswith("backupbot.backup.volumes.") for key in service.labels)
        for mount in service.mounts if by_volume or not older else ():
            label = f"backupbot.backup.volumes.{mount.key}"
            if service.labels.get(label, "").strip().lower() == "false":
                continue
            paths = _split(service.labels.get(f"{label}.path", ""))
            for path in paths or [""]:
                inside = _inside(path)
                if inside is None:
                    result.problems.append(f"{label}.path of {service.name} leads out of the volume: {path}")
                    continue
                if (mount.source, inside) in seen:
                    continue
                seen[mount.source, inside] = None
                where = f"{mount.target.rstrip('/')}/{inside}".rstrip("/")
                part = BackupPart(service.name, where, mount.key, bool(inside) and _like_dump(inside, hook))
                result.parts.append(part)
                result.sources[part] = f"{label}.path" if inside else label
        for path in older:
            if not path.startswith("/") or not path.strip("/"):
                result.problems.append(f"backupbot.backup.path of {service.name} is no absolute path: {path}")
                continue
            where = "/" + path.strip("/")
            home = next((m for m in service.mounts if f"{where}/".startswith(f"{m.target.rstrip('/')}/")), None)
            if home and (home.source, where.removeprefix(home.target.rstrip("/")).strip("/")) in seen:
                continue
            part = BackupPart(service.name, where, home.key if home else "", _like_dump(where, hook))
            result.parts.append(part)
            result.sources[part] = "backupbot.backup.path"
        result.problems += _unknown(service)
    return result


def _unknown(service: Labelled) -> list[str]:
    """Paths that are asked for of a volume which the service does not have: nothing would be backed up, silently."""
    start, keys = "backupbot.backup.volumes.", {mount.key for mount in service.mounts}
    wanted = [
        key.removeprefix(start).removesuffix(".path") for key in service.labels if key.startswith(start) and key.endswith(".path")
    ]
    return [f"the label {start}{key}.path of {service.name} names a volume that it has not" for key in wanted if key not in keys]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _inside(path: str) -> str | None:
    """A path below a volume, made plain; None when it leads out of it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def _like_dump(path: str, hook: str) -> bool:
    """Whether a path is likely a file that the pre-hook writes. What it is, is seen when it is there."""
    name = path.rpartition("/")[2]
    return bool(hook) and ("." in name.lstrip(".") or name in hook)


class Backups:
    """Makes and restores backups of one deployment.

    `container` gives the id of a service's running container, `execute` runs a command in it (exit code, output), `report` is
    told the steps, `check` raises when the run shall stop. No part may be bigger than `most` bytes.
    """

    def __init__(
        self,
        services: Sequence[Labelled],
        container: Callable[[str], str],
        execute: Callable[[str, Sequence[str], float], tuple[int, str]],
        report: Callable[[str], None],
        check: Callable[[], None],
        most: int,
    ) -> None:
        self._services = [service for service in services if service.wanted]
        self._plan = plan(services)
        self._container = container
        self._execute = execute
        self._report = report
        self._check = check
        self._most = most

    def backup(self, folder: Path) -> Backup:
        """Pre-hooks, copies, post-hooks; the latter also when a copy failed, since they clean up. Raises DeployError."""
        if self._plan.problems:
            raise DeployError("backup_failed", f"The backup labels ask for what is not there: {'; '.join(self._plan.problems)}.")
        folder.mkdir(parents=True, exist_ok=True)
        before = {part for part in self._plan.parts if self._hooked(part) and self._look(part)}
        self._hooks("backup.pre-hook", "backup_failed")
        try:
            parts = self._copy(folder, before)
        except BaseException:
            self._hooks("backup.post-hook", "")
            raise
        self._hooks("backup.post-hook", "backup_failed")
        return Backup(folder, parts)

    def restore(self, backup: Backup) -> None:
        """Pre-hooks, the parts, post-hooks. Raises DeployError."""
        self._hooks("restore.pre-hook", "restore_failed")
        for part in backup.parts:
            self._check()
            self._report(f"Restoring {part.service}:{part.path}")
            try:
                containers.unpack(self._container(part.service), part.path, _holds_folder(backup.file(part)), backup.file(part))
            except DeployError as error:
                message = f"{part.path} of {part.service} could not be put back: {error.message}"
                raise DeployError("restore_failed", message, error.fix) from error
        self._hooks("restore.post-hook", "restore_failed")

    def _copy(self, folder: Path, before: set[BackupPart]) -> list[BackupPart]:
        result, files = [], []
        for number, part in enumerate(self._plan.parts):
            self._check()
            self._report(f"Backing up {part.service}:{part.path}")
            entry = self._look(part)
            if entry is None:
                raise DeployError(
                    "backup_failed",
                    f"{part.service} has no {part.path} to back up, which {self._plan.sources[part]} asks for"
                    f"{', not even after its pre-hook' if self._hooked(part) else ''}.",
                    "Correct the label, or have the pre-hook write it.",
                )
            file = folder / f"{number:02}-{part.service}.tar"
            try:
                containers.pack(self._container(part.service), part.path, entry.folder, file, self._most)
            except TooBig as error:
                message = f"{part.path} of {part.service} is bigger than the run's limit of {self._most >> 20} MB."
                raise DeployError("backup_failed", message, "Leave the volume out, or raise the run's limit.") from error
            # What is there in the end decides: a file beside a pre-hook is its dump, and a folder when the hook made it.
            dump = self._hooked(part) and (part not in before if entry.folder else True)
            result.append(replace(part, dump=dump and self._plan.sources[part].endswith("path")))
            files.append(file)
        made = Backup(folder, result)
        assert [made.file(part) for part in result] == files
        return result

    def _hooked(self, part: BackupPart) -> bool:
        return any(service.name == part.service and service.hook("backup.pre-hook") for service in self._services)

    def _look(self, part: BackupPart) -> containers.Entry | None:
        return containers.look(self._container(part.service), part.path)

    def _hooks(self, when: str, kind: Kind | str) -> None:
        """Run a hook of every service that has it. An empty `kind` lets a failure pass: another one is on its way."""
        for service in self._services:
            if not (command := service.hook(when)):
                continue
            self._check()
            self._report(f"Running {when} of {service.name}")
            started = time.monotonic()
            try:
                code, output = self._execute(service.name, ["sh", "-c", command], _HOOK_SECONDS)
            except DeployError as error:
                code, output = -1, error.message
            if code and kind in ("backup_failed", "restore_failed"):
                said = output.strip()[-_MOST_OUTPUT:]
                ended = "could not be run" if code < 0 else f"failed with exit code {code}"
                raise DeployError(
                    "backup_failed" if kind == "backup_failed" else "restore_failed",
                    f"backupbot.{when} of {service.name} {ended} after {time.monotonic() - started:.1f} s"
                    f"{': ' + said if said else ', and said nothing.'}",
                    "Try the hook's command inside the container.",
                )


def _holds_folder(file: Path) -> bool:
    """Whether a tar made by `pack` is of a folder: its first entry is then `./`."""
    with tarfile.open(file) as archive:
        first = archive.next()
    return first is not None and first.isdir()
