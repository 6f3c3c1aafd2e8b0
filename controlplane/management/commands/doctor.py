"""`cc-ci doctor`: check everything that cc-ci needs, and show what to type if something is missing."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controlplane.cli import NO, Exit
from controlplane.doctor import examine
from controlplane.registry import Finding, registry

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def _as_json(finding: Finding) -> dict[str, Any]:
    """Leave out `rows` if there are none."""
    return {name: value for name, value in asdict(finding).items() if name != "rows" or value}


class Command(BaseCommand):
    help = "Check the database, the queue, the forges, Docker, the sandbox and the disk. Exit code 1 on an error."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print a list of objects")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = examine(registry)
        if options["json"]:
            self.stdout.write(json.dumps([_as_json(finding) for finding in findings], indent=2))
        elif self.stdout.isatty():
            self._table(findings)
        else:
            for finding in findings:
                fix = f"  -> {finding.fix}" if finding.fix else ""
                self.stdout.write(f"{finding.level:<7} {finding.name}: {finding.text}{fix}")
                widths = [max(map(len, column)) for column in zip(*finding.rows, strict=True)]
                for row in finding.rows:
                    cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                    self.stdout.write(f"        {cells}".rstrip())
        if any(finding.level == "error" for finding in findings):
            raise Exit(NO)

    def _table(self, findings: list[Finding]) -> None:
        table = Table("", "What", "Status, and what to type", box=None, pad_edge=False)
        for finding in findings:
            # As Text, so that text from a forge or a file is not parsed as markup.
            words = Text(finding.text, overflow="fold")
            if finding.fix:
                words.append(f"\n{finding.fix}", "bold")
            table.add_row(Text(finding.level, STYLES[finding.level]), Text(finding.name), words)
        console = Console()
        console.print(table)
        for finding in findings:
            if finding.rows:
                head, *rows = finding.rows
                more = Table(*head, title=Text(finding.name), title_justify="left")
                for row in rows:
                    more.add_row(*(Text(cell, overflow="fold") for cell in row))
                console.print(more)
