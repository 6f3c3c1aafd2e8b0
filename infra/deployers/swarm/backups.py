"""Backups according to a recipe's `backupbot.*` labels, as backup-bot-two reads them (docs/deployers.md).

`plan` reads the labels and is pure; `Backups` works on running containers.
"""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.deployers.base import Backup, BackupPart, BackupPlan
from infra.deployers.compose.recipe import Recipe, texts
from infra.deployers.docker import files as container_files
from infra.deployers.docker import tar_manifest
from infra.deployers.docker.files import TooBig
from infra.deployers.docker.tar_manifest import Manifest
from infra.deployers.errors import DeployError, Kind

_PREFIX = "backupbot."
_HOOK_SECONDS = 600.0
_MOST_OUTPUT = 1500


@dataclass(frozen=True)
class Mount:
    """A named volume mounted in a service."""

    key: str  #: the volume's name in the compose file
    source: str  #: its name in Docker
    target: str  #: where it is mounted


#: What the last part of an image's name says of a database, in front of a tag, a hyphen or the end.
_DATABASES = (
    *("postgres", "postgresql", "postgis", "timescaledb", "pgvector", "mariadb", "mysql", "percona", "mongo", "mongodb"),
    *("couchdb", "redis", "valkey", "keydb", "cassandra", "scylla", "influxdb", "clickhouse", "neo4j", "arangodb"),
    *("rethinkdb", "cockroach", "elasticsearch", "opensearch", "meilisearch", "typesense", "solr", "etcd", "surrealdb"),
    *("dgraph", "victoria", "prometheus"),
)
_IS_DATABASE = re.compile(rf"(?:.*[_.-])?(?:{'|'.join(_DATABASES)})(?:[_.-].*)?", re.DOTALL)
#: The labels that are obeyed; `*` stands for the name of a volume.
_OBEYED = re.compile(
    r"backupbot\.(?:backup|backup\.path|backup\.(?:pre|post)-hook|restore\.(?:pre|post)-hook|backup\.volumes\.[^.]+(?:\.path)?)"
)


@dataclass(frozen=True)
class Labelled:
    """A service's properties that matter for backups."""

    name: str
    labels: Mapping[str, str]
    mounts: Sequence[Mount]
    image: str = ""
    covered: Sequence[str] = ()  #: where something else is mounted: configs, secrets, what lives in memory
    lost: Sequence[str] = ()  #: where Docker makes a new, empty volume for each task

    def beside(self, path: str) -> list[str]:
        """The mounts below a path of the service."""
        whole, below = path.rstrip("/"), f"{path.rstrip('/')}/"
        found = (*(mount.target for mount in self.mounts), *self.covered)
        return [target for target in found if target.startswith(below) and target.rstrip("/") != whole]

    def losing(self, made: Sequence[str]) -> Labelled:
        """The same service, whose image has Docker create volumes at the paths `made` (`VOLUME`)."""
        taken = {target.rstrip("/") for target in (*self.covered, *(mount.target for mount in self.mounts))}
        return replace(self, lost=sorted({*self.lost, *(path for path in made if path.rstrip("/") not in taken)}))

    @property
    def database(self) -> bool:
        """Whether its image is a database's, judging by its name."""
        name = self.image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()
        return bool(_IS_DATABASE.fullmatch(name[:200]))

    @property
    def wanted(self) -> bool:
        return self.labels.get("backupbot.backup", "").strip().lower() == "true"

    def hook(self, when: str) -> str:
        """The command of `backup.pre-hook`, `restore.post-hook` …; empty without one."""
        return self.labels.get(_PREFIX + when, "").strip()


def labelled(spec: Mapping[str, Any], stack: str, names: Mapping[str, str]) -> Labelled:
    """Read an inspected service's spec. `names`: the compose names of volumes with a different name in Docker.

    Labels of the container count unless `deploy.labels` override them.
    """
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    both = {**(container.get("Labels") or {}), **(spec.get("Labels") or {})}
    mounts = [
        Mount(names.get(mount["Source"], str(mount["Source"]).removeprefix(f"{stack}_")), str(mount["Source"]), mount["Target"])
        for mount in container.get("Mounts") or []
        if mount.get("Type") == "volume" and mount.get("Source")
    ]
    labels = {key: str(value) for key, value in both.items() if key.startswith(_PREFIX)}
    others = [mount for mount in container.get("Mounts") or [] if not (mount.get("Type") == "volume" and mount.get("Source"))]
    files = [str((file.get("File") or {}).get("Name")) for kind in ("Configs", "Secrets") for file in container.get(kind) or []]
    covered = [str(mount["Target"]) for mount in others]
    covered += [name if name.startswith("/") else f"/run/secrets/{name}" for name in files]
    anonymous = [str(mount["Target"]) for mount in others if mount.get("Type") == "volume"]
    name, image = str(spec["Name"]).removeprefix(f"{stack}_"), str(container.get("Image") or "")
    return Labelled(name, labels, mounts, image, covered, anonymous)


def of_recipe(recipe: Recipe) -> Iterator[Labelled]:
    """The same from a recipe's document, before anything runs."""
    for name, service in recipe.services.items():
        both = {**texts(service.get("labels")), **recipe.labels(name)}
        mounts = [
            Mount(str(mount["source"]), str(mount["source"]), str(mount.get("target") or ""))
            for mount in service.get("volumes") or []
            if mount.get("type") == "volume" and mount.get("source")
        ]
        labels = {key: text for key, text in both.items() if key.startswith(_PREFIX)}
        lost = [str(mount.get("target") or "") for mount in service.get("volumes") or [] if _anonymous(mount)]
        yield Labelled(name, labels, mounts, str(service.get("image") or ""), lost=lost)


def _anonymous(mount: Mapping[str, Any]) -> bool:
    return mount.get("type") == "volume" and not mount.get("source")


def plan(services: Sequence[Labelled]) -> BackupPlan:
    """The parts that the labels back up: each volume once, even if several services mount it.

    The older label `backupbot.backup.path`, if alone, selects these paths and nothing else.
    """
    result = BackupPlan(
        wanted=[service.name for service in services if service.wanted],
        hooked=[service.name for service in services if service.wanted and service.hook("backup.pre-hook")],
        loading=[service.name for service in services if service.wanted and service.hook("restore.post-hook")],
        databases=[service.name for service in services if service.database],
        lost=[f"{service.name}:{path}" for service in services for path in service.lost],
    )
    result.dumped = [name for name in result.hooked if name in result.loading]
    seen: dict[tuple[str, str], None] = {}
    left_out: set[str] = set()
    for service in services:
        result.unknown += [f"{key} of {service.name}" for key in sorted(service.labels) if not _OBEYED.fullmatch(key)]
        if not service.wanted:
            continue
        hook, problems = service.hook("backup.pre-hook"), len(result.problems)
        older = _split(service.labels.get("backupbot.backup.path", ""))
        by_volume = any(key.startswith("backupbot.backup.volumes.") for key in service.labels)
        for mount in service.mounts if by_volume or not older else ():
            label = f"backupbot.backup.volumes.{mount.key}"
            if service.labels.get(label, "").strip().lower() == "false":
                left_out.add(mount.source)
                continue
            paths = _split(service.labels.get(f"{label}.path", ""))
            for path in paths or [""]:
                inside = _inside(path)
                if inside is None:
                    result.problems.append(f"{label}.path of {service.name} points outside the volume: {path}")
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
                result.problems.append(f"backupbot.backup.path of {service.name} is not an absolute path: {path}")
                continue
            where = "/" + path.strip("/")
            above = [m for m in service.mounts if f"{where}/".startswith(f"{m.target.rstrip('/')}/")]
            home = max(above, key=lambda mount: len(mount.target), default=None)
            if home and (home.source, where.removeprefix(home.target.rstrip("/")).strip("/")) in seen:
                continue
            part = BackupPart(service.name, where, home.key if home else "", _like_dump(where, hook))
            result.parts.append(part)
            result.sources[part] = "backupbot.backup.path"
        result.problems += _unknown(service)
        has = {mount.source for mount in service.mounts}
        mine = any(part.service == service.name for part in result.parts) or any(source in has for source, _ in seen)
        # One with hooks does its part for what others save.
        hooks = any(key.endswith("-hook") for key in service.labels)
        if not mine and not hooks and len(result.problems) == problems:
            why = "all its volumes are excluded" if has else "it has no volume"
            result.problems.append(f"backupbot.backup=true of {service.name} backs up nothing: {why}")
    if result.wanted and not result.parts and not result.problems:
        result.problems.append(f"backupbot.backup=true of {', '.join(result.wanted)} backs up nothing")
    saved = {part.volume for part in result.parts}
    # Of what is dumped the dump is the backup.
    everywhere = {mount.source: mount.key for one in services if one.name not in result.hooked for mount in one.mounts}
    hooked = {mount.source for one in services if one.name in result.hooked for mount in one.mounts}
    rest = {source: key for source, key in everywhere.items() if key not in saved}
    result.left_out = sorted({key for source, key in rest.items() if source in left_out - hooked})
    result.unsaved = sorted({key for source, key in rest.items() if source not in left_out})
    return result


def _unknown(service: Labelled) -> list[str]:
    """Labels for volumes that the service does not have: they would silently back up nothing."""
    start, keys = "backupbot.backup.volumes.", {mount.key for mount in service.mounts}
    wanted = [
        key.removeprefix(start).removesuffix(".path") for key in service.labels if key.startswith(start) and key.endswith(".path")
    ]
    return [
        f"{start}{key}.path of {service.name} names a volume that the service does not have" for key in wanted if key not in keys
    ]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _inside(path: str) -> str | None:
    """A normalized path below a volume; None if it leads outside."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def _like_dump(path: str, hook: str) -> bool:
    """Whether a path is probably a file that the pre-hook writes. Only its result shows for certain."""
    name = path.rpartition("/")[2]
    return bool(hook) and ("." in name.lstrip(".") or name in hook)


class Backups:
    """Creates and restores backups of one deployment.

    `container` returns the id of a service's running container, `execute` runs a command in it (exit code, output), `report` is
    called with each step, `check` raises if the run has to stop. No part may exceed `most` bytes.
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
        """Run pre-hooks, copies and post-hooks; post-hooks also after a failed copy, since they clean up. Raises DeployError."""
        if self._plan.problems:
            raise DeployError("backup_failed", f"The backup labels cannot be applied: {'; '.join(self._plan.problems)}.")
        folder.mkdir(parents=True, exist_ok=True)
        before = {part for part in self._plan.parts if self._hooked(part) and self._entry(part)}
        printed = self._hooks("backup.pre-hook", "backup_failed")
        try:
            parts = self._copy(folder, before)
        except BaseException:
            self._hooks("backup.post-hook", "")
            raise
        self._hooks("backup.post-hook", "backup_failed")
        written = [part for part, asked in zip(parts, self._plan.parts, strict=True) if asked not in before]
        return Backup(folder, parts, written, printed)

    def restore(self, backup: Backup) -> None:
        """Run pre-hooks, restore the parts, run post-hooks. Raises DeployError."""
        self._hooks("restore.pre-hook", "restore_failed")
        for part in backup.parts:
            self._check()
            self._report(f"Restoring {part.service}:{part.path}")
            try:
                container_files.unpack(
                    self._container(part.service), part.path, _holds_folder(backup.file(part)), backup.file(part)
                )
            except DeployError as error:
                message = f"{part.path} of {part.service} could not be restored: {error.message}"
                raise DeployError("restore_failed", message, error.fix) from error
        self._hooks("restore.post-hook", "restore_failed")

    def overwritten(self, backup: Backup, look: Callable[[str, str], Manifest | None]) -> list[str]:
        """The saved files that now differ, as `service:path`. `look` reads a path of a volume (Docker's name)."""
        found = []
        for part in backup.parts:
            if part.dump:
                continue
            self._check()
            service = next(service for service in self._services if service.name == part.service)
            home = next((mount for mount in service.mounts if mount.key == part.volume), None)
            inside = part.path.removeprefix(home.target.rstrip("/")).strip("/") if home else ""
            now = look(home.source, inside or ".") if home else None
            beside = service.beside(part.path)
            folder = _holds_folder(backup.file(part))
            for path, line in tar_manifest.of_file(backup.file(part)).lines.items():
                where = f"{part.path.rstrip('/')}/{path}" if folder else part.path
                if line.kind != "file" or any(f"{where}/".startswith(f"{target}/") for target in beside):
                    continue  # what is mounted there is a part of its own, or nobody's data
                current = now.lines.get(path) if now else None
                # One that the app took away when it stopped marks that it runs (a lock, a process id).
                if now is None or (current and (current.kind, current.content) != ("file", line.content)):
                    found.append(f"{part.service}:{where}")
        return found

    def owners(self, backup: Backup) -> set[str]:
        """The volumes (Docker's names) that a backup was taken from."""
        keys = {part.volume for part in backup.parts}
        return {mount.source for service in self._services for mount in service.mounts if mount.key in keys}

    def _copy(self, folder: Path, before: set[BackupPart]) -> list[BackupPart]:
        result, files = [], []
        for number, part in enumerate(self._plan.parts):
            self._check()
            self._report(f"Backing up {part.service}:{part.path}")
            entry = self._entry(part)
            if entry is None:
                raise DeployError(
                    "backup_failed",
                    f"{part.service} has no {part.path} to back up, which {self._plan.sources[part]} asks for"
                    f"{', not even after its pre-hook' if self._hooked(part) else ''}.",
                    "Correct the label, or have the pre-hook write it.",
                )
            file = folder / f"{number:02}-{part.service}.tar"
            try:
                container_files.pack(self._container(part.service), part.path, entry.folder, file, self._most)
            except TooBig as error:
                message = f"{part.path} of {part.service} is larger than the run's limit of {self._most >> 20} MB."
                raise DeployError("backup_failed", message, "Exclude the volume, or raise the run's limit.") from error
            # What is there in the end decides: a file beside a pre-hook is its dump, and a folder when the hook made it.
            dump = self._hooked(part) and (part not in before if entry.folder else True)
            result.append(replace(part, dump=dump and self._plan.sources[part].endswith("path")))
            files.append(file)
        made = Backup(folder, result)
        assert [made.file(part) for part in result] == files
        return result

    def _hooked(self, part: BackupPart) -> bool:
        return any(service.name == part.service and service.hook("backup.pre-hook") for service in self._services)

    def _entry(self, part: BackupPart) -> container_files.Entry | None:
        return container_files.entry_at(self._container(part.service), part.path)

    def _hooks(self, when: str, kind: Kind | str) -> dict[str, str]:
        """Run a hook of every service that has it. Returns the end of what each printed, by service.

        With an empty `kind` failures are ignored: another error is being raised.
        """
        printed = {}
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
            printed[service.name] = message = output.strip()[-_MOST_OUTPUT:]
            if code and kind in ("backup_failed", "restore_failed"):
                ended = "could not be run" if code < 0 else f"failed with exit code {code}"
                raise DeployError(
                    "backup_failed" if kind == "backup_failed" else "restore_failed",
                    f"backupbot.{when} of {service.name} {ended} after {time.monotonic() - started:.1f} "
                    f"s{': ' + message if message else ', without output.'}",
                    "Try the hook's command inside the container.",
                )
        return printed


def _holds_folder(file: Path) -> bool:
    """Whether a tar written by `pack` contains a folder: its first entry is then `./`."""
    with tarfile.open(file) as archive:
        first = archive.next()
    return first is not None and first.isdir()
