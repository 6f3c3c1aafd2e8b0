"""`cc-ci unenroll OWNER/REPO`: watch a repository no longer."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from enrollment.enrolling import unenroll
from enrollment.naming import NotNamed, find_forge, find_repository


class Command(BaseCommand):
    help = "Watch a repository no longer, also if it carries the topic. Its runs stay."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", metavar="OWNER/REPO")
        parser.add_argument("--forge", default="", metavar="URL", help="which forge, if there are several")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            row = find_repository(options["repository"], find_forge(options["forge"]))
        except NotNamed as error:
            raise CommandError(str(error)) from error
        unenroll(row)
        self.stdout.write(f"{row.full_name} is no longer watched.")
