"""A container's files, through `docker cp`: Docker itself creates the tar streams, so an image needs no tar or shell.

Files on tmpfs mounts are not visible: Docker copies from the container's disk and volumes only.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from infra.deployers.docker.cli import environment, last_line
from infra.deployers.errors import DeployError
from infra.deployers.isolation import children

_SECONDS = 600.0
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What is at a path of a container."""

    folder: bool
    changed: float  #: seconds since 1970
    size: int


class Readable(Protocol):
    """Anything that can be read in blocks."""

    def read(self, size: int = ..., /) -> bytes: ...


class TooBig(Exception):
    """A copy that exceeded its limit."""


@contextmanager
def _docker(*arguments: str, seconds: float, given: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A `docker` process to stream from or to; killed after `seconds`, or if the block is left early."""
    with ExitStack() as stack:
        try:
            running = children.running(
                ["docker", *arguments],
                env=environment(),
                seconds=seconds,
                stdin=subprocess.PIPE if given else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if given else subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            process = stack.enter_context(running)
        except FileNotFoundError as error:
            raise DeployError("tool_missing", "The docker command is not installed.", "Install Docker.") from error
        yield process


def _error_of(process: subprocess.Popen[bytes]) -> str:
    """Docker's error message, once its output has ended."""
    assert process.stderr
    message = process.stderr.read(8192).decode(errors="replace")
    process.wait(10)
    return last_line(message).removeprefix("Error response from daemon: ") if process.returncode else ""


def entry_at(container: str, path: str, seconds: float = 30.0) -> Entry | None:
    """What is at a path, following links; None if nothing is. Raises DeployError."""
    with _first(container, path, seconds) as (_, member):
        return Entry(member.isdir(), float(member.mtime), member.size) if member else None


def read(container: str, path: str, most: int, seconds: float = 60.0) -> bytes | None:
    """The first `most` bytes of a file, following links; None if it does not exist or is a folder. Raises DeployError."""
    with _first(container, path, seconds) as (archive, member):
        file = archive.extractfile(member) if archive and member and member.isfile() else None
        try:
            return file.read(most) if file else None
        except (tarfile.TarError, OSError) as error:
            raise DeployError("tool_failed", f"{path} could not be read completely: {error}.") from error


@contextmanager
def _first(container: str, path: str, seconds: float) -> Iterator[tuple[tarfile.TarFile | None, tarfile.TarInfo | None]]:
    with _docker("cp", "--follow-link", f"{container}:{path}", "-", seconds=seconds) as process:
        assert process.stdout
        try:
            archive = tarfile.open(fileobj=process.stdout, mode="r|")  # noqa: SIM115 - closed with its stream
            member = archive.next()
        except (tarfile.TarError, OSError):
            _absent(path, _error_of(process))
            yield None, None
            return
        yield archive, member


def _absent(path: str, problem: str) -> None:
    """Raise DeployError unless docker's message only means that nothing is at that path."""
    if (
        "Could not find the file" not in problem
        and "no such file or directory" not in problem
        and "not a directory" not in problem
    ):
        raise DeployError("tool_failed", f"docker cp of {path}: {problem or 'no archive received'}.")


def write(container: str, path: str, data: bytes, seconds: float = 60.0) -> None:
    """Write a file, owned by root and readable by all. Its folder must exist. Raises DeployError."""
    folder, _, name = path.rstrip("/").rpartition("/")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, int(time.time())
        archive.addfile(info, io.BytesIO(data))
    packed.seek(0)
    unpack_stream(container, folder or "/", packed, seconds)


def pack(container: str, path: str, folder: bool, target: Path, most: int, seconds: float = _SECONDS) -> None:
    """Write the tar of a path to `target`: a folder's content as `./…`, a file under its own name.

    Raises TooBig beyond `most` bytes, and DeployError.
    """
    source = f"{path.rstrip('/')}/." if folder else path
    until = time.monotonic() + seconds
    with _docker("cp", "--follow-link", f"{container}:{source}", "-", seconds=seconds) as process, target.open("wb") as file:
        assert process.stdout
        while block := process.stdout.read(_BLOCK):
            most -= len(block)
            if most < 0:
                raise TooBig(path)
            file.write(block)
        if problem := _error_of(process):
            late = f"it did not finish within {seconds:g} s" if time.monotonic() > until else problem
            raise DeployError("tool_failed", f"docker cp of {path}: {late}.")


@contextmanager
def stream(container: str, path: str, seconds: float = _SECONDS) -> Iterator[IO[bytes]]:
    """The tar of a path, to be read to its end. Raises DeployError if Docker did not deliver all of it."""
    until = time.monotonic() + seconds
    with _docker("cp", f"{container}:{path}", "-", seconds=seconds) as process:
        assert process.stdout
        try:
            yield process.stdout
        except tarfile.TarError as error:
            raise DeployError("tool_failed", f"docker cp of {path}: {_error_of(process) or error}.") from error
        if problem := _error_of(process):
            late = f"it did not finish within {seconds:g} s" if time.monotonic() > until else problem
            raise DeployError("tool_failed", f"docker cp of {path}: {late}.")


def unpack(container: str, path: str, folder: bool, source: Path, seconds: float = _SECONDS) -> None:
    """Restore the content of a tar created by `pack`. Files that are not in it are kept. Raises DeployError.

    A missing folder is recreated if its parent still exists.
    """
    if folder and entry_at(container, path) is None:
        _make_folder(container, path, source, seconds)
    with source.open("rb") as file:
        unpack_stream(container, path if folder else path.rpartition("/")[0] or "/", file, seconds)


def _make_folder(container: str, path: str, like: Path, seconds: float) -> None:
    """Create a folder with the owner and permissions of the first entry of a tar."""
    above, _, name = path.rpartition("/")
    packed = io.BytesIO()
    with tarfile.open(like) as archive, tarfile.open(fileobj=packed, mode="w") as single:
        info = archive.next()
        assert info is not None and info.isdir()
        info.name = name
        single.addfile(info)
    packed.seek(0)
    unpack_stream(container, above or "/", packed, seconds)


def unpack_stream(container: str, folder: str, source: Readable, seconds: float = _SECONDS) -> None:
    """Unpack a tar into a folder of a container, with owners and permissions. Raises DeployError."""
    with _docker("cp", "-", f"{container}:{folder}", seconds=seconds, given=True) as process:
        assert process.stdin
        try:
            while block := source.read(_BLOCK):
                process.stdin.write(block)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it says why
        if problem := _error_of(process):
            raise DeployError("tool_failed", f"docker cp to {folder}: {problem}.")
