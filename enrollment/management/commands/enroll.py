"""`cc-ci enroll OWNER/REPO`: watch a repository from now on."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import OURS, Exit
from controlplane.secrets import SecretUnreadable
from enrollment.clients import client_for
from enrollment.enrolling import enroll
from enrollment.forges.base import ForgeError, NotFound
from enrollment.models import Repository
from enrollment.naming import NotNamed, find_forge, split_name


class Command(BaseCommand):
    help = "Watch repositories: comments on their pull requests that are written from now on are seen."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("repository", nargs="+", metavar="OWNER/REPO")
        parser.add_argument("--forge", default="", metavar="URL", help="which forge, if there are several")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            forge = find_forge(options["forge"])
            names = [split_name(typed) for typed in options["repository"]]
        except NotNamed as error:
            raise CommandError(str(error)) from error
        for owner, name in names:
            try:
                client = client_for(forge)
                row, changed = enroll(forge, client.repository(owner, name), Repository.Source.HAND, client)
            except NotFound as error:
                raise CommandError(f"{owner}/{name} is not to be found at {forge.url}. {error.advice}") from error
            except (ForgeError, SecretUnreadable) as error:
                self.stderr.write(str(error))
                raise Exit(OURS) from error
            self.stdout.write(
                f"{row.full_name} is {'now' if changed else 'already'} watched. A maintainer can write there: !testme"
            )
