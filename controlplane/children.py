"""The three processes below the supervisor: queue, ticker, web.

Started as `python -m controlplane.children ROLE PARENT REPORT …`: PARENT is the supervisor's process id, with which this process
dies, and REPORT a pipe for one JSON object per line: `{"ready": true}`, or the ticker's observations.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

from controlplane.processes import die_with_parent, forks_die_with_parent

log = logging.getLogger("controlplane.work")
TICK_SECONDS = 0.5


class Report:
    """The write end of the pipe to the supervisor."""

    def __init__(self, handle: int) -> None:
        os.set_inheritable(handle, False)  # processes started by tasks must not inherit it
        self._handle = handle

    def __call__(self, **facts: Any) -> None:
        os.write(self._handle, json.dumps(facts).encode() + b"\n")


def queue(report: Report, restart: str) -> None:
    """Run django-q's cluster. `restart` is "1" if the previous one had stopped making progress."""
    from django.db.models import F
    from django.utils.module_loading import import_string
    from django_q.cluster import Cluster

    from controlplane.models import Host
    from controlplane.registry import registry

    host = Host.objects.filter(name=_host())
    if restart == "1":
        _when_the_database_answers(lambda: host.update(restarts=F("restarts") + 1))
    _when_the_database_answers(_give_back)
    _end_whole_when_one_is_killed()
    forks_die_with_parent()
    for task in registry.recurring.values():
        import_string(task.task)  # the workers are forks: else each of them, and each that follows it, would import all of it
    Cluster().start()


def _is_lock(error: Exception) -> bool:
    """Whether a query failed because somebody else held SQLite's lock, in whatever way (the code's first byte)."""
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    return isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_BUSY


def ticker(report: Report) -> None:
    """Queue due tasks twice a second, and report the state of the database and the queue to the supervisor."""
    from django.db import connection

    from controlplane import schedules
    from controlplane.models import Host

    trouble, pause = "", TICK_SECONDS
    while True:
        try:
            schedules.tick()
            worked_at = Host.objects.values_list("worked_at", flat=True).get(name=_host())
            report(worked_at=worked_at.isoformat() if worked_at else "")
            if trouble:
                log.info("The database responds again.")
            trouble, pause = "", TICK_SECONDS
        except Exception as error:
            report(error=type(error).__name__, locked=_is_lock(error))
            words = " ".join(str(error).split())
            if words != trouble:
                trouble = words
                log.warning("Cannot queue tasks: %s: %s", type(error).__name__, trouble)
            connection.close()
            pause = min(pause * 2, 5)
        time.sleep(pause)


def web(report: Report, listener: str) -> None:
    """Serve the pages on the supervisor's listening socket, which outlives this process, so no connection is refused."""
    from controlplane import webserver
    from controlplane.registry import registry
    from controlplane.wsgi import application

    webserver.serve(application, socket.socket(fileno=int(listener)), registry.judge, lambda: report(ready=True))


def _host() -> str:
    from django.conf import settings

    return str(settings.CC_CI.host)


def _give_back() -> None:
    """Release tasks claimed by a dead cluster now, not after `retry`: nobody else serves this queue."""
    from django.utils import timezone
    from django_q.conf import Conf
    from django_q.models import OrmQ

    OrmQ.objects.filter(key=Conf.CLUSTER_NAME, lock__gt=timezone.now()).update(lock=timezone.now())


def _when_the_database_answers(function: Callable[[], object]) -> None:
    from django.db import DatabaseError, connection

    said = False
    while True:
        try:
            function()
            return
        except DatabaseError as error:
            if not said:
                log.warning("The queue is waiting for the database: %s", str(error).strip())
            said = True
            connection.close()
            time.sleep(1)


def _end_whole_when_one_is_killed() -> None:
    """Stop the cluster when one of its processes was killed; the supervisor then starts a new one.

    django-q would replace the process. But one killed while waiting on the shared queue still holds its lock; the cluster
    then stays up, with all its processes, and does nothing. A worker that exceeds its time limit exits by itself and is replaced
    normally.
    """
    from django_q import cluster

    class Sentinel(cluster.Sentinel):  # type: ignore[misc]
        def reincarnate(self, process: Any) -> None:
            if process.exitcode is not None and process.exitcode < 0:
                log.error("A queue process was killed (signal %d).", -process.exitcode)
                os._exit(1)  # the kernel kills the others with this one
            super().reincarnate(process)

    cluster.Sentinel = Sentinel


def main() -> None:
    role, parent, handle, *rest = sys.argv[1:]
    die_with_parent(int(parent))
    report = Report(int(handle))

    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    django.setup()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s {role:<6} | %(message)s"))
    logging.captureWarnings(True)
    {"queue": queue, "ticker": ticker, "web": web}[role](report, *rest)  # type: ignore[operator]


if __name__ == "__main__":
    main()
