"""`cc-ci enroll OWNER/REPO`: start watching a repository."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import OURS, Exit
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeError, NotFound
from enrollment.lookup import find_forge, split_name
from enrollment.models import Repository
from enrollment.repositories import enroll


class Command(BaseCommand):
    help = "Watch repositories for new comments on their pull requests."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", nargs="+", metavar="OWNER/REPO")
        parser.add_argument("--forge", default="", metavar="URL", help="which forge, if there are several")

    def handle(self, *args: Any, **options: Any) -> None:
        forge = find_forge(options["forge"])
        names = [split_name(typed) for typed in options["repository"]]
        for owner, name in names:
            try:
                client = client_for(forge)
                row, changed = enroll(forge, client.repository(owner, name), Repository.Source.HAND, client)
            except NotFound as error:
                raise CommandError(f"{owner}/{name} was not found at {forge.url}. {error.advice}") from error
            except (ForgeError, SecretUnreadable) as error:
                self.stderr.write(str(error))
                raise Exit(OURS) from error
            self.stdout.write(
                f"{row.full_name} is {'now' if changed else 'already'} watched. A maintainer can now comment there: !testme"
            )
