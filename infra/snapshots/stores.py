"""Stores for snapshots: a folder on the server, or a restic repository. A snapshot in one is a folder with a bundle of files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from infra.config import secret_refs
from infra.config.schema import Store as Declared
from infra.config.secret_refs import Unresolved
from infra.deployers.isolation import children

_PARTIAL = ".partial-"
RESTIC_SECONDS = 3600.0
#: The end of what restic prints, which is what counts: before it a backup tells how far it is, again and again.
_MOST_OUTPUT = 64 << 20


class StoreError(Exception):
    """The store operation failed; the message says why, and what to do."""


class Store(ABC):
    """A place for snapshots. `check` is called during long operations, and may abort them by raising."""

    @abstractmethod
    def put(self, name: str, fill: Callable[[Path], None], check: Callable[[], None]) -> str:
        """Store what `fill` writes into a folder under `name`, atomically. Returns the location. Raises StoreError, OSError."""

    @abstractmethod
    def get(self, location: str, check: Callable[[], None]) -> AbstractContextManager[Path]:
        """A folder with the snapshot's files, to read from. Raises StoreError."""

    @abstractmethod
    def locations(self, app: str = "*") -> list[str]:
        """Locations of the snapshots whose names begin with `app/`, or of all apps' snapshots. Raises StoreError."""

    @abstractmethod
    def peek(self, location: str, names: Collection[str], check: Callable[[], None]) -> dict[str, bytes]:
        """Small files of a snapshot, by name, if it has them; reads no others. Raises StoreError."""

    @abstractmethod
    def drop(self, location: str) -> None:
        """Delete a snapshot; a missing one is not an error. Raises StoreError."""

    @abstractmethod
    def free(self) -> int | None:
        """Free bytes; None if unknown."""

    @abstractmethod
    def reach(self, seconds: float) -> None:
        """Raises StoreError if the store cannot be used, or does not answer in this time."""


class FolderStore(Store):
    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, fill: Callable[[Path], None], check: Callable[[], None]) -> str:
        if not self.root.is_dir():
            raise StoreError(_no_folder(self.root))
        target = self.root / name
        partial = target.with_name(f"{_PARTIAL}{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for rest in (partial, target):  # left by a worker that was killed
            shutil.rmtree(rest, ignore_errors=True)
        partial.mkdir(mode=0o700)
        try:
            fill(partial)
            for path in (*partial.iterdir(), partial):
                _sync(path)
            partial.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return name

    @contextmanager
    def get(self, location: str, check: Callable[[], None]) -> Iterator[Path]:
        folder = self.root / location
        if not folder.is_dir():
            raise StoreError(f"The snapshot {location} is not in {self.root}.")
        yield folder

    def locations(self, app: str = "*") -> list[str]:
        if not self.root.is_dir():
            raise StoreError(_no_folder(self.root))
        found = [path for path in self.root.glob(f"{app}/*") if path.is_dir() and not path.name.startswith(_PARTIAL)]
        return sorted(str(path.relative_to(self.root)) for path in found)

    def peek(self, location: str, names: Collection[str], check: Callable[[], None]) -> dict[str, bytes]:
        with self.get(location, check) as folder:
            return _files(folder, names)

    def drop(self, location: str) -> None:
        path = (self.root / location).resolve()
        if path.is_relative_to(self.root.resolve()) and path != self.root.resolve():
            shutil.rmtree(path, ignore_errors=True)

    def free(self) -> int | None:
        try:
            return shutil.disk_usage(self.root).free
        except OSError:
            return 0

    def reach(self, seconds: float) -> None:
        if not self.root.is_dir():
            raise StoreError(f"the folder {self.root} does not exist")
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StoreError(f"{self.root} is not writable")


def _no_folder(root: Path) -> str:
    return f"The store's folder {root} does not exist. Is its disk mounted? Else create it: install -d -m 700 {root}"


def _files(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    except OSError as error:
        raise StoreError(f"Cannot read the snapshot in {folder}: {error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ResticStore(Store):
    """A restic repository. `scratch` is a local folder for data on its way in and out."""

    def __init__(self, repository: str, password: str, scratch: Path) -> None:
        self.repository, self._password, self.scratch = repository, password, scratch

    def put(self, name: str, fill: Callable[[Path], None], check: Callable[[], None]) -> str:
        self.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="put-") as folder:
            bundle = Path(folder) / "bundle"
            bundle.mkdir(mode=0o700)
            fill(bundle)
            said = self._restic(check, "backup", "--json", "--host=cc-ci", f"--tag={name}", ".", folder=bundle)
        for line in said.splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("message_type") == "summary":
                    return str(row["snapshot_id"])
        raise StoreError("restic reported no snapshot after its backup.")

    def get(self, location: str, check: Callable[[], None]) -> AbstractContextManager[Path]:
        return self._restored(location, check)

    @contextmanager
    def _restored(self, location: str, check: Callable[[], None], *options: str) -> Iterator[Path]:
        self.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="get-") as folder:
            self._restic(check, "restore", location, f"--target={folder}", *options)
            found = next(Path(folder).rglob("bundle.json"), None)  # restic restores below the original path
            if found is None:
                raise StoreError(f"restic's snapshot {location} contains no bundle of cc-ci.")
            yield found.parent

    def locations(self, app: str = "*") -> list[str]:
        said = self._restic(lambda: None, "snapshots", "--json", "--host=cc-ci")
        try:
            rows = json.loads(said) or []
            return [str(row["id"]) for row in rows if any(fnmatch(tag, f"{app}/*") for tag in row.get("tags") or ())]
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"Cannot parse restic's list of snapshots: {error}") from error

    def peek(self, location: str, names: Collection[str], check: Callable[[], None]) -> dict[str, bytes]:
        with self._restored(location, check, *(f"--include={name}" for name in names)) as folder:
            return _files(folder, names)

    def drop(self, location: str) -> None:
        self._restic(lambda: None, "forget", location)

    def free(self) -> int | None:
        return None

    def reach(self, seconds: float) -> None:
        self._restic(lambda: None, "cat", "config", "--no-lock", "--no-cache", seconds=seconds)

    def _restic(
        self, check: Callable[[], None], *arguments: str, folder: Path | None = None, seconds: float = RESTIC_SECONDS
    ) -> str:
        env = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME") or key.startswith(("AWS_", "B2_"))}
        env |= {"RESTIC_PASSWORD": self._password, "RESTIC_REPOSITORY": self.repository, "LC_ALL": "C"}
        try:
            done = children.run(
                ["restic", *arguments], env=env, cwd=folder, seconds=seconds, check=check, memory_mb=0, last=_MOST_OUTPUT
            )
        except FileNotFoundError as error:
            raise StoreError("restic is not installed: apt-get install restic") from error
        except children.TooLong as error:
            raise StoreError(f"restic {arguments[0]} timed out after {seconds:g} s.") from error
        if done.code:
            lines = done.err.decode(errors="replace").strip().splitlines()
            raise StoreError(f"restic {arguments[0]}: {lines[-1] if lines else f'exit code {done.code}'}")
        return done.out.decode(errors="replace")


def open_store(declared: Declared, folder: Path, scratch: Path) -> Store:
    """The store as declared in infra.yml; `folder` is the folder of that file. Raises StoreError."""
    if declared.folder:
        return FolderStore(Path(declared.folder))
    try:
        password = secret_refs.resolve(declared.password or "", folder)
    except Unresolved as error:
        raise StoreError(f"The restic repository's password is missing: {error}.") from error
    return ResticStore(declared.restic, password, scratch)
