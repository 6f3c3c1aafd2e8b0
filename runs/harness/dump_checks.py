"""Checks whether a database dump is complete: `backup create` of any tool succeeds with a truncated one, too."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.deployers.isolation import bubblewrap, children, trees

#: A dump of a test database is small; larger ones are not read to the end.
BIGGEST = 128 << 20
_TOOL_SECONDS = 30.0
_TAIL = 4096

_PACKED: tuple[tuple[str, bytes, str, Callable[[io.BytesIO], Any]], ...] = (
    (".gz", b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file)),
    (".bz2", b"BZh", "bzip2", bz2.BZ2File),
    (".xz", b"\xfd7zXZ\x00", "xz", lzma.LZMAFile),
)
#: How the names of dumps end, packed or not.
ENDINGS = tuple(
    f".{kind}{packed}" for kind in ("sql", "dump", "dmp", "ldif", "rdb") for packed in ("", *(ending for ending, *_ in _PACKED))
)
#: Text dumps: how they begin, and the last line of a complete one.
_TEXTS = (
    ("pg_dumpall", (b"-- PostgreSQL database cluster dump",), b"-- PostgreSQL database cluster dump complete"),
    ("pg_dump", (b"-- PostgreSQL database dump",), b"-- PostgreSQL database dump complete"),
    ("mysqldump", (b"-- MySQL dump", b"-- MariaDB dump"), b"-- Dump completed"),
    ("sqlite3 .dump", (b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;",), b"COMMIT;"),
)


class _Incomplete(Exception):
    """The dump is not valid."""


def problem(path_name: str, data: bytes, newer_than: float, mtime: float) -> str:
    """Why the file `path_name` with this content is not a complete dump; empty if no problem was found.

    `newer_than` and `mtime`: seconds since the epoch, compared as whole seconds, since tar stores no fractions. What is checked
    depends on the format.
    """
    name = os.path.basename(path_name)  # noqa: PTH119 - a path of another machine
    if int(mtime) < int(newer_than):
        return f"{name} is older than the run, so it was not written by this backup."
    try:
        _check(name, data)
    except _Incomplete as error:
        return f"{name} {error}."
    return ""


def _check(name: str, data: bytes) -> None:
    if not data:
        raise _Incomplete("is empty")
    for ending, magic, kind, reader in _PACKED:
        if data.startswith(magic):
            data = _unpacked(data, kind, reader)
            break
        if name.endswith(ending):
            raise _Incomplete(f"is not a {kind} file, although its name says so")
    _content(data)


def _unpacked(data: bytes, kind: str, reader: Callable[[io.BytesIO], Any]) -> bytes:
    """The whole content. Reading to the end verifies its checksums."""
    content = bytearray()
    try:
        with reader(io.BytesIO(data)) as file:
            while block := file.read(1 << 20):
                content += block
                if len(content) > BIGGEST:
                    raise _Incomplete(f"unpacks to more than {BIGGEST >> 20} MB, so it was not read to the end")
    except MemoryError as error:
        raise _Incomplete(f"is a {kind} file that needs too much memory to unpack") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise _Incomplete(f"is a truncated or damaged {kind} file: {error}".rstrip(".")) from error
    if not content:
        raise _Incomplete("contains nothing")
    return bytes(content)


def _content(data: bytes) -> None:
    """Check what is not packed. Of an unknown format nothing is checked."""
    if data.startswith(b"PGDMP"):
        _postgres_custom(data)
    elif data.startswith(b"SQLite format 3\0"):
        _sqlite(data)
    elif data[257:262] == b"ustar":
        _tar(data)
    else:
        head, tail = data[:_TAIL], data[-_TAIL:]
        for tool, starts, end in _TEXTS:
            if any(start in head for start in starts):
                if end not in tail:
                    raise _Incomplete(f"is a dump of {tool} without its last line ({end.decode()}), so it is truncated")
                break


def _sqlite(data: bytes) -> None:
    """A database file: its header has the number of pages (https://www.sqlite.org/fileformat2.html#the_database_header)."""
    if len(data) < 100:
        raise _Incomplete("is an SQLite database with an incomplete header, so it is truncated")
    [size] = struct.unpack(">H", data[16:18])
    size = 65536 if size == 1 else size
    changed, pages, valid_for = (struct.unpack(">I", data[at : at + 4])[0] for at in (24, 28, 92))
    if changed == valid_for and len(data) < size * pages:
        raise _Incomplete(f"is an SQLite database of {pages} pages, but contains only {len(data) // max(size, 1)}")


def _tar(data: bytes) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            archive.getmembers()
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise _Incomplete(f"is a truncated or damaged tar file: {error}") from error
    if not data.endswith(bytes(1024)):
        raise _Incomplete("is a tar file without its end, so it is truncated")


def _postgres_custom(data: bytes) -> None:
    """Check the custom format of pg_dump with pg_restore, in a sandbox, because the file is untrusted. Without them, or if
    pg_dump was newer, nothing is checked.

    `pg_restore -l` reads only the table of contents at the beginning, and accepts a file cut in half. So everything is converted
    to SQL, which is discarded.
    """
    tool = _pg_restore()
    if not tool or not bubblewrap.available().ok:
        return
    folder = Path(tempfile.mkdtemp(prefix="cc-ci-dump-"))
    place = bubblewrap.Sandbox(
        f"ccci-{os.urandom(6).hex()}-dump", bubblewrap=True, mounts={"/dump": folder / "dump"}, memory_mb=512, processes=16
    )
    try:
        (folder / "dump").write_bytes(data)
        (folder / "dump").chmod(0o644)  # the sandbox has another uid; only we can access the folder
        box = place.spawn([tool, "--file=/dev/null", "/dump"])
        try:
            output = children.collect(box, seconds=_TOOL_SECONDS, last=_TAIL).out
        except children.TooLong as error:
            raise _Incomplete(f"keeps pg_restore busy for more than {_TOOL_SECONDS:g} s") from error
        finally:
            place.end(box)
            if box.stdout:
                box.stdout.close()
    finally:
        trees.remove(folder)
    message = output.decode(errors="replace").strip()
    if box.returncode and "unsupported version" not in message:
        last = message.splitlines()[-1][:300] if message else f"exit code {box.returncode}"
        raise _Incomplete(f"is not a dump that pg_restore can read: {last}")


def _pg_restore() -> str:
    """The binary: Debian's /usr/bin/pg_restore is a script that does not work in a sandbox."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_restore"), key=lambda path: (len(path.parts[4]), path.parts[4]))
    return str(found[-1]) if found else shutil.which("pg_restore") or ""
