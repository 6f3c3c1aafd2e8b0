"""`cc-ci list`: list what is watched."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from enrollment.models import Repository


class Command(BaseCommand):
    help = "List the watched repositories."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--all", action="store_true", help="also those no longer watched")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        rows = Repository.objects.select_related("forge")
        if not options["all"]:
            rows = rows.filter(active=True)
        facts = [
            {
                "repository": row.full_name,
                "forge": row.forge.url,
                "watched": row.active,
                "source": row.source,
                "private": row.private,
                "enrolled_at": row.enrolled_at.isoformat(),
                "error": row.last_error,
            }
            for row in rows
        ]
        if options["json"]:
            self.stdout.write(json.dumps(facts, indent=1))
            return
        for fact in facts:
            mark = "" if fact["watched"] else "\t(not watched)"
            self.stdout.write(f"{fact['repository']}\t{fact['forge']}\t{fact['source']}{mark}\t{fact['error']}".rstrip())
        if not facts:
            self.stdout.write("No repositories are watched yet. Run: cc-ci enroll OWNER/REPO")
