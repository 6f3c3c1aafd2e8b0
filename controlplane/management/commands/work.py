"""`cc-ci work`: the worker and, with --web, the web server."""

from __future__ import annotations

import logging
import socket
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.utils import timezone

from controlplane import database, schedules
from controlplane.cli import OURS, Exit
from controlplane.models import Host, RecurringTask
from controlplane.processes import AlreadyRunning, end_left_over, hold
from controlplane.registry import registry
from controlplane.supervisor import Supervisor, listen, lock_path

log = logging.getLogger("controlplane.work")


class Command(BaseCommand):
    help = "Run the task queue, the ticker and, with --web, the web server. Stops on SIGTERM or Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--web", action="store_true", help="also serve the pages")
        parser.add_argument(
            "--bind", default="127.0.0.1:8000", metavar="ADDRESS", help="address to listen on (default: %(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s work   | %(message)s"))
        self._need_migrations()
        lock = lock_path(settings.CC_CI, str(settings.DATABASES["default"]["NAME"]))
        try:
            hold(lock)
        except AlreadyRunning as other:
            self._refuse(self._second(lock, str(other)))
        if ended := end_left_over(lock):
            log.warning("Killed %d processes left behind by an earlier `cc-ci work`.", ended)
        listener = self._listen(options["bind"]) if options["web"] else None
        self._prepare_rows()
        connections.close_all()
        Supervisor(settings.CC_CI, lock, listener).run()

    def _need_migrations(self) -> None:
        try:
            if missing := database.missing():
                self._refuse(f"{missing}.\nRun: cc-ci migrate")
        except database.Unreachable as problem:
            self._refuse(f"the database cannot be reached: {problem}\nRun: cc-ci doctor")

    def _second(self, lock: Path, holder: str) -> str:
        if settings.CC_CI.is_sqlite:
            return (
                f"another `cc-ci work` ({holder}) is already using this SQLite database, which supports only one.\nStop "
                f"it first. Several hosts, or several `work`, need PostgreSQL (DATABASE_URL). Lock: {lock}"
            )
        return (
            f"another `cc-ci work` ({holder}) is already running as host {settings.CC_CI.host}.\nStop it first, or give "
            f"this one another name with CC_CI_HOST. Lock: {lock}"
        )

    def _listen(self, address: str) -> socket.socket:
        try:
            return listen(address)
        except ValueError as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            self._refuse(f"cannot listen on {address}: {error.strerror}\nRun: cc-ci work --web --bind 127.0.0.1:ANOTHER-PORT")

    def _prepare_rows(self) -> None:
        schedules.sync()
        now = timezone.now()
        Host.objects.update_or_create(name=settings.CC_CI.host, defaults={"started_at": now, "worked_at": None})
        heartbeat = schedules.row_name(registry.recurring["controlplane.tasks.heartbeat"])
        RecurringTask.objects.filter(name=heartbeat).update(due_at=now)

    def _refuse(self, message: str) -> NoReturn:
        self.stderr.write(f"cc-ci work cannot start: {message}")
        sys.stderr.flush()
        raise Exit(OURS)
