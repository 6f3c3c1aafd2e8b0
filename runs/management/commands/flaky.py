"""`cc-ci flaky`: tests that both passed and failed on one commit."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.urls import reverse

from controlplane.untrusted import plain
from enrollment.lookup import find_forge, find_repository
from enrollment.models import Repository
from runs import case_history
from runs.case_history import CaseHistory


class Command(BaseCommand):
    help = "List flaky tests: those that both passed and failed on one commit."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "repository", nargs="?", default="", metavar="OWNER/REPO", help="only this one (default: all watched)"
        )
        parser.add_argument("--forge", default="", help="URL or name of the forge, if there are several")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["repository"]:
            rows = [find_repository(options["repository"], find_forge(options["forge"]))]
        else:
            rows = list(Repository.objects.watched())
        found = [(row, case) for row in rows for case in case_history.sorted_cases(case_history.flaky(row.pk))]
        if options["json"]:
            self.stdout.write(json.dumps([as_json(row, case) for row, case in found], indent=1, ensure_ascii=False))
            return
        for row, history in found:
            case = history.case
            test = plain(f"{case.file}::{case.name}" if case.file else case.name, 200, at_forge=False)
            self.stdout.write(f"{row.full_name}\t{case.stage}\t{test}\t{history.rate}")
        if not found:
            self.stdout.write("No test is known to be flaky.")


def as_json(row: Repository, history: CaseHistory) -> dict[str, Any]:
    """One flaky test, with `failed` of `runs`, and `commits` on which it changed verdict."""
    return {
        "repository": row.full_name,
        **history.case._asdict(),
        "runs": history.runs,
        "failed": history.failed,
        "commits": history.changed,
        "url": settings.CC_CI.base_url + reverse("test-history", args=[row.pk]),
    }
