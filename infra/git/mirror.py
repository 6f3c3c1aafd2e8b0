"""Bare mirrors of recipes' repositories."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.git import environment as git_environment
from infra.git.runner import Git

FETCH_SECONDS = 50.0
#: Where the mirror keeps the default branch, whatever its name.
HEAD = "refs/cc-ci/head"


def environment(url: str, token: str = "") -> dict[str, str]:
    """git's environment for reading an untrusted repository. Its token goes to its server only, never on a command line."""
    local = ("file",) if url.startswith(("/", "file://")) else ()
    return git_environment.environment(url, ("https", "ssh", *local), token)


@dataclass(frozen=True)
class Tag:
    """A tag of a mirror. `commit` is empty if it does not point to one."""

    name: str
    annotated: bool
    commit: str
    seconds: int  #: when it was created, since 1970; of a lightweight one, its commit's time


@dataclass(frozen=True)
class Mirror:
    """A bare copy of a repository's tags and its default branch, under `root`."""

    root: Path
    url: str
    token: str = ""

    @property
    def folder(self) -> Path:
        return self.root / f"{hashlib.sha256(self.url.encode()).hexdigest()[:24]}.git"

    @property
    def git(self) -> Git:
        return Git(self.folder, environment(self.url, self.token))

    def fetch(self) -> None:
        """Update it, including tags that were moved or deleted. Raises GitError; may be killed at any time."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._drop_old_locks()
        self.git.run("init", "--quiet", "--bare", ".")  # every time: it repairs one that was interrupted
        wanted = ("+refs/tags/*:refs/tags/*", f"+HEAD:{HEAD}")
        fetch = ("fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--", self.url, *wanted)
        if self.url.startswith(("/", "file://")):
            self.git.run(*fetch, seconds=FETCH_SECONDS)
        else:
            self.git.ask(self.url, *fetch, seconds=FETCH_SECONDS)

    def _drop_old_locks(self) -> None:
        """Remove what killed or interrupted git processes left behind: locks and partial packs."""
        before = time.time() - 3 * FETCH_SECONDS
        for left in (*self.folder.rglob("*.lock"), *self.folder.glob("objects/pack/tmp_*")):
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < before:
                    left.unlink()

    def tags(self) -> list[Tag]:
        parts = "%00".join(
            ("%(refname)", "%(objecttype)", "%(objectname)", "%(*objecttype)", "%(*objectname)", "%(creatordate:unix)")
        )
        tags = []
        for line in self.git.run("for-each-ref", f"--format={parts}", "refs/tags").decode(errors="replace").splitlines():
            name, kind, commit, inner_kind, inner, at = line.split("\0")
            annotated = kind == "tag"
            leads_to = inner if inner_kind == "commit" else commit if kind == "commit" else ""
            tags.append(Tag(name.removeprefix("refs/tags/"), annotated, leads_to, int(at) if at.isdigit() else 0))
        return tags

    def files(self, names: Sequence[str], biggest: int) -> dict[str, bytes | int]:
        """Read files named `COMMIT:PATH`; missing ones are left out. Returns the content, or the size if over `biggest` bytes."""
        sizes: dict[str, int] = {}
        answers = self.git.run("cat-file", "--batch-check", given="\n".join([*names, ""]).encode()).decode(errors="replace")
        for name, answer in zip(names, answers.splitlines(), strict=True):
            words = answer.split()
            if len(words) == 3 and words[1] == "blob" and words[2].isdigit():
                sizes[name] = int(words[2])
        small = [name for name, size in sizes.items() if size <= biggest]
        found: dict[str, bytes | int] = {name: size for name, size in sizes.items() if size > biggest}
        data = self.git.run("cat-file", "--batch", given="\n".join([*small, ""]).encode()) if small else b""
        for name in small:  # each answer: a line with kind and size, the content, a line's end
            start = data.index(b"\n") + 1
            end = start + sizes[name]
            found[name] = data[start:end]
            data = data[end + 1 :]
        return found
