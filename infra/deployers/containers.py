"""Files of a container, through `docker cp`: tar streams that Docker makes itself, so an image needs neither tar nor a shell.

What is mounted as tmpfs is not to be seen this way: Docker copies from the container's disk and volumes only.
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

from infra.deployers import children
from infra.deployers.base import DeployError
from infra.deployers.docker_cli import environment, last_line

_SECONDS = 600.0
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What lies at a path of a container."""

    folder: bool
    changed: float  #: seconds since 1970
    size: int


class Readable(Protocol):
    """What can be read in blocks."""

    def read(self, size: int = ..., /) -> bytes: ...


class TooBig(Exception):
    """A copy that grew beyond its limit."""


@contextmanager
def _docker(*arguments: str, seconds: float, given: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """`docker` as a stream, which is killed after `seconds`, and when the block is left early."""
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
            raise DeployError("tool_missing", "There is no docker command here.", "Install Docker.") from error
        yield process


def _words(process: subprocess.Popen[bytes]) -> str:
    """What docker complained of, once its output has ended."""
    assert process.stderr
    said = process.stderr.read(8192).decode(errors="replace")
    process.wait(10)
    return last_line(said).removeprefix("Error response from daemon: ") if process.returncode else ""


def look(container: str, path: str, seconds: float = 30.0) -> Entry | None:
    """What is at a path (links followed); None when nothing is. Raises DeployError."""
    with _first(container, path, seconds) as (_, member):
        return Entry(member.isdir(), float(member.mtime), member.size) if member else None


def read(container: str, path: str, most: int, seconds: float = 60.0) -> bytes | None:
    """The first `most` bytes of a file (links followed); None when there is none or it is a folder. Raises DeployError."""
    with _first(container, path, seconds) as (archive, member):
        file = archive.extractfile(member) if archive and member and member.isfile() else None
        try:
            return file.read(most) if file else None
        except (tarfile.TarError, OSError) as error:
            raise DeployError("tool_failed", f"{path} could not be read to its end: {error}.") from error


@contextmanager
def _first(container: str, path: str, seconds: float) -> Iterator[tuple[tarfile.TarFile | None, tarfile.TarInfo | None]]:
    with _docker("cp", "--follow-link", f"{container}:{path}", "-", seconds=seconds) as process:
        assert process.stdout
        try:
            archive = tarfile.open(fileobj=process.stdout, mode="r|")  # noqa: SIM115 - closed with its stream
            member = archive.next()
        except (tarfile.TarError, OSError):
            _absent(path, _words(process))
            yield None, None
            return
        yield archive, member


def _absent(path: str, words: str) -> None:
    """Raise DeployError unless docker's words only mean that nothing is at that path."""
    if "Could not find the file" not in words and "no such file or directory" not in words and "not a directory" not in words:
        raise DeployError("tool_failed", f"docker cp of {path}: {words or 'it gave no archive'}.")


def write(container: str, path: str, data: bytes, seconds: float = 60.0) -> None:
    """Put a file there, owned by root and readable by all. Its folder has to exist. Raises DeployError."""
    folder, _, name = path.rstrip("/").rpartition("/")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, int(time.time())
        archive.addfile(info, io.BytesIO(data))
    packed.seek(0)
    _unpack(container, folder or "/", packed, seconds)


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
        if words := _words(process):
            late = f"it did not end within {seconds:g} s" if time.monotonic() > until else words
            raise DeployError("tool_failed", f"docker cp of {path}: {late}.")


@contextmanager
def stream(container: str, path: str, seconds: float = _SECONDS) -> Iterator[IO[bytes]]:
    """The tar of a path, to be read to its end. Raises DeployError when Docker did not give all of it."""
    until = time.monotonic() + seconds
    with _docker("cp", f"{container}:{path}", "-", seconds=seconds) as process:
        assert process.stdout
        try:
            yield process.stdout
        except tarfile.TarError as error:
            raise DeployError("tool_failed", f"docker cp of {path}: {_words(process) or error}.") from error
        if words := _words(process):
            late = f"it did not end within {seconds:g} s" if time.monotonic() > until else words
            raise DeployError("tool_failed", f"docker cp of {path}: {late}.")


def unpack_stream(container: str, folder: str, source: Readable, seconds: float = _SECONDS) -> None:
    """Unpack a tar into a folder of a container, with owners and rights. Raises DeployError."""
    _unpack(container, folder, source, seconds)


def unpack(container: str, path: str, folder: bool, source: Path, seconds: float = _SECONDS) -> None:
    """Put the content of a tar made by `pack` back to where it was. What was not in it stays. Raises DeployError.

    A folder that has gone is made anew, if the one above it is still there.
    """
    if folder and look(container, path) is None:
        _make_folder(container, path, source, seconds)
    with source.open("rb") as file:
        _unpack(container, path if folder else path.rpartition("/")[0] or "/", file, seconds)


def _make_folder(container: str, path: str, like: Path, seconds: float) -> None:
    """Make a folder with the owner and rights of the first entry of a tar."""
    above, _, name = path.rpartition("/")
    packed = io.BytesIO()
    with tarfile.open(like) as archive, tarfile.open(fileobj=packed, mode="w") as single:
        info = archive.next()
        assert info is not None and info.isdir()
        info.name = name
        single.addfile(info)
    packed.seek(0)
    _unpack(container, above or "/", packed, seconds)


def _unpack(container: str, folder: str, source: Readable, seconds: float) -> None:
    with _docker("cp", "-", f"{container}:{folder}", seconds=seconds, given=True) as process:
        assert process.stdin
        try:
            while block := source.read(_BLOCK):
                process.stdin.write(block)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it says why
        if words := _words(process):
            raise DeployError("tool_failed", f"docker cp to {folder}: {words}.")
