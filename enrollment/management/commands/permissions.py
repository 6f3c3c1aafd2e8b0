"""`cc-ci permissions`: show what the tokens may do and what the forges can do, as observed; `--refresh` asks again."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from controlplane.cli import NO, OURS, Exit
from controlplane.secrets import SecretUnreadable
from enrollment import permission_report
from enrollment.forge_access import capabilities, permissions, rate_limit
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeError, explain
from enrollment.lookup import find_forge, find_forges, find_repository
from enrollment.models import Forge, Repository, Traffic


class Command(BaseCommand):
    help = "Show what the token may do, what it lacks, and what it does not need. Writes nothing at the forge."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", nargs="?", default="", metavar="OWNER/REPO", help="only this repository")
        parser.add_argument("--forge", default="", metavar="URL", help="only this forge")
        parser.add_argument("--refresh", action="store_true", help="ask the forge now, instead of printing what is known")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        forges = [find_forge(options["forge"])] if options["repository"] else find_forges(options["forge"])
        row = find_repository(options["repository"], forges[0]) if options["repository"] else None
        for forge in forges:
            if options["refresh"]:
                self._refresh(forge, row)
        found = [self._facts(forge, row) for forge in forges]
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=1, default=str))
        else:
            for forge, facts in zip(forges, found, strict=True):
                self._print(forge, row, facts)
        if any(line["level"] == "error" for facts in found for line in facts["rights"]):
            raise Exit(NO)

    def _refresh(self, forge: Forge, row: Repository | None) -> None:
        try:
            client = client_for(forge, rate_limit.Purpose.UPKEEP)
            with rate_limit.patient():
                if row is not None:
                    permissions.keep(forge, permissions.of_repository(row, client), repository=row)
                else:
                    permissions.refresh_all(forge, client, everything=True, seconds=3600)
        except (ForgeError, SecretUnreadable) as error:
            self.stderr.write(explain(error))
            raise Exit(OURS) from error

    @staticmethod
    def _facts(forge: Forge, row: Repository | None) -> dict[str, Any]:
        return {
            "forge": forge.url,
            "rights": [asdict(line) for line in permission_report.lines_of(forge, row)],
            "abilities": [asdict(line) for line in capabilities.lines_of(forge)],
            "trouble": rate_limit.circuit_message(Traffic.objects.filter(forge=forge).first(), timezone.now()),
        }

    def _print(self, forge: Forge, row: Repository | None, facts: dict[str, Any]) -> None:
        self.stdout.write(f"{forge.name}{f', {row.full_name}' if row else ''}: what the token of {forge.bot_login or '?'} may do")
        for line in facts["rights"]:
            counts = ", ".join(f"{count} {held}" for held, count in sorted(line["counts"].items())) or "not seen yet"
            mark = {"ok": " ", "warning": "!", "error": "x"}[line["level"]]
            scope = f"[{line['scope']}]" if line["scope"] else ""
            self.stdout.write(f" {mark} {line['text']:45} {counts:20} {scope:31} {line['meaning']}".rstrip())
        self.stdout.write(f"   {permission_report.NOT_THE_SCOPES}")
        if row is None:
            self.stdout.write(f"what the forge can do (version {forge.version or '?'})")
            for line in facts["abilities"]:
                self.stdout.write(f"   {line['text']:45} {line['value']:20} {line['otherwise']}".rstrip())
        if facts["trouble"]:
            self.stdout.write(f" x {facts['trouble']}")
