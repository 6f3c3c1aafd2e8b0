"""`cc-ci schedules`: list recurring tasks, when they are due, and how their last run went."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controlplane import schedules
from controlplane.cli import NO, Exit
from controlplane.models import RecurringTask
from controlplane.registry import registry


class Command(BaseCommand):
    help = "List the recurring tasks. With --run, run one now; with --sync, write the program's table to the database."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--sync", action="store_true", help="write the program's table to the database (migrate does so, too)"
        )
        parser.add_argument("--run", metavar="NAME", help="run this task now, in this process, and print its result")
        parser.add_argument("--json", action="store_true", help="print a list of objects")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["sync"]:
            schedules.sync()
        if options["run"]:
            self._run(options["run"])
            return
        rows = list(RecurringTask.objects.all())
        if options["json"]:
            self.stdout.write(json.dumps([_as_dict(row) for row in rows], indent=2))
        elif self.stdout.isatty():
            self._table(rows)
        else:
            for row in rows:
                due = "off" if not row.enabled else _time(row.due_at)
                last = f"last {_time(row.last_finished_at)}, took {_seconds(row.last_seconds)}"
                self.stdout.write(
                    f"{row.name}: every {row.every_seconds:g} s, due {due}, {last}  {row.last_error or row.last_result}"
                )

    def _run(self, name: str) -> None:
        known = {schedules.row_name(task) for task in registry.recurring.values()} | set(registry.recurring)
        if name not in known:
            raise CommandError(f"unknown recurring task {name}. Known: {', '.join(sorted(known))}")
        try:
            words = schedules.run_recurring(schedules.row_name(registry.recurring[name.partition("@")[0]]))
        except Exception:  # recorded and logged by `run_recurring`
            raise Exit(NO) from None
        self.stdout.write(words or "done")

    def _table(self, rows: list[RecurringTask]) -> None:
        table = Table("Name", "Every", "Due", "Last run", "Took", "Last result or error", box=None, pad_edge=False)
        for row in rows:
            said = Text(row.last_error, "bold red") if row.last_error else Text(row.last_result)
            due = "off" if not row.enabled else _time(row.due_at)
            table.add_row(
                row.name, f"{row.every_seconds:g} s", due, _time(row.last_finished_at), _seconds(row.last_seconds), said
            )
        Console().print(table)


def _as_dict(row: RecurringTask) -> dict[str, Any]:
    return {
        "name": row.name,
        "text": registry.recurring[row.name.partition("@")[0]].text if row.name.partition("@")[0] in registry.recurring else "",
        "every_seconds": row.every_seconds,
        "enabled": row.enabled,
        "due_at": row.due_at.isoformat(),
        "last_finished_at": row.last_finished_at.isoformat() if row.last_finished_at else None,
        "last_seconds": row.last_seconds,
        "last_result": row.last_result,
        "last_error": row.last_error,
        "last_error_at": row.last_error_at.isoformat() if row.last_error_at else None,
    }


def _time(value: datetime | None) -> str:
    return timezone.localtime(value).strftime("%Y-%m-%d %H:%M:%S") if value else "never"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
