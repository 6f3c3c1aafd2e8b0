"""Writes a new pin into `infra.yml` where it lies: one value changes, every other byte stays; then commits and pushes it."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra import gitread
from infra.declaration import DeclarationError, parse
from infra.editing import Key, PinError, with_value
from infra.gitread import GitError
from infra.schema import Git

_PUSH_SECONDS = 40.0
_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Pinned:
    """What became of a pin. `problem`: why it is not committed or pushed as it should be, and what to type."""

    changed: bool
    commit: str = ""
    pushed: bool = False
    problem: str = ""


def write_pin(path: Path, app: str, version: str, git: Git) -> Pinned:
    """Set the app's version in the file at `path`, and commit and push it as `git` says. May be repeated."""
    return write_value(path, app, "version", version, git)


def write_value(path: Path, app: str, key: Key, value: str, git: Git) -> Pinned:
    """Set one key of one app. Raises PinError when the file stays as it was; a commit or push that fails is told."""
    path = path.resolve()
    with _alone(path.parent):
        try:
            before = path.read_bytes().decode()
            after = with_value(before, app, key, value)
            _only_that(before, after, app, key, value)
            if after != before:
                _replace(path, after.encode())
        except OSError as error:
            raise PinError(f"{path} cannot be written: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise PinError(f"{path} is not in UTF-8.") from error
        except DeclarationError as error:
            raise PinError(f"{path} cannot be used: {error}") from error
        changed = after != before
        return _commit(path, app, key, value, git, changed) if git.commit else Pinned(changed)


def _only_that(before: str, after: str, app: str, key: Key, value: str) -> None:
    """Read both texts and see that they differ in this one value. Raises PinError and DeclarationError."""
    old, new = parse(before).document, parse(after).document
    wanted = old.apps[app].model_copy(update={key: value})
    if new != old.model_copy(update={"apps": {**old.apps, app: wanted}}):
        raise PinError(f"More than the {key} of {app} would change in the file; write by hand `{key}: {value}`.")


def _commit(path: Path, app: str, key: Key, value: str, git: Git, changed: bool) -> Pinned:
    where = path.parent
    by_hand = f"git -C {where} commit -m 'Pin {app} to {value}' -- {path.name}"
    try:
        old = _git(where, "show", f"HEAD:./{path.name}").decode(errors="replace")
        text = path.read_bytes().decode()
        if old != text:
            if with_value(old, app, key, value) != text:
                return Pinned(changed, problem=f"{path.name} has changes that nobody committed. Look at them, then: {by_hand}")
            verb = "Pin" if key == "version" else "Hand"
            identity = ("-c", "user.name=cc-ci", "-c", "user.email=cc-ci@localhost", "-c", "commit.gpgSign=false")
            _git(where, *identity, "commit", "--quiet", "--only", "-m", f"{verb} {app} to {value}", "--", path.name)
        commit = _git(where, "rev-parse", "HEAD").decode().strip()
    except GitError as error:
        return Pinned(changed, problem=f"The pin is in {path}, but not committed: {error} By hand: {by_hand}")
    except PinError as error:
        return Pinned(changed, problem=f"The pin is in {path}, but the last commit cannot be compared with it: {error}")
    if not git.push:
        return Pinned(changed, commit)
    try:
        _push(where)
    except GitError as error:
        text = f"The pin is committed, but not pushed: {error} By hand: git -C {where} pull --rebase && git -C {where} push"
        return Pinned(changed, commit, problem=text)
    return Pinned(changed, _git(where, "rev-parse", "HEAD").decode().strip(), pushed=True)


def _push(where: Path) -> None:
    """Push; when others were first, put ours upon theirs, once."""
    try:
        _git(where, "push", "--quiet", seconds=_PUSH_SECONDS)
    except GitError:
        try:
            _git(where, "pull", "--quiet", "--rebase", seconds=_PUSH_SECONDS)
        except GitError:
            with suppress(GitError):
                _git(where, "rebase", "--abort")
            raise
        _git(where, "push", "--quiet", seconds=_PUSH_SECONDS)


def _git(where: Path, *arguments: str, seconds: float = gitread.LOCAL_SECONDS) -> bytes:
    """git in the operator's own checkout, with the operator's settings and keys, but never with a question."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_EDITOR": "true",
        "GIT_COMMITTER_NAME": "cc-ci",
        "GIT_COMMITTER_EMAIL": "cc-ci@localhost",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=10",
    }
    return gitread.run(where, *arguments, env=env, seconds=seconds)


def _replace(path: Path, data: bytes) -> None:
    """Change the file at once: whoever reads it meanwhile, or after a crash, finds the old or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time on this machine."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PinError(f"Another process has been writing in {folder} for {_WAIT_SECONDS:g} s.") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
