"""`cc-ci rights`: what the tokens may do and what the forges can do, as it was seen; with `--refresh` asked anew."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from controlplane.cli import NO, OURS, Exit
from controlplane.secrets import SecretUnreadable
from enrollment import abilities, budget, rights, rights_told
from enrollment.clients import client_for
from enrollment.forges.base import ForgeError
from enrollment.models import Forge, Repository, Traffic
from enrollment.naming import NotNamed, find_forge, find_repository


class Command(BaseCommand):
    help = "Print what the token may do, what works less well without it, and what is more than needed. Writes nothing there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", nargs="?", default="", metavar="OWNER/REPO", help="this repository alone")
        parser.add_argument("--forge", default="", metavar="URL", help="this forge alone")
        parser.add_argument("--refresh", action="store_true", help="ask the forge now, instead of printing what is known")
        parser.add_argument("--json", action="store_true", help="for machines")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            one = bool(options["forge"] or options["repository"])
            forges = [find_forge(options["forge"])] if one else list(Forge.objects.filter(enabled=True))
            row = find_repository(options["repository"], forges[0]) if options["repository"] else None
        except NotNamed as error:
            raise CommandError(str(error)) from error
        if not forges:
            raise CommandError("No forge is known yet. Type: cc-ci forge add --url https://git.example.org --token-env VARIABLE")
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
            client = client_for(forge, budget.Purpose.UPKEEP)
            with budget.patient():
                if row is not None:
                    rights.keep(forge, rights.of_repository(row, client), repository=row)
                else:
                    rights.look(forge, client, everything=True, seconds=3600)
        except (ForgeError, SecretUnreadable) as error:
            self.stderr.write(f"{error}. {error.advice}" if isinstance(error, ForgeError) else str(error))
            raise Exit(OURS) from error

    @staticmethod
    def _facts(forge: Forge, row: Repository | None) -> dict[str, Any]:
        return {
            "forge": forge.url,
            "rights": [asdict(line) for line in rights_told.lines_of(forge, row)],
            "abilities": [asdict(line) for line in abilities.lines_of(forge)],
            "trouble": budget.words_on(Traffic.objects.filter(forge=forge).first(), timezone.now()),
        }

    def _print(self, forge: Forge, row: Repository | None, facts: dict[str, Any]) -> None:
        self.stdout.write(f"{forge.name}{f', {row.full_name}' if row else ''}: what the token of {forge.bot_login or '?'} may do")
        for line in facts["rights"]:
            counts = ", ".join(f"{count} {held}" for held, count in sorted(line["counts"].items())) or "not seen yet"
            mark = {"ok": " ", "warning": "!", "error": "x"}[line["level"]]
            scope = f"[{line['scope']}]" if line["scope"] else ""
            self.stdout.write(f" {mark} {line['text']:45} {counts:20} {scope:31} {line['meaning']}".rstrip())
        self.stdout.write(f"   {rights_told.NOT_THE_SCOPES}")
        if row is None:
            self.stdout.write(f"what the forge can do (version {forge.version or '?'})")
            for line in facts["abilities"]:
                self.stdout.write(f"   {line['text']:45} {line['value']:20} {line['otherwise']}".rstrip())
        if facts["trouble"]:
            self.stdout.write(f" x {facts['trouble']}")
