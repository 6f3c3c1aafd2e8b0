"""Writes a new pin into `infra.yml`: changes one value and no other byte, then commits and pushes it."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra.config.edit import Key, PinError, with_value
from infra.config.load import DeclarationError, parse
from infra.config.schema import Git
from infra.git import runner
from infra.git.runner import GitError

_PUSH_SECONDS = 40.0
_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Pinned:
    """Outcome of writing a pin. `problem`: why it was not committed or pushed, and what to type."""

    changed: bool
    commit: str = ""
    pushed: bool = False
    problem: str = ""


def write_value(path: Path, app: str, key: Key, value: str, git: Git) -> Pinned:
    """Set one key of one app in the file at `path`, and commit and push it as `git` says. Idempotent.

    Raises PinError if the file could not be changed; reports a commit or push that fails.
    """
    path = path.resolve()
    with _alone(path.parent):
        try:
            before = path.read_bytes().decode()
            after = with_value(before, app, key, value)
            _only_that(before, after, app, key, value)
            if after != before:
                _replace(path, after.encode())
        except OSError as error:
            raise PinError(f"Cannot write {path}: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise PinError(f"{path} is not valid UTF-8.") from error
        except DeclarationError as error:
            raise PinError(f"{path} is invalid: {error}") from error
        changed = after != before
        return _commit(path, app, key, value, git, changed) if git.commit else Pinned(changed)


def _only_that(before: str, after: str, app: str, key: Key, value: str) -> None:
    """Check that both texts differ in this one value only. Raises PinError and DeclarationError."""
    old, new = parse(before).document, parse(after).document
    wanted = old.apps[app].model_copy(update={key: value})
    if new != old.model_copy(update={"apps": {**old.apps, app: wanted}}):
        raise PinError(f"Cannot change only the {key} of {app} in the file; edit it manually: `{key}: {value}`.")


def _commit(path: Path, app: str, key: Key, value: str, git: Git, changed: bool) -> Pinned:
    where = path.parent
    by_hand = f"git -C {where} commit -m 'Pin {app} to {value}' -- {path.name}"
    try:
        old = _git(where, "show", f"HEAD:./{path.name}").decode(errors="replace")
        text = path.read_bytes().decode()
        if old != text:
            if with_value(old, app, key, value) != text:
                return Pinned(changed, problem=f"{path.name} has uncommitted changes. Review them, then run: {by_hand}")
            verb = "Pin" if key == "version" else "Hand"
            identity = ("-c", "user.name=cc-ci", "-c", "user.email=cc-ci@localhost", "-c", "commit.gpgSign=false")
            _git(where, *identity, "commit", "--quiet", "--only", "-m", f"{verb} {app} to {value}", "--", path.name)
        commit = _git(where, "rev-parse", "HEAD").decode().strip()
    except GitError as error:
        return Pinned(changed, problem=f"The pin is in {path}, but not committed: {error} Run: {by_hand}")
    except PinError as error:
        return Pinned(changed, problem=f"The pin is in {path}, but cannot be compared with the last commit: {error}")
    if not git.push:
        return Pinned(changed, commit)
    try:
        _push(where)
    except GitError as error:
        text = f"The pin is committed, but not pushed: {error} Run: git -C {where} pull --rebase && git -C {where} push"
        return Pinned(changed, commit, problem=text)
    return Pinned(changed, _git(where, "rev-parse", "HEAD").decode().strip(), pushed=True)


def _push(where: Path) -> None:
    """Push; if others pushed first, rebase once and push again."""
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


def _git(where: Path, *arguments: str, seconds: float = runner.LOCAL_SECONDS) -> bytes:
    """Run git in the operator's checkout, with the operator's settings and keys, without prompting."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_EDITOR": "true",
        "GIT_COMMITTER_NAME": "cc-ci",
        "GIT_COMMITTER_EMAIL": "cc-ci@localhost",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=10",
    }
    return runner.Git(where, env).run(*arguments, seconds=seconds)


def _replace(path: Path, data: bytes) -> None:
    """Replace the file atomically: readers see the old or the new one, even after a crash."""
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
    """Lock: one writer at a time on this host."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PinError(
                        f"Timed out after {_WAIT_SECONDS:g} s: another process is writing in {folder}. Try again."
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
