"""`cc-ci unenroll OWNER/REPO`: stop watching a repository."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from enrollment.lookup import find_forge, find_repository
from enrollment.repositories import unenroll


class Command(BaseCommand):
    help = "Stop watching a repository, even if it carries the topic. Its runs are kept."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", metavar="OWNER/REPO")
        parser.add_argument("--forge", default="", metavar="URL", help="which forge, if there are several")

    def handle(self, *args: Any, **options: Any) -> None:
        row = find_repository(options["repository"], find_forge(options["forge"]))
        unenroll(row)
        self.stdout.write(f"{row.full_name} is no longer watched.")
