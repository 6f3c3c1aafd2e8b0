"""A real `cc-ci work` with a database of its own, to be killed in parts. SQLite, or PostgreSQL where DATABASE_URL says so."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil

from controlplane.config import BASE_DIR, MARK
from tests.waiting import PATIENCE, until

HEARTBEAT = "controlplane.tasks.heartbeat@testhost"
#: A queue that is killed every other second is no crash loop here.
START = """
from controlplane import cli, supervisor
supervisor.LIVED_WELL = 0
cli.main()
"""


class Database:
    """The tree's database, looked at from outside."""

    def __init__(self, folder: Path, template: str = "template1") -> None:
        self.url = os.environ.get("DATABASE_URL", "")
        self.file = folder / "cc-ci.sqlite3"
        self.server = "" if self.url.startswith("sqlite") else self.url
        if self.server:
            self.name = f"cc_ci_work_{os.getpid()}_{time.time_ns() % 10**9}"
            self._on_server(f"CREATE DATABASE {self.name} TEMPLATE {template}")
            self.url = urlunsplit(urlsplit(self.server)._replace(path=f"/{self.name}"))
        else:
            self.name = ""
            self.url = f"sqlite:///{self.file}"

    def _on_server(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def run(self, statement: str) -> list[Any]:
        if self.server:
            import psycopg

            with psycopg.connect(self.url, autocommit=True) as connection:
                cursor = connection.execute(statement)  # type: ignore[call-overload]
                return cursor.fetchall() if cursor.description else []
        lite = sqlite3.connect(self.file, timeout=20, isolation_level=None)
        try:
            return lite.execute(statement).fetchall()
        finally:
            lite.close()

    def drop(self) -> None:
        if self.server:
            self._on_server(f"DROP DATABASE {self.name} WITH (FORCE)")


class Tree:
    """The tree's processes, by what they do."""

    def __init__(self, folder: Path, template: str = "template1") -> None:
        self.folder = folder
        self.database = Database(folder, template)
        self.environment = {
            # Most of a tree ends by SIGKILL and tells no coverage; measuring it would only slow it down.
            **{name: value for name, value in os.environ.items() if not name.startswith(("CC_CI_", "COVERAGE_"))},
            "CC_CI_ENV_FILE": "",
            "CC_CI_DATA_DIR": str(folder),
            "CC_CI_HOST": "testhost",
            "CC_CI_QUEUE_TIMEOUT": "5",
            "CC_CI_QUEUE_RETRY": "60",
            "CC_CI_HTTP_TIMEOUT": "2",
            "DATABASE_URL": self.database.url,
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        }
        self.log = folder / "work.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `cc-ci WORDS` to its end."""
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=BASE_DIR,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, "work", "--web", "--bind", "127.0.0.1:0"],
                cwd=BASE_DIR,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        begun = self.log.stat().st_size
        until(lambda: "cc-ci work: ready" in self.said()[begun:], why="never ready")

    def said(self) -> str:
        return self.log.read_text()

    @property
    def address(self) -> str:
        return re.findall(r"Pages on (http://\S+?)/ ", self.said())[-1]

    def stop(self) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill_supervisor(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def all(self) -> list[psutil.Process]:
        """Every process of the tree below the supervisor, dead parents or not."""
        end = f":{self.lock}"
        found = []
        for process in psutil.process_iter():
            try:
                session, _, lock = process.environ().get(MARK, "").partition(":")
                if f":{lock}" == end and os.getsid(process.pid) == int(session) and process.status() != "zombie":
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    @property
    def lock(self) -> Path:
        return self.folder / "work-testhost.lock" if self.database.server else self.database.file.with_suffix(".work")

    def child(self, role: str) -> psutil.Process:
        """The supervisor's child of this role, once it is there."""

        def look() -> psutil.Process | None:
            assert self.process
            for process in psutil.Process(self.process.pid).children():
                try:
                    if process.cmdline()[2:4] == ["controlplane.children", role]:
                        return process
                except (psutil.Error, IndexError):
                    continue
            return None

        return until(look)  # type: ignore[no-any-return]

    def cluster(self) -> list[psutil.Process]:
        """Workers, monitor and pusher, in the order in which they were started."""
        main = self.child("queue")
        sentinel = until(main.children)[0]
        return until(lambda: sorted(found, key=lambda p: p.pid) if len(found := sentinel.children()) == 4 else None)  # type: ignore

    def put(self, *command: str) -> None:
        """Queue a task that runs this command."""
        done = self.command(
            "shell", "-c", f"from django_q.tasks import async_task; async_task('subprocess.call', {list(command)!r})"
        )
        assert done.returncode == 0, done.stderr

    def works_again(self) -> None:
        """Wait until a recurring task runs that was not running yet."""
        look = f"SELECT last_finished_at FROM controlplane_recurringtask WHERE name = '{HEARTBEAT}'"
        before = self.database.run(look)
        self.database.run(f"UPDATE controlplane_recurringtask SET due_at = last_queued_at WHERE name = '{HEARTBEAT}'")
        until(lambda: self.database.run(look) != before, why="no progress")

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        until(lambda: not self.all(), why="processes are left")
        self.database.drop()


@cache
def _migrated() -> Tree:
    """What `cc-ci migrate` makes, once for all trees of this process."""
    folder = Path(tempfile.mkdtemp(prefix="cc-ci-migrated-"))
    atexit.register(shutil.rmtree, folder)
    made = Tree(folder)
    atexit.register(made.database.drop)
    done = made.command("migrate", "--verbosity", "0")
    assert done.returncode == 0, done.stderr
    return made


@contextmanager
def tree(folder: Path) -> Iterator[Tree]:
    """A tree with a migrated database, not started yet."""
    template = _migrated()
    shutil.copytree(template.folder, folder, dirs_exist_ok=True)
    made = Tree(folder, template.database.name)
    try:
        yield made
    finally:
        made.close()
