"""The git command, and bare mirrors of recipes' repositories: no hook, no prompt, no foreign protocol, an end to every wait."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra import gitrules
from infra.deployers import children

FETCH_SECONDS = 50.0
LOCAL_SECONDS = 15.0
#: Where the mirror keeps the default branch, whatever it is called.
HEAD = "refs/cc-ci/head"
_MOST_OUTPUT = 32 << 20


class GitError(Exception):
    """git could not do it; the message is git's own reason."""


def run(folder: Path, *arguments: str, env: Mapping[str, str], seconds: float = LOCAL_SECONDS, given: bytes = b"") -> bytes:
    """Run git in `folder` with `given` as its input: its output. Raises GitError, after `seconds` at the latest."""
    try:
        done = children.run(["git", "-C", str(folder), *arguments], env=env, seconds=seconds, given=given, most=_MOST_OUTPUT)
    except OSError as error:
        raise GitError(f"git does not start: {error.strerror}. Type: apt-get install git") from error
    except children.TooLong:
        raise GitError(f"git {arguments[0]} did not end within {seconds:g} s.") from None
    except children.TooMuch as error:
        raise GitError(f"git {arguments[0]}: {error}.") from error
    if done.code:
        raise GitError(f"git {arguments[0]}: {gitrules.reason(done.err[:4000]) or f'it ended with {done.code}'}")
    return done.out


def environment(url: str, token: str = "") -> dict[str, str]:
    """What git is given to read a repository of others. A token is sent to that server only, and is on no command line."""
    local = ("file",) if url.startswith(("/", "file://")) else ()
    return gitrules.environment(url, ("https", "ssh", *local), token)


@dataclass(frozen=True)
class Tag:
    """A tag of a mirror. `commit` is empty when it leads to none."""

    name: str
    annotated: bool
    commit: str
    seconds: int  #: when it was made, since 1970: a lightweight one has its commit's time


@dataclass(frozen=True)
class Mirror:
    """A bare copy of a repository's tags and its default branch, under `root`."""

    root: Path
    url: str
    token: str = ""

    @property
    def folder(self) -> Path:
        return self.root / f"{hashlib.sha256(self.url.encode()).hexdigest()[:24]}.git"

    def fetch(self) -> None:
        """Bring it up to date: tags that were moved or deleted there are so here. Raises GitError; may be killed at any time."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._drop_old_locks()
        self._git("init", "--quiet", "--bare", ".")  # again as well: it mends one that was cut short
        wanted = ("+refs/tags/*:refs/tags/*", f"+HEAD:{HEAD}")
        arguments = ("fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--", self.url, *wanted)
        self._git(*arguments, seconds=FETCH_SECONDS)

    def _drop_old_locks(self) -> None:
        """A git that was killed leaves its locks, and nobody would ever take them away."""
        before = time.time() - 3 * FETCH_SECONDS
        for lock in self.folder.rglob("*.lock"):
            with suppress(FileNotFoundError):
                if lock.stat().st_mtime < before:
                    lock.unlink()

    def tags(self) -> list[Tag]:
        parts = "%00".join(
            ("%(refname)", "%(objecttype)", "%(objectname)", "%(*objecttype)", "%(*objectname)", "%(creatordate:unix)")
        )
        tags = []
        for line in self._git("for-each-ref", f"--format={parts}", "refs/tags").decode(errors="replace").splitlines():
            name, kind, commit, inner_kind, inner, at = line.split("\0")
            annotated = kind == "tag"
            leads_to = inner if inner_kind == "commit" else commit if kind == "commit" else ""
            tags.append(Tag(name.removeprefix("refs/tags/"), annotated, leads_to, int(at) if at.isdigit() else 0))
        return tags

    def files(self, names: Sequence[str], biggest: int) -> dict[str, bytes | int]:
        """Files as `COMMIT:PATH`, those that are there: the content, or the size of one that is bigger than `biggest` bytes."""
        sizes: dict[str, int] = {}
        answers = self._git("cat-file", "--batch-check", given="\n".join([*names, ""]).encode()).decode(errors="replace")
        for name, answer in zip(names, answers.splitlines(), strict=True):
            words = answer.split()
            if len(words) == 3 and words[1] == "blob" and words[2].isdigit():
                sizes[name] = int(words[2])
        small = [name for name, size in sizes.items() if size <= biggest]
        found: dict[str, bytes | int] = {name: size for name, size in sizes.items() if size > biggest}
        data = self._git("cat-file", "--batch", given="\n".join([*small, ""]).encode()) if small else b""
        for name in small:  # each answer: a line with kind and size, the content, a line's end
            start = data.index(b"\n") + 1
            end = start + sizes[name]
            found[name] = data[start:end]
            data = data[end + 1 :]
        return found

    def _git(self, *arguments: str, seconds: float = LOCAL_SECONDS, given: bytes = b"") -> bytes:
        return run(self.folder, *arguments, env=environment(self.url, self.token), seconds=seconds, given=given)
