"""`cc-ci configuration`: print docs/configuration.md, or update the table in it."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.configuration import PATH, NoTable, document


class Command(BaseCommand):
    help = "Print every setting, as in docs/configuration.md."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", action="store_true", help="update the table in docs/configuration.md")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["write"] and not PATH.parent.is_dir():
            raise CommandError(f"--write needs a checkout: the folder {PATH.parent} does not exist.")
        try:
            text = document()
        except (NoTable, OSError) as error:
            raise CommandError(str(error)) from error
        if options["write"]:
            PATH.write_text(text)
            self.stdout.write(f"Wrote {PATH}.")
        else:
            self.stdout.write(text)
