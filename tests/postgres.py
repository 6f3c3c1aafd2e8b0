"""A PostgreSQL of the tests' own: a new cluster in a temporary folder, on loopback, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoPostgres(Exception):
    """There is none to be had here. The message says what to install."""


def binaries() -> Path:
    """The folder with initdb and postgres, the newest there is. Raises NoPostgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    if initdb := shutil.which("initdb"):
        return Path(initdb).parent
    raise NoPostgres("There is no PostgreSQL server. Type: apt-get install postgresql")


@contextmanager
def postgres() -> Iterator[str]:
    """Start one and give its URL."""
    folder = Path(tempfile.mkdtemp(prefix="cc-ci-postgres-"))
    bin_ = binaries()
    # The server refuses to run as root; Debian's package brings a user for it.
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    data, log = folder / "data", folder / "log"
    run = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": folder} if user else {"cwd": folder}
    initdb = [bin_ / "initdb", "-D", data, "-U", "ccci", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, timeout=60, **run)  # type: ignore[call-overload]
    options = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=300", "listen_addresses=127.0.0.1"]
    command = [bin_ / "postgres", "-D", data, "-p", str(port), "-k", folder, *(f"-c{option}" for option in options)]
    process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT, **run)  # type: ignore[call-overload]
    try:
        url = f"postgresql://ccci@127.0.0.1:{port}/postgres"
        _wait(url, process, log)
        yield url
    finally:
        process.terminate()  # SIGTERM waits for clients; SIGINT ends them
        process.send_signal(2)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    for _ in range(200):
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise NoPostgres(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")
