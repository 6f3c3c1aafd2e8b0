"""`cc-ci configuration`: print docs/configuration.md, or write it."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.configuration import PATH, document


class Command(BaseCommand):
    help = "Print every setting, as in docs/configuration.md."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", action="store_true", help="write docs/configuration.md")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["write"]:
            if not PATH.parent.is_dir():
                raise CommandError(f"--write needs a checkout: the folder {PATH.parent} does not exist.")
            PATH.write_text(document())
            self.stdout.write(f"Wrote {PATH}.")
        else:
            self.stdout.write(document())
