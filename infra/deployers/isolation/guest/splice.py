"""Copies bytes between two connected streams."""

import errno
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

#: Why a connection may not be accepted while the listener is open.
_FOR_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)


class Stream(Protocol):
    """The methods used of a socket, which TLS sockets also have."""

    def recv(self, most: int, /) -> bytes: ...

    def sendall(self, data: bytes, /) -> None: ...

    def shutdown(self, how: int, /) -> None: ...


def copy(source: Stream, target: Stream) -> None:
    """Copy one direction until its end."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for stream in (source, target):
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def splice(one: socket.socket, other: socket.socket) -> None:
    """Copy both directions until both ends are done, then close both."""
    one.settimeout(None)
    other.settimeout(None)
    back = threading.Thread(target=copy, args=(other, one), daemon=True)
    back.start()
    copy(one, other)
    back.join()
    one.close()
    other.close()


def serve(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    """Pass each connection to `handle` in its own thread, for as long as the listener is open."""

    def loop() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError as error:
                if error.errno not in _FOR_NOW:
                    return
                time.sleep(0.1)
                continue
            try:
                threading.Thread(target=guarded, args=(stream,), daemon=True).start()
            except RuntimeError:  # no more threads: the client sees a closed connection
                stream.close()

    def guarded(stream: socket.socket) -> None:
        try:
            handle(stream)
        except (OSError, ValueError):
            pass
        finally:
            stream.close()

    threading.Thread(target=loop, daemon=True).start()


def copy_recipe(source: str, target: str) -> None:
    """Copy the checkout to a writable folder. Symlinks stay symlinks; `.git` is left out."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(".git"), dirs_exist_ok=True)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)  # noqa: PTH101, S103
