"""Calls of git on the forge's bare repositories, untouched by the configuration of whoever runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

Files = Mapping[str, "str | bytes | None"]


class GitError(Exception):
    """A git command failed; the text is what it said."""


def environment(home: Path) -> dict[str, str]:
    """The whole environment for a git process: no configuration of system or user, no prompts, nothing inherited."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run git in a bare repository and give its output. Raises GitError when it fails."""
    done = subprocess.run(
        ["git", f"--git-dir={folder}", *arguments], input=stdin, capture_output=True, env=environment(folder.parent)
    )
    if done.returncode:
        raise GitError(f"git {' '.join(arguments[:2])}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def text(folder: Path, *arguments: str) -> str:
    """The output of git as one stripped string. Raises GitError when it fails."""
    return git(folder, *arguments).decode(errors="replace").strip()


def resolve(folder: Path, ref: str) -> str:
    """The commit that a branch, tag, ref or SHA stands for, or an empty string."""
    if not ref or ref.startswith("-"):
        return ""
    if ref.startswith("refs/heads/") and ".." not in ref and (folder / ref).is_file():
        return (folder / ref).read_text().strip()  # the common case, without a process
    for name in (f"refs/heads/{ref}", f"refs/tags/{ref}", ref):
        try:
            return text(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        except GitError:
            continue
    return ""


def init(folder: Path) -> None:
    """Make an empty bare repository whose branch is main and that takes pushes over HTTP."""
    shutil.rmtree(folder, ignore_errors=True)  # of a change that was killed before it was kept
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
    """Add a commit to a branch (made from main when it does not exist, or with `fresh` from nothing) and give its SHA; with a
    commit `on`, one that follows it and is on no branch.

    A file that is None is removed; a shell script or a file that begins with `#!` is made executable.
    Raises GitError.
    """
    ref = "refs/new" if on else f"refs/heads/{branch}"
    tip = on if on else "" if fresh else resolve(folder, f"refs/heads/{branch}") or resolve(folder, "refs/heads/main")
    who = f"{author} <{author}@example.org> {int(at.timestamp())} +0000"
    stream = [f"commit {ref}\nauthor {who}\ncommitter {who}\n".encode(), _data(message.encode())]
    if tip:
        stream.append(f"from {tip}\n".encode())
    for name, content in files.items():
        if content is None:
            stream.append(f'D "{name}"\n'.encode())
            continue
        raw = content.encode() if isinstance(content, str) else content
        mode = "100755" if raw.startswith(b"#!") else "100644"
        stream += [f'M {mode} inline "{name}"\n'.encode(), _data(raw)]
    git(folder, "fast-import", "--quiet", "--force", "--done", stdin=b"".join([*stream, b"done\n"]))
    sha = resolve(folder, ref)
    if on:
        git(folder, "update-ref", "-d", ref)
    return sha


def _data(raw: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(raw), raw)


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder on disk, by their path in it; caches of Python and of git are left out."""
    skipped = {".git", "__pycache__", ".pytest_cache"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not skipped & set(path.relative_to(folder).parts)
    }


def commits(folder: Path, revisions: str, limit: int = 50) -> list[dict[str, str]]:
    """The commits of a range, newest first: sha, tree, parents, author, email, date, message."""
    form = "%H%x1f%T%x1f%P%x1f%an%x1f%ae%x1f%aI%x1f%B%x1e"
    output = text(folder, "log", f"--max-count={limit}", f"--format={form}", "--end-of-options", revisions, "--")
    keys = ("sha", "tree", "parents", "author", "email", "date", "message")
    rows = [row.strip("\n") for row in output.split("\x1e")]
    return [dict(zip(keys, row.split("\x1f"), strict=True)) for row in rows if row]
