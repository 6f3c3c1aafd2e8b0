"""Runs git on the forge's bare repositories, isolated from the user's git configuration."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

Files = Mapping[str, "str | bytes | None"]
#: The name of the tree without a file.
EMPTY = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


class GitError(Exception):
    """A git command failed; the text is its output."""


def environment(home: Path) -> dict[str, str]:
    """The complete environment of a git process: no system or user configuration, no prompts, nothing inherited."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run git in a bare repository and return its output. Raises GitError if it fails."""
    done = subprocess.run(
        ["git", f"--git-dir={folder}", *arguments], input=stdin, capture_output=True, env=environment(folder.parent)
    )
    if done.returncode:
        raise GitError(f"git {' '.join(arguments[:2])}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def text(folder: Path, *arguments: str) -> str:
    """The output of git as one stripped string. Raises GitError if it fails."""
    return git(folder, *arguments).decode(errors="replace").strip()


def resolve(folder: Path, ref: str) -> str:
    """The commit that a branch, tag, ref or SHA resolves to, or an empty string."""
    if not ref or ref.startswith("-"):
        return ""
    names = (ref,) if ref.startswith("refs/") else (f"refs/heads/{ref}", f"refs/tags/{ref}", ref)
    if ref.startswith("refs/heads/") and ".." not in ref:  # the common case, without starting a process
        if (folder / ref).is_file():
            return (folder / ref).read_text().strip()
        if not (folder / "packed-refs").exists():
            return ""
    for name in names:
        try:
            return text(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except GitError:
            continue
    return ""


def init(folder: Path) -> None:
    """Create an empty bare repository with branch main that accepts pushes over HTTP."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a change that was killed before it was saved
    for name in ("objects", "refs/heads", "refs/tags"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "config").write_text(
        "[core]\n\trepositoryformatversion = 0\n\tbare = true\n[http]\n\treceivepack = true\n"
        "[uploadpack]\n\tallowAnySHA1InWant = true\n[gc]\n\tauto = 0\n"
    )


def commit(
    folder: Path, branch: str, files: Files, message: str, author: str, at: datetime, *, fresh: bool = False, on: str = ""
) -> str:
    """Add a commit to a branch (created from main if missing, or with `fresh` from nothing) and return its SHA; with `on`,
    create one that follows that commit and is on no branch.

    A file that is None is removed; a shell script or a file that begins with `#!` becomes executable.
    Raises GitError.
    """
    ref = f"refs/heads/{branch}"
    tip = on if on else "" if fresh else resolve(folder, ref) or resolve(folder, "refs/heads/main")
    before = _read(folder, "commit", tip).split(b"\n", 1)[0].removeprefix(b"tree ").decode() if tip else ""
    who = f"{author} <{author}@example.org> {int(at.timestamp())} +0000"
    lines = [f"tree {_changed(folder, before, files)}", *([f"parent {tip}"] if tip else []), f"author {who}", f"committer {who}"]
    sha = _store(folder, "commit", "\n".join([*lines, "", message]).encode())
    if not on:
        point(folder, ref, sha)
    return sha


# Small things are read and written without git: to start it for each takes longer than all else that most tests do.


def _store(folder: Path, kind: str, content: bytes) -> str:
    """Keep an object and return its name."""
    raw = f"{kind} {len(content)}\0".encode() + content
    name = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    _write(folder / "objects" / name[:2] / name[2:], zlib.compress(raw, 1))
    return name


def _read(folder: Path, kind: str, name: str) -> bytes:
    """The content of an object, by its full name."""
    loose = folder / "objects" / name[:2] / name[2:]
    if loose.is_file():
        return zlib.decompress(loose.read_bytes()).partition(b"\0")[2]
    return git(folder, "cat-file", kind, name)


def _changed(folder: Path, tree: str, files: Files) -> str:
    """The tree with these changes."""
    entries: dict[str, tuple[str, str]] = {}
    rest = _read(folder, "tree", tree) if tree else b""
    while rest:
        head, _, rest = rest.partition(b"\0")
        mode, _, name = head.decode().partition(" ")
        entries[name], rest = (mode, rest[:20].hex()), rest[20:]
    below: dict[str, dict[str, str | bytes | None]] = {}
    for path, content in files.items():
        name, _, deeper = path.partition("/")
        if name in ("", ".", "..", ".git"):
            raise GitError(f"invalid path {path!r}")
        if deeper:
            below.setdefault(name, {})[deeper] = content
        elif content is None:
            entries.pop(name, None)
        else:
            raw = content.encode() if isinstance(content, str) else content
            entries[name] = ("100755" if raw.startswith(b"#!") else "100644", _store(folder, "blob", raw))
    for name, more in below.items():
        mode, inner = entries.pop(name, ("", ""))
        if (inner := _changed(folder, inner if mode == "40000" else "", more)) != EMPTY:
            entries[name] = ("40000", inner)
    rows = sorted(entries.items(), key=lambda row: f"{row[0]}/" if row[1][0] == "40000" else row[0])
    return _store(folder, "tree", b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(sha) for name, (mode, sha) in rows))


def _write(path: Path, content: bytes) -> None:
    """All at once: a git that serves somebody may be reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f"tmp_obj_{path.name}"
    part.write_bytes(content)
    part.replace(path)


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder on disk, by relative path; skips caches of Python and git."""
    skipped = {".git", "__pycache__", ".pytest_cache"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not skipped & set(path.relative_to(folder).parts)
    }


def point(folder: Path, ref: str, sha: str) -> None:
    """Let a ref be that commit."""
    if ".." in ref:
        raise GitError(f"invalid ref {ref!r}")
    try:
        _write(folder / ref, f"{sha}\n".encode())
    except OSError as error:  # another ref is where its folder would be
        raise GitError(f"{ref}: {error.strerror}") from None


def since(folder: Path, base: str, head: str) -> tuple[str, list[str]]:
    """The merge base of two commits, or `base` if they have none, and what `head` has more, oldest first."""
    line = [head]
    while line[-1] != base:  # the common case is a line of commits on the base
        parents = [
            row[7:] for row in _read(folder, "commit", line[-1]).partition(b"\n\n")[0].split(b"\n") if row[:7] == b"parent "
        ]
        if len(parents) != 1:
            break
        line.append(parents[0].decode())
    else:
        return base, line[-2::-1]
    more = text(folder, "rev-list", "--reverse", f"{base}..{head}").split()
    try:
        return text(folder, "merge-base", base, head), more
    except GitError:  # unrelated histories
        return base, more


def commits(folder: Path, revisions: str, limit: int = 50) -> list[dict[str, str]]:
    """The commits of a range, newest first: sha, tree, parents, author, email, date, message."""
    form = "%H%x1f%T%x1f%P%x1f%an%x1f%ae%x1f%aI%x1f%B%x1e"
    output = text(folder, "log", f"--max-count={limit}", f"--format={form}", "--end-of-options", revisions, "--")
    keys = ("sha", "tree", "parents", "author", "email", "date", "message")
    rows = [row.strip("\n") for row in output.split("\x1e")]
    return [dict(zip(keys, row.split("\x1f"), strict=True)) for row in rows if row]
