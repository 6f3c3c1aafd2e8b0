"""Runs git, with its limits, errors and retries; `environment` says what it may do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.deployers.isolation import children
from infra.git import environment, remote

LOCAL_SECONDS = 15.0
#: Memory of one git process. Mapped packs do not count; it holds one object at a time.
_MEMORY_MB = 1024


class GitError(Exception):
    """git failed; the message is git's own reason. `recipes_fault`: the repository itself is the cause."""

    def __init__(self, message: str, recipes_fault: bool = False) -> None:
        super().__init__(message)
        self.recipes_fault = recipes_fault


class TimeUp(GitError):
    """git was still running at its time limit."""


class Stumbled(GitError):
    """The forge gave no clear answer, despite retries."""


@dataclass(frozen=True)
class Git:
    """git in `folder`, with exactly the environment `env`.

    `check` is called while git works, and raises to cancel it. `failed` is called with each failure, and raises if this
    host knows a better reason than git. `file_mb` limits each file; `umask` applies to what git writes.
    """

    folder: Path
    env: Mapping[str, str]
    check: Callable[[], None] = lambda: None
    failed: Callable[[children.Done], None] = lambda done: None
    file_mb: int = 0
    umask: int = -1

    def done(
        self,
        *arguments: str,
        seconds: float = LOCAL_SECONDS,
        given: bytes = b"",
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> children.Done:
        """Run git with `given` as its input; returns the result even if it failed. Raises GitError if it was stopped."""
        try:
            done = children.run(
                ["git", "-C", str(folder or self.folder), *arguments],
                env=env or self.env,
                seconds=seconds,
                check=self.check,
                given=given,
                memory_mb=_MEMORY_MB,
                file_mb=self.file_mb,
                umask=self.umask,
            )
        except FileNotFoundError as error:
            raise GitError("git is not installed. Run: apt-get install git") from error
        except children.TooLong as error:
            raise TimeUp(f"git {arguments[0]} did not finish within {round(seconds, 1):g} s.") from error
        except children.TooMuch as error:
            raise GitError(f"git {arguments[0]}: {error}.", recipes_fault=True) from error
        if done.code:
            self.failed(done)
        return done

    def run(
        self,
        *arguments: str,
        seconds: float = LOCAL_SECONDS,
        given: bytes = b"",
        folder: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run git and return its output. Raises GitError if it fails."""
        return _output(arguments, self.done(*arguments, seconds=seconds, given=given, folder=folder, env=env))

    def ask(
        self,
        url: str,
        *arguments: str,
        seconds: float,
        patience: float | None = None,
        report: Callable[[str], None] = lambda text: None,
        before: Callable[[], None] = lambda: None,
    ) -> bytes:
        """Run git against a forge, with retries (see `remote.ask`). Raises GitError for a clear refusal, else Stumbled."""

        def once(left: float) -> children.Done:
            done = self.done(*arguments, seconds=left)
            if arguments[0] == "ls-remote" and not done.code and not done.out.strip():
                # git reads a page of HTML this way. (An empty repository lists nothing, either, and has nothing to test.)
                return children.Done(1, b"", b"fatal: no ref is listed, not even HEAD")
            return done

        def lists_refs(left: float) -> bool:
            found = self.done("ls-remote", "--", url, seconds=left)
            return not found.code and bool(found.out.strip())

        try:
            done, answered = remote.ask(
                once, lists_refs, seconds=seconds, patience=patience, check=self.check, report=report, before=before
            )
        except TimeUp as error:
            raise Stumbled(f"git {arguments[0]}: the forge did not answer within {seconds:g} s.") from error
        if not answered:
            asked = seconds if patience is None else patience
            raise Stumbled(f"{_reason(arguments, done)}. Retried for {asked:.0f} s.")
        return _output(arguments, done)


def _output(arguments: Sequence[str], done: children.Done) -> bytes:
    if done.code:
        raise GitError(_reason(arguments, done))
    return done.out


def _reason(arguments: Sequence[str], done: children.Done) -> str:
    ended = f"killed by signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
    return f"git {arguments[0]}: {environment.reason(done.err[:4000]) or ended}"
