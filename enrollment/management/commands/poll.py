"""`cc-ci poll --once`: look at every forge now, in the foreground."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import NO, Exit
from enrollment import polling
from enrollment.budget import forgive
from enrollment.models import Forge


class Command(BaseCommand):
    help = "Look at every forge once. (`cc-ci work` does it all the time.)"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", required=True, help="look once and end")
        parser.add_argument("--now", action="store_true", help="also where a failure asks to wait")
        parser.add_argument("--json", action="store_true", help="for machines")

    def handle(self, *args: Any, **options: Any) -> None:
        forges = list(Forge.objects.filter(enabled=True))
        if not forges:
            raise CommandError("No forge is known yet. Type: cc-ci forge add --url https://git.example.org --token-env VARIABLE")
        looks = []
        for forge in forges:
            if options["now"]:
                forge.backoff_until = None
                forge.save(update_fields=["backoff_until"])
                forgive(forge)
            looks.append(polling.look(forge))
        if options["json"]:
            self.stdout.write(json.dumps([look.as_json() for look in looks], indent=1))
        else:
            for look in looks:
                self.stdout.write(look.words())
                for problem in look.problems:
                    self.stderr.write(f"  {problem}")
        if any(look.problems for look in looks):
            raise Exit(NO)
