"""`cc-ci forge add|list`: the forges that are watched."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError

from controlplane.cli import OURS, Exit
from enrollment.enrolling import add_forge, bare
from enrollment.forges.base import ForgeError, Unauthorized
from enrollment.models import Forge


class Command(BaseCommand):
    help = "Add a forge, or give it a new token; list the forges."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="add|list")
        add = actions.add_parser("add", help="add a Gitea or Forgejo server, or give it a new token")
        add.add_argument("--url", required=True, help="its address, such as https://git.example.org")
        # Never the token itself: arguments are seen by every user of a machine, and kept in the shell's history.
        add.add_argument("--token-env", required=True, metavar="VARIABLE", help="name of the environment variable with the token")
        add.add_argument("--name", default="", help="what to call it here (default: its host)")
        add.add_argument(
            "--owner",
            action="append",
            default=[],
            help="also enrol this owner's repositories that carry the topic; may be repeated",
        )
        actions.add_parser("list", help="list the forges and how they stand")

    def handle(self, *args: Any, **options: Any) -> None:
        {"add": self._add, "list": self._list}[options["action"]](options)

    def _add(self, options: dict[str, Any]) -> None:
        token = os.environ.get(options["token_env"], "").strip()
        if not token:
            raise CommandError(
                f"The environment variable {options['token_env']} is empty or not set. Type, for example:\n"
                f"  read -rs {options['token_env']} && export {options['token_env']}"
            )
        try:
            url = bare(options["url"])
        except ValueError as error:
            raise CommandError(str(error)) from error
        name = options["name"] or urlsplit(url).netloc
        if taken := Forge.objects.filter(name=name).exclude(url=url).first():
            raise CommandError(f"{name} is the name of {taken.url} already: give this one another, with --name.")
        try:
            forge, made = add_forge(options["url"], token, options["name"])
        except Unauthorized as error:
            raise CommandError(f"{error}\n{error.advice}\nNothing was changed.") from error
        except ForgeError as error:
            self.stderr.write(f"{error}\n{error.advice}\nNothing was changed.")
            raise Exit(OURS) from error
        if options["owner"]:
            forge.watched_owners = sorted({*forge.watched_owners, *options["owner"]})
            forge.save(update_fields=["watched_owners"])
        self.stdout.write(
            f"{'Added' if made else 'Updated'} {forge.name}: version {forge.version}, cc-ci is {forge.bot_login} there."
        )
        self.stdout.write("Next: cc-ci enroll OWNER/REPO")

    def _list(self, options: dict[str, Any]) -> None:
        for forge in Forge.objects.all():
            state = forge.last_error or ("well" if forge.last_ok_at else "not looked at yet")
            self.stdout.write(f"{forge.name}\t{forge.url}\tas {forge.bot_login or '?'}\t{state}")
        if not Forge.objects.exists():
            self.stdout.write("No forge yet. Type: cc-ci forge add --url https://git.example.org --token-env VARIABLE")
