"""Network namespaces for tests: machines that are not there, with addresses that nobody else has. Nothing leaves this machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def need_networks(*programs: str) -> None:
    """Skip, or fail when CI=true, where none can be made, or where a program is missing."""
    why = next((f"there is no {program} here" for program in ("unshare", "ip", *programs) if not shutil.which(program)), "")
    if os.geteuid():
        why = "only root can make a network namespace"
    elif not why:
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
        why = f"no network namespace can be made here: {tried.stderr.strip()}" if tried.returncode else ""
    if why and os.environ.get("CI") == "true":
        pytest.fail(why)
    if why:
        pytest.skip(why)


@contextmanager
def within(pid: int) -> Iterator[None]:
    """This thread, and what it starts, in the network of a process."""
    with Path("/proc/thread-self/ns/net").open() as before, Path(f"/proc/{pid}/ns/net").open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """A network namespace with nothing but a loopback in it; gone with `close`."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout and self._holder.stdout.readline() == b"up\n"

    @property
    def pid(self) -> int:
        return self._holder.pid

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        for stream in (self._holder.stdin, self._holder.stdout):
            assert stream
            stream.close()


def ip(pid: int, *lines: str) -> None:
    """Commands of `ip` in the network of a process."""
    with within(pid):
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True, timeout=20)


class Listeners:
    """Say "hello" to whoever connects to one of these addresses, of the network of a process."""

    def __init__(self, pid: int, places: Sequence[tuple[str, int]]) -> None:
        self._sockets = []
        with within(pid):
            for address, port in places:
                listener = socket.create_server((address, port))
                self._sockets.append(listener)
                threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    @staticmethod
    def _serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                stream, _ = listener.accept()
                with stream, suppress(OSError):
                    stream.sendall(b"hello\n")

    def close(self) -> None:
        for listener in self._sockets:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
