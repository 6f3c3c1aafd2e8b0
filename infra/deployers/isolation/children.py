"""Starts, awaits and ends programs: for the harness, the deployers and the mirrors of repositories.

Each program gets a guard (`guest/enter.py`), which ends it with everything that it started: when its time is up, when the process
that started it ends for any reason (including SIGKILL), or when `end` is called. Its output is limited, too.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_GUARD = Path(__file__).parent / "guest" / "enter.py"
#: Of tools that are ours (git, docker) and read what is a stranger's: memory of a process, and bytes of what it prints.
MEMORY_MB = 2048
MOST_OUTPUT = 32 << 20
_MOST_ERRORS = 64 << 10
#: The guard ends a program by itself this much later than whoever waits for it, in case that one hangs.
_LATER = 5.0
_PATIENCE = 10.0
#: Who left a program's group may hold its pipes; so long after its end they are read.
_AFTER = 1.0
_BLOCK = 1 << 16


class TooLong(Exception):
    """The program did not finish in time; the message gives the time."""


class TooMuch(Exception):
    """The program printed more than allowed."""


@dataclass(frozen=True)
class Done:
    """The result of a program: its exit code (negative: its signal) and its output."""

    code: int
    out: bytes
    err: bytes


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    seconds: float = 0.0,
    grace: float = 0.0,
    memory_mb: int = MEMORY_MB,
    address_mb: int = 0,
    file_mb: int = 0,
    cgroups: Sequence[str] = (),
    alone: bool = False,
    **streams: Any,
) -> subprocess.Popen[bytes]:
    """Start a program; its environment is `env` and nothing else. Raises OSError if it does not exist.

    `seconds`: after this time it is killed; 0: never. `grace`: seconds between SIGTERM and the kill.
    `memory_mb` (each process's data), `address_mb`, `file_mb` (per file); 0: no limit.
    `cgroups`: the `cgroup.procs` files of the cgroups to join. `alone`: with its own session and keyring.
    `streams`: options of Popen. The returned process represents the program, and ends as it does.
    """
    program = shutil.which(command[0], path=env.get("PATH", os.defpath))
    if not program:
        raise FileNotFoundError(2, "No such program", command[0])
    rules = {"seconds": seconds, "grace": grace, "data": memory_mb << 20, "address": address_mb << 20, "file": file_mb << 20}
    words = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in rules.items() if value]
    words += ["alone=1"] if alone else []
    words += [f"cgroups={':'.join(cgroups)}"] if cgroups else []
    guard = [interpreter(), "-I", "-S", str(_GUARD), str(os.getpid()), " ".join(words)]
    # A group of its own, so that Ctrl-C at a terminal reaches only the one who waits.
    return subprocess.Popen([*guard, program, *command[1:]], env=dict(env), process_group=0, **streams)


def interpreter() -> str:
    """The real path of the Python that the virtual environment uses."""
    return os.path.realpath(sys.executable)


def end(process: subprocess.Popen[bytes], patience: float = _PATIENCE) -> None:
    """End a program and everything that it started, if it still runs, and wait until it is gone. Safe to repeat.

    `patience`: how many seconds its guard has for that; more if there is a `grace`.
    """
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program, with the options of `start`, that is ended when the block is left; its pipes are closed."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            _close_stream(stream)


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    seconds: float,
    check: Callable[[], None] = lambda: None,
    given: bytes = b"",
    most: int = MOST_OUTPUT,
    last: int = 0,
    **options: Any,
) -> Done:
    """Run a program to its end; `given` is its input. Raises TooLong, TooMuch, OSError, and whatever `check` raises.

    The output may have up to `most` bytes. With `last` it may be endless, and only its last bytes are kept. (Of standard
    error, the first 64 kB are kept.) Other options are those of `start` and Popen; `stderr=subprocess.STDOUT` merges errors
    into the output.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    options["stdin"] = subprocess.PIPE if given else subprocess.DEVNULL
    with running(command, env=env, seconds=seconds + _LATER, **options) as process:
        return collect(process, seconds=seconds, check=check, given=given, most=most, last=last)


def collect(
    process: subprocess.Popen[bytes],
    *,
    seconds: float,
    check: Callable[[], None] = lambda: None,
    given: bytes = b"",
    most: int = MOST_OUTPUT,
    last: int = 0,
) -> Done:
    """The output of a started program, until it ends. The caller has to end it if this raises (see `run`)."""
    until, ended, wait = time.monotonic() + seconds, 0.0, 0.001
    with selectors.DefaultSelector() as selector, _end_of(process, selector):
        pipes = _Pipes(process, selector, given, most, last)
        while process.poll() is None or pipes.left:
            check()
            now = time.monotonic()
            if process.returncode is None and now > until:
                raise TooLong(f"it did not finish within {seconds:.3g} s")
            ended = ended or (now if process.returncode is not None else 0.0)
            if ended and now > ended + _AFTER:
                break
            ready = selector.select(wait)
            for key, _ in ready:
                pipes.move(key)
            wait = 0.001 if ready else min(wait * 2, 0.1)
    return Done(process.returncode, bytes(pipes.out), bytes(pipes.err))


class _Pipes:
    """A program's input and output. `left`: how many of its pipes are still open."""

    def __init__(
        self, process: subprocess.Popen[bytes], selector: selectors.BaseSelector, given: bytes, most: int, last: int
    ) -> None:
        self._process, self._selector = process, selector
        self._given, self._most, self._last = memoryview(given), most, last
        self.out, self.err, self.left = bytearray(), bytearray(), 0
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_WRITE if stream is process.stdin else selectors.EVENT_READ)
                self.left += 1

    def move(self, key: selectors.SelectorKey) -> None:
        """Transfer what a pipe can take or give now. Raises TooMuch."""
        if key.fileobj is self._process.stdin:
            done = self._feed(key.fd)
        elif key.fileobj in (self._process.stdout, self._process.stderr):
            done = self._read(key.fd, self.out if key.fileobj is self._process.stdout else self.err)
        else:  # the program has ended
            self._selector.unregister(key.fileobj)
            return
        if done:
            self._selector.unregister(key.fileobj)
            self.left -= 1
            if key.fileobj is self._process.stdin:
                _close_stream(self._process.stdin)

    def _feed(self, handle: int) -> bool:
        """Write as much input as possible. Returns whether that was all, or nobody reads it any more."""
        try:
            self._given = self._given[os.write(handle, self._given[:_BLOCK]) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return not self._given

    def _read(self, handle: int, into: bytearray) -> bool:
        """Read what is available. Returns whether that was the end."""
        try:
            block = os.read(handle, _BLOCK)
        except BlockingIOError:
            return False
        if into is self.err:
            into += block[: _MOST_ERRORS - len(into)]
        else:
            into += block
            if self._last:
                del into[: -self._last]
            elif len(into) > self._most:
                raise TooMuch(f"it printed more than {self._most >> 20} MB")
        return not block


@contextmanager
def _end_of(process: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> Iterator[None]:
    """Make a program's end wake the selector. Linux before 5.3 cannot; there polling has to do."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        yield
        return
    try:
        selector.register(handle, selectors.EVENT_READ)
        yield
    finally:
        os.close(handle)


def _close_stream(stream: IO[bytes] | None) -> None:
    if stream and not stream.closed:
        with suppress(OSError):  # what was not written yet
            stream.close()
