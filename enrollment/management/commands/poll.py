"""`cc-ci poll --once`: poll every forge now, in the foreground."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.cli import NO, Exit
from enrollment.forge_access.rate_limit import forgive
from enrollment.lookup import find_forges
from enrollment.polling import poller


class Command(BaseCommand):
    help = "Poll every forge once. (`cc-ci work` polls continuously.)"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", required=True, help="poll once and exit")
        parser.add_argument("--now", action="store_true", help="also forges that are paused after a failure")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        results = []
        for forge in find_forges():
            if options["now"]:
                forge.backoff_until = None
                forge.save(update_fields=["backoff_until"])
                forgive(forge)
            results.append(poller.poll(forge))
        if options["json"]:
            self.stdout.write(json.dumps([result.as_json() for result in results], indent=1))
        else:
            for result in results:
                self.stdout.write(result.text())
                for problem in result.problems:
                    self.stderr.write(f"  {problem}")
        if any(result.problems for result in results):
            raise Exit(NO)
