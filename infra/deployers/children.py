"""The one way to start a program, to wait for it and to end it: for the harness, the deployers and the mirrors of repositories.

Each gets a guard (`inside/enter.py`), by which it ends with all that it started: when its time is up, when the process that
started it ends, whatever ends that (SIGKILL included), or when `end` is called. What it prints is held in bounds, too.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GUARD = Path(__file__).parent / "inside" / "enter.py"
#: Of tools that are ours (git, docker) and read what is a stranger's: memory of a process, and bytes of what it prints.
MEMORY_MB = 2048
MOST_OUTPUT = 32 << 20
_MOST_ERRORS = 64 << 10
#: The guard ends a program by itself this much later than whoever waits for it, in case that one hangs.
_LATER = 5.0
_PATIENCE = 10.0
_BLOCK = 1 << 16


class TooLong(Exception):
    """It did not end in its time; the message says which."""


class TooMuch(Exception):
    """It printed more than it may."""


@dataclass(frozen=True)
class Done:
    """What a program that has ended left: its exit code (negative: its signal), and what it printed."""

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
    """Start a program; its environment is `env` and nothing else. Raises OSError when it is not there.

    `seconds`: after so long it is killed; 0: never. `grace`: before that it is asked to end (SIGTERM), and has so many seconds.
    `memory_mb` (of its own data, a process), `address_mb`, `file_mb` (of one file); 0: no limit.
    `cgroups`: the `cgroup.procs` files of those that it joins. `alone`: with a session and a keyring of its own.
    `streams` are options of Popen. The process that is given stands for the program, and ends as it does.
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
    """The Python under the virtual environment, by its real path."""
    return os.path.realpath(sys.executable)


def end(process: subprocess.Popen[bytes], patience: float = _PATIENCE) -> None:
    """End a program and all that it started, if it still runs, and wait until it is gone. Safe to repeat.

    `patience`: seconds in which its guard has to do so; more where there is a `grace`.
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
    """A program, by the options of `start`, that has ended when the block is left; its pipes are closed."""
    process = start(command, **options)
    try:
        yield process
    finally:
        end(process)
        _close(process)


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
    """Run a program to its end; `given` is its input. Raises TooLong, TooMuch, OSError, and what `check` raises on the way.

    `most` bytes may come out. With `last`, any number may, and the last so many are kept. (Of errors, the first 64 kB are.)
    Other options are those of `start`, and of Popen; `stderr=subprocess.STDOUT` puts errors among the output.
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
    """What a program that was started prints, until it ends. It is for the caller to end it when this raises (see `run`)."""
    until = time.monotonic() + seconds
    out, err = bytearray(), bytearray()
    left, ended, wait = memoryview(given), 0.0, 0.001
    with selectors.DefaultSelector() as selector, _end_of(process) as its_end:
        for stream, event in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, 1), (process.stderr, 1)):
            if stream:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, event)
        pipes = len(selector.get_map())
        if its_end is not None:
            selector.register(its_end, selectors.EVENT_READ)
        while process.poll() is None or pipes:
            check()
            now = time.monotonic()
            if process.returncode is not None:  # somebody who left its group may hold its pipes
                ended = ended or now
                if now > ended + 1:
                    break
            elif now > until:
                raise TooLong(f"it did not end within {seconds:g} s")
            ready = selector.select(wait) if selector.get_map() else time.sleep(wait)
            wait = 0.001 if ready else min(wait * 2, 0.1)
            for key, _ in ready or ():
                done = True
                if key.fileobj == its_end:
                    pipes += 1
                elif key.fileobj is process.stdin:
                    left = _feed(key.fd, left)
                    if done := not left:
                        process.stdin.close()
                elif (block := _read(key.fd)) != b"":
                    done = False
                    if key.fileobj is process.stderr:
                        err += (block or b"")[: _MOST_ERRORS - len(err)]
                        continue
                    out += block or b""
                    if last:
                        del out[:-last]
                    elif len(out) > most:
                        raise TooMuch(f"it printed more than {most >> 20} MB")
                if done:
                    selector.unregister(key.fileobj)
                    pipes -= 1
    return Done(process.returncode, bytes(out), bytes(err))


@contextmanager
def _end_of(process: subprocess.Popen[bytes]) -> Iterator[int | None]:
    """A descriptor that can be read once the program has ended; None where Linux is older than 5.3: a look does as well."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _feed(handle: int, left: memoryview) -> memoryview:
    """Write what goes into a pipe now: what is left then. Nothing is when nobody reads any more."""
    try:
        return left[os.write(handle, left[:_BLOCK]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def _read(handle: int) -> bytes | None:
    """What is there; nothing at the end, None when there is nothing yet."""
    try:
        return os.read(handle, _BLOCK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream and not stream.closed:
            with suppress(OSError):  # what was not written yet
                stream.close()


def was_killed(process: subprocess.Popen[bytes]) -> bool:
    return process.returncode == -signal.SIGKILL
