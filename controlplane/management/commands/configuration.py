"""`cc-ci configuration`: print docs/configuration.md, or write it anew."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from controlplane.configuration import PATH, document


class Command(BaseCommand):
    help = "Print what can be set, as docs/configuration.md has it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", action="store_true", help="write docs/configuration.md")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["write"]:
            PATH.write_text(document())
            self.stdout.write(f"Wrote {PATH}.")
        else:
            self.stdout.write(document())
