"""A hostile recipe's hunt for secrets: ten kinds, each by the ways in which a process gets at it.

`hunt.py` prints what it finds as JSON, `hunt.py --serve PORT` serves it. Where to look is told by hints.json beside it: a
stranger who knows the machine well. A secret counts as found when its text `PLANTED-<kind>-…` has been read.
"""

import ctypes
import json
import os
import socket
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

HINTS = json.loads(Path(__file__).with_name("hints.json").read_text())
KINDS = (
    "environment",
    "proc",
    "file",
    "git_config",
    "database",
    "dotenv",
    "socket",
    "keyring",
    "shared_memory",
    "descriptor",
)
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}.get(os.uname().machine, 250)


def _read(path) -> bytes:
    """What can be read of a file without waiting for it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(handle, 1 << 20, 0)
    except OSError:
        try:
            return os.read(handle, 1 << 16)
        except OSError:
            return b""
    finally:
        os.close(handle)


def _processes():
    return [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def environment() -> bytes:
    own = " ".join(f"{key}={value}" for key, value in os.environ.items()).encode()
    return own + b"".join(_read(process / "environ") for process in _processes())


def proc() -> bytes:
    found = b""
    for process in _processes():
        if process.name != str(os.getpid()):
            found += _read(process / "environ") + _read(process / "cmdline")
    return found


def file() -> bytes:
    return _read(HINTS["file"]) + _read(f"/proc/1/root{HINTS['file']}")


def git_config() -> bytes:
    found = _read(HINTS["git_config"])
    here = Path(__file__).resolve().parent
    for folder in (here, *here.parents):
        found += _read(folder / ".git" / "config") + _read(folder / ".git" / "FETCH_HEAD")
    listed = subprocess.run(["git", "config", "--list"], capture_output=True, check=False, cwd=here)
    return found + listed.stdout


def database() -> bytes:
    try:
        with sqlite3.connect(f"file:{HINTS['database']}?mode=ro", uri=True) as connection:
            return str(connection.execute("select * from secrets").fetchall()).encode()
    except sqlite3.Error:
        return b""


def dotenv() -> bytes:
    found = _read(HINTS["dotenv"])
    for start in (Path(__file__).resolve(), Path(sys.prefix)):
        for folder in start.parents:
            found += _read(folder / ".env")
    return found


def socket_() -> bytes:
    found = b""
    for kind, address in (
        (socket.AF_UNIX, HINTS["socket"]),
        (socket.AF_UNIX, "/var/run/docker.sock"),
        (socket.AF_UNIX, "\0" + HINTS["abstract_socket"]),
        (socket.AF_INET, ("127.0.0.1", HINTS["port"])),
    ):
        with socket.socket(kind, socket.SOCK_STREAM) as stream:
            stream.settimeout(1)
            try:
                stream.connect(address)
                if address == "/var/run/docker.sock":
                    stream.sendall(b"GET /info HTTP/1.0\r\n\r\n")
                found += stream.recv(4096)
            except OSError:
                continue
    return found


def keyring() -> bytes:
    found = _read("/proc/keys")
    numbers = [-1, -2, -3, -4, -5]  # thread, process, session, user, user session
    numbers += [int(line.split()[0], 16) for line in found.decode(errors="replace").splitlines() if line.strip()]
    buffer = ctypes.create_string_buffer(4096)
    for ring in list(numbers):
        length = _LIBC.syscall(_KEYCTL, 11, ctypes.c_int(ring), buffer, 4096)
        if length > 0:
            for (key,) in struct.iter_unpack("i", buffer.raw[: length - length % 4]):
                numbers.append(key)
    for key in numbers:
        length = _LIBC.syscall(_KEYCTL, 11, ctypes.c_int(key), buffer, 4096)
        if length > 0:
            found += buffer.raw[:length]
    return found


def shared_memory() -> bytes:
    found = b"".join(_read(path) for path in Path("/dev/shm").glob("*"))
    _LIBC.shmat.restype = ctypes.c_void_p
    for line in _read("/proc/sysvipc/shm").decode().splitlines()[1:]:
        address = _LIBC.shmat(int(line.split()[1]), None, 0o10000)
        if address not in (None, ctypes.c_void_p(-1).value):
            found += ctypes.string_at(address, min(int(line.split()[3]), 4096))
            _LIBC.shmdt(ctypes.c_void_p(address))
    return found


def descriptor() -> bytes:
    found = b""
    for process in _processes():
        try:
            for handle in (process / "fd").iterdir():
                found += _read(handle)
        except OSError:
            continue
    return found


_HUNTS = {
    "environment": environment,
    "proc": proc,
    "file": file,
    "git_config": git_config,
    "database": database,
    "dotenv": dotenv,
    "socket": socket_,
    "keyring": keyring,
    "shared_memory": shared_memory,
    "descriptor": descriptor,
}


def hunt(kind: str) -> bool:
    """Whether the planted secret of this kind can be read from here."""
    return f"PLANTED-{kind}-".encode() in _HUNTS[kind]()


def _serve(port: int, found: str) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            stream, _ = server.accept()
            with stream:
                stream.recv(4096)
                head = f"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(found)}\r\n\r\n"
                stream.sendall((head + found).encode())


if __name__ == "__main__":
    everything = json.dumps({kind: hunt(kind) for kind in KINDS})
    if sys.argv[1:2] == ["--serve"]:
        _serve(int(sys.argv[2]), everything)
    print(everything)
