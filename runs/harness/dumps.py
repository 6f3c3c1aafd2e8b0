"""Whether a database's dump is complete: `backup create` of any tool succeeds with one that was cut short, too."""

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

from infra.deployers import children, sandbox, trees

#: A dump of a test's database is small; what unfolds to more is not read to its end.
BIGGEST = 128 << 20
_TOOL_SECONDS = 30.0
_TAIL = 4096

_PACKED: tuple[tuple[str, bytes, str, Callable[[io.BytesIO], Any]], ...] = (
    (".gz", b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file)),
    (".bz2", b"BZh", "bzip2", bz2.BZ2File),
    (".xz", b"\xfd7zXZ\x00", "xz", lzma.LZMAFile),
)
#: Dumps as text: how they begin, and how the last lines of a complete one read.
_TEXTS = (
    ("pg_dumpall", (b"-- PostgreSQL database cluster dump",), b"-- PostgreSQL database cluster dump complete"),
    ("pg_dump", (b"-- PostgreSQL database dump",), b"-- PostgreSQL database dump complete"),
    ("mysqldump", (b"-- MySQL dump", b"-- MariaDB dump"), b"-- Dump completed"),
    ("sqlite3 .dump", (b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;",), b"COMMIT;"),
)


class _Incomplete(Exception):
    """The dump cannot be what it should be."""


def problem(path_name: str, data: bytes, newer_than: float, mtime: float) -> str:
    """Why the file `path_name` with this content is no complete dump; empty when nothing speaks against it.

    `newer_than` and `mtime` are seconds since the epoch; whole seconds count, since a tar file keeps no more. What was
    looked at depends on the format: `evidence` says it.
    """
    name = os.path.basename(path_name)  # noqa: PTH119 - a path of another machine
    if int(mtime) < int(newer_than):
        return f"{name} is older than the run, so it was not written by this backup."
    try:
        _look(name, data)
    except _Incomplete as error:
        return f"{name} {error}."
    return ""


def evidence(path_name: str, data: bytes) -> str:
    """What `problem` could see of a dump in which it found none, in words for the report."""
    try:
        return _look(path_name, data)
    except _Incomplete as error:
        return str(error)


def _look(name: str, data: bytes) -> str:
    if not data:
        raise _Incomplete("is empty")
    for ending, magic, kind, reader in _PACKED:
        if data.startswith(magic):
            inner = _unpacked(data, kind, reader)
            return f"{kind}, read through; inside: {_content(inner)}"
        if name.endswith(ending):
            raise _Incomplete(f"is no {kind} file, though it is named like one")
    return _content(data)


def _unpacked(data: bytes, kind: str, reader: Callable[[io.BytesIO], Any]) -> bytes:
    """The whole content. Reading to the end checks its checksums."""
    content = bytearray()
    try:
        with reader(io.BytesIO(data)) as file:
            while block := file.read(1 << 20):
                content += block
                if len(content) > BIGGEST:
                    raise _Incomplete(f"unfolds to more than {BIGGEST >> 20} MB, so it was not read to its end")
    except MemoryError as error:
        raise _Incomplete(f"is a {kind} file that takes more memory to unpack than there is for it") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise _Incomplete(f"is a {kind} file that is cut short or damaged: {error}".rstrip(".")) from error
    if not content:
        raise _Incomplete("holds nothing")
    return bytes(content)


def _content(data: bytes) -> str:
    if data.startswith(b"PGDMP"):
        return _postgres_custom(data)
    if data.startswith(b"SQLite format 3\0"):
        return _sqlite(data)
    if data[257:262] == b"ustar":
        return _tar(data)
    head, tail = data[:_TAIL], data[-_TAIL:]
    for tool, starts, end in _TEXTS:
        if any(start in head for start in starts):
            if end not in tail:
                raise _Incomplete(f"is a dump of {tool} without its last line ({end.decode()}), so it was cut short")
            return f"a dump of {tool} with its last line"
    return "a format that is not known here: it is not empty, and nothing more was looked at"


def _sqlite(data: bytes) -> str:
    """A database file: its header says how many pages there are (https://www.sqlite.org/fileformat2.html#the_database_header)."""
    if len(data) < 100:
        raise _Incomplete("is an SQLite database without a whole header, so it was cut short")
    [size] = struct.unpack(">H", data[16:18])
    size = 65536 if size == 1 else size
    changed, pages, valid_for = (struct.unpack(">I", data[at : at + 4])[0] for at in (24, 28, 92))
    if changed == valid_for and len(data) < size * pages:
        raise _Incomplete(f"is an SQLite database of {pages} pages, of which {len(data) // max(size, 1)} are there")
    return "an SQLite database with all its pages"


def _tar(data: bytes) -> str:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            names = [member.name for member in archive]
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise _Incomplete(f"is a tar file that is cut short or damaged: {error}") from error
    if not data.endswith(bytes(1024)):
        raise _Incomplete("is a tar file without its end, so it was cut short")
    return f"a tar file of {len(names)} entries with its end"


def _postgres_custom(data: bytes) -> str:
    """The custom format of pg_dump, read through by pg_restore in a sandbox, for the file is a stranger's.

    `pg_restore -l` reads the table of contents only, which stands at the beginning: it is content with a file cut in half.
    So everything is turned into SQL, which goes nowhere.
    """
    tool = _pg_restore()
    if not tool or not sandbox.available().ok:
        return "the custom format of pg_dump, of which only the beginning was looked at: there is no pg_restore in a sandbox here"
    folder = Path(tempfile.mkdtemp(prefix="cc-ci-dump-"))
    place = sandbox.Sandbox(
        f"ccci-{os.urandom(6).hex()}-dump", bubblewrap=True, mounts={"/dump": folder / "dump"}, memory_mb=512, processes=16
    )
    try:
        (folder / "dump").write_bytes(data)
        (folder / "dump").chmod(0o644)  # the sandbox has another uid; the folder is ours alone
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
    said = output.decode(errors="replace").strip()
    if "unsupported version" in said:
        return "the custom format of a newer pg_dump, of which only the beginning was looked at"
    if box.returncode:
        last = said.splitlines()[-1][:300] if said else f"exit code {box.returncode}"
        raise _Incomplete(f"is no dump that pg_restore can read: {last}")
    return "the custom format of pg_dump, read through by pg_restore"


def _pg_restore() -> str:
    """The program itself: Debian's /usr/bin/pg_restore is a script that needs more than a sandbox has."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_restore"), key=lambda path: (len(path.parts[4]), path.parts[4]))
    return str(found[-1]) if found else shutil.which("pg_restore") or ""
