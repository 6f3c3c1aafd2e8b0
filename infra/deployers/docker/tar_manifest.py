"""The manifest of a volume's tar: each path's kind, permissions, owner and SHA-256. Pure, except for reading the stream."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_BLOCK = 1 << 20
_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
}


@dataclass(frozen=True)
class Line:
    """One path of a volume. `content`: a file's SHA-256, a link's target, a device's numbers."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str = ""

    def as_json(self, path: str) -> str:
        return json.dumps([path, self.kind, self.mode, self.uid, self.gid, self.size, self.content], ensure_ascii=True)


@dataclass(frozen=True)
class Manifest:
    """All paths of a volume, relative to it."""

    lines: Mapping[str, Line]

    @property
    def text(self) -> str:
        """One line of JSON for each path, sorted: equal volumes have equal texts."""
        return "".join(f"{self.lines[path].as_json(path)}\n" for path in sorted(self.lines))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(line.size for line in self.lines.values())

    def differences(self, other: Manifest, most: int = 5) -> list[str]:
        """Up to `most` paths that differ in `other`, with the differences."""
        found = []
        for path in sorted(self.lines.keys() | other.lines.keys()):
            mine, theirs = self.lines.get(path), other.lines.get(path)
            if mine == theirs:
                continue
            if mine is None or theirs is None:
                found.append(f"{path} is {'new' if mine is None else 'missing'}")
            else:
                what = [
                    name
                    for name in ("kind", "mode", "uid", "gid", "size", "content")
                    if getattr(mine, name) != getattr(theirs, name)
                ]
                found.append(f"{path} differs in {', '.join(what)}")
            if len(found) == most:
                break
        return found

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Parse what `text` returned. Raises ValueError."""
        rows = [json.loads(line) for line in text.splitlines()]
        return cls({row[0]: Line(*row[1:]) for row in rows})

    @classmethod
    def of_tar(cls, stream: IO[bytes]) -> Manifest:
        """Read a tar to its very end. Raises tarfile.TarError and OSError, also for a truncated one."""
        lines: dict[str, Line] = {}
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                path = _relative(member.name)
                lines[path] = _line(archive, member)
        while stream.read(_BLOCK):
            pass  # what fills up the last block
        return cls(_hard_links(lines))


def _relative(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "."


def _line(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Line:
    kind = _KINDS.get(member.type, "file")
    size, content = 0, ""
    if kind == "file":
        size, content = member.size, _sha256(archive.extractfile(member))
    elif kind in ("link", "hard link"):
        content = member.linkname
    elif kind.endswith("device"):
        content = f"{member.devmajor}:{member.devminor}"
    return Line(kind, member.mode & 0o7777, member.uid, member.gid, size, content)


def _sha256(file: IO[bytes] | None) -> str:
    digest = hashlib.sha256()
    while file and (block := file.read(_BLOCK)):
        digest.update(block)
    return digest.hexdigest()


def _hard_links(lines: dict[str, Line]) -> dict[str, Line]:
    """Gives all hard links of a file the file's content: which of them comes first in a tar, as the file itself, is arbitrary."""
    found = dict(lines)
    for path, line in lines.items():
        if line.kind == "hard link" and (first := lines.get(_relative(line.content))):
            found[path] = Line(first.kind, first.mode, first.uid, first.gid, first.size, first.content)
    return found


def of_file(path: Path) -> Manifest:
    with path.open("rb") as stream:
        return Manifest.of_tar(stream)


def joined(parts: Iterable[tuple[str, Manifest]]) -> str:
    """One SHA-256 over the manifests of several volumes."""
    text = "".join(f"{name} {manifest.sha256}\n" for name, manifest in sorted(parts, key=lambda part: part[0]))
    return hashlib.sha256(text.encode()).hexdigest()
