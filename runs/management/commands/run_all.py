"""`cc-ci run-all`: the scheduled runs of all watched recipes, now."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.cli import OURS, Exit
from controlplane.secrets import SecretUnreadable
from enrollment.forges.base import ForgeError, explain
from enrollment.lookup import find_forges
from enrollment.models import Repository
from runs import scheduled


class Command(BaseCommand):
    help = "Queue the scheduled runs of all watched recipes now, once each."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--extra-tests", action="store_true", help="with the recipes' extra tests")
        parser.add_argument("--forge", default="", help="URL or name of a forge (default: all)")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        found: list[dict[str, Any]] = []
        for row in Repository.objects.watched().filter(forge__in=find_forges(options["forge"])).select_related("forge"):
            try:
                runs, error = scheduled.start(row, extra=options["extra_tests"], by="cc-ci run-all"), ""
            except (ForgeError, SecretUnreadable) as problem:
                runs, error = [], explain(problem)
            queued = [{"id": str(run.pk), "ref": run.ref, "sha": run.sha, "url": run.url} for run in runs]
            found.append({"repository": row.full_name, "runs": queued, "error": error})
            if not options["json"]:
                for run in runs:
                    self.stdout.write(f"{row.full_name}\t{run.ref}\t{run.url}")
                if error:
                    self.stderr.write(f"{row.full_name}: {error}")
        if options["json"]:
            self.stdout.write(json.dumps(found, indent=1, ensure_ascii=False))
        else:
            self.stdout.write(f"{sum(len(entry['runs']) for entry in found)} runs queued for {len(found)} recipes.")
        if any(entry["error"] for entry in found):
            raise Exit(OURS)
