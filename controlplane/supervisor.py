"""`cc-ci work`: a process tree that starts and dies as a whole, and restarts parts that stop making progress.

The supervisor has three children, each in its own process group: the queue (django-q's cluster), the ticker (queues due tasks)
and, with `--web`, the web server. It never talks to the database, so a hanging database cannot block it: the ticker reports the
queue's progress over a pipe.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.config import BASE_DIR, MARK, Config
from controlplane.processes import has_ended, kill_group, mark, reap_strangers

log = logging.getLogger("controlplane.work")

#: Seconds without any task, beyond the time limit of one task, after which the queue counts as stalled. A
#: heartbeat task is queued every 5 s; while all workers are busy it may wait as long as one task may last.
STALL_MARGIN = 30
#: Seconds of silence after which the ticker is assumed to hang in a database call.
TICKER_SILENCE = 60
#: A child that lived this long is restarted at once; one that keeps dying waits longer each time, up to the second value.
LIVED_WELL, LONGEST_WAIT = 20, 30


def lock_path(config: Config, database: str) -> Path:
    """The lock file against a second `cc-ci work`: one for each SQLite database, or for each host on PostgreSQL."""
    if config.is_sqlite:
        return Path(database).resolve().with_suffix(".work")
    return config.data_dir.resolve() / f"work-{config.host}.lock"


def listen(address: str) -> socket.socket:
    """Listen on `127.0.0.1:8000` or `[::1]:8000`. Raises ValueError for an invalid address, or OSError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--bind {address}: must look like 127.0.0.1:8000 or [::1]:8000")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family, backlog=128)


class Progress:
    """How long the queue has been idle with work to do; time without a database does not count.

    While SQLite is locked, time counts: what holds the lock may be a process of the queue that hangs.
    """

    LONGEST_STEP, LONGEST_LOCK = 2.0, 30.0

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.idle = 0.0
        self.worked = False
        self._worked_at = ""
        self._seen: float | None = None

    def queue_started(self) -> None:
        self.idle, self.worked, self._seen = 0.0, False, None

    def saw(self, worked_at: str, now: float) -> None:
        """The ticker read when a task last started; `now` is from a monotonic clock."""
        if worked_at != self._worked_at:
            self._worked_at, self.idle, self.worked, self._seen = worked_at, 0.0, bool(worked_at), None
        self._count(now, self.LONGEST_STEP)

    def saw_lock(self, now: float) -> None:
        """The ticker waited for SQLite's lock in vain, which takes it some 20 s."""
        self._count(now, self.LONGEST_LOCK)

    def _count(self, now: float, longest: float) -> None:
        if self._seen is not None:
            self.idle += min(now - self._seen, longest)  # a suspended host was not idle
        self._seen = now

    def saw_nothing(self) -> None:
        self._seen = None

    @property
    def stalled(self) -> bool:
        return self.idle > self.limit


@dataclass
class Child:
    """One of the supervisor's children, across restarts."""

    role: str
    words: tuple[str, ...] = ()
    keep_open: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    reports: int = -1
    unread: bytes = b""
    ready: bool = False
    started: float = 0
    heard: float = 0
    failures: int = 0
    not_before: float = field(default=0)

    @property
    def running(self) -> bool:
        return self.process is not None

    def start(self, environment: dict[str, str]) -> None:
        self.reports, writing = os.pipe()
        os.set_blocking(self.reports, False)
        command = [
            sys.executable,
            "-m",
            "controlplane.children",
            self.role,
            str(os.getpid()),
            str(writing),
            *self.words,
        ]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=BASE_DIR,
                process_group=0,
                pass_fds=(writing, *self.keep_open),
            )
        finally:
            os.close(writing)
        self.started = self.heard = time.monotonic()
        self.ready, self.unread = False, b""

    def has_ended(self) -> bool:
        return self.process is not None and has_ended(self.process.pid)

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def bury(self) -> int:
        """Kill the whole group, wait for its leader, and return the leader's exit code."""
        assert self.process is not None
        kill_group(self.process.pid)
        code = self.process.wait()
        os.close(self.reports)
        self.process, self.reports, self.ready = None, -1, False
        return code

    def read(self) -> list[dict[str, object]]:
        """The child's reports since the last call."""
        try:
            data = os.read(self.reports, 65536)
        except BlockingIOError:
            return []
        *lines, self.unread = (self.unread + data).split(b"\n")
        if lines:
            self.heard = time.monotonic()
        return [json.loads(line) for line in lines]


class Supervisor:
    """Keeps the children running until it is told to stop."""

    def __init__(self, config: Config, lock: Path, listener: socket.socket | None = None) -> None:
        self._config = config
        self._environment = {**os.environ, MARK: mark(lock), "DJANGO_SETTINGS_MODULE": "controlplane.settings"}
        self._environment.pop("Q_CLUSTER_NAME", None)  # would give the queue a different name than its writers use
        self.queue = Child("queue", ("0",))
        self.ticker = Child("ticker")
        self.children = [self.queue, self.ticker]
        if listener is not None:
            self.children.append(Child("web", (str(listener.fileno()),), (listener.fileno(),)))
        self._listener = listener
        self._progress = Progress(config.queue_timeout + STALL_MARGIN)
        self._asked_to_stop = 0
        self._said_ready = False

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then stop gracefully; a second signal kills everything at once."""
        self._watch_signals()
        while not self._asked_to_stop:
            for child in self.children:
                self._tend(child)
            self._wait(0.5)
            self._judge()
            reap_strangers({child.process.pid for child in self.children if child.process})
        log.info("Stopping; running tasks may finish. Press Ctrl-C again to kill them.")
        self._end([child for child in self.children if child is not self.queue], 10)
        self._end([self.queue], self._config.queue_timeout + 10)
        log.info("Stopped.")

    def _tend(self, child: Child) -> None:
        """Start the child, or restart it if it has exited."""
        now = time.monotonic()
        if child.has_ended():
            lived = now - child.started
            code = child.bury()
            child.failures = 0 if lived > LIVED_WELL else child.failures + 1
            pause = 0 if child.failures <= 1 else min(2.0 ** (child.failures - 2), LONGEST_WAIT)
            child.not_before = now + pause
            log.warning("The %s exited (%s); restarting%s.", child.role, code, f" in {pause:.0f} s" if pause else "")
        if not child.running and now >= child.not_before:
            child.start(self._environment)
            if child is self.queue:
                self._progress.queue_started()
                child.words = ("0",)

    def _judge(self) -> None:
        """Process the children's reports; restart a stalled queue or a hanging ticker."""
        now = time.monotonic()
        for child in self.children:
            for said in child.read() if child.running else []:
                child.ready = child.ready or "error" not in said
                if "worked_at" in said:
                    self._progress.saw(str(said["worked_at"]), now)
                elif said.get("locked"):
                    self._progress.saw_lock(now)
                elif "error" in said:
                    self._progress.saw_nothing()
        if self.queue.running and self._progress.stalled:
            log.error("No task has run for %.0f s: restarting the stalled queue.", self._progress.idle)
            self.queue.words = ("1",)
            self._kill(self.queue)
            self._progress.queue_started()
        if self.ticker.running and now - self.ticker.heard > TICKER_SILENCE:
            log.error("No report from the ticker for %d s: restarting it.", TICKER_SILENCE)
            self._kill(self.ticker)
        if not self._said_ready and self._progress.worked and all(child.ready for child in self.children[1:]):
            self._said_ready = True
            self._say_ready()

    def _say_ready(self) -> None:
        log.info("%d workers, host %s, data in %s", self._config.workers, self._config.host, self._config.data_dir)
        if self._listener is not None:
            host, port = self._listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            log.info("Pages on http://%s/ (public at %s/), admin at /admin/", address, self._config.base_url)
        log.info("cc-ci work: ready")

    def _end(self, children: Iterable[Child], seconds: float) -> None:
        """SIGTERM, wait up to `seconds` (or for a second signal), then SIGKILL what is left of their groups."""
        remaining = [child for child in children if child.running]
        for child in remaining:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while remaining and time.monotonic() < deadline and self._asked_to_stop < 2:
            self._wait(0.2)
            for child in [child for child in remaining if child.has_ended()]:
                child.bury()
                remaining.remove(child)
        for child in remaining:
            log.warning("Killing the %s.", child.role)
            child.bury()

    def _kill(self, child: Child) -> None:
        assert child.process is not None
        kill_group(child.process.pid)

    def _watch_signals(self) -> None:
        self._woken, waker = os.pipe()
        for handle in (self._woken, waker):
            os.set_blocking(handle, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # respect nohup
                signal.signal(number, self._stop_asked)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes the loop

    def _stop_asked(self, number: int, frame: object) -> None:
        self._asked_to_stop += 1

    def _wait(self, seconds: float) -> None:
        """Wait for a signal, or until the time is up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            if selector.select(seconds):
                try:
                    os.read(self._woken, 4096)
                except BlockingIOError:
                    pass
